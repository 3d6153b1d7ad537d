"""Which of the user's recent items led to a candidate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.layout import Layout
from headwater.features.recent import DEPTH, recent_items
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.jit import allocating_kernel

Int64 = npt.NDArray[np.int64]

_MARKS = 256


@allocating_kernel
def co_visit_cause(user: User, items: Rows, layout: Layout, candidates: Int64, out: Int64) -> None:
    """Write into ``out`` (``int64[n]``) the recent item with the largest co-visit share of each candidate, 0: none."""
    recent, weights = np.empty(DEPTH, np.int64), np.empty(DEPTH, np.float64)
    length = recent_items(user.u4, layout, recent, weights)
    strongest = np.zeros(len(candidates), np.float64)
    marks = np.zeros(_MARKS, np.bool_)  # most partners are no candidate: their last digits tell of nearly all
    for r in range(len(candidates)):
        out[r] = 0
        marks[candidates[r] % _MARKS] = True
    for k in range(length):
        f4, u4 = items.f4[recent[k]], items.u4[recent[k]]
        total = f4[layout.co_total_f4]
        if total <= 0.0:
            continue
        for j in range(layout.co_size):
            key = np.int64(u4[layout.co_u4 + j])
            if key == 0:
                break
            if not marks[key % _MARKS]:
                continue
            share = weights[k] * f4[layout.co_f4 + j] / total
            for r in range(len(candidates)):
                if candidates[r] == key and share > strongest[r]:
                    strongest[r], out[r] = share, recent[k]
