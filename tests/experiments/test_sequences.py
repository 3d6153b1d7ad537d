"""Confidence sequences: against the integral they stand for, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from headwater.experiments.moments import moments_by_look
from headwater.experiments.multiplicity import benjamini_hochberg, holm
from headwater.experiments.sequences import (
    always_valid_p,
    log_evidence,
    look_positions,
    mixture,
    sequence,
    width_in_errors,
)


@pytest.mark.parametrize(("statistic", "users", "rho2"), [(0.0, 50, 0.01), (2.5, 400, 0.02), (-3.0, 90, 0.2)])
def test_the_evidence_is_the_likelihood_ratio_averaged_over_a_normal_prior(
    statistic: float, users: int, rho2: float
) -> None:
    """With unit variance and mean m, LR = exp(m S − n m² / 2), S = z √n; m ~ N(0, ρ²)."""
    total = statistic * np.sqrt(users)

    def weighted(mean: float) -> float:
        return float(np.exp(mean * total - users * mean**2 / 2) * norm.pdf(mean, scale=np.sqrt(rho2)))

    found, _ = quad(weighted, -5, 5, points=[0.0, statistic / np.sqrt(users)], limit=400)
    assert float(log_evidence(np.array(statistic), users, rho2)) == pytest.approx(np.log(found), abs=1e-6)


def test_an_effect_stands_on_the_edge_of_the_interval_when_its_p_value_is_alpha() -> None:
    users, rho2, alpha = np.array([10.0, 500.0, 1e6]), mixture(0.05, 1_000), 0.05
    edge = width_in_errors(users, rho2, alpha)
    np.testing.assert_allclose(np.exp(-log_evidence(edge, users, rho2)), alpha, rtol=1e-9)


def test_the_interval_is_tightest_about_where_it_was_tuned() -> None:
    widths = [float(width_in_errors(1_000, mixture(0.05, best), 0.05)) for best in np.geomspace(100, 10_000, 41)]
    assert min(widths) == pytest.approx(widths[20], rel=1e-3)
    assert widths[20] == pytest.approx(3.035, abs=0.001)  # against 1.96 at a fixed horizon


def test_false_positives_over_all_looks_stay_below_alpha_and_the_truth_inside() -> None:
    rng = np.random.default_rng(8)
    tests, looks, each = 600, 60, 50
    rho2 = mixture(0.05, looks * each)
    sums = np.cumsum(rng.exponential(1.0, (tests, looks, each)).sum(axis=2) - each, axis=1)
    users = np.arange(1, looks + 1) * each
    estimate, error = sums / users, np.broadcast_to(1.0 / np.sqrt(users), (tests, looks))
    p_values = always_valid_p(estimate / error, users, rho2)
    assert np.all(np.diff(p_values, axis=1) <= 0.0)
    wrong = (p_values[:, -1] <= 0.05).mean()
    assert wrong <= 0.05
    low, high = sequence(estimate, error, users, rho2, 0.05)
    assert ((low[:, -1] > 0) | (high[:, -1] < 0)).mean() == wrong
    naive = (np.abs(estimate / error) > 1.96).any(axis=1).mean()
    assert naive > 0.2


def test_looks_without_an_estimate_say_nothing() -> None:
    estimate, error = np.array([np.nan, 1.0, 2.0, 1.0]), np.array([np.nan, 0.0, 0.1, 0.1])
    low, high = sequence(estimate, error, [1, 2, 300, 400], 0.01, 0.05)
    assert low[0] == low[1] == -np.inf
    assert high[1] == np.inf
    assert np.all(low[1:] >= low[:-1])
    assert always_valid_p(np.array([np.nan, 1.0, 9.0]), [1, 2, 300], 0.01)[0] == 1.0


def test_looks_are_spread_evenly() -> None:
    assert look_positions(10, 4).tolist() == [3, 5, 8, 10]
    assert look_positions(3, 50).tolist() == [1, 2, 3]
    assert look_positions(0, 5).tolist() == [0]


def test_adjusted_p_values_are_those_of_the_step_procedures() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        p_values = rng.random(rng.integers(1, 9)) ** 3
        count, order = len(p_values), np.sort(p_values)
        for level in (0.01, 0.05, 0.2):
            rejected = 0  # Holm: step down while the smallest left passes
            while rejected < count and order[rejected] <= level / (count - rejected):
                rejected += 1
            assert (holm(p_values) <= level).sum() == rejected
            passing = [i for i in range(count) if order[i] <= level * (i + 1) / count]  # step up
            assert (benjamini_hochberg(p_values) <= level).sum() == (max(passing) + 1 if passing else 0)
    assert len(holm([])) == len(benjamini_hochberg([])) == 0


def test_a_wrong_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        mixture(0.0, 100)
    assert moments_by_look(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64), 2, 3).users.sum() == 0
