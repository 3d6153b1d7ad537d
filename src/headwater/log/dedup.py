"""The dedup window: the last N event ids, as an open-addressing table and a ring of hashes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import inline, kernel
from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.log.record import Kind

DEFAULT_WINDOW = 4_000_000
LOOKED_AT = 2  # records for each place of the window: not every record is an event with an id

_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class DedupWindow:
    """Knows the last ``size`` event keys (u64, 0 means none); 24 to 40 bytes a key, allocated as it fills."""

    def __init__(self, size: int = DEFAULT_WINDOW) -> None:
        if size < 1:
            raise ValueError(f"Expected a dedup window of at least 1, got {size}")
        bits = max(4, (2 * size - 1).bit_length())  # at most half full: probes stay short
        self.size = size
        self._table = np.zeros(1 << bits, np.uint64)
        self._shift = np.uint64(64 - bits)
        self._ring = np.zeros(size, np.uint64)
        self._cursor = np.zeros(2, np.int64)  # next place in the ring, keys held

    def __len__(self) -> int:
        return int(self._cursor[1])

    def fresh(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_] | None:
        """Which rows are no repeat, of the window or of an earlier row; None: all of them. Changes nothing."""
        if not keys.any():
            return None
        keys = np.array(keys, np.uint64)  # writable and contiguous: one compiled variant
        out = np.empty(len(keys), np.bool_)
        if _probe(keys, self._table, self._shift, out) == 0 and len(keys) == 1:
            return None
        if len(keys) > 1:
            _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
            out &= (first[inverse] == np.arange(len(keys))) | (keys == 0)
        return None if out.all() else out

    def add(self, keys: npt.NDArray[np.uint64]) -> None:
        """Remember fresh keys, forgetting the oldest ones; zeros are skipped."""
        _insert(keys, self._table, self._shift, self._ring, self._cursor)

    def rebuild(self, log: EventLog) -> None:
        """Fill the window from the end of ``log``, looking at no more than ``LOOKED_AT * size`` records."""
        found: list[npt.NDArray[np.uint64]] = []
        missing, stop = self.size, log.last_offset
        floor = max(log.first_offset - 1, stop - LOOKED_AT * self.size)
        while missing > 0 and stop > floor:
            start = max(floor, stop - READ_LIMIT)
            keys = _keys_between(log, start, stop)[-missing:]
            found.append(keys)
            missing -= len(keys)
            stop = start
        for keys in reversed(found):
            self.add(keys)


def _keys_between(log: EventLog, after: int, last: int) -> npt.NDArray[np.uint64]:
    parts = [np.zeros(0, np.uint64)]
    while after < last:
        block = log.read(after, last - after)
        if block is None:
            break
        keys = block.records["event_key"]
        parts.append(keys[(block.records["kind"] == Kind.EVENT) & (keys != 0)])
        after = block.last_offset
    return np.concatenate(parts)


@inline
def _slot(key: np.uint64, shift: np.uint64) -> np.int64:
    return np.int64((key * _SPREAD) >> shift)


@inline
def _find(key: np.uint64, table: npt.NDArray[np.uint64], shift: np.uint64) -> np.int64:
    """The slot of ``key``, or the free slot where it would go."""
    mask = len(table) - 1
    at = _slot(key, shift)
    while table[at] != 0 and table[at] != key:
        at = (at + 1) & mask
    return at


@kernel
def _probe(
    keys: npt.NDArray[np.uint64], table: npt.NDArray[np.uint64], shift: np.uint64, out: npt.NDArray[np.bool_]
) -> int:
    repeats = 0
    for i in range(len(keys)):
        out[i] = keys[i] == 0 or table[_find(keys[i], table, shift)] == 0
        repeats += not out[i]
    return repeats


@inline
def _remove(key: np.uint64, table: npt.NDArray[np.uint64], shift: np.uint64) -> None:
    """Delete by shifting the rest of the probe run back, so that no tombstones pile up."""
    mask = len(table) - 1
    hole = _find(key, table, shift)
    if table[hole] == 0:
        return
    at = hole
    while True:
        at = (at + 1) & mask
        if table[at] == 0:
            break
        home = _slot(table[at], shift)
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole] = table[at]
            hole = at
    table[hole] = 0


@kernel
def _insert(
    keys: npt.NDArray[np.uint64],
    table: npt.NDArray[np.uint64],
    shift: np.uint64,
    ring: npt.NDArray[np.uint64],
    cursor: npt.NDArray[np.int64],
) -> None:
    for i in range(len(keys)):
        key = keys[i]
        if key == 0:
            continue
        at = _find(key, table, shift)
        if table[at] == key:
            continue
        if cursor[1] == len(ring):
            _remove(ring[cursor[0]], table, shift)
            at = _find(key, table, shift)
        else:
            cursor[1] += 1
        table[at] = key
        ring[cursor[0]] = key
        cursor[0] = (cursor[0] + 1) % len(ring)
