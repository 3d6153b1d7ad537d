"""Sample sizes, against the textbook's formula and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from headwater.experiments.power import sample_size, sequential_factors
from headwater.experiments.sequences import always_valid_p, mixture
from headwater.schema.errors import HeadwaterError


@pytest.mark.parametrize(("share", "left", "metrics"), [(0.5, 1.0, 1), (0.2, 0.6, 4)])
def test_the_fixed_number_is_the_formula(share: float, left: float, metrics: int) -> None:
    found = sample_size(0.4, 2.0, 0.05, share=share, variance_ratio=left, metrics=metrics, users_per_day=1_000)
    quantiles = norm.ppf(1 - 0.05 / metrics / 2) + norm.ppf(0.8)
    by_hand = 2.0 * left * (1 / share + 1 / (1 - share)) * (quantiles / 0.02) ** 2
    assert found.fixed == pytest.approx(by_hand, rel=0.001)
    assert found.fixed < found.sequential
    assert found.sequential_median < found.sequential
    assert found.days is not None
    assert found.days["fixed"] == pytest.approx(found.fixed / 1_000)


def test_the_sequential_number_has_the_power_it_promises() -> None:
    needed, median = sequential_factors(0.05, 0.8)
    rng = np.random.default_rng(2)
    fixed, looks, effect = 2_000, 80, (norm.ppf(0.975) + norm.ppf(0.8)) / np.sqrt(2_000)
    users = np.linspace(0, needed * fixed, looks + 1)[1:]
    steps = rng.normal(effect * users[0], np.sqrt(users[0]), (3_000, looks))
    statistic = np.cumsum(steps, axis=1) / np.sqrt(users)
    p_values = always_valid_p(statistic, users, mixture(0.05, fixed))
    assert (p_values[:, -1] <= 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert (p_values[:, np.searchsorted(users, median * fixed)] <= 0.05).mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    "wrong",
    [{"mean": 0.0}, {"variance": 0.0}, {"effect": 0.0}, {"share": 1.0}, {"power": 0.01}, {"users_per_day": 0.0}],
)
def test_numbers_that_cannot_be_planned_with_are_refused(wrong: dict[str, float]) -> None:
    given = {"mean": 1.0, "variance": 1.0, "effect": 0.1} | wrong
    with pytest.raises(HeadwaterError, match="sensible"):
        sample_size(**given)  # type: ignore[arg-type]
