"""Moments, ratios, CUPED: against one user after the other, regression, the bootstrap and tea-tasting."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.experiments.effects import effect, winsorised
from headwater.experiments.fixed import fixed_horizon
from headwater.experiments.moments import Float64, Moments, moments_by_look, pooled
from headwater.experiments.sequences import mixture, sequence


def people(rng: np.random.Generator, count: int, lift: float = 0.0, far: float = 0.0) -> Float64:
    """Lists and clicks within and before, of users that differ: ``float64[count, 4]``."""
    activity = rng.gamma(1.5, 2.0, count)
    taste = rng.beta(2.0, 6.0, count)
    lists, lists_before = 1.0 + rng.poisson(activity), rng.poisson(activity).astype(float)
    clicks = rng.binomial(lists.astype(int), np.minimum(taste * (1.0 + lift), 1.0))
    return np.stack([clicks + far, lists, rng.binomial(lists_before.astype(int), taste), lists_before], axis=1)


def one(outcomes: Float64) -> Moments:
    nobody = np.zeros(len(outcomes), np.int64)
    return moments_by_look(outcomes, nobody, nobody, 1, 1)[0, 0]


def test_moments_are_those_of_the_users_so_far() -> None:
    rng = np.random.default_rng(3)
    outcomes = people(rng, 500, far=1e7)
    variant, look = rng.integers(0, 3, 500), rng.integers(0, 4, 500)
    found = moments_by_look(outcomes, variant, look, 3, 5)
    for at in range(5):
        for group in range(3):
            mine = outcomes[(variant == group) & (look <= at)]
            assert found.users[at, group] == len(mine)
            np.testing.assert_allclose(found.mean[at, group], mine.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(found.cov[at, group], np.cov(mine.T), rtol=1e-7, atol=1e-7)
    both = pooled(found[4, 0], found[4, 1])
    mine = outcomes[variant < 2]
    np.testing.assert_allclose(both.mean, mine.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(both.cov, np.cov(mine.T), rtol=1e-7, atol=1e-7)


def test_cuped_of_a_mean_is_regression_on_the_covariate() -> None:
    rng = np.random.default_rng(4)
    control, treatment = people(rng, 3_000), people(rng, 2_000, 0.1)
    for group in (control, treatment):
        group[:, 1] = group[:, 3] = 1.0
    found = effect(one(control), one(treatment))
    every = np.concatenate([control, treatment])
    slope = np.polyfit(every[:, 2], every[:, 0], 1)[0]
    adjusted = [group[:, 0] - slope * (group[:, 2] - every[:, 2].mean()) for group in (control, treatment)]
    assert found.difference == pytest.approx(adjusted[1].mean() - adjusted[0].mean(), rel=1e-9)
    error = np.sqrt(sum(a.var(ddof=1) / len(a) for a in adjusted))
    assert found.error == pytest.approx(error, rel=1e-9)
    plain = np.sqrt(control[:, 0].var(ddof=1) / 3_000 + treatment[:, 0].var(ddof=1) / 2_000)
    assert found.variance_ratio == pytest.approx((error / plain) ** 2)
    assert found.variance_ratio < 0.8
    assert effect(one(control), one(treatment), cuped=False).error == pytest.approx(plain)


@pytest.mark.parametrize("cuped", [False, True])
def test_the_error_of_a_ratio_is_that_of_the_bootstrap(cuped: bool) -> None:
    rng = np.random.default_rng(5)
    control, treatment = people(rng, 1_000), people(rng, 1_000, 0.2)
    found = effect(one(control), one(treatment), cuped=cuped)
    drawn, lifts = [], []
    for _ in range(250):
        again = effect(
            one(control[rng.integers(1_000, size=1_000)]), one(treatment[rng.integers(1_000, size=1_000)]), cuped=cuped
        )
        drawn.append(float(again.difference))
        lifts.append(float(again.relative))
    assert float(found.error) == pytest.approx(np.std(drawn), rel=0.15)
    assert float(found.relative_error) == pytest.approx(np.std(lifts), rel=0.15)
    assert float(found.difference) == pytest.approx(np.mean(drawn), abs=float(found.error) / 4)


@pytest.mark.parametrize("covariate", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_tea_tasting_says_the_same(covariate: bool, mean: bool) -> None:
    rng = np.random.default_rng(6)
    groups = [people(rng, 2_000), people(rng, 3_000, 0.05)]
    if mean:
        for group in groups:
            group[:, 1] = group[:, 3] = 1.0
    control, treatment = (one(group) for group in groups)
    ours = effect(control, treatment, cuped=covariate)
    theirs = fixed_horizon(control, treatment, alpha=0.05, cuped=covariate)
    assert theirs.difference == pytest.approx(float(ours.difference), rel=1e-9)
    assert theirs.relative == pytest.approx(float(ours.relative), rel=1e-9)
    half = (theirs.interval[1] - theirs.interval[0]) / 2
    assert half == pytest.approx(1.96 * float(ours.error), rel=2e-3)
    assert theirs.relative_interval[1] - theirs.relative_interval[0] == pytest.approx(
        2 * 1.96 * float(ours.relative_error), rel=2e-2
    )


def test_sequences_of_the_relative_change_hold_the_truth_at_all_looks() -> None:
    rng = np.random.default_rng(10)
    tests, users, looks, missed, late = 200, 3_000, 15, 0, 0
    for _ in range(tests):
        outcomes = np.concatenate([people(rng, users // 2), people(rng, users // 2, 0.2)])
        variant = np.repeat([0, 1], users // 2)
        look = np.tile(np.arange(users // 2) * looks // (users // 2), 2)
        moments = moments_by_look(outcomes, variant, look, 2, looks)
        found = effect(moments[:, 0], moments[:, 1])
        low, high = sequence(found.relative, found.relative_error, found.users, mixture(0.05, users), 0.05)
        missed += int(not low[-1] < 0.2 < high[-1])
        late += int(not abs(found.relative[-1] - 0.2) < 1.96 * found.relative_error[-1])
    assert missed <= 0.05 * tests
    assert 0.02 * tests <= late <= 0.09 * tests  # one look at the end, at the same level


def test_without_a_past_cuped_changes_nothing_and_nobody_gives_nan() -> None:
    rng = np.random.default_rng(7)
    outcomes = people(rng, 400)
    outcomes[:, 2:] = 0.0
    found = effect(one(outcomes[:200]), one(outcomes[200:]))
    plain = effect(one(outcomes[:200]), one(outcomes[200:]), cuped=False)
    assert float(found.difference) == float(plain.difference)
    assert float(found.error) == float(plain.error)
    assert float(found.variance_ratio) == 1.0
    assert np.isnan(effect(one(outcomes[:0]), one(outcomes)).difference)
    no_lists = outcomes * np.array([1.0, 0.0, 1.0, 0.0])
    assert np.isnan(effect(one(no_lists[:200]), one(no_lists[200:])).difference)
    outcomes[:200, 0] = 0.0
    nothing = effect(one(outcomes[:200]), one(outcomes[200:]))
    assert nothing.control == 0.0
    assert np.isnan(nothing.relative)


def test_winsorising_cuts_the_largest_only() -> None:
    values = np.arange(100.0)
    assert winsorised(values, 1.0) is values
    cut = winsorised(values, 0.95)
    assert cut.max() == 95.0
    np.testing.assert_array_equal(cut[:96], values[:96])


def test_an_outcome_that_is_no_number_is_refused() -> None:
    outcomes = np.ones((3, 4))
    outcomes[1, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        one(outcomes)
