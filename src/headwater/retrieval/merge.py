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

from headwater.jit import kernel
from headwater.retrieval.index import Ranked

RANK_OFFSET = 10.0

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Candidates:
    """``items`` int64[n] in merged order, their merged ``scores`` float32[n], ``source`` int64[n] (position)."""

    items: Int64
    scores: npt.NDArray[np.float32]
    source: Int64

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> Candidates:
        """The best ``count``."""
        return self if count >= len(self) else Candidates(self.items[:count], self.scores[:count], self.source[:count])


class Merger:
    """Merges offers in memory that it keeps from request to request; not thread-safe."""

    def __init__(self) -> None:
        self._place = np.full(1024, -1, np.int32)  # by item: which of the distinct items it is; -1 between two calls
        self._given = np.zeros((1024, 8), np.float64)
        self._distinct, self._source = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
        self._total = np.zeros(1024, np.float64)

    def merge(
        self, offers: list[tuple[float, int, Ranked]], limit: int, eligible: Callable[[Int64], Bools]
    ) -> Candidates:
        """Merge ``(weight, width, ranked)`` offers and keep the best ``limit``.

        Items that are not ``eligible`` are dropped before a source's ``width`` and before ``limit`` count, so a
        filter never starves the result. Equal scores are ordered by item number.
        """
        offered = [ranked.items[: width + width // 4] for _, width, ranked in offers]
        count = self._fused(offers, offered, eligible)
        if count < 0:
            count = self._fused(offers, [ranked.items for _, _, ranked in offers], eligible)
        total = self._total[:count]
        order, most = np.argsort(-total), min(count, limit)
        best = Candidates(np.empty(most, np.int64), np.empty(most, np.float32), np.empty(most, np.int64))
        _settle(order, total, self._distinct, self._source, best.items, best.scores, best.source)
        return best

    def _fused(
        self, offers: list[tuple[float, int, Ranked]], offered: list[Int64], eligible: Callable[[Int64], Bools]
    ) -> int:
        """What :func:`_fuse` says of what is ``offered``, the first items of each of ``offers``."""
        items = np.concatenate(offered) if offered else np.zeros(0, np.int64)
        if not len(items):
            return 0
        shown = eligible(items)
        self._make_room(len(items), int(items.max()) + 1, len(offers))
        weights = np.array([weight for weight, _, _ in offers], np.float64)
        sizes = np.array(
            [(width, len(each), len(ranked)) for (_, width, ranked), each in zip(offers, offered, strict=True)],
            np.int64,
        )
        return int(
            _fuse(items, shown, weights, sizes, self._place, self._given, self._distinct, self._source, self._total)
        )

    def _make_room(self, offered: int, items: int, sources: int) -> None:
        if items > len(self._place):
            self._place = np.full(2 * items, -1, np.int32)
        if offered > len(self._given) or sources > self._given.shape[1]:
            offered, sources = max(2 * offered, len(self._given)), max(sources, self._given.shape[1])
            self._given = np.zeros((offered, sources), np.float64)
            self._distinct, self._source = np.zeros(offered, np.int64), np.zeros(offered, np.int64)
            self._total = np.zeros(offered, np.float64)


@kernel
def _settle(
    order: Int64, total: Float64, distinct: Int64, source: Int64, items: Int64, scores: Float32, sources: Int64
) -> None:  # fmt: skip
    """The first of ``order`` into ``items``, ``scores`` and ``sources``: by score as it is, equal ones by the lower item number."""
    for n in range(1, len(order)):
        each, at = order[n], n
        while at > 0 and total[order[at - 1]] == total[each] and distinct[order[at - 1]] > distinct[each]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = each
    for n in range(len(items)):
        items[n], scores[n], sources[n] = distinct[order[n]], np.float32(total[order[n]]), source[order[n]]


@kernel
def _fuse(
    items: Int64, shown: Bools, weights: Float64, sizes: Int64, place: Int32, given: Float64, distinct: Int64, source: Int64,
    total: Float64,
) -> int:  # fmt: skip
    """Distinct items, the source that gave each most (the first of equals) and its score; returns how many.

    ``sizes`` int64[sources, 3] are the width of each source, how many of its items are here, and how many it has. -1: less than its width
    is left of a source that has more.
    """
    count, at, sources = 0, 0, len(weights)
    for s in range(sources):
        width, length, rank = sizes[s, 0], sizes[s, 1], 0
        for k in range(at, at + length):
            if rank == width:
                break
            if not shown[k]:
                continue
            rank += 1
            p = place[items[k]]
            if p < 0:
                p = place[items[k]] = count
                distinct[p] = items[k]
                for other in range(sources):
                    given[p, other] = 0.0
                count += 1
            given[p, s] = weights[s] / (RANK_OFFSET + rank)
        at += length
        if rank < width and length < sizes[s, 2]:
            for p in range(count):
                place[distinct[p]] = -1
            return -1
    for p in range(count):
        place[distinct[p]] = -1
        most = 0
        for s in range(1, sources):
            if given[p, s] > given[p, most]:
                most = s
        source[p] = most
        # the largest first, so that equal contributions have equal sums whichever sources they came from
        value = 0.0
        for _ in range(sources):
            largest = 0
            for s in range(1, sources):
                if given[p, s] > given[p, largest]:
                    largest = s
            if given[p, largest] == 0.0:
                break
            value += given[p, largest]
            given[p, largest] = 0.0
        total[p] = value
    return count
