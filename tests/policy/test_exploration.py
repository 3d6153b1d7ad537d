"""Lists that are drawn by lot: the logged probabilities against every list that there could be, and against how often each comes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.policy.diversity import Method
from headwater.policy.exploration import Lottery, Promise, drawn_lot, promised_places, seed_of
from headwater.policy.order import Diverse, Policy, apply_policy
from headwater.testing.policy_oracle import SlowPolicy, lists_slowly, order_slowly
from tests.features.states import STABLE
from tests.policy.test_order import ordered, worlds

SCORES = [3.0, 2.5, 2.0, 1.0, 0.5, -1.0]
FREE = SlowPolicy()
# one group is capped, the second place is taken, and a quota forces its hand as the list goes on
TIED = SlowPolicy(
    weighed=[({4}, 3.0)],
    pinned=[({3}, 2)],
    capped=[([{1}, {1}, {2}, {2}, {3}, set()], 1)],
    required=[({1, 4, 5}, 2, 4)],
)


@STABLE
@given(worlds(most=6), st.integers(2, 7), st.sampled_from([0.05, 0.3, 5.0]), st.integers(0, 2**64 - 1))
def test_a_drawn_list_is_one_of_those_and_its_probability_is_exact(
    world: tuple[list[float], list[int], int, SlowPolicy], candidates: int, temperature: float, seed: int
) -> None:
    scores, ties, k, policy = world
    k = min(k, 3)
    lists = lists_slowly(scores, ties, k, policy, candidates, temperature)
    assert sum(math.prod(chances) for chances in lists.values()) == pytest.approx(1.0)
    for number in range(4):
        lottery = Lottery(candidates, temperature, (seed + number) % 2**64)
        found = ordered(scores, k, policy, ties, lottery)
        shown = tuple(found.positions.tolist())
        assert shown in lists
        assert np.exp(found.log_propensities) == pytest.approx(lists[shown])
        assert (
            found.drawn_from.tolist()
            == order_slowly(scores, ties, len(scores), SlowPolicy(policy.weighed))[:candidates]
        )
        again = ordered(scores, k, policy, ties, lottery)
        assert again.positions.tolist() == list(shown), "the same lot draws the same list"


@st.composite
def promises(draw: st.DrawFn, n: int, k: int) -> tuple[list[int], dict[int, float]]:
    """Promised places of a list of ``k``, and the chances of some of ``n`` candidates."""
    places = draw(st.lists(st.integers(0, k - 1), max_size=k, unique=True))
    chosen = draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else []
    parts = draw(st.lists(st.sampled_from([0.05, 0.2, 0.5]), min_size=len(chosen), max_size=len(chosen)))
    total = draw(st.sampled_from([0.1, 0.6, 1.0]))
    return sorted(places), {c: total * part / sum(parts) for c, part in zip(chosen, parts, strict=True)}


def kept(policy: SlowPolicy, seed: int) -> Promise:
    numbers = np.array(list(policy.chances), np.int64)
    return Promise(np.array(policy.promised, np.int64), numbers, np.array(list(policy.chances.values())), seed)


@STABLE
@given(st.data(), worlds(most=6), st.sampled_from([0, 3, 7]), st.integers(0, 2**64 - 1))
def test_a_promised_place_has_the_probability_of_both_ways_to_it(
    data: st.DataObject, world: tuple[list[float], list[int], int, SlowPolicy], candidates: int, seed: int
) -> None:
    scores, ties, k, rules = world
    k = min(k, 3)
    places, chances = data.draw(promises(len(scores), k))
    policy = replace(rules, promised=places, chances=chances)
    lists = lists_slowly(scores, ties, k, policy, candidates, 0.5)
    assert sum(math.prod(each) for each in lists.values()) == pytest.approx(1.0)
    for number in range(4):
        own = (seed + number) % 2**64
        lottery = Lottery(candidates, 0.5, own ^ 0xFFFF) if candidates else None
        found = ordered(scores, k, policy, ties, lottery, kept(policy, own))
        shown = tuple(found.positions.tolist())
        assert shown in lists
        assert np.exp(found.log_propensities) == pytest.approx(lists[shown])
        assert (found.chances <= 1.0 + 1e-9).all()
        assert all(c in chances for c in found.positions[found.kept].tolist())
        again = ordered(scores, k, policy, ties, lottery, kept(policy, own))
        assert again.positions.tolist() == list(shown)


PROMISED = replace(TIED, promised=[0, 2], chances={4: 0.3, 1: 0.2, 5: 0.1})


@pytest.mark.parametrize(
    ("policy", "k", "candidates"), [(FREE, 3, 4), (TIED, 4, 6), (PROMISED, 4, 6), (PROMISED, 4, 0)]
)
def test_lists_come_as_often_as_is_logged(policy: SlowPolicy, k: int, candidates: int) -> None:
    draws = 2_500
    lists = lists_slowly(SCORES, range(6), k, policy, candidates, 0.5)

    def drawn(seed: int) -> tuple[int, ...]:
        lottery = Lottery(candidates, 0.5, seed) if candidates else None
        promise = kept(policy, seed_of(str(seed), b"promise")) if policy.promised else None
        return tuple(ordered(SCORES, k, policy, lottery=lottery, promise=promise).positions.tolist())

    came = Counter(drawn(seed) for seed in range(draws))
    assert set(came) <= set(lists)
    expected = {shown: draws * math.prod(chances) for shown, chances in lists.items()}
    rare = {shown for shown, count in expected.items() if count < 5.0}  # together in one class
    classes = [(came[shown], expected[shown]) for shown in lists if shown not in rare]
    if rare:
        classes.append((sum(came[shown] for shown in rare), sum(expected[shown] for shown in rare)))
    chi2 = sum((seen - count) ** 2 / count for seen, count in classes)
    freedom = len(classes) - 1
    assert freedom >= 3
    assert chi2 < freedom + 4.0 * math.sqrt(2.0 * freedom)


def test_promised_places_lie_evenly_and_never_first_where_there_are_others() -> None:
    for k, share, expected, each in ((20, 0.1, [5, 15], 1.0), (5, 0.1, [3], 0.5)):
        places, most = promised_places(k, share)
        assert places.tolist() == expected
        assert most == pytest.approx(each)
    for k in range(2, 60):
        for share in (0.01, 0.1, 0.3, 0.5):
            places, most = promised_places(k, share)
            assert len(places) * most == pytest.approx(share * k)
            assert 0.0 < most <= 1.0
            assert len(set(places.tolist())) == len(places)
            assert 0 < places.min() <= places.max() < k


def test_a_uniform_list_is_any_list_alike() -> None:
    found = ordered(SCORES, 3, FREE, lottery=Lottery(6, math.inf, 3))
    assert np.exp(found.log_propensities) == pytest.approx([1 / 6, 1 / 5, 1 / 4])
    pinned = ordered(SCORES, 3, SlowPolicy(pinned=[({3}, 2)]), lottery=Lottery(6, math.inf, 3))
    assert np.exp(pinned.log_propensities) == pytest.approx([1 / 5, 1.0, 1 / 4])


def test_without_constraints_it_is_plackett_luce() -> None:
    found = ordered(SCORES, 3, FREE, lottery=Lottery(6, 0.5, 11))
    weights = np.exp(np.array(SCORES) / 4.0 / 0.5)  # from 3 to -1
    left = weights.sum()
    for place, log_propensity in zip(found.positions.tolist(), found.log_propensities.tolist(), strict=True):
        assert math.exp(log_propensity) == pytest.approx(weights[place] / left)
        left -= weights[place]


def test_little_heat_leaves_the_order_and_much_makes_all_alike() -> None:
    cold = [ordered(SCORES, 6, TIED, lottery=Lottery(6, 0.01, seed)).positions.tolist() for seed in range(50)]
    assert cold == [ordered(SCORES, 6, TIED).positions.tolist()] * 50
    hot = ordered(SCORES, 2, FREE, lottery=Lottery(6, 100.0, 1))
    assert np.exp(hot.log_propensities) == pytest.approx([1 / 6, 1 / 5], rel=0.02)
    same = ordered([1.0] * 4, 2, FREE, lottery=Lottery(4, 0.01, 1))
    assert np.exp(same.log_propensities) == pytest.approx([1 / 4, 1 / 3])


def test_what_no_lot_decides_is_certain() -> None:
    pinned = ordered(SCORES, 3, TIED, lottery=Lottery(6, 1.0, 5))
    assert pinned.positions[1] == 3
    assert pinned.log_propensities[1] == 0.0
    assert (pinned.log_propensities[[0, 2]] < 0.0).all()
    plain = ordered(SCORES, 3, TIED)
    assert plain.log_propensities.tolist() == [0.0, 0.0, 0.0]
    assert not len(plain.drawn_from)
    # neither of the two that are drawn from may follow the first: the best of the others does, and nothing else could
    alone = SlowPolicy(capped=[([{1}, {1}, {2}, {3}], 1)])
    found = ordered([4.0, 3.0, 2.0, 1.0], 3, alone, lottery=Lottery(2, 1.0, 5))
    assert found.positions[1:].tolist() == [2, 3]
    assert found.log_propensities[1:].tolist() == [0.0, 0.0]


def test_diversity_says_which_rank_and_the_rank_says_how_likely() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    scores, ties = np.array([4.0, 3.0, 2.0, 1.0], np.float32), np.arange(4)

    def drawn(method: Method, temperature: float) -> tuple[list[int], list[float], list[int]]:
        policy = Policy(diverse=lambda order: Diverse(vectors[order], 0.5, method), lottery=Lottery(4, temperature, 2))
        found = apply_policy(scores, ties, 3, policy)
        return found.positions.tolist(), found.log_propensities.tolist(), found.drawn_from.tolist()

    assert drawn("mmr", 0.01)[0] == [0, 2, 1]
    shown, logs, drawn_from = drawn("mmr", 1.0)
    assert drawn_from == [0, 2, 1, 3]
    weights = dict(zip(drawn_from, np.exp(np.array([1.0, 2 / 3, 1 / 3, 0.0])), strict=True))
    assert math.exp(logs[0]) == pytest.approx(weights[shown[0]] / sum(weights.values()))


def test_the_lot_of_a_request_is_its_own() -> None:
    ids = [f"{n:032x}" for n in range(4_000)]
    drawn = [drawn_lot(name, 0.1) for name in ids]
    assert drawn == [drawn_lot(name, 0.1) for name in ids]
    taking = [lot for lot in drawn if lot is not None]
    assert not any(lot.uniform for lot in taking)
    assert len(set(taking)) == len(taking)
    assert abs(len(taking) - 400) < 4 * math.sqrt(400 * 0.9)
    assert {name for name, seed in zip(ids, drawn, strict=True) if seed is not None} < {
        name for name in ids if drawn_lot(name, 0.2) is not None
    }
    assert all(drawn_lot(name, 0.0) is None for name in ids[:100])
    both = [drawn_lot(name, 0.1, 0.05) for name in ids]
    uniform = [lot for lot in both if lot is not None and lot.uniform]
    assert abs(len(uniform) - 200) < 4 * math.sqrt(200)
    assert [lot for lot in both if lot is not None and not lot.uniform] == taking, "the others draw as before"
    assert all(lot.uniform for lot in map(drawn_lot, ids[:50], [0.0] * 50, [1.0] * 50) if lot is not None)
    assert all(drawn_lot(name, 1.0) is not None for name in ids[:100])


@STABLE
@given(worlds(most=5), st.integers(2, 6), st.sampled_from([0.05, 0.3, 5.0]), st.data())
def test_a_list_that_is_followed_is_as_likely_as_among_all_that_could_be_drawn(
    world: tuple[list[float], list[int], int, SlowPolicy], candidates: int, temperature: float, data: st.DataObject
) -> None:
    scores, ties, k, policy = world
    k = min(k, 3)
    if data.draw(st.booleans(), "promises"):
        places, given_to = data.draw(promises(len(scores), k))
        policy = replace(policy, promised=places, chances=given_to)
    promise = kept(policy, 0) if policy.promised else None
    lists = lists_slowly(scores, ties, k, policy, candidates, temperature)
    longest = max(len(shown) for shown in lists)
    for shown in itertools.permutations(range(len(scores)), longest):
        follow = np.array(shown, np.int64)
        found = ordered(scores, longest, policy, ties, Lottery(candidates, temperature, 0, follow), promise)
        chances = np.exp(found.log_propensities)
        assert len(chances) == longest
        if longest == k and shown in lists:
            assert chances == pytest.approx(lists[shown])
            assert tuple(found.positions.tolist()) == shown
        elif longest == k:
            assert math.prod(chances) == 0.0


def test_what_is_not_among_the_candidates_cannot_have_been_drawn() -> None:
    found = ordered(SCORES, 3, FREE, lottery=Lottery(6, 0.5, 0, np.array([1, -1, 0])))
    assert np.isfinite(found.log_propensities).tolist() == [True, False, False]
    assert found.positions.tolist() == [1]
    outside = ordered(SCORES, 3, FREE, lottery=Lottery(2, 0.5, 0, np.array([0, 4, 1])))
    assert np.isfinite(outside.log_propensities).tolist() == [True, False, False]
