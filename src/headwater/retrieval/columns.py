"""The columns of the item table that are read for the whole catalogue at once, each in one piece.

A row of the table is two kilobytes: to look at one number of each of 50,000 items there is to fetch a line of memory each, five
milliseconds in all. From a column it is a tenth of one. Columns stand where the last :meth:`Columns.update` left them.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import born_ms
from headwater.features.layout import FLAG_HIDDEN, I_CLOCK, I_EXPIRES, I_FLAGS, I_PUBLISHED, I_REGIONS
from headwater.features.rowset import Rows
from headwater.jit import kernel
from headwater.schema.items import MAX_REGIONS

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]

_T = TypeVar("_T", bound=np.generic)


class Columns:
    """Of each item what says whether it may be shown (``flags`` uint32[n], ``published`` and ``expires`` int64[n] in ms, dense ``regions``
    uint32[n, r]; ``limited`` uint8[n] is 0 where it is not hidden, never expires and has no regions), when it was ``born`` (ms, 0: not known), the
    ``clock`` of its sums, and those sums and counts that were asked for.
    """

    def __init__(self) -> None:
        self.limited, self.flags = np.zeros(0, np.uint8), np.zeros(0, np.uint32)
        self.regions = np.zeros((0, MAX_REGIONS), np.uint32)
        self.published, self.expires = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.born, self.clock = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._sums: dict[int, Float32] = {}
        self._counts: dict[int, UInt32] = {}

    def update(self, rows: Rows, changed: Int64) -> Bool:
        """Take over the ``changed`` items int64[n] of ``rows``; returns of each whether it was born at another time than was known."""
        if len(self.clock) < len(rows.i8):
            self._make_room(len(rows.i8))
        moved = np.empty(len(changed), np.bool_)
        _take(
            rows, changed, self.limited, self.flags, self.regions, self.published, self.expires, self.born, self.clock, moved
        )  # fmt: skip
        for cell, column in self._sums.items():
            _take_sums(rows, changed, cell, column)
        for cell, counted in self._counts.items():
            _take_counts(rows, changed, cell, counted)
        return moved

    def sums(self, rows: Rows, cell: int) -> Float32:
        """The f4 cell ``cell`` of each item, float32[capacity]; followed from the first call on."""
        column = self._sums.get(cell)
        if column is None:
            column = self._sums[cell] = np.zeros(len(self.clock), np.float32)
            _take_sums(rows, np.arange(len(column)), cell, column)
        return column

    def counts(self, rows: Rows, cell: int) -> UInt32:
        """The u4 cell ``cell`` of each item, uint32[capacity]; followed from the first call on."""
        column = self._counts.get(cell)
        if column is None:
            column = self._counts[cell] = np.zeros(len(self.clock), np.uint32)
            _take_counts(rows, np.arange(len(column)), cell, column)
        return column

    def _make_room(self, capacity: int) -> None:
        self.limited, self.flags = _grown(self.limited, capacity), _grown(self.flags, capacity)
        self.regions = _grown(self.regions, capacity)
        self.published, self.expires = _grown(self.published, capacity), _grown(self.expires, capacity)
        self.born, self.clock = _grown(self.born, capacity), _grown(self.clock, capacity)
        self._sums = {cell: _grown(old, capacity) for cell, old in self._sums.items()}
        self._counts = {cell: _grown(old, capacity) for cell, old in self._counts.items()}


def _grown(old: npt.NDArray[_T], capacity: int) -> npt.NDArray[_T]:
    new = np.zeros((capacity, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


@kernel
def _take(
    rows: Rows, changed: Int64, limited: UInt8, flags: UInt32, regions: UInt32, published: Int64, expires: Int64, born: Int64,
    clock: Int64, moved: Bool,
) -> None:  # fmt: skip
    for k in range(len(changed)):
        i = changed[k]
        flags[i] = rows.u4[i, I_FLAGS]
        for r in range(regions.shape[1]):
            regions[i, r] = rows.u4[i, I_REGIONS + r]
        published[i], expires[i] = rows.i8[i, I_PUBLISHED], rows.i8[i, I_EXPIRES]
        limited[i] = (flags[i] & FLAG_HIDDEN) != 0 or expires[i] != 0 or regions[i, 0] != 0
        at = born_ms(rows, i)
        moved[k] = at != born[i]
        born[i], clock[i] = at, rows.i8[i, I_CLOCK]


@kernel
def _take_sums(rows: Rows, changed: Int64, cell: int, column: Float32) -> None:
    for k in range(len(changed)):
        column[changed[k]] = rows.f4[changed[k], cell]


@kernel
def _take_counts(rows: Rows, changed: Int64, cell: int, column: UInt32) -> None:
    for k in range(len(changed)):
        column[changed[k]] = rows.u4[changed[k], cell]
