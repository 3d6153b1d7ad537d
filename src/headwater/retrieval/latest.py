"""The latest distinct items of a user row, and what each weighs: the query of the fitted item-to-item sources."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.layout import MAX_ITEMS, U_RECENT_LENGTH, Layout
from headwater.features.rows import User
from headwater.jit import kernel

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Recency(NamedTuple):
    """How the weight of a recent item falls: ``discount`` for each later item, ``across`` for each pause of more than
    ``gap_s`` seconds since; at most ``depth`` items count.
    """

    depth: int
    discount: float
    gap_s: int
    across: float


@kernel
def latest_items(user: User, layout: Layout, recency: Recency, items: Int64, weights: Float64) -> int:
    """Write the latest distinct items, the newest first, and their weights; returns how many.

    ``items`` and ``weights`` have room for the whole recent sequence.
    """
    u4 = user.u4
    found = 0
    weight = 1.0
    later = np.int64(0)
    for k in range(np.int64(u4[U_RECENT_LENGTH]) - 1, -1, -1):
        if found == recency.depth:
            break
        item = np.int64(u4[layout.recent_keys + k]) & MAX_ITEMS
        time_s = np.int64(u4[layout.recent_times + k])
        if later > 0 and later - time_s > recency.gap_s:
            weight *= recency.across
        later = time_s
        known = False
        for j in range(found):
            known |= items[j] == item
        if not known and item > 0:
            items[found] = item
            weights[found] = weight
            weight *= recency.discount
            found += 1
    return found


class Latest:
    """Memory for :func:`latest_items` of one plan."""

    def __init__(self, layout: Layout, recency: Recency) -> None:
        self.layout, self.recency = layout, recency
        self._items, self._weights = np.zeros(layout.recent_size, np.int64), np.zeros(layout.recent_size, np.float64)

    def of(self, user: User) -> tuple[Int64, Float64]:
        """The latest items int64[l] and their weights float64[l]; good until the next call."""
        count = latest_items(user, self.layout, self.recency, self._items, self._weights)
        return self._items[:count], self._weights[:count]
