"""Numbers in 32 bits, and HyperLogLog registers inside rows."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.attributes import attribute_code, table_number
from headwater.features.sketch import decode_number, encode_number, estimate, register
from headwater.testing import oracle_cells as oracle
from tests.features.states import STABLE

FLOATS = st.floats(width=32) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-149)])


@STABLE
@given(a=FLOATS, b=FLOATS)
def test_codes_of_numbers_compare_as_the_numbers_do(a: float, b: float) -> None:
    codes = int(encode_number(a)), int(encode_number(b))
    assert codes == (oracle.number_code(a), oracle.number_code(b))
    if math.isnan(a):
        assert codes[0] == 0
        assert math.isnan(decode_number(np.uint32(0)))
        return
    assert codes[0] > 0
    assert decode_number(np.uint32(codes[0])) == a
    assert math.copysign(1.0, decode_number(encode_number(-0.0))) == 1.0
    if not math.isnan(b):
        assert (codes[0] < codes[1]) == (a < b)


def test_codes_are_the_same_compiled_and_plain() -> None:
    plain = cast(Any, encode_number).py_func
    for value in (0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 1e300):
        with np.errstate(over="ignore"):
            assert int(plain(value)) == int(encode_number(value)) == table_number(value)


@pytest.mark.parametrize(
    ("value", "kind", "missing"),
    [(None, "number", True), ("7", "number", True), (7, "number", False), (True, "number", False),
     (math.nan, "number", True), (None, "category", True), ("", "category", False), (0, "category", False)],
)  # fmt: skip
def test_attributes_that_have_no_code(value: Any, kind: Any, missing: bool) -> None:
    assert (attribute_code(value, kind) == 0) == missing
    assert attribute_code(True, "number") == attribute_code(1.0, "number")


def shown(keys: range | list[int], precision: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    u4 = np.zeros(2**precision // 4 + 2, np.uint32)
    for key in keys:
        register(u4, 1, 2**precision, key)
    assert u4[0] == u4[-1] == 0
    return u4


@pytest.mark.parametrize("precision", [4, 6, 8, 12])
def test_registers_and_estimates_are_those_of_the_slow_sketch(precision: int) -> None:
    for count in (0, 1, 3, 17, 150, 1500, 40_000):
        u4 = shown(range(7, 7 + count), precision)
        slow = oracle.registers(range(7, 7 + count), precision)
        assert u4[1:-1].tobytes() == bytes(slow)
        assert estimate(u4, 1, 2**precision) == oracle.estimate(slow)
        if count == 0:
            assert estimate(u4, 1, 2**precision) == 0.0


@pytest.mark.parametrize("precision", [4, 6, 8, 10, 12])
@pytest.mark.parametrize("count", [10, 100, 1_000, 10_000])
def test_the_error_stays_within_three_standard_errors(precision: int, count: int) -> None:
    """Each of 20 seeded sets within four, their root mean square near one."""
    size = 2**precision
    errors = []
    for seed in range(20):
        keys = np.random.default_rng([seed, precision, count]).choice(1 << 24, count, replace=False)
        errors.append(estimate(shown(keys.tolist(), precision), 1, size) / count - 1.0)
    sigma = 1.04 / math.sqrt(size)
    assert sum(abs(error) < 3.0 * sigma for error in errors) >= 19
    assert math.sqrt(np.mean(np.square(errors))) < 1.5 * sigma
    assert abs(np.mean(errors)) < 3.0 * sigma / math.sqrt(20) + 0.02 * (precision == 4)


@STABLE
@given(a=st.lists(st.integers(1, 2**24)), b=st.lists(st.integers(1, 2**24)))
def test_the_larger_of_the_registers_is_the_union(a: list[int], b: list[int]) -> None:
    one, two, both = (shown(keys, 6).view(np.uint8) for keys in (a, b, a + b))
    assert np.maximum(one, two).tobytes() == both.tobytes()
    assert shown(a + a[::-1], 6).tobytes() == shown(a, 6).tobytes()
