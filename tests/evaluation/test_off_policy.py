"""Off-policy estimators of single actions: against loops, against sums over every log there could be, and what they refuse."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from headwater.evaluation.off_policy.coverage import measure_coverage
from headwater.evaluation.off_policy.estimators import NAMES, estimators, judge, optimistic
from headwater.evaluation.off_policy.feedback import (
    Feedback,
    Overlap,
    OverlapError,
    check_overlap,
    effective_sample_size,
)
from headwater.evaluation.off_policy.intervals import Clusters, Terms, intervals, standard_error
from headwater.evaluation.off_policy.reward_model import ROWS_A_COLUMN, GivenModel, cross_fit, reward_columns
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]


def a_log(seed: int, n: int = 400, users: int = 60) -> tuple[Feedback, Float64, Float64]:
    """Rows with two features, and their expectation under the evaluated policy."""
    rng = np.random.default_rng(seed)
    propensities, evaluation = rng.uniform(0.2, 0.8, n), rng.uniform(0.1, 0.9, n)
    evaluation *= n / np.sum(evaluation / propensities)
    features = np.stack([np.ones(n), rng.normal(size=n)], axis=1)
    expected = np.stack([np.ones(n), features[:, 1] + 0.3], axis=1)
    rewards = (rng.random(n) < 0.4 + 0.1 * np.tanh(features[:, 1])).astype(np.float64)
    return Feedback(rewards, propensities, evaluation.clip(max=1.0), rng.integers(0, users, n)), features, expected


def slowly(feedback: Feedback, logged: Float64, expected: Float64, switch: float, shrink: float) -> dict[str, float]:
    sums = dict.fromkeys((*NAMES, "weight"), 0.0)
    n = len(feedback.rewards)
    for i in range(n):
        r, w = feedback.rewards[i], feedback.evaluation[i] / feedback.propensities[i]
        residual = r - logged[i]
        sums["IPS"] += w * r / n
        sums["SNIPS"] += w * r
        sums["weight"] += w
        sums["DM"] += expected[i] / n
        sums["DR"] += (expected[i] + w * residual) / n
        sums["Switch-DR"] += (expected[i] + (w * residual if w <= switch else 0.0)) / n
        sums["DRos"] += (expected[i] + shrink * w / (w * w + shrink) * residual) / n
    sums["SNIPS"] /= sums.pop("weight")
    return {name: float(value) for name, value in sums.items()}


@pytest.mark.parametrize("seed", range(3))
def test_every_estimator_is_what_a_loop_says(seed: int) -> None:
    feedback, features, expected = a_log(seed)
    clusters = Clusters.by(feedback.users, 400)
    model = cross_fit(features, expected, feedback.rewards, clusters, seed=seed)
    found = judge(feedback, model, draws=0)
    switch, shrink = (found.estimates[name].threshold for name in ("Switch-DR", "DRos"))
    assert switch is not None
    assert shrink is not None
    wanted = slowly(feedback, model.logged, model.expected, switch, shrink)
    assert {name: one.value for name, one in found.estimates.items()} == pytest.approx(wanted)
    assert found.logging.value == pytest.approx(feedback.rewards.mean())
    for name in NAMES:
        assert found.difference[name].value == pytest.approx(wanted[name] - feedback.rewards.mean())
    assert found.model_bias is not None
    assert found.model_bias.value == pytest.approx(wanted["DM"] - wanted["DR"])
    assert found.ess == pytest.approx(effective_sample_size(feedback.weights))


def test_the_rows_of_a_user_never_saw_that_user() -> None:
    feedback, features, expected = a_log(4)
    assert feedback.users is not None
    clusters = Clusters.by(feedback.users, 400)
    model = cross_fit(features, expected, feedback.rewards, clusters)
    other = feedback.rewards.copy()
    other[clusters.of == 7] = 1.0 - other[clusters.of == 7]
    again = cross_fit(features, expected, other, clusters)
    changed = np.unique(clusters.of[again.logged != model.logged])
    assert 7 not in changed
    assert len(changed) > 30


def test_the_standard_error_counts_users() -> None:
    rng = np.random.default_rng(1)
    values, users = rng.normal(size=50), np.arange(50)
    terms = Terms(values, np.ones(50))
    assert standard_error(terms, Clusters.by(users, 50)) == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    thrice = Terms(np.tile(values, 3), np.ones(150))
    assert standard_error(thrice, Clusters.by(np.tile(users, 3), 150)) == pytest.approx(
        values.std(ddof=1) / np.sqrt(50)
    )
    alone = intervals([terms], Clusters.by(np.zeros(50, np.int64), 50))[0]
    assert alone.asymptotic == (-np.inf, np.inf)
    assert alone.bootstrap is None


def test_both_intervals_agree_where_nothing_is_skewed_and_repeat() -> None:
    values = np.random.default_rng(2).normal(3.0, 1.0, 500)
    one, other = (intervals([Terms(values, np.ones(500))], Clusters.by(None, 500), seed=5)[0] for _ in range(2))
    assert one == other
    assert one.bootstrap is not None
    assert one.bootstrap == pytest.approx(one.asymptotic, abs=0.02)


def test_too_few_rewards_have_no_bootstrap_interval() -> None:
    rewards = np.zeros(200)
    rewards[0] = 1.0
    found = intervals([Terms(rewards, np.ones(200))], Clusters.by(None, 200))[0]
    assert found.bootstrap is None
    assert found.asymptotic[1] > found.value > 0.0


# -- every log there could be ---------------------------------------------------------------------------------

CHANCES = {"logging": (0.7, 0.2, 0.1), "evaluated": (0.2, 0.3, 0.5)}
CLICKS = (0.2, 0.5, 0.4)


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.5), (0.0, 0.0), (-1.0, 2.0)])
def test_ips_and_dr_are_unbiased_over_all_logs_whatever_the_model_says(first: float, second: float) -> None:
    predictions = np.array([first, second, 0.3])
    expected_reward = float(np.dot(CHANCES["evaluated"], predictions))
    truth = float(np.dot(CHANCES["evaluated"], CLICKS))
    total, mean = 0.0, {"IPS": 0.0, "DR": 0.0, "DM": 0.0}
    for rows in product(product(range(3), (0.0, 1.0)), repeat=2):
        actions, rewards = [a for a, _ in rows], np.array([r for _, r in rows])
        chance = 1.0
        for a, r in rows:
            chance *= CHANCES["logging"][a] * (CLICKS[a] if r else 1.0 - CLICKS[a])
        weights = np.array([CHANCES["evaluated"][a] / CHANCES["logging"][a] for a in actions])
        model = GivenModel(predictions[actions], np.full(2, expected_reward))
        terms, _, _ = estimators(rewards, weights, model, Clusters.by(None, 2))
        total += chance
        for name in mean:
            mean[name] += chance * float(terms[name].numerators.sum() / terms[name].denominators.sum())
    assert total == pytest.approx(1.0)
    assert mean["IPS"] == pytest.approx(truth)
    assert mean["DR"] == pytest.approx(truth)
    assert mean["DM"] == pytest.approx(expected_reward)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = measure_coverage("linear", logs=120, users=300, draws=100, seed=2)
    for name, one in found.estimators.items():
        assert 0.88 <= one.asymptotic <= 1.0, name
        assert 0.86 <= one.bootstrap <= 1.0, name
        assert abs(one.bias) < 4.0 * one.spread / np.sqrt(120), name
    assert found.estimators["DRos"].spread < found.estimators["IPS"].spread


def test_columns_hold_every_product_and_what_is_expected_of_it() -> None:
    rng = np.random.default_rng(4)
    contexts, actions = rng.normal(size=(200, 3)), rng.normal(size=(4, 2))
    taken, policy = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    found = reward_columns(contexts, actions, taken, policy)
    for row in range(200):
        by_action = [[*x, *a, *(u * v for u in x for v in a)] for x in contexts[row : row + 1] for a in actions]
        assert found.logged[row] == pytest.approx(by_action[taken[row]])
        assert found.expected[row] == pytest.approx(policy[row] @ np.array(by_action))
    few = ROWS_A_COLUMN * 11 - 1  # 3 + 2 + 6 columns
    short = reward_columns(contexts[:few], actions, taken[:few], policy[:few])
    assert np.array_equal(short.logged, found.logged[:few, :5])
    assert np.array_equal(short.expected, found.expected[:few, :5])


def test_products_are_in_the_model_and_what_it_is_not_told_is_not() -> None:
    right, wrong = (measure_coverage(name, logs=40, users=400, draws=0, seed=3) for name in ("curved", "unseen"))
    assert abs(right.estimators["DM"].bias) < 4.0 * right.estimators["DM"].spread / np.sqrt(40)
    assert wrong.estimators["DM"].bias < -4.0 * wrong.estimators["DM"].spread / np.sqrt(40)
    assert right.found_out is not None
    assert wrong.found_out is not None
    assert wrong.found_out > right.found_out
    assert right.estimators["DM"].asymptotic > wrong.estimators["DM"].asymptotic


def test_a_model_that_is_wrong_is_found_out_and_dm_is_not_trusted() -> None:
    rng = np.random.default_rng(9)
    n, kind = 3_000, rng.integers(0, 2, 3_000)
    action = (rng.random(n) < np.where(kind == 1, 0.8, 0.2)).astype(np.int64)
    rewards = (rng.random(n) < np.where(action == kind, 0.5, 0.1)).astype(np.float64)  # what fits depends on the user
    propensities = np.where(action == kind, 0.8, 0.2)
    features = np.stack([np.ones(n), action], axis=1)  # which the model does not know
    expected = np.stack([np.ones(n), 1.0 - kind], axis=1)
    feedback = Feedback(rewards, propensities, np.where(action != kind, 1.0, 0.0))
    found = judge(feedback, cross_fit(features, expected, rewards, Clusters.by(None, n)), draws=0)
    assert "DM" not in found.trusted
    assert set(found.trusted) == set(NAMES) - {"DM"}
    assert found.estimates["DM"].ci95[0] > 0.1
    for name in ("IPS", "SNIPS", "DR", "Switch-DR", "DRos"):
        assert abs(found.estimates[name].value - 0.1) < 3.0 * found.estimates[name].error, name


def test_what_clipping_and_shrinking_take_away_is_told() -> None:
    rewards, weights = np.ones(100), np.concatenate([np.full(90, 0.5), np.full(10, 5.5)])
    found = judge(Feedback(rewards, np.full(100, 0.1), 0.1 * weights), clip=2.0, overlap=Overlap(least_ess=10), draws=0)
    ips = found.estimates["IPS"]
    assert (ips.clipped, ips.threshold, ips.max_weight) == (0.1, 2.0, 2.0)
    assert ips.mass_lost == pytest.approx(0.35)
    assert ips.value == pytest.approx(0.65)
    assert found.max_weight == pytest.approx(5.5)
    assert set(found.estimates) == {"IPS", "SNIPS"}
    assert optimistic(weights, 0.0).sum() == 0.0
    assert optimistic(weights, 1e12) == pytest.approx(weights)


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rewards": np.zeros(0)}, "no logged row"),
        ({"propensities": np.array([0.5, 0.0, 0.5])}, "row 1: a propensity of 0.0"),
        ({"propensities": np.array([0.5, 0.5, 1.5])}, "row 2: a propensity of 1.5"),
        ({"evaluation": np.array([-0.1, 0.5, 0.5])}, "row 0: an evaluation probability"),
        ({"rewards": np.array([1.0, np.nan, 0.0])}, "row 1: a reward of nan"),
        ({"users": np.array([1, 2])}, "3 rewards, but 2 users"),
    ],
)
def test_rows_that_nobody_can_have_logged_are_refused(change: dict[str, Float64], why: str) -> None:
    said = {"rewards": np.ones(3), "propensities": np.full(3, 0.5), "evaluation": np.full(3, 0.5)} | change
    with pytest.raises(HeadwaterError, match=why):
        judge(Feedback(**said))


def test_missing_overlap_is_refused_with_what_to_do() -> None:
    n = 1_000
    even = np.full(n, 0.5)
    with pytest.raises(
        OverlapError, match=r"puts 20.0% of its probability on what the logging policy never shows.*Explore"
    ):
        judge(Feedback(np.ones(n), even, even, uncovered=np.full(n, 0.2)))
    rare = np.zeros(n)
    rare[:5] = 1.0
    with pytest.raises(OverlapError, match=r"effective sample size is 5.0 of 1,000 rows.*Log more"):
        judge(Feedback(np.ones(n), np.full(n, 0.005), rare))
    with pytest.raises(OverlapError, match=r"weights have the mean 2.000 and should have 1.000"):
        check_overlap(np.full(n, 2.0), None, Overlap())
    with pytest.raises(OverlapError, match=r"effective sample size is 0\.0"):
        judge(Feedback(np.ones(n), even, np.zeros(n)))


def test_fewer_users_than_folds_are_refused() -> None:
    with pytest.raises(HeadwaterError, match="3 users cannot be dealt into 5 folds"):
        cross_fit(np.ones((3, 1)), np.ones((3, 1)), np.ones(3), Clusters.by(None, 3))
