"""Durations as people write them: ``500ms``, ``30s``, ``30m``, ``6h``, ``3d``, ``2w``."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from headwater.schema.errors import ConfigurationError

PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,6})?(ms|s|m|h|d|w)$"
Duration = Annotated[str, Meta(pattern=PATTERN, description='A number and a unit: "500ms", "30m", "6h", "3d", "2w"')]

Delay = Annotated[str, Meta(pattern=PATTERN, description='A duration, or none: "0s"')]

MAX_DURATION_MS = 3_660 * 86_400_000  # ten years: longer is a typing error, and 2^(-age/half-life) stays exact

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}


def parse_duration(text: str) -> int:
    """Milliseconds of a duration: ``"1.5h"`` → ``5_400_000``.

    Raises:
        ConfigurationError: the text is no duration, is shorter than 1 ms or longer than ten years.
    """
    if re.match(PATTERN, text) is None:
        raise ConfigurationError(f'Expected a duration such as "500ms", "30m", "6h" or "3d", got "{text}"')
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    millis = round(float(number) * _UNIT_MS[text[len(number) :]])
    if not 1 <= millis <= MAX_DURATION_MS:
        raise ConfigurationError(f'Expected a duration from 1ms to {MAX_DURATION_MS // _UNIT_MS["d"]}d, got "{text}"')
    return millis


def parse_delay(text: str) -> int:
    """As :func:`parse_duration`, and 0 for "0s"."""
    return 0 if re.fullmatch(r"0+(\.0+)?[a-z]+", text) else parse_duration(text)


def format_duration(millis: int) -> str:
    """The shortest exact text of a duration: ``5_400_000`` → ``"90m"``."""
    for unit in ("w", "d", "h", "m", "s"):
        if millis and millis % _UNIT_MS[unit] == 0:
            return f"{millis // _UNIT_MS[unit]}{unit}"
    return f"{millis}ms"
