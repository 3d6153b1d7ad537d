"""What people did with the lists that they were served: positive events on shown items, by user and item."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import msgspec
import numpy as np

from headwater.log.protocol import CorruptLogError, EventLog
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock
from headwater.schema.config import Config
from headwater.schema.requests import ServedList

READ = 65_536

_decode_served = msgspec.msgpack.Decoder(ServedList).decode


class Uptake:
    """The positive events of a log, by user and item: :meth:`add` all blocks, then ask."""

    def __init__(self, event_log: EventLog, config: Config) -> None:
        known = event_log.vocabulary()
        self.types = [known.index(Namespace.EVENT_TYPE, kind.name) for kind in config.events if kind.positive]
        self._times: dict[tuple[int, int], list[int]] = {}
        self._sorted = True

    def add(self, block: RecordBlock) -> None:
        """Take in the events of the next block."""
        records = block.records
        fits = (records["kind"] == Kind.EVENT) & np.isin(records["type"], self.types)
        fits &= (records["flags"] & FLAG_RETRACT) == 0
        chosen = records[fits]
        for user, item, at in zip(*(chosen[name].tolist() for name in ("user", "item", "time_ms")), strict=True):
            self._times.setdefault((user, item), []).append(at)
            self._sorted = False

    def within(self, user: int, item: int, at_ms: int, window_ms: int) -> bool:
        """Whether ``user`` had a positive event on ``item`` after ``at_ms``, at most ``window_ms`` later."""
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
    for i in np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist():
        try:
            served = _decode_served(block.payload(i))
        except msgspec.DecodeError as error:
            raise CorruptLogError(int(block.records["offset"][i]), f"a served list cannot be read ({error})") from error
        if served.items and served.request_id not in seen:
            seen.add(served.request_id)
            yield int(block.records["user"][i]), served
