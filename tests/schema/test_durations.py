"""Durations: what is read is what was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.schema.durations import MAX_DURATION_MS, format_duration, parse_duration
from headwater.schema.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "millis"),
    [
        ("500ms", 500),
        ("30s", 30_000),
        ("30m", 1_800_000),
        ("1.5h", 5_400_000),
        ("3d", 259_200_000),
        ("2w", 1_209_600_000),
    ],
)
def test_units(text: str, millis: int) -> None:
    assert parse_duration(text) == millis


@pytest.mark.parametrize("text", ["", "5", "h", "-3d", "3 days", "3D", "1e3s", "0s", "0.0001ms", "999999w", "3d "])
def test_what_is_no_duration_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected a duration") as caught:
        parse_duration(text)
    assert f'got "{text}"' in str(caught.value)


@given(st.integers(1, MAX_DURATION_MS))
def test_round_trip(millis: int) -> None:
    assert parse_duration(format_duration(millis)) == millis
