"""The order of a list under boosts, pins, caps and quotas, against a list that is filled by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from headwater.policy.diversity import LEAST_WINDOW, OWN, diversified, relevance, window
from headwater.policy.exploration import Lottery, Promise
from headwater.policy.order import Capped, Diverse, Ordered, Pinned, Policy, Required, Weighed, apply_policy
from headwater.testing.policy_oracle import SlowPolicy, diversify_slowly, order_slowly, spread_slowly
from tests.features.states import STABLE

NOBODY = 0


def mask(chosen: set[int], n: int) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(n), list(chosen))


def ordered(
    scores: Sequence[float],
    k: int,
    slow: SlowPolicy,
    ties: Sequence[int] | None = None,
    lottery: Lottery | None = None,
    promise: Promise | None = None,
) -> Ordered:
    """``apply_policy`` of the same policy in arrays."""
    n = len(scores)
    caps = []
    for values_of, at_most in slow.capped:
        codes = np.zeros((n, 3), np.uint32)
        for row, values in zip(codes, values_of, strict=True):
            given_twice = [*values, *values][:3]  # a value that stands there twice counts once
            row[: len(given_twice)] = given_twice
        caps.append(Capped(codes, at_most))
    policy = Policy(
        [Weighed(mask(chosen, n), factor) for chosen, factor in slow.weighed],
        [Pinned(mask(chosen, n), position) for chosen, position in slow.pinned],
        caps,
        [Required(mask(chosen, n), at_least, within) for chosen, at_least, within in slow.required],
        lottery=lottery,
        promise=promise,
    )
    return apply_policy(np.array(scores, np.float32), np.array(ties or range(n), np.int64), k, policy)


@st.composite
def worlds(draw: st.DrawFn, most: int = 12) -> tuple[list[float], list[int], int, SlowPolicy]:
    n = draw(st.integers(0, most))
    scores = draw(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]), min_size=n, max_size=n))
    ties = draw(st.permutations(range(n)))
    some = st.sets(st.integers(0, max(n - 1, 0)), max_size=6)
    values = st.sets(st.integers(1, 4), max_size=3)
    policy = SlowPolicy(
        draw(st.lists(st.tuples(some, st.sampled_from([0.5, 1.5, 4.0])), max_size=2)),
        draw(st.lists(st.tuples(some, st.integers(1, 6)), max_size=3)),
        draw(st.lists(st.tuples(st.lists(values, min_size=n, max_size=n), st.integers(1, 3)), max_size=2)),
        draw(
            st.lists(
                st.tuples(some, st.integers(1, 3), st.integers(3, 8)),
                max_size=2,
            )
        ),
    )
    return scores, ties, draw(st.integers(1, 10)), policy


@STABLE
@given(worlds())
def test_the_order_is_that_of_a_list_filled_by_hand(world: tuple[list[float], list[int], int, SlowPolicy]) -> None:
    scores, ties, k, policy = world
    found = ordered(scores, k, policy, ties)
    assert found.positions.tolist() == order_slowly(scores, ties, k, policy)
    assert found.positions.dtype == np.int64


@STABLE
@given(worlds())
def test_what_each_kind_of_rule_promises(world: tuple[list[float], list[int], int, SlowPolicy]) -> None:
    scores, ties, k, policy = world
    shown = ordered(scores, k, policy, ties).positions.tolist()
    assert len(set(shown)) == len(shown) <= min(k, len(scores))
    only_caps = SlowPolicy(policy.weighed, (), policy.capped, ())
    for values_of, at_most in policy.capped:
        listed = [value for c in ordered(scores, k, only_caps, ties).positions.tolist() for value in values_of[c]]
        assert all(listed.count(value) <= at_most for value in set(listed))
    for chosen, at_least, within in policy.required[:1]:
        alone = SlowPolicy(policy.weighed, (), (), policy.required[:1])
        got = ordered(scores, k, alone, ties).positions.tolist()
        assert sum(c in chosen for c in got[:within]) >= min(at_least, len(chosen), within, len(got))
    for chosen, position in policy.pinned[:1]:
        if chosen and position <= min(k, len(scores)):
            alone = SlowPolicy(policy.weighed, policy.pinned[:1], (), policy.required)
            assert ordered(scores, k, alone, ties).positions[position - 1] in chosen


SCORES = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_no_rules_is_the_order_of_scores() -> None:
    assert ordered([1.0, 3.0, 2.0, 3.0], 3, SlowPolicy()).positions.tolist() == [1, 3, 2]


def test_a_boost_lifts_scores_above_and_below_zero() -> None:
    found = ordered([1.0, 0.8], 2, SlowPolicy(weighed=[({1}, 2.0)]))
    assert (found.positions.tolist(), found.weighed) == ([1, 0], [1])
    assert ordered([-1.0, -1.5], 2, SlowPolicy(weighed=[({1}, 2.0)])).positions.tolist() == [1, 0]
    assert ordered([-1.0, -1.5], 2, SlowPolicy(weighed=[({0}, 0.1)])).positions.tolist() == [1, 0]


def test_pins_stand_where_they_were_put_and_the_earlier_goes_first() -> None:
    found = ordered(SCORES, 4, SlowPolicy(pinned=[({5}, 2), ({4}, 2), (set(), 1)]))
    assert (found.positions.tolist(), found.pinned) == ([0, 5, 4, 1], [1, 1, 0])


def test_a_pin_behind_the_end_closes_up() -> None:
    slow = SlowPolicy(pinned=[({5}, 4)], capped=[([{1}, {1}, {1}, {1}, {1}, set()], 2)])
    assert ordered(SCORES, 6, slow).positions.tolist() == [0, 1, 5]


def test_a_cap_counts_what_it_kept_out() -> None:
    found = ordered(SCORES, 3, SlowPolicy(capped=[([{1}, {1}, {1}, {2}, {2}, set()], 1)]))
    assert (found.positions.tolist(), found.capped) == ([0, 3, 5], [2])


def test_a_quota_brings_in_what_it_needs_and_no_more() -> None:
    found = ordered(SCORES, 4, SlowPolicy(required=[({4, 5}, 1, 3)]))
    assert (found.positions.tolist(), found.required) == ([0, 1, 4, 2], [1])
    assert ordered(SCORES, 4, SlowPolicy(required=[({0}, 1, 3)])).required == [0]


@STABLE
@given(st.integers(0, 14), st.integers(1, 10), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 1_000))
def test_diversity_is_marginal_relevance_one_by_one(n: int, k: int, weight: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.choice([-1.0, 0.0, 0.5, 2.0], n)
    vectors = random.normal(size=(n, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[random.random(n) < 0.2] = 0.0
    order = np.lexsort((np.arange(n), -scores))
    found = diversified(order, scores, vectors[order], k, weight, "mmr")
    similarity = vectors[order] @ vectors[order].T
    assert found.tolist() == diversify_slowly(order.tolist(), scores[order].tolist(), similarity.tolist(), k, weight)
    if weight == 0.0:
        assert found.tolist() == order.tolist()


def test_diversity_takes_what_differs_and_pins_come_behind_it() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    scores, ties = np.array([4.0, 3.0, 2.0, 1.0], np.float32), np.arange(4)
    pin = Pinned(mask({3}, 4), 1)
    different = Policy(diverse=lambda order: Diverse(vectors[order], 0.5))
    assert apply_policy(scores, ties, 3, different).positions.tolist() == [0, 2, 1]
    pinned = Policy(pinned=[pin], diverse=lambda order: Diverse(vectors[order], 0.5))
    assert apply_policy(scores, ties, 3, pinned).positions.tolist() == [3, 0, 2]


def test_what_ranks_far_below_is_not_looked_at() -> None:
    n = LEAST_WINDOW + 20
    assert window(n, 5) == LEAST_WINDOW
    assert window(n, 30) == n
    vectors = np.zeros((LEAST_WINDOW, 2), np.float32)
    for method in ("mmr", "dpp"):
        found = diversified(np.arange(n), -np.arange(n, dtype=np.float64), vectors, 5, 0.9, method)
        assert found.tolist() == list(range(n))


@STABLE
@given(st.integers(1, 12), st.integers(1, 8), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 1_000))
def test_the_point_process_takes_what_adds_most_to_the_determinant(n: int, k: int, weight: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.sort(random.normal(size=n))[::-1]
    vectors = random.normal(size=(n, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[random.random(n) < 0.2] = 0.0
    vectors[random.random(n) < 0.2] = vectors[0]  # the same content more than once, more items than dimensions
    found = diversified(np.arange(n), scores, vectors, k, weight, "dpp").tolist()
    similarity = (1.0 - OWN) * vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(similarity, 1.0)
    relevant = relevance(scores).tolist()
    k = min(k, n)
    for place in range(k):
        worth = {
            c: spread_slowly(relevant, similarity, [*found[:place], c], weight)
            for c in range(n)
            if c not in found[:place]
        }
        assert worth[found[place]] >= max(worth.values()) - 1e-6
    assert found[k:] == sorted(found[k:])
    assert sorted(found) == list(range(n))


def test_the_point_process_sees_the_whole_list_where_marginal_relevance_sees_the_nearest() -> None:
    # the third lies between the first two, no nearer to either than the fourth is to the first
    between = np.array([np.sqrt(0.5), np.sqrt(0.5), 0.0])
    vectors = np.array([[1, 0, 0], [0, 1, 0], between, [0.72, 0.0, np.sqrt(1 - 0.72**2)]], np.float32)
    scores, ties = np.array([4.0, 3.99, 3.98, 3.97], np.float32), np.arange(4)
    mmr = Policy(diverse=lambda order: Diverse(vectors[order], 0.9))
    dpp = Policy(diverse=lambda order: Diverse(vectors[order], 0.9, "dpp"))
    assert apply_policy(scores, ties, 3, mmr).positions.tolist() == [0, 1, 2]
    assert apply_policy(scores, ties, 3, dpp).positions.tolist() == [0, 1, 3]
    pin, cap = Pinned(mask({2}, 4), 1), Capped(np.array([[1], [2], [3], [1]], np.uint32), 1)
    ruled = Policy(pinned=[pin], capped=[cap], diverse=lambda order: Diverse(vectors[order], 0.9, "dpp"))
    assert apply_policy(scores, ties, 3, ruled).positions.tolist() == [2, 0, 1]
