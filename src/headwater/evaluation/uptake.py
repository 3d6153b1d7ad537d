"""What people did with what they were shown: events of the log, looked up by user, item and time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from headwater.log.protocol import EventLog
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock, of_people
from headwater.schema.config import Config
from headwater.schema.requests import ServedList
from headwater.serving.served import served_at

READ = 65_536


def positive_types(event_log: EventLog, config: Config) -> list[int]:
    """The dense event types that ``config`` takes for positive; 0 for one that was never logged."""
    known = event_log.vocabulary()
    return [known.index(Namespace.EVENT_TYPE, kind.name) for kind in config.events if kind.positive]


class Uptake:
    """Events of dense ``types`` that were not retractions, by user and item. :meth:`add` all blocks, then ask."""

    def __init__(self, types: Sequence[int]) -> None:
        self.types = [kind for kind in types if kind]  # 0: no event of the type was ever logged
        self._times: dict[tuple[int, int], list[int]] = {}
        self._sorted = True

    def add(self, block: RecordBlock) -> None:
        """The next block of the log."""
        records = block.records
        fits = of_people(records, Kind.EVENT) & np.isin(records["type"], self.types)
        chosen = records[fits & ((records["flags"] & FLAG_RETRACT) == 0)]
        for user, item, at in zip(*(chosen[name].tolist() for name in ("user", "item", "time_ms")), strict=True):
            self._times.setdefault((user, item), []).append(at)
        self._sorted = False

    def within(self, user: int, item: int, at_ms: int, window_ms: int) -> bool:
        """Whether ``user`` has an event on ``item`` behind ``at_ms`` and no later than ``window_ms`` after it."""
        if not self._sorted:
            for each in self._times.values():
                each.sort()
            self._sorted = True
        times = self._times.get((user, item))
        if times is None:
            return False
        place = bisect_right(times, at_ms)
        return place < len(times) and times[place] <= at_ms + window_ms


def served_in(block: RecordBlock, seen: set[str]) -> Iterator[tuple[int, ServedList]]:
    """(dense user, list) of each served list of a block that is not empty and not among the requests ``seen``, which it joins: a list may
    be recorded twice.

    Raises:
        CorruptLogError: one cannot be read.
    """
    for i in np.flatnonzero(of_people(block.records, Kind.SERVED)).tolist():
        found = served_at(block, i)
        if found.answer.items and found.answer.request_id not in seen:
            seen.add(found.answer.request_id)
            yield found.user, found.answer
