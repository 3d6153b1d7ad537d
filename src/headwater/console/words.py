"""How figures and times are written in the console."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

_AGES = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def age(ms: float | None) -> str:
    """``ms`` in its largest unit: "3.2 min"; "never" for None."""
    if ms is None:
        return "never"
    for size, unit in _AGES:
        if abs(ms) >= size:
            return f"{ms / size:.3g} {unit}"
    return f"{ms:.0f} ms"


def moment(ms: int | None) -> str:
    """Unix ms as UTC, to the second; "never" for None."""
    return "never" if ms is None else datetime.fromtimestamp(ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M:%S")


def number(value: float | None) -> str:
    """A figure in three digits, large ones with separators; a dash for None and for what is no number."""
    if value is None or value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 or value == int(value) else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if share is None else f"{100 * share:.3g}%"


FILTERS: dict[str, Callable[..., Any]] = {"age": age, "moment": moment, "number": number, "percent": percent}
