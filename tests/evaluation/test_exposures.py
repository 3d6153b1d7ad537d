"""Metrics of impressions against slow, obvious twins, and intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.evaluation.exposures import auc, bins_of, ece, ece_debiased, ece_of_perfect, judge_head, user_aucs
from headwater.evaluation.rates import STRENGTH, earlier, item_rates

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Few different scores, so that ties are common, and few users."""
    n = draw(st.integers(1, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    scores = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    users = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    return np.array(labels), np.array(scores) / 7.0, np.array(users)


def slow_auc(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(pairs)) if pairs else float("nan")


@given(rows())
def test_auc_is_the_share_of_pairs_in_order(data: Rows) -> None:
    labels, scores, users = data
    assert auc(labels, scores) == pytest.approx(slow_auc(labels, scores), nan_ok=True)
    repeated = np.repeat(np.arange(len(labels)), users)  # a weight is a count
    weighted = auc(labels, scores, users.astype(np.float64))
    assert weighted == pytest.approx(slow_auc(labels[repeated], scores[repeated]), nan_ok=True)


@given(rows())
def test_gauc_is_the_mean_over_users_who_have_both_classes(data: Rows) -> None:
    labels, scores, users = data
    wanted = {u: slow_auc(labels[users == u], scores[users == u]) for u in np.unique(users)}
    wanted = {u: value for u, value in wanted.items() if not np.isnan(value)}
    found = user_aucs(labels, scores, users)
    assert found.user.tolist() == list(wanted)
    assert found.auc == pytest.approx(list(wanted.values()))
    sizes = [int((users == u).sum()) for u in wanted]
    mean = np.average(list(wanted.values()), weights=sizes) if wanted else float("nan")
    assert found.mean() == pytest.approx(mean, nan_ok=True)


@given(rows(), st.integers(1, 20))
def test_ece_is_the_gap_bin_by_bin(data: Rows, bins: int) -> None:
    labels, scores, _ = data
    order = np.argsort(scores, kind="stable")
    wanted = 0.0
    for b in range(bins):
        at = [row for k, row in enumerate(order) if k * bins // len(order) == b]
        if at:
            wanted += len(at) / len(order) * abs(scores[at].mean() - labels[at].mean())
    assert ece(labels, scores, bins) == pytest.approx(wanted)
    sizes = np.bincount(bins_of(scores, bins), minlength=bins)
    assert sizes.max() - sizes.min() <= 1


def test_even_perfect_probabilities_have_a_calibration_error() -> None:
    rng = np.random.default_rng(3)
    p = rng.beta(2.0, 3.0, 4_000)
    errors = [ece((rng.random(len(p)) < p).astype(np.int64), p) for _ in range(200)]
    assert ece_of_perfect(p) == pytest.approx(np.mean(errors), rel=0.05)
    p = rng.beta(2.0, 3.0, 100_000)  # the error of an error falls with the rows
    labels = (rng.random(len(p)) < p).astype(np.int64)
    assert ece_debiased(labels, p) < 0.012
    assert ece_debiased(labels, np.clip(p + 0.05, 0.0, 1.0)) == pytest.approx(0.05, abs=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = {"auc": 0, "gauc": 0, "logloss": 0}
    truth: dict[str, float] = {}
    for trial in range(61):
        many = 20_000 if trial == 0 else 120  # the first says what is true
        users = np.repeat(np.arange(many), rng.integers(1, 12, many))
        taste = rng.normal(0.0, 1.0, many)[users]
        score = rng.normal(0.0, 1.0, len(users))
        p = 1.0 / (1.0 + np.exp(-(0.8 * score + taste)))
        labels = (rng.random(len(users)) < p).astype(np.int64)
        metrics = judge_head(labels, score, p, users, seed=trial, repeats=2 if trial == 0 else 100)
        if trial == 0:
            truth = {name: getattr(metrics, name) for name in held}
            continue
        for name in held:
            low, high = metrics.ci95[name]
            held[name] += low <= truth[name] <= high
    assert all(51 <= count <= 60 for count in held.values()), held


def test_equal_seeds_give_equal_intervals() -> None:
    rng = np.random.default_rng(1)
    labels, score, users = rng.integers(0, 2, 300), rng.random(300), rng.integers(0, 40, 300)
    first, again, other = (judge_head(labels, score, score, users, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.ci95 != other.ci95
    assert first.auc == other.auc


def test_a_frozen_calibration_is_told_apart() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(3_000)
    labels = (rng.random(3_000) < p).astype(np.int64)
    metrics = judge_head(labels, p, p, np.arange(3_000), frozen=np.clip(p + 0.1, 0.0, 1.0), seed=1, repeats=2)
    assert metrics.ece < 0.03 < metrics.ece_frozen
    assert metrics.logloss < metrics.logloss_frozen


def test_bad_input_is_an_error() -> None:
    one = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="at least one"):
        judge_head(one[:0], np.ones(0), np.ones(0), one[:0], seed=1)
    with pytest.raises(ValueError, match="as many scores"):
        judge_head(one, np.ones(2), np.ones(1), one, seed=1)
    with pytest.raises(ValueError, match="finite"):
        judge_head(one, np.array([np.nan]), np.ones(1), one, seed=1)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9), st.booleans(), st.integers(0, 4)), min_size=1, max_size=30)
)
def test_item_rates_know_what_was_known(shown: list[tuple[int, int, bool, int]]) -> None:
    item, now_ms = np.array([row[0] for row in shown]), np.array([row[1] for row in shown])
    label = np.array([float(row[2]) for row in shown])
    delay = np.array([row[3] if row[2] else -1 for row in shown])
    rate, before = item_rates(item, now_ms, label, delay, 0.3)
    for k, (mine, now, _, _) in enumerate(shown):
        earlier_rows = [row for row in shown if row[0] == mine and row[1] < now]
        hits = [row for row in shown if row[0] == mine and row[2] and row[1] + row[3] < now]
        assert before[k] == len(earlier_rows)
        assert rate[k] == pytest.approx((len(hits) + 0.3 * STRENGTH) / (len(earlier_rows) + STRENGTH))


def test_nothing_is_earlier_than_nothing() -> None:
    none = np.zeros(0, np.int64)
    assert earlier(none, none, np.array([3]), np.array([7])).tolist() == [0]
