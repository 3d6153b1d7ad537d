"""Local time: what the clocks of a time zone show, from the dense number that a profile's zone has in the log.

A zone that the machine's time zone database does not know counts as UTC.
"""

from __future__ import annotations

import functools
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.jit import inline
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace

PREFIX = "timezone="
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP_S = 8 * 86_400  # two changes are never closer than this in the years that matter
_END_S = 80 * 366 * 86_400

Int64 = npt.NDArray[np.int64]


class ZoneTable(NamedTuple):
    """Changes of zone ``z`` are ``at_ms[first[z]:first[z + 1]]`` (ascending), the clock's offset from then on beside them."""

    first: Int64  # (terms + 2,) by dense segment term
    at_ms: Int64
    offset_ms: Int64


@inline
def zone_offset_ms(zones: ZoneTable, zone: int, now_ms: int) -> int:
    """Local time less UTC at ``now_ms``; 0 for zone 0 and for what is no zone."""
    if zone <= 0 or zone + 1 >= len(zones.first):
        return 0
    low, high = zones.first[zone], zones.first[zone + 1]
    offset = 0
    while low < high:
        middle = (low + high) // 2
        if zones.at_ms[middle] <= now_ms:
            offset = zones.offset_ms[middle]
            low = middle + 1
        else:
            high = middle
    return int(offset)


@functools.cache
def changes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """When the clocks of a zone change (ms since 1970, the first entry is the start of time), and their offsets then."""
    try:
        zone = zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return (), ()

    def offset(at_s: int) -> int:
        passed = (_EPOCH + timedelta(seconds=at_s)).astimezone(zone).utcoffset()
        return 0 if passed is None else round(passed.total_seconds())

    times, offsets = [0], [offset(0)]
    for start in range(0, _END_S, _STEP_S):
        low, high = start, start + _STEP_S
        after = offset(high)
        if after == offsets[-1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
        times.append(high)
        offsets.append(after)
    return tuple(1000 * t for t in times), tuple(1000 * o for o in offsets)


class Zones:
    """The time zones of a log's vocabulary; zones that are named later are found."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known = -1
        self._table = ZoneTable(np.zeros(2, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    def table(self) -> ZoneTable:
        """All zones, for kernels."""
        texts = self._vocabulary.texts(Namespace.SEGMENT)
        if len(texts) != self._known:
            self._known = len(texts)
            found = [changes(t.removeprefix(PREFIX)) if t.startswith(PREFIX) else ((), ()) for t in texts]
            sizes = [len(times) for times, _ in found]
            self._table = ZoneTable(
                np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
                np.array([t for times, _ in found for t in times], np.int64),
                np.array([o for _, offsets in found for o in offsets], np.int64),
            )
        return self._table

    def offset_ms(self, zone: int, now_ms: int) -> int:
        """Local time less UTC for one dense segment term."""
        if zone == 0:
            return 0
        text = self._vocabulary.text(Namespace.SEGMENT, zone) or ""
        return zone_offset_of(text.removeprefix(PREFIX), now_ms) if text.startswith(PREFIX) else 0


def zone_offset_of(name: str, now_ms: int) -> int:
    """Local time less UTC of a zone by its name, by the same table."""
    times, offsets = changes(name)
    place = int(np.searchsorted(times, now_ms, side="right"))
    return offsets[place - 1] if place else 0
