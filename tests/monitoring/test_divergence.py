"""Bins, PSI and Jensen-Shannon, and what chance allows: against slow twins and simulation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headwater.monitoring.bins import BELOW, DEFAULT, MISSING, Bins, count_by_group
from headwater.monitoring.divergence import (
    between_groups,
    diverged,
    jensen_shannon,
    joined,
    level_of_look,
    null_quantile,
    psi,
    simulated_null,
    smoothed,
)
from headwater.schema.errors import HeadwaterError

GROUPS = 64

cells_of = hnp.arrays(
    np.float32,
    st.integers(0, 200),
    elements=st.one_of(
        st.floats(width=32), st.integers(-3, 3).map(float), st.sampled_from([0.0, math.nan, math.inf, -math.inf])
    ),
)


def slow_place(bins: Bins, cell: np.float32) -> int:
    """The bin of one cell, by looking at one edge after the other."""
    if not np.isfinite(cell):
        return MISSING
    if bins.default is not None and cell == np.float32(bins.default):
        return DEFAULT
    if bins.edges and cell < np.float32(bins.low):
        return BELOW
    return 3 + sum(bool(cell > np.float32(edge)) for edge in bins.edges)


@given(reference=cells_of, window=cells_of, default=st.sampled_from([None, 0.0, 1.0]))
@settings(max_examples=40, deadline=None)
def test_cells_go_where_the_slow_twin_puts_them(
    reference: npt.NDArray[np.float32], window: npt.NDArray[np.float32], default: float | None
) -> None:
    bins = Bins.of("x", default, reference)
    assert list(bins.edges) == sorted(set(bins.edges))
    assert bins.place(window).tolist() == [slow_place(bins, cell) for cell in window]
    assert bins.place(window).max(initial=0) < bins.count
    if bins.edges:  # nothing of the reference lies out of its own range
        assert not np.isin(bins.place(reference), bins.out_of_range).any()


@given(cells=cells_of, groups=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_counts_by_group_add_up(cells: npt.NDArray[np.float32], groups: int) -> None:
    bins = Bins.of("x", 0.0, cells)
    of = np.arange(len(cells)) % groups
    counts = count_by_group(bins, cells, of, groups)
    for group in range(groups):
        expected = np.zeros(bins.count, np.int64)
        for cell in cells[of == group]:
            expected[slow_place(bins, cell)] += 1
        assert counts[group].tolist() == expected.tolist()


def test_each_bin_of_a_continuous_column_has_its_share() -> None:
    cells = np.random.default_rng(3).normal(size=10_000).astype(np.float32)
    counts = np.bincount(Bins.of("x", None, cells).place(cells))
    assert counts[3:].tolist() == [1000] * 10


def test_few_values_have_a_bin_each_and_one_value_is_told_from_another() -> None:
    cells = np.repeat(np.array([1, 2, 5], np.float32), [700, 200, 100])
    assert np.bincount(Bins.of("x", None, cells).place(cells))[3:].tolist() == [700, 200, 100]
    five, seven = np.full(1_000, 5, np.float32), np.full(1_000, 7, np.float32)
    bins = Bins.of("x", 0.0, five)
    of = np.arange(1_000) % GROUPS
    seen = diverged(count_by_group(bins, five, of, GROUPS), count_by_group(bins, seven, of, GROUPS), 1e-9)
    assert seen is not None
    assert seen.beyond(0.02)
    same = diverged(count_by_group(bins, five, of, GROUPS), count_by_group(bins, five, of, GROUPS), 1e-9)
    assert same is not None
    assert not same.beyond(0.0)


@given(
    p=hnp.arrays(np.float64, 6, elements=st.floats(0.01, 1)), q=hnp.arrays(np.float64, 6, elements=st.floats(0.01, 1))
)
@settings(max_examples=40, deadline=None)
def test_divergences_are_what_their_formulas_say(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> None:
    p, q = p / p.sum(), q / q.sum()
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert psi(p, q) == pytest.approx(by_hand, abs=1e-12)
    assert psi(p, q) == pytest.approx(psi(q, p), abs=1e-12)
    middle = [(a + b) / 2 for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    half = [sum(a * math.log(a / m) for a, m in zip(x.tolist(), middle, strict=True)) / 2 for x in (p, q)]
    assert jensen_shannon(p, q) == pytest.approx(sum(half), abs=1e-12)
    assert -1e-12 <= jensen_shannon(p, q) <= math.log(2)
    assert jensen_shannon(p, q) <= psi(p, q) / 8 + 1e-12  # an eighth to first order, never more


@given(expected=hnp.arrays(np.float64, st.integers(1, 15), elements=st.floats(0, 40)))
@settings(max_examples=40, deadline=None)
def test_sparse_bins_are_joined_with_neighbours(expected: npt.NDArray[np.float64]) -> None:
    part = joined(expected)
    assert part[0] == 0
    assert set(np.diff(part).tolist()) <= {0, 1}
    sums = np.bincount(part, expected)
    assert len(sums) == 1 or (sums >= 10.0).all()


@pytest.mark.parametrize("shares", [[0.1] * 10, [0.6, 0.3, 0.1], [0.9, 0.05, 0.03, 0.02]])
@pytest.mark.parametrize(("n", "m"), [(10_000, 1_000), (2_000, 50_000)])
def test_the_null_quantile_of_independent_rows_is_that_of_a_simulation(shares: list[float], n: int, m: int) -> None:
    rng = np.random.default_rng(5)
    p = np.array(shares)
    spread = between_groups(np.outer(np.ones(1), p * n))  # one group: that of independent rows
    variance = spread._replace(covariance=spread.covariance * (n / m + 1.0), parts=10**6)
    for level in (0.05, 0.01):
        limit, degrees = null_quantile(variance, p, level)
        assert degrees == pytest.approx(len(p) - 1)
        assert limit == pytest.approx(simulated_null(shares, n, m, level, 20_000, rng), rel=0.12)


def test_lists_of_one_user_are_not_taken_for_independent_rows() -> None:
    rng = np.random.default_rng(11)

    def window(bins: Bins | None, users: int) -> tuple[Bins, npt.NDArray[np.int64]]:
        cells = np.repeat(rng.normal(size=users).astype(np.float32), 20)  # a column of the user: 20 rows of the same
        bins = bins or Bins.of("x", None, cells)
        return bins, count_by_group(bins, cells, np.repeat(rng.integers(0, GROUPS, users), 20), GROUPS)

    alarms, naive = 0, 0
    for _ in range(300):
        bins, reference = window(None, 500)
        _, now = window(bins, 500)
        seen = diverged(reference, now, 0.01)
        assert seen is not None
        alarms += seen.psi > seen.psi_null
        naive += seen.psi > simulated_limit(seen.bins)
        assert seen.effective_rows == pytest.approx(500, rel=0.6)
    assert alarms <= 9  # 3 are expected
    assert naive >= 295  # the quantile of as many independent rows is passed nearly always


def simulated_limit(bins: int) -> float:
    """The 99% quantile for 10,000 independent rows on each side."""
    from scipy.stats import chi2

    return float(2e-4 * chi2.isf(0.01, bins - 1))


def test_the_time_of_day_is_no_drift() -> None:
    rng = np.random.default_rng(2)
    hours = range(24)
    daily = np.sin(2 * np.pi * np.arange(24) / 24) * 0.5

    def hour(of: int) -> npt.NDArray[np.float32]:
        return rng.normal(daily[of], 1.0, 1_000).astype(np.float32)

    rows = np.concatenate([hour(h) for h in hours])
    bins = Bins.of("x", None, rows)
    reference = count_by_group(bins, rows, rng.integers(0, GROUPS, len(rows)), GROUPS)
    by_hour = count_by_group(bins, rows, np.repeat(hours, 1_000), 24)
    without, with_hours = 0, 0
    for h in [*hours, *hours]:  # two more days
        now = count_by_group(bins, hour(h), rng.integers(0, GROUPS, 1_000), GROUPS)
        level = level_of_look(0.01, 1, 60)
        plain, judged = diverged(reference, now, level), diverged(reference, now, level, by_hour)
        assert plain is not None
        assert judged is not None
        without += plain.beyond(0.02)
        with_hours += judged.beyond(0.02)
    assert without > 24
    assert with_hours == 0
    broken = count_by_group(bins, np.full(1_000, 0.3, np.float32), rng.integers(0, GROUPS, 1_000), GROUPS)
    found = diverged(reference, broken, level_of_look(0.01, 24, 60), by_hour)
    assert found is not None
    assert found.beyond(0.02)


def test_the_levels_of_all_looks_and_columns_sum_to_alpha() -> None:
    total = sum(60 * level_of_look(0.01, look, 60) for look in range(1, 10_000))
    assert total == pytest.approx(0.01, rel=1e-3)
    assert total < 0.01


def test_sides_that_cannot_be_compared() -> None:
    counts = np.ones((2, 4), np.int64)
    with pytest.raises(HeadwaterError, match="cannot be compared"):
        diverged(counts, np.ones((2, 5), np.int64), 0.01)
    assert diverged(counts, np.zeros((2, 4), np.int64), 0.01) is None
    with pytest.raises(HeadwaterError, match="each cell belongs to one"):
        count_by_group(Bins.of("x", None, np.ones(3, np.float32)), np.ones(3, np.float32), np.zeros(2, np.int64), 1)
    assert smoothed(np.zeros(4)).tolist() == [0.25] * 4


def test_quantiles_of_f_are_right_far_out_in_the_tail() -> None:
    from scipy.stats import f

    for level in (0.05, 1e-4, 1e-9):
        spread = between_groups(np.diag([50.0] * 6))  # any covariance: the quantile is its mean times that of F
        limit, degrees = null_quantile(spread._replace(parts=64), np.full(6, 1 / 6), level)
        mean = float(np.trace(spread.covariance * 6))
        assert limit / mean == pytest.approx(f.isf(level, round(degrees, 2), 63 * round(degrees, 2)), rel=1e-6)
