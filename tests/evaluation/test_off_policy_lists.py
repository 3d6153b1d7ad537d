"""Estimators for lists: sums over every list there could be, and the probability of an item at a place."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest

from headwater.evaluation.off_policy.coverage_lists import conditional_logs, list_world, measure_list_coverage
from headwater.evaluation.off_policy.feedback import Overlap, OverlapError
from headwater.evaluation.off_policy.intervals import Clusters
from headwater.evaluation.off_policy.lists import ListFeedback, judge_lists, list_estimators, list_weights
from headwater.evaluation.off_policy.marginals import place_probabilities
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]


@pytest.mark.parametrize("name", ["independent", "cascade"])
def test_the_mean_over_all_lists_is_the_true_value(name: str) -> None:
    """Each list of each context, weighed by how likely the logging policy draws it: what an estimator gives in the mean."""
    place = list_world(name)  # type: ignore[arg-type]
    means = dict.fromkeys(("SIPS", "RIPS", "IIPS"), 0.0)
    for kind in range(len(place.clicks)):
        feedback = ListFeedback(
            place.clicks[kind], place.logs[0][kind], place.logs[1][kind], marginal=place.marginal[kind]
        )  # fmt: skip
        for each, weights in list_weights(feedback).items():
            if each in means:
                whole = np.sum(weights * feedback.rewards, axis=1)
                means[each] += float(np.dot(place.chances[0][kind], whole)) / len(place.clicks)
    truth = place.value(1)
    assert means["SIPS"] == pytest.approx(truth)
    assert means["RIPS"] == pytest.approx(truth)
    if name == "independent":
        assert means["IIPS"] == pytest.approx(truth)
    else:
        assert abs(means["IIPS"] - truth) > 1e-4, "what stands above matters here, and IIPS does not know it"


def test_weights_are_what_a_loop_says() -> None:
    rng = np.random.default_rng(3)
    logged, evaluated = np.log(rng.uniform(0.1, 1.0, (2, 30, 4)))
    evaluated[3, 1:] = -np.inf
    rewards = rng.integers(0, 2, (30, 4)).astype(np.float64)
    feedback = ListFeedback(rewards, logged, evaluated, rng.integers(0, 9, 30))
    terms, _ = list_estimators(feedback, Clusters.by(feedback.users, 30))
    sips = rips = 0.0
    sums, weights = np.zeros(4), np.zeros(4)
    for n in range(30):
        down = 1.0
        for place in range(4):
            down *= np.exp(evaluated[n, place]) / np.exp(logged[n, place])
            rips += down * rewards[n, place] / 30
            sums[place] += down * rewards[n, place]
            weights[place] += down
        sips += down * rewards[n].sum() / 30
    values = {name: one.numerators.sum() / one.denominators.sum() for name, one in terms.items()}
    assert values == pytest.approx({"SIPS": sips, "RIPS": rips, "SNRIPS": (sums / weights).sum()})


def test_cdr_adds_nothing_in_the_mean_to_ripss_whatever_the_model_says() -> None:
    """Over all lists w_l q̂_l and w_{l−1} E[q̂_l] have the same mean, for every feature of every place: no model can make CDR wrong."""
    place = list_world("cascade")
    for kind in range(0, len(place.clicks), 5):
        down = np.exp(np.cumsum(place.logs[1][kind] - place.logs[0][kind], axis=1))
        above = np.concatenate([np.ones((len(down), 1)), down[:, :-1]], axis=1)
        gap = down[:, :, None] * place.features[kind] - above[:, :, None] * place.expected[kind]
        assert np.einsum("n,npd->pd", place.chances[0][kind], gap) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
def test_the_probability_of_an_item_at_a_place_is_the_sum_over_all_lists(temperature: float) -> None:
    scores = np.array([[0.0, 0.9, 1.0, 0.3, 0.95]]) / temperature
    lists = np.array(list(permutations(range(5), 3)))
    chances = np.exp(conditional_logs(scores - scores.max(), lists)[0].sum(axis=1))
    for item in range(5):
        found = place_probabilities(np.exp(scores[0] - scores.max()), np.array([item, item, item]))
        wanted = [chances[lists[:, place] == item].sum() for place in range(3)]
        assert found == pytest.approx(wanted, abs=1e-9)
    assert place_probabilities(np.ones(4), np.array([-1, 2])).tolist() == pytest.approx([0.0, 0.25])
    assert place_probabilities(np.ones(4), np.array([-1])).tolist() == [0.0]


def test_intervals_of_lists_hold_the_truth() -> None:
    found = measure_list_coverage("independent", logs=100, users=300, draws=100, seed=4)
    for name, one in found.estimators.items():
        assert 0.87 <= one.asymptotic <= 1.0, name
        assert 0.85 <= one.bootstrap <= 1.0, name
        assert abs(one.bias) < 4.0 * one.spread / 10.0, name
    assert found.estimators["IIPS"].spread < found.estimators["RIPS"].spread < found.estimators["SIPS"].spread
    assert found.estimators["CDR"].spread < found.estimators["RIPS"].spread


def test_estimators_that_hang_on_few_lists_are_refused_and_the_others_stay() -> None:
    rng = np.random.default_rng(1)
    n, k = 400, 6
    logged = np.full((n, k), np.log(0.5))
    evaluated: Float64 = np.log(np.where(rng.random((n, k)) < 0.5, 0.9, 0.1))  # as likely as not
    feedback = ListFeedback(np.ones((n, k)), logged, evaluated, marginal=np.exp(evaluated - logged))
    found, refused = judge_lists(feedback, overlap=Overlap(least_ess=200.0), draws=0)
    assert set(found.estimates) == {"IIPS"}
    assert "effective sample size" in refused["RIPS"]
    assert found.ess < 100.0
    with pytest.raises(OverlapError, match="lists, and at least 350"):
        judge_lists(feedback, overlap=Overlap(least_ess=350.0), draws=0)


def test_what_is_left_out_is_refused_beyond_a_share_and_wrong_propensities_for_every_estimator() -> None:
    even = np.full((300, 2), np.log(0.5))
    some = ListFeedback(np.ones((300, 2)), even, even, uncovered=np.full(300, 0.05))
    found, refused = judge_lists(some, overlap=Overlap(most_uncovered=0.1), draws=0)
    assert (set(found.estimates), refused) == ({"SIPS", "RIPS", "SNRIPS"}, {})
    with pytest.raises(OverlapError, match=r"5.0% of its probability"):
        judge_lists(some, draws=0)
    with pytest.raises(OverlapError, match=r"should have 1.000"):
        judge_lists(ListFeedback(np.ones((300, 2)), even, even + np.log(0.5)), draws=0)


@pytest.mark.parametrize(
    ("feedback", "why"),
    [
        (ListFeedback(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2))), "no logged list"),
        (ListFeedback(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros((3, 2))), "logged has"),
        (ListFeedback(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(2, np.int64)), "2 users"),
        (ListFeedback(np.zeros((3, 2)), np.full((3, 2), -np.inf), np.zeros((3, 2))), "finite"),
        (ListFeedback(np.zeros((3, 2)), np.zeros((3, 2)), np.full((3, 2), 0.5)), "at most 0"),
    ],
)
def test_lists_that_nobody_can_have_logged_are_refused(feedback: ListFeedback, why: str) -> None:
    with pytest.raises(HeadwaterError, match=why):
        judge_lists(feedback)
