"""Fast metrics against slow, obvious ones; intervals against the bootstrap and against known truths."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.evaluation.metrics import (
    METRICS,
    compare,
    coverage,
    gains,
    hits,
    judge,
    mean_interval,
    ranks_in,
    ratio_difference,
    ratio_interval,
    reciprocals,
)

Ints = npt.NDArray[np.int64]


@st.composite
def questions(draw: st.DrawFn) -> tuple[Ints, Ints, Ints]:
    """Lists (duplicates never, padding at the end), the relevant items, and users with uneven numbers of questions."""
    count, width = draw(st.integers(1, 30)), draw(st.integers(0, 14))
    lists = np.zeros((count, width), np.int64)
    for row in lists:
        items = draw(st.lists(st.integers(1, 20), max_size=width, unique=True))
        row[: len(items)] = items
    relevant = np.array(draw(st.lists(st.integers(1, 20), min_size=count, max_size=count)))
    users = np.array(draw(st.lists(st.integers(5, 11), min_size=count, max_size=count)))
    return lists, relevant, users


@given(questions(), st.integers(1, 12))
@settings(deadline=None)
def test_values_equal_the_definitions(case: tuple[Ints, Ints, Ints], k: int) -> None:
    lists, relevant, _ = case
    ranks = ranks_in(lists, relevant)
    for row, item, rank, hit, gain, reciprocal in zip(
        lists.tolist(), relevant.tolist(), ranks, hits(ranks, k), gains(ranks, k), reciprocals(ranks), strict=True
    ):
        assert rank == (row.index(item) + 1 if item in row else 0)
        assert hit == (item in row[:k])
        assert gain == pytest.approx(
            sum(1 / math.log2(place + 2) for place, shown in enumerate(row[:k]) if shown == item)
        )
        assert reciprocal == pytest.approx(1 / (row.index(item) + 1) if item in row else 0)


@given(questions(), st.integers(1, 12))
@settings(deadline=None)
def test_coverage_equals_the_definition_and_its_jackknife(case: tuple[Ints, Ints, Ints], k: int) -> None:
    lists, _, users = case

    def distinct(rows: list[list[int]]) -> int:
        return len({item for row in rows for item in row[:k]} - {0})

    share, (low, high) = coverage(lists, users, 20, k)
    assert share == pytest.approx(distinct(lists.tolist()) / 20)
    everyone = np.unique(users)
    if len(everyone) == 1:
        assert (low, high) == (0, 1)
        return
    without = np.array([distinct(lists[users != user].tolist()) / 20 for user in everyone])
    error = math.sqrt((len(everyone) - 1) / len(everyone) * np.sum((without - without.mean()) ** 2))
    from scipy.stats import t

    half = t.ppf(0.975, len(everyone) - 1) * error
    assert low == pytest.approx(max(0, share - half))
    assert high == pytest.approx(min(1, share + half))


@given(questions())
@settings(deadline=None)
def test_intervals_hold_their_mean_and_stay_in_range(case: tuple[Ints, Ints, Ints]) -> None:
    lists, relevant, users = case
    ranks = ranks_in(lists, relevant)
    for metric in METRICS.values():
        values = metric(ranks)
        mean, (low, high) = mean_interval(values, users)
        assert mean == pytest.approx(values.mean())
        assert 0 <= low <= mean <= high <= 1
        order = np.random.default_rng(1).permutation(len(users))
        again, interval = mean_interval(values[order], users[order] * 1000)
        assert (again, *interval) == pytest.approx((mean, low, high))


def _clustered(seed: int, users: int, mean: float = 0.3) -> tuple[Ints, Ints]:
    """Ranks whose hit rate differs by user (Beta), with uneven numbers of questions."""
    rng = np.random.default_rng(seed)
    counts = rng.geometric(0.2, users)
    chance = np.repeat(rng.beta(2 * mean, 2 * (1 - mean), users), counts)
    ranks = np.where(rng.random(len(chance)) < chance, rng.integers(1, 11, len(chance)), 0)
    return ranks, np.repeat(np.arange(users), counts)


def _resampled(users: Ints, seed: int, *values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums of the values and of the counts in 1,000 bootstrap resamples of users: ``float64[values + 1, 1000]``."""
    sums = np.stack([np.bincount(users, v) for v in (*values, np.ones(len(users)))])
    rng = np.random.default_rng(seed)
    groups = sums.shape[1]
    return np.asarray(sums @ rng.multinomial(groups, np.full(groups, 1 / groups), 1000).T, np.float64)


@pytest.mark.parametrize("name", METRICS)
def test_the_interval_is_the_bootstraps(name: str) -> None:
    ranks, users = _clustered(1, 800)
    values = METRICS[name](ranks)
    total, count = _resampled(users, 2, values)
    _, (low, high) = mean_interval(values, users)
    expected = np.quantile(total / count, [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (high - low))
    naive = 2 * 1.96 * values.std() / math.sqrt(len(values))
    assert high - low > 1.3 * naive  # what ignoring the users would have promised


@pytest.mark.parametrize(("mean", "people"), [(0.1, 200), (0.3, 120)])
def test_the_interval_covers_the_truth_as_often_as_it_says(mean: float, people: int) -> None:
    covered = 0
    for seed in range(400):
        ranks, users = _clustered(seed, people, mean)
        _, (low, high) = mean_interval(hits(ranks), users)
        covered += low <= mean <= high
    assert 0.92 <= covered / 400 <= 0.985


def test_the_paired_difference_is_the_bootstraps() -> None:
    ranks, users = _clustered(3, 800)
    baseline = np.where(np.random.default_rng(4).random(len(ranks)) < 0.15, 0, ranks)
    ours, theirs, count = _resampled(users, 5, gains(ranks), gains(baseline))
    result = compare("ndcg@10", ranks, baseline, users)
    assert result.relative is not None
    assert result.relative_ci95 is not None
    assert result.difference == pytest.approx(gains(ranks).mean() - gains(baseline).mean())
    assert result.relative == pytest.approx(gains(ranks).mean() / gains(baseline).mean() - 1)
    for (low, high), resampled in (
        (result.difference_ci95, (ours - theirs) / count),
        (result.relative_ci95, ours / theirs - 1),
    ):
        expected = np.quantile(resampled, [0.025, 0.975])
        assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (high - low))
    alone = mean_interval(gains(ranks), users)[1]
    assert result.difference_ci95[1] - result.difference_ci95[0] < alone[1] - alone[0]  # pairing pays


def test_ratios_of_sums_have_the_bootstraps_intervals() -> None:
    """Those of two policies too, with clusters that are there in one only."""
    rng = np.random.default_rng(7)
    wholes, others = rng.poisson(1.5, (2, 600)).astype(np.float64)
    parts, other_parts = rng.binomial(wholes.astype(int), 0.4), rng.binomial(others.astype(int), 0.3)
    drawn = rng.multinomial(600, np.full(600, 1 / 600), 2000).T
    resampled = [(column @ drawn) / (whole @ drawn) for column, whole in ((parts, wholes), (other_parts, others))]
    value, (low, high) = ratio_interval(parts.astype(np.float64), wholes)
    assert value == parts.sum() / wholes.sum()
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled[0], [0.025, 0.975])), abs=0.1 * (high - low))
    value, (low, high) = ratio_difference(parts.astype(np.float64), wholes, other_parts.astype(np.float64), others)
    assert value == pytest.approx(parts.sum() / wholes.sum() - other_parts.sum() / others.sum())
    expected = np.quantile(resampled[0] - resampled[1], [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (high - low))


def test_a_ratio_of_one_cluster_says_nothing_of_others() -> None:
    part, whole, nothing = np.array([3.0, 0.0]), np.array([4.0, 0.0]), np.zeros(2)
    assert ratio_interval(part, whole) == (0.75, (-math.inf, math.inf))
    assert ratio_difference(part, whole, part, whole) == (0.0, (-math.inf, math.inf))
    with pytest.raises(ValueError, match="nothing to divide by"):
        ratio_interval(part, nothing)
    with pytest.raises(ValueError, match="nothing to divide by"):
        ratio_difference(part, whole, part, nothing)


def test_equal_models_do_not_differ() -> None:
    ranks, users = _clustered(6, 50)
    same = compare("mrr", ranks, ranks, users)
    assert (same.difference, same.difference_ci95) == (0, (0, 0))
    assert (same.relative, same.relative_ci95) == (0, (0, 0))
    nothing = compare("mrr", ranks, np.zeros_like(ranks), users)
    assert nothing.relative is None
    assert nothing.difference > 0


def test_extremes_are_not_certainties() -> None:
    users = np.arange(100)
    for value, bounds in ((0.0, (0.0, 0.0379)), (1.0, (0.9621, 1.0))):
        mean, interval = mean_interval(np.full(100, value), users)
        assert mean == value
        assert interval == pytest.approx(bounds, abs=1e-3)
    assert mean_interval(np.array([0.0, 1.0]), np.array([1, 1])) == (0.5, (0, 1))
    assert compare("mrr", np.array([1, 2]), np.array([2, 2]), np.array([1, 1])).difference_ci95 == (-1, 1)


def test_the_report_has_the_designs_keys() -> None:
    lists = np.array([[3, 1, 2], [1, 2, 0], [4, 0, 0]])
    ranks = ranks_in(lists, np.array([3, 2, 9]))
    report = judge(ranks, np.array([1, 1, 2]), lists, eligible=8, train_s=1.5, peak_mb=200.0)
    printed = json.loads(msgspec.json.encode(report))
    assert list(printed)[:7] == ["hr@10", "ndcg@10", "mrr", "coverage", "ci95", "train_s", "peak_mb"]
    assert list(printed["ci95"]) == ["hr@10", "ndcg@10", "mrr", "coverage"]
    assert printed["hr@10"] == pytest.approx(2 / 3)
    assert printed["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert printed["mrr"] == 0.5
    assert printed["coverage"] == 0.5
    assert (printed["questions"], printed["users"], printed["train_s"], printed["peak_mb"]) == (3, 2, 1.5, 200.0)


def test_what_does_not_fit_together_is_refused() -> None:
    one, two = np.ones((1, 3), np.int64), np.ones((2, 3), np.int64)
    with pytest.raises(ValueError, match="no questions"):
        mean_interval(np.zeros(0), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="1 questions but 2 users"):
        coverage(one, np.array([1, 2]), 5)
    with pytest.raises(ValueError, match="only 0 are said to be eligible"):
        coverage(one, np.array([1]), 0)
    with pytest.raises(ValueError, match="1 ranks but 2 lists"):
        judge(np.array([1]), np.array([1]), two, eligible=5, train_s=0.0, peak_mb=0.0)
    with pytest.raises(ValueError, match="outside"):
        mean_interval(np.array([1.5]), np.array([1]))
