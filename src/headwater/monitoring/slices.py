"""What the policy shows against what chance shows: lists that were drawn evenly from all candidates beside all others.

A system that learns from what it showed drifts towards what it showed. The random slice is not steered by the model, so
where the whole loses its lead over it, or crowds into ever fewer items while the slice does not, the loop feeds on itself.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from headwater.monitoring.outcomes import Waiting

HOURS = 24
HOUR_MS = 3_600_000
TOP = 100  # items that "most shown" are
MOST_ITEMS = 50_000  # counted an hour and slice


class Slice(NamedTuple):
    """Lists and places of a slice in the last hours, the share of places that was clicked, the share that the most shown items had."""

    lists: int
    places: int
    click_rate: float
    top_share: float


class _Hour:
    def __init__(self) -> None:
        self.lists = self.places = self.clicks = 0
        self.items: Counter[int] = Counter()


class Slices:
    """The random slice and the rest, over the last 24 hours of lists whose outcomes are in."""

    def __init__(self) -> None:
        self._hours: dict[tuple[bool, int], _Hour] = {}

    def add(self, waiting: Waiting) -> None:
        """Take in a list of the full path."""
        hour = waiting.time_ms // HOUR_MS
        kept = self._hours.get((waiting.uniform, hour))
        if kept is None:
            kept = self._hours[waiting.uniform, hour] = _Hour()
            self._hours = {at: held for at, held in self._hours.items() if at[1] > hour - HOURS}
        kept.lists += 1
        kept.places += len(waiting.items)
        kept.clicks += int(waiting.places().sum())
        if len(kept.items) < MOST_ITEMS:
            kept.items.update(waiting.items)

    def read(self, *, uniform: bool) -> Slice | None:
        """One of the two; None when it has no list."""
        hours = [held for (chance, _), held in self._hours.items() if chance == uniform]
        places = sum(held.places for held in hours)
        if not places:
            return None
        items: Counter[int] = Counter()
        for held in hours:
            items.update(held.items)
        top = sum(count for _, count in items.most_common(TOP))
        return Slice(
            sum(held.lists for held in hours),
            places,
            sum(held.clicks for held in hours) / places,
            top / max(items.total(), 1),
        )
