"""The columns of the item table that are read for the whole catalogue at once, each in one piece.

A row of the table is two kilobytes: to look at one number of each of 50,000 items there is to fetch a line of memory each, five
milliseconds in all. From a column it is a tenth of one. Columns stand where the last :meth:`Columns.update` left them.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import born_ms
from headwater.features.layout import FLAG_HIDDEN, I_CLOCK, I_EXPIRES, I_FLAGS, I_PUBLISHED
from headwater.features.rowset import Rows
from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_T = TypeVar("_T", bound=np.generic)

NEVER = np.iinfo(np.int64).max


class Columns:
    """Of each item: from when until when anybody may be shown it (``shown_from`` and ``shown_until``, ms, int64[n]; hidden: until 0),
    ``born`` (ms, 0: not known), the ``clock`` of its sums, and those sums that were asked for.
    """

    def __init__(self) -> None:
        self.shown_from, self.shown_until = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.born, self.clock = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._sums: dict[int, Float32] = {}

    def update(self, rows: Rows, changed: Int64) -> None:
        """Take over the ``changed`` items int64[n] of ``rows``."""
        if len(self.clock) < len(rows.i8):
            self._make_room(len(rows.i8))
        _take_times(rows, changed, self.shown_from, self.shown_until, self.born, self.clock)
        for cell, column in self._sums.items():
            _take_sums(rows, changed, cell, column)

    def sums(self, rows: Rows, cell: int) -> Float32:
        """The f4 cell ``cell`` of each item, float32[capacity]; followed from the first call on."""
        column = self._sums.get(cell)
        if column is None:
            column = self._sums[cell] = np.zeros(len(self.clock), np.float32)
            _take_sums(rows, np.arange(len(column)), cell, column)
        return column

    def _make_room(self, capacity: int) -> None:
        before = len(self.clock)
        self.shown_from, self.shown_until, self.born, self.clock = (
            _grown(old, capacity) for old in (self.shown_from, self.shown_until, self.born, self.clock)
        )
        self.shown_until[before:] = NEVER  # as an empty row has it
        self._sums = {cell: _grown(old, capacity) for cell, old in self._sums.items()}


def _grown(old: npt.NDArray[_T], capacity: int) -> npt.NDArray[_T]:
    new = np.zeros(capacity, old.dtype)
    new[: len(old)] = old
    return new


@kernel
def _take_times(rows: Rows, changed: Int64, shown_from: Int64, shown_until: Int64, born: Int64, clock: Int64) -> None:
    for k in range(len(changed)):
        i = changed[k]
        shown_from[i] = rows.i8[i, I_PUBLISHED]
        expires = rows.i8[i, I_EXPIRES]
        shown_until[i] = 0 if rows.u4[i, I_FLAGS] & FLAG_HIDDEN else expires if expires != 0 else NEVER
        born[i] = born_ms(rows, i)
        clock[i] = rows.i8[i, I_CLOCK]


@kernel
def _take_sums(rows: Rows, changed: Int64, cell: int, column: Float32) -> None:
    for k in range(len(changed)):
        column[changed[k]] = rows.f4[changed[k], cell]
