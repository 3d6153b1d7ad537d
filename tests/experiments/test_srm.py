"""The split over the variants, against factorials and by simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.experiments.srm import ALARM, always_valid_p, log_bayes_factor, mismatch


@given(st.lists(st.integers(0, 1), min_size=1, max_size=25), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_bayes_factor_is_the_product_of_predictions_user_by_user(drawn: list[int], first: int, second: int) -> None:
    """Pólya's urn predicts each next user; the intended split says the same every time."""
    seen = [Fraction(first), Fraction(second)]
    shares = [Fraction(first, first + second), Fraction(second, first + second)]
    factor = Fraction(1)
    for variant in drawn:
        factor *= seen[variant] / sum(seen) / shares[variant]
        seen[variant] += 1
    counts = np.bincount(drawn, minlength=2)
    found = log_bayes_factor(counts, np.array([float(s) for s in shares]), concentration=first + second)
    assert float(found) == pytest.approx(math.log(factor), abs=1e-9)


def test_the_p_value_never_rises_and_the_first_alarm_stays() -> None:
    counts = np.array([[50, 50], [900, 500], [1_000, 1_000], [5_000, 5_000]])
    found = mismatch(counts, [1, 1])
    assert found.alarm
    assert found.look == 1
    assert found.p_value == pytest.approx(math.exp(-float(log_bayes_factor(counts[1], np.array([0.5, 0.5])))))
    assert found.expected == [5_000.0, 5_000.0]
    assert not mismatch(counts[[0, 2, 3]], [1, 1]).alarm


def test_false_alarms_stay_below_the_level_at_every_look_and_a_mismatch_is_found() -> None:
    rng = np.random.default_rng(11)
    shares = np.array([0.5, 0.3, 0.2])

    def looks(of: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.cumsum(rng.multinomial(500, of, (4_000, 100)), axis=1)

    p_values = always_valid_p(log_bayes_factor(looks(shares), shares))
    assert np.all(np.diff(p_values, axis=1) <= 0.0)
    assert (p_values[:, -1] <= ALARM).mean() <= 2 * ALARM
    assert (p_values[:, -1] <= 0.05).mean() <= 0.05
    off = always_valid_p(log_bayes_factor(looks(np.array([0.47, 0.31, 0.22])), shares))
    assert (off[:, -1] <= ALARM).mean() >= 0.99


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, float("nan")], [[1.0, 1.0]]])
def test_shares_that_are_none_are_refused(shares: object) -> None:
    with pytest.raises(ValueError, match="positive shares"):
        mismatch(np.array([[1, 1]]), shares)  # type: ignore[arg-type]
