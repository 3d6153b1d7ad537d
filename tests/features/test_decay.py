"""Our own power of two: as good as the library's, and the same bits compiled and plain; and the sums made with it."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.co_visits import rescale
from headwater.features.decay import FOREVER_MS, PERIOD, decay, power, since_landmark, whole_power
from headwater.features.declare import Who, affinity, count, total
from headwater.features.plan import compile_plan
from headwater.log.commands import PutItems
from headwater.schema.config import Config, Features
from headwater.schema.durations import parse_duration
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing import oracle_cells as oracle
from headwater.testing.events import Step, written
from tests.features.states import STABLE, assembled, folded

plain = cast(Callable[[int, float], float], cast(Any, decay).py_func)
AGES = st.integers(0, 2_000) | st.integers(0, 10**13)
HALF_LIVES = st.integers(1, 10_000) | st.integers(1, 10**11)


@STABLE
@given(age_ms=AGES, half_life_ms=HALF_LIVES)
def test_decay_is_the_power_of_two(age_ms: int, half_life_ms: int) -> None:
    rate = 1.0 / half_life_ms
    value = decay(age_ms, rate)
    assert value == plain(age_ms, rate) == oracle.decay(age_ms, half_life_ms)
    if age_ms * rate <= 1000.0:
        assert math.isclose(value, math.exp2(-(age_ms * rate)), rel_tol=3e-15, abs_tol=0.0)
    else:
        assert value == 0.0


@STABLE
@given(exponent=st.floats(-1000.0, 999.0) | st.floats(-1e-12, 1e-12) | st.integers(-1000, 999))
def test_power_is_good_to_3e_15_on_both_sides_of_0(exponent: float) -> None:
    assert power(float(exponent)) == oracle.two_to(float(exponent))
    assert math.isclose(power(float(exponent)), math.exp2(exponent), rel_tol=3e-15, abs_tol=0.0)
    if exponent == int(exponent):
        assert power(float(exponent)) == 2.0**exponent == whole_power(int(exponent))


def test_a_grid_of_ages_is_exact_to_3e_15() -> None:
    rate = 1 / 997
    worst = max(abs(decay(age, rate) / math.exp2(-(age * rate)) - 1.0) for age in range(1, 900_000, 173))
    assert worst < 3e-15


def test_ages_are_never_negative_and_halves_are_halves() -> None:
    assert decay(0, 0.5) == decay(-1, 0.5) == decay(-(10**15), 1.0) == 1.0
    for n in range(1001):
        assert decay(n, 1.0) == 0.5**n
    assert decay(1001, 1.0) == 0.0
    assert whole_power(-1023) == whole_power(-(10**9)) == 0.0


def test_older_is_never_heavier_than_by_rounding() -> None:
    values = [decay(age, 1 / 3_600_000) for age in range(0, 40_000_000, 10_007)]
    assert all(later < earlier for earlier, later in pairwise(values))


@STABLE
@given(clock=st.integers(0, 10**13), ahead=st.integers(0, 10**13), half_life=HALF_LIVES)
def test_landmarks_move_by_whole_powers(clock: int, ahead: int, half_life: int) -> None:
    now, period = clock + ahead, PERIOD * half_life
    periods = now // period - clock // period
    assert rescale(clock, now, period) == (2.0 ** (-PERIOD * periods) if periods < 32 else 0.0)
    assert rescale(clock, now, FOREVER_MS) == 1.0
    assert since_landmark(clock, now, 1.0 / half_life, period) == oracle.worth_now(clock, now, half_life)
    assert since_landmark(now, clock, 1.0 / half_life, period) == oracle.worth_now(now, now, half_life)
    assert since_landmark(clock, now, 0.0, FOREVER_MS) == 1.0


SPANS = ("1s", "90s", "6h", "30d", "3660d")
WHO: tuple[Who, ...] = ("user", "item", "everybody")
SUMS = compile_plan(
    Config(features=Features(idle_after="never")),
    (
        *(count(f"{who}_ones_{n}", who, ["click"], half_life=span) for n, span in enumerate(SPANS) for who in WHO),
        *(total(f"{who}_values_{n}", who, ["click"], half_life=span) for n, span in enumerate(SPANS) for who in WHO),
        *(affinity(f"likes_{n}", {"click": 1.0}, half_life=span, read="weight") for n, span in enumerate(SPANS)),
    ),
)
MOMENTS = st.sampled_from([0, 1, 32_000, 64_000, 10**7]) | st.integers(0, 200_000) | st.integers(0, 2 * 10**12)


@STABLE
@given(
    happened=st.lists(st.tuples(MOMENTS, st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=12),
    later=st.integers(0, 100_000) | st.integers(0, 10**11),
)
def test_sums_are_what_mathematics_says_whatever_the_order_of_arrival(
    happened: list[tuple[int, float]], later: int
) -> None:
    end = max(time for time, _ in happened)
    events = [Event(user="u", item="i", type="click", time=time, value=value) for time, value in happened]
    log = written([Step(end, PutItems([Item(id="i", categories=["c"])])), Step(end, events)], Config())
    fold = folded(SUMS, log)
    row = assembled(SUMS, fold, fold.users.user(1), [1], (0, 0), end + later)[0]
    with decimal.localcontext(prec=50):
        for n, span in enumerate(SPANS):
            weights = [_exactly(end + later - time, parse_duration(span)) for time, _ in happened]
            parts = [decimal.Decimal(value) * weight for (_, value), weight in zip(happened, weights, strict=True)]
            size = float(sum(abs(part) for part in parts))
            for who in WHO:
                close = _close if who == "user" else _closer
                close(row[SUMS.columns.index(f"{who}_ones_{n}")], sum(weights), float(sum(weights)))
                close(row[SUMS.columns.index(f"{who}_values_{n}")], sum(parts), size)
            _close(row[SUMS.columns.index(f"likes_{n}")], sum(weights), float(sum(weights)))


def _exactly(age_ms: int, half_life_ms: int) -> decimal.Decimal:
    return decimal.Decimal(2) ** (-decimal.Decimal(age_ms) / half_life_ms)


def _close(found: np.float32, expected: decimal.Decimal | int, size: float) -> None:
    """A rounding to ``float32`` for each event and one of the result; what lies below 2^-96 may be gone."""
    assert float(found) == pytest.approx(float(expected), rel=0.0, abs=13 * 2.0**-24 * size + 1e3 * 2.0**-96)


def _closer(found: np.float32, expected: decimal.Decimal | int, size: float) -> None:
    """Sums with rests: one rounding of the whole to ``float32`` and one of the result, whatever cancelled out before."""
    bound = 2.1 * 2.0**-24 * abs(float(expected)) + 13 * 2.0**-46 * size + 1e3 * 2.0**-96
    assert float(found) == pytest.approx(float(expected), rel=0.0, abs=bound)
