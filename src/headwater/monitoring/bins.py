"""Bins of a column, cut at the quantiles of a reference: what two sets of rows are compared over.

Bin 0 holds missing cells (NaN and infinite), bin 1 those that equal the column's default, bin 2 what lies below
the reference's smallest other value, the last one what lies above its largest; the rest is cut so that each bin holds about
the same share of the reference. A value that many cells have is the upper end of its bin, so ties never straddle an edge, and a column
of few values has a bin for each.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.schema.errors import HeadwaterError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

QUANTILES = 10
MISSING, DEFAULT, BELOW = 0, 1, 2


class Bins(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bins of one column. ``edges`` ascend strictly: bin ``3 + i`` holds ``edges[i - 1] < x <= edges[i]``, the first of them from
    ``low`` on. A column whose cells were all missing or the default has none.
    """

    name: str
    default: float | None
    low: float
    edges: tuple[float, ...]

    @classmethod
    def of(cls, name: str, default: float | None, cells: Float32, quantiles: int = QUANTILES) -> Self:
        """Cut at the quantiles of ``cells``, ``float32[n]``, leaving out missing ones and those of the default."""
        known = cells[np.isfinite(cells)]
        if default is not None:
            known = known[known != np.float32(default)]
        if len(known) == 0:
            return cls(name=name, default=default, low=0.0, edges=())
        known = np.sort(known)
        values = known[np.flatnonzero(np.concatenate(([True], known[1:] != known[:-1])))]
        if len(values) > 2 * quantiles:
            at = np.ceil(np.arange(1, quantiles + 1) * (len(known) / quantiles)).astype(np.int64) - 1
            values = np.unique(known[at])  # each the largest of its part: nothing equal to it lies in the next
        return cls(name=name, default=default, low=float(known[0]), edges=tuple(values.tolist()))

    @property
    def count(self) -> int:
        """How many bins there are."""
        return 4 + len(self.edges)

    def place(self, cells: Float32) -> Int64:
        """The bin of each cell, int64[n]."""
        placed = 3 + np.searchsorted(np.array(self.edges, np.float32), cells, side="left")  # NaN is put right below
        if self.edges:
            placed[cells < np.float32(self.low)] = BELOW
        if self.default is not None:
            placed[cells == np.float32(self.default)] = DEFAULT
        placed[~np.isfinite(cells)] = MISSING
        return placed

    @property
    def out_of_range(self) -> tuple[int, ...]:
        """The bins of values that the reference did not have."""
        return BELOW, self.count - 1


def count_by_group(bins: Bins, cells: Float32, groups: Int64, number: int) -> Int64:
    """How many cells of each group fall into each bin: int64[number, bins]. ``groups`` int64[n] are below ``number``.

    Raises:
        HeadwaterError: not as many groups as cells.
    """
    if len(cells) != len(groups):
        raise HeadwaterError(f"{len(cells)} cells with {len(groups)} groups: each cell belongs to one")
    flat = np.bincount(groups * bins.count + bins.place(cells), minlength=number * bins.count)
    return flat.reshape(number, bins.count).astype(np.int64)
