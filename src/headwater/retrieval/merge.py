"""Union of the sources' offers: one list of distinct, eligible candidates in merged order.

The order is weighted reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): an item's score is
``Σ weight_s / (RANK_OFFSET + rank_s)`` over the sources that offer it; scores of different sources need no
common scale. Each candidate remembers the source that gave it most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.retrieval.index import Ranked

RANK_OFFSET = 10.0

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """``items`` int64[n] in merged order, their merged ``scores`` float32[n], ``source`` int64[n] (position)."""

    items: Int64
    scores: npt.NDArray[np.float32]
    source: Int64

    def __len__(self) -> int:
        return len(self.items)


def merge(
    offers: list[tuple[float, int, Ranked]], limit: int, eligible: Callable[[Int64], npt.NDArray[np.bool_]]
) -> Candidates:
    """Merge ``(weight, width, ranked)`` offers and keep the best ``limit``.

    Items that are not ``eligible`` are dropped before a source's ``width`` and before ``limit`` count, so a
    filter never starves the result.
    """
    items_parts: list[Int64] = []
    score_parts: list[npt.NDArray[np.float64]] = []
    source_parts: list[Int64] = []
    for position, (weight, width, ranked) in enumerate(offers):
        if not len(ranked):
            continue
        kept = ranked.items[eligible(ranked.items)][:width]
        items_parts.append(kept)
        score_parts.append(weight / np.arange(RANK_OFFSET + 1.0, RANK_OFFSET + 1.0 + len(kept)))
        source_parts.append(np.full(len(kept), position, np.int64))
    if not items_parts:
        empty = np.zeros(0, np.int64)
        return Candidates(empty, np.zeros(0, np.float32), empty)
    items, scores, source = np.concatenate(items_parts), np.concatenate(score_parts), np.concatenate(source_parts)
    # strongest contribution first, so that the first occurrence names the source
    order = np.lexsort((source, -scores))
    unique, first, inverse = np.unique(items[order], return_index=True, return_inverse=True)
    total = np.bincount(inverse, weights=scores[order], minlength=len(unique))
    chosen = np.lexsort((unique, -total))[:limit]
    return Candidates(unique[chosen], total[chosen].astype(np.float32), source[order][first[chosen]])
