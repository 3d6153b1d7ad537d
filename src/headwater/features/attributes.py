"""Attributes and table values as 32-bit codes; 0 is "missing"."""

from __future__ import annotations

import functools
from typing import Literal

import xxhash

from headwater.features.sketch import encode_number
from headwater.schema.events import Scalar

_TOP = (1 << 32) - 1


@functools.cache
def surface_code(name: str) -> int:
    """A code of a surface's name, 1 … 65,535; 0 for no name."""
    return xxhash.xxh32_intdigest(name.encode()) % 65_535 + 1 if name else 0


def attribute_code(value: Scalar | None, kind: Literal["number", "category"]) -> int:
    """The code of an attribute: of its number (true is 1), or a hash of its text. What has no number is missing."""
    if value is None:
        return 0
    if kind == "category":
        return xxhash.xxh32_intdigest(str(value).encode()) % _TOP + 1
    return 0 if isinstance(value, str) else table_number(float(value))


def table_number(value: float | None) -> int:
    """The code of a number; ``None`` and NaN are missing."""
    return 0 if value is None else int(encode_number(value))
