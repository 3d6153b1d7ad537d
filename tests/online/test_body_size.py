"""Bodies are measured as a parser would count them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.online.body_size import MAX_VALUES, check_size, measure
from headwater.online.errors import RefusalError
from headwater.schema.events import MAX_BATCH

TEXTS = st.text(alphabet='ab,[]{}":\\é\n', max_size=6)
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=25,
)


def commas(value: Any) -> int:
    """Commas that the JSON of ``value`` needs."""
    if isinstance(value, list | dict):
        inside = value if isinstance(value, list) else list(value.values())
        return max(len(inside) - 1, 0) + sum(commas(part) for part in inside)
    return 0


@settings(max_examples=500, deadline=None)
@given(VALUES, st.integers(1, 6), st.integers(1, 8), st.booleans())
def test_it_counts_what_a_parser_finds(value: Any, most_entries: int, most_values: int, spaced: bool) -> None:
    text = json.dumps(value, indent=1 if spaced else None, ensure_ascii=spaced)
    found = measure(np.frombuffer(text.encode(), np.uint8), most_entries, most_values)
    entries = value if isinstance(value, list) else [value]
    expected = 0
    for index, entry in enumerate(entries):
        if index + 1 > most_entries:
            expected = 1
        elif commas(entry) + 1 > most_values:
            expected = 2
        if expected:
            break
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_measured(body: bytes) -> None:
    assert measure(np.frombuffer(body, np.uint8), 3, 3) in (0, 1, 2)


def test_the_limits_are_exact() -> None:
    check_size(b"[" + b",".join([b"0"] * MAX_BATCH) + b"]")
    with pytest.raises(RefusalError, match=f"at most {MAX_BATCH} entries") as refused:
        check_size(b"[" + b",".join([b"0"] * (MAX_BATCH + 1)) + b"]")
    assert refused.value.status == 413
    check_size(b'{"a":[' + b",".join([b"0"] * MAX_VALUES) + b"]}")
    with pytest.raises(RefusalError, match=f"at most {MAX_VALUES} values"):
        check_size(b'{"a":[' + b",".join([b"0"] * (MAX_VALUES + 1)) + b"]}")
