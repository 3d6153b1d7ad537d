"""How much comes in of each type of event: by hour against its season, and how long nothing has come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.log.record import Kind, RecordBlock, of_people
from headwater.monitoring.season import HOUR_MS, Season

SILENCE = 30.0  # events that should have come meanwhile, at half of the expected rate
SHORTEST_SILENCE_MS = 60_000


class Volume(NamedTuple):
    """Of a type (dense): events of the last whole hour and what its season lets expect (None: too little is known), seconds since the last one.

    ``silent``: so many should have come since that chance does not explain it.
    """

    type: int
    events: int
    expected: float | None
    off: bool
    silence_s: float
    silent: bool


class Volumes:
    """Counts by type and hour. ``seasons`` are those of an earlier run, by dense type; ``hour`` the first one that is whole."""

    def __init__(self, seasons: dict[int, dict[int, int]] | None = None) -> None:
        self._seasons = {type_: Season(counts) for type_, counts in (seasons or {}).items()}
        self._last_ms: dict[int, int] = {}

    def take(self, block: RecordBlock) -> None:
        """Count the events of a block, by when they were received."""
        records = block.records
        events = records[of_people(records, Kind.EVENT)]
        if not len(events):
            return
        hours = events["received_ms"] // HOUR_MS
        keys = hours.astype(np.int64) * 65_536 + events["type"]
        for key, count in zip(*_counted(keys), strict=True):
            self._seasons.setdefault(key % 65_536, Season()).add(key // 65_536, count)
        for type_ in np.unique(events["type"]).tolist():
            self._last_ms[type_] = int(events["received_ms"][events["type"] == type_][-1])

    def look(self, now_ms: int, *, live: bool) -> Iterator[Volume]:
        """Each type as of ``now_ms``; ``live``: it is the time of day, so that silence means something."""
        hour = now_ms // HOUR_MS - 1
        for type_, season in sorted(self._seasons.items()):
            count = season.counts.get(hour, 0)
            expected = season.expected(hour) if min(season.counts) < hour else None
            last_ms = self._last_ms.get(type_)
            silence_ms = 0 if last_ms is None or not live else max(now_ms - last_ms, 0)
            yield Volume(
                type_, count, None if expected is None else expected.mean, expected is not None and expected.off(count),
                silence_ms / 1e3, silence_ms > SHORTEST_SILENCE_MS and self._due(season, now_ms, silence_ms) > SILENCE,
            )  # fmt: skip

    def saved(self) -> dict[int, dict[int, int]]:
        """Counts by type and hour."""
        return {type_: season.counts for type_, season in self._seasons.items()}

    def _due(self, season: Season, now_ms: int, silence_ms: int) -> float:
        """Events that half of the usual rate would have brought meanwhile: of this hour by the season, else of the hour before."""
        expected = season.expected(now_ms // HOUR_MS)
        whole = season.counts.get((now_ms - silence_ms) // HOUR_MS - 1, 0)
        rate = whole / 2.0 if expected is None else expected.mean
        return rate / 2.0 * silence_ms / HOUR_MS


def _counted(keys: npt.NDArray[np.int64]) -> tuple[list[int], list[int]]:
    found, counts = np.unique(keys, return_counts=True)
    return found.tolist(), counts.tolist()
