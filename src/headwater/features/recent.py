"""What the user's recent items say about a candidate: co-visits and likeness of content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.decay import decay, since_landmark
from headwater.features.definitions import TermOp
from headwater.features.layout import (
    FLAG_CONTENT,
    I_CO_CLOCK,
    I_FLAGS,
    MAX_ITEMS,
    U_RECENT_LENGTH,
    U_SEEN_LENGTH,
    Layout,
    Lives,
    ReadProgram,
)
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.jit import ahead, allocating_kernel, inline, kernel

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

DEPTH = 16  # recent items that cross features look at
FEW = 4  # candidates that are looked for in a row of partners; of more, each partner is looked up among the candidates
DISCOUNT = 0.8  # weight of the k-th latest item is DISCOUNT ** k

_CO_LAST, _CO_SUM, _CO_COUNT = int(TermOp.CO_LAST), int(TermOp.CO_SUM), int(TermOp.CO_COUNT)
_CO_WEIGHT, _CO_FAST_LAST, _CO_FAST_SUM = int(TermOp.CO_WEIGHT), int(TermOp.CO_FAST_LAST), int(TermOp.CO_FAST_SUM)
_CONTENT_LAST, _CONTENT_MEAN = int(TermOp.CONTENT_LAST), int(TermOp.CONTENT_MEAN)


@inline
def recent_items(u4: UInt32, layout: Layout, out: Int64, weights: Float64) -> int:
    """The latest distinct items of a user row's recent sequence, latest first, into ``out``; returns how many.

    ``weights[k] = DISCOUNT ** k * 2 ** (-age / co_window)`` with the age against the latest event, so that what
    belongs to the same visit counts and what lies days back fades.
    """
    found = 0
    discount = 1.0
    latest = 0
    for k in range(np.int64(u4[U_RECENT_LENGTH]) - 1, -1, -1):
        if found == len(out):
            break
        item = np.int64(u4[layout.recent_keys + k]) & MAX_ITEMS
        known = False
        for j in range(found):
            known |= out[j] == item
        if not known:
            time_s = int(u4[layout.recent_times + k])
            if found == 0:
                latest = time_s
            out[found] = item
            weights[found] = discount * decay(latest - time_s, 1.0 / layout.co_window_s)
            discount *= DISCOUNT
            found += 1
    return found


@kernel
def highest_item(u4: UInt32, layout: Layout) -> int:
    """The highest item number in the recent keys and the seen ring of a user row, 0: they are empty."""
    highest = np.uint32(0)
    recent, seen = np.int64(u4[U_RECENT_LENGTH]), np.int64(min(u4[U_SEEN_LENGTH], layout.seen_size))
    for k in range(recent):
        highest = max(highest, np.uint32(u4[layout.recent_keys + k] & np.uint32(MAX_ITEMS)))
    for k in range(seen):
        highest = max(highest, u4[layout.seen + k])
    return int(highest)


@inline
def _add(terms: Float64, at: int, r: int, value: float) -> None:
    if at >= 0:
        terms[at, r] += value


@inline
def _co_terms(
    f4: Float32, j: int, r: int, latest: bool, weight: float, aged: float, total: np.float32, fast_total: np.float32,
    layout: Layout, at: Int32, terms: Float64,
) -> None:  # fmt: skip
    """What partner ``j`` of a recent item's row says about candidate ``r``, which it is."""
    share = f4[layout.co_f4 + j] / total
    if latest:
        _add(terms, at[_CO_LAST], r, share)
    _add(terms, at[_CO_SUM], r, weight * share)
    _add(terms, at[_CO_COUNT], r, 1.0)
    _add(terms, at[_CO_WEIGHT], r, aged * f4[layout.co_f4 + j])
    if fast_total > 0.0:
        fast_share = f4[layout.co_fast_f4 + j] / fast_total
        if latest:
            _add(terms, at[_CO_FAST_LAST], r, fast_share)
        _add(terms, at[_CO_FAST_SUM], r, weight * fast_share)


@inline
def cross_terms(
    items: Rows, candidates: Int64, layout: Layout, lives: Lives, reads: ReadProgram, where: Int32, terms: Float64,
    query: Float32, recent: Int64, weights: Float64, length: int, now_ms: int,
) -> None:  # fmt: skip
    """Fill the terms that look at recent items and candidates together, all candidates at once."""
    n = len(candidates)
    at = reads.at
    for op in range(_CO_LAST, _CO_FAST_SUM + 1):
        if at[op] >= 0:
            for r in range(n):
                terms[at[op], r] = 0.0
    if reads.crosses and length > 0:
        if n > FEW:
            for r in range(n):
                where[candidates[r]] = r
        for k in range(length):
            f4, u4 = items.f4[recent[k]], items.u4[recent[k]]
            total, fast_total = f4[layout.co_total_f4], f4[layout.co_total_f4 + 1]
            if total <= 0.0:
                continue
            h = layout.co_life
            aged = weights[k] * since_landmark(
                items.i8[recent[k], I_CO_CLOCK], now_ms, lives.rate[h], lives.period_ms[h]
            )
            if n > FEW:
                for j in range(layout.co_size):
                    key = u4[layout.co_u4 + j]
                    if key == 0:
                        break
                    if where[key] >= 0:
                        _co_terms(f4, j, where[key], k == 0, weights[k], aged, total, fast_total, layout, at, terms)
            else:
                for r in range(n):
                    place = -1
                    for j in range(layout.co_size):  # compares only, eight at a time
                        if u4[layout.co_u4 + j] == np.uint32(candidates[r]):
                            place = j
                    if place >= 0:
                        _co_terms(f4, place, r, k == 0, weights[k], aged, total, fast_total, layout, at, terms)
        if n > FEW:
            for r in range(n):
                where[candidates[r]] = -1
    if reads.contents and length > 0:
        content_query(items, layout, recent, weights, length, query)
        size = layout.content_size
        for r in range(n):
            row = candidates[r]
            ahead(items.u4, candidates, r, I_FLAGS)
            for c in range(0, size, 16):  # as many lie in a line of memory
                ahead(items.f4, candidates, r, layout.content_f4 + c)
            ahead(items.f4, candidates, r, layout.content_f4 + size - 1)
            if items.u4[row, I_FLAGS] & FLAG_CONTENT:
                last, mean = 0.0, 0.0
                for c in range(size):
                    value = items.f4[row, layout.content_f4 + c]
                    last += value * query[0, c]
                    mean += value * query[1, c]
                _add(terms, at[_CONTENT_LAST], r, last)
                _add(terms, at[_CONTENT_MEAN], r, mean)


@inline
def content_query(items: Rows, layout: Layout, recent: Int64, weights: Float64, length: int, query: Float32) -> None:
    """``query[0]``: content of the latest item; ``query[1]``: weighted mean of the recent items, unit length."""
    size = layout.content_size
    for c in range(size):
        query[0, c] = items.f4[recent[0], layout.content_f4 + c]
        query[1, c] = 0.0
    for k in range(length):
        if items.u4[recent[k], I_FLAGS] & FLAG_CONTENT:
            for c in range(size):
                query[1, c] = np.float32(query[1, c] + weights[k] * items.f4[recent[k], layout.content_f4 + c])
    norm = 0.0
    for c in range(size):
        norm += np.float64(query[1, c]) * np.float64(query[1, c])
    if norm > 0.0:
        scale = 1.0 / np.sqrt(norm)
        for c in range(size):
            query[1, c] = np.float32(query[1, c] * scale)


@allocating_kernel
def co_visit_candidates(
    user: User, items: Rows, layout: Layout, lives: Lives, now_ms: int, scores: Float32, found: Int64, theirs: Float32
) -> int:  # fmt: skip
    """Sum of discounted ``P(item | recent item)``, aged to now, over all partners of the recent items.

    Into ``found`` the items whose sum is positive and into ``theirs`` the sums; returns how many. ``scores`` (``float32[items]``, zeros) is
    where sums are made, all zeros again afterwards.
    """
    recent, weights = np.empty(DEPTH, np.int64), np.empty(DEPTH, np.float64)
    length = recent_items(user.u4, layout, recent, weights)
    count = 0
    for k in range(length):
        f4, u4 = items.f4[recent[k]], items.u4[recent[k]]
        total = f4[layout.co_total_f4]
        if total > 0.0:
            # partners of a row that nobody visited for long count less than those of a busy one
            age = decay(now_ms - items.i8[recent[k], I_CO_CLOCK], lives.rate[layout.co_life])
            scale = weights[k] * age / total
            for j in range(layout.co_size):
                key = np.int64(u4[layout.co_u4 + j])
                if key == 0:
                    break
                if scores[key] == 0.0:
                    if count == len(found):
                        break
                    found[count] = key
                    count += 1
                scores[key] = np.float32(scores[key] + scale * f4[layout.co_f4 + j])
    kept = 0
    for n in range(count):
        if scores[found[n]] > 0.0:
            found[kept], theirs[kept] = found[n], scores[found[n]]
            scores[found[n]] = np.float32(0.0)
            kept += 1
    return kept
