"""Our own power of two: as good as the library's, and the same bits compiled and plain."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from headwater.features.decay import decay
from headwater.testing import oracle
from tests.features.states import STABLE

plain = cast(Callable[[int, float], float], cast(Any, decay).py_func)
AGES = st.integers(0, 2_000) | st.integers(0, 10**13)
HALF_LIVES = st.integers(1, 10_000) | st.integers(1, 10**11)


@STABLE
@given(age_ms=AGES, half_life_ms=HALF_LIVES)
def test_decay_is_the_power_of_two(age_ms: int, half_life_ms: int) -> None:
    rate = 1.0 / half_life_ms
    value = decay(age_ms, rate)
    assert value == plain(age_ms, rate) == oracle.decay(age_ms, half_life_ms)
    if age_ms * rate < 1000.0:
        assert math.isclose(value, math.exp2(-(age_ms * rate)), rel_tol=1e-15, abs_tol=0.0)
    else:
        assert value == 0.0


def test_a_grid_of_ages_is_exact_to_1e_15() -> None:
    rate = 1 / 997
    worst = max(abs(decay(age, rate) / math.exp2(-(age * rate)) - 1.0) for age in range(1, 900_000, 173))
    assert worst < 1e-15


def test_ages_are_never_negative_and_halves_are_halves() -> None:
    assert decay(0, 0.5) == decay(-1, 0.5) == decay(-(10**15), 1.0) == 1.0
    for n in range(1000):
        assert math.isclose(decay(n, 1.0), 0.5**n, rel_tol=4e-16, abs_tol=0.0)
    assert decay(1000, 1.0) == 0.0


def test_older_is_never_heavier_than_by_rounding() -> None:
    values = [decay(age, 1 / 3_600_000) for age in range(0, 40_000_000, 10_007)]
    assert all(later < earlier for earlier, later in pairwise(values))
