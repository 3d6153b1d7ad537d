"""The assembly: one user row and ``n`` item rows become ``float32[n, d]``.

Serving, training and replay call :func:`assemble`; a row of the result depends on the user row, that
item's row, the rows of the user's recent items, item row 0, the context and ``now_ms``, never on the
other candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.decay import decay
from headwater.features.definitions import Op
from headwater.features.fold_kernel import Rows
from headwater.features.plan import (
    FLAG_CONTENT,
    I_CATEGORIES,
    I_CLOCK,
    I_CO_CLOCK,
    I_FIRST,
    I_FLAGS,
    I_PUBLISHED,
    MAX_ITEMS,
    U_CLOCK,
    U_RECENT_LENGTH,
    Layout,
    Plan,
    ReadProgram,
)
from headwater.jit import inline, kernel
from headwater.schema.items import MAX_CATEGORIES

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

HOUR_MS = 3_600_000.0
DEPTH = 16  # recent items that cross features look at
MAX_RATIO = 1e6  # ratios of weights that decayed to almost nothing stop here
DISCOUNT = 0.8  # weight of the k-th latest item is DISCOUNT ** k

(
    DECAYED_USER, DECAYED_ITEM, SHARE_ITEM, RATE_ITEM, TREND_ITEM, COUNT_USER, COUNT_ITEM, SINCE_USER, SINCE_ITEM,
    AGE_ITEM, LENGTH_USER, AFFINITY, CO_LAST, CO_SUM, CO_COUNT, CO_LIFT, CONTENT_LAST, CONTENT_MEAN, SEGMENT_SHARE,
    SEGMENT_LIFT, HOUR, WEEKDAY, PRICE, SAME_CATEGORY, CO_WEIGHT, CO_FAST_LAST, CO_FAST_SUM,
) = (int(op) for op in Op)  # fmt: skip

# Columns that look at a recent item and a candidate together, in the order in which `_cross` writes them.
_CROSS_OPS = (CO_LAST, CO_SUM, CO_COUNT, CONTENT_LAST, CONTENT_MEAN, CO_WEIGHT, CO_FAST_LAST, CO_FAST_SUM)
CROSS = len(_CROSS_OPS)
CROSS_AT = np.array([_CROSS_OPS.index(op) if op in _CROSS_OPS else -1 for op in range(len(Op))], np.int64)


class Context(NamedTuple):
    """The request as numbers: one dense segment term a key (0: unknown)."""

    segments: tuple[int, int]


class User(NamedTuple):
    """One user row (``int64[a]``, ``float32[b]``, ``uint32[c]``); all zeros: a stranger."""

    i8: Int64
    f4: Float32
    u4: UInt32


class Scratch(NamedTuple):
    """Reused memory of a worker: ``where`` maps an item to its candidate row, -1 elsewhere."""

    where: Int32  # (items,)
    cross: Float32  # (candidates, CROSS)
    query: Float32  # (2, content_size)


def new_scratch(items: int, candidates: int, plan: Plan) -> Scratch:
    """Memory for tables of up to ``items`` rows and ``candidates`` candidates."""
    return Scratch(
        np.full(items, -1, np.int32),
        np.zeros((candidates, CROSS), np.float32),
        np.zeros((2, plan.layout.content_size), np.float32),
    )


def stranger(plan: Plan) -> User:
    """The empty user row."""
    layout = plan.layout
    return User(
        np.zeros(layout.user_i8, np.int64), np.zeros(layout.user_f4, np.float32), np.zeros(layout.user_u4, np.uint32)
    )


@inline
def recent_items(user: User, layout: Layout, out: Int64, weights: Float64) -> int:
    """The latest distinct items of the recent sequence, latest first, into ``out``; returns how many.

    ``weights[k] = DISCOUNT ** k * 2 ** (-age / co_window)`` with the age against the latest event, so that what
    belongs to the same visit counts and what lies days back fades.
    """
    found = 0
    discount = 1.0
    latest = 0
    for k in range(np.int64(user.u4[U_RECENT_LENGTH]) - 1, -1, -1):
        if found == len(out):
            break
        item = np.int64(user.u4[layout.recent_keys + k]) & MAX_ITEMS
        known = False
        for j in range(found):
            known |= out[j] == item
        if not known:
            time_s = int(user.u4[layout.recent_times + k])
            if found == 0:
                latest = time_s
            out[found] = item
            weights[found] = discount * decay(latest - time_s, 1.0 / layout.co_window_s)
            discount *= DISCOUNT
            found += 1
    return found


@inline
def _cross(
    items: Rows,
    candidates: Int64,
    layout: Layout,
    scratch: Scratch,
    recent: Int64,
    weights: Float64,
    length: int,
    now_ms: int,
) -> None:
    """Fill ``scratch.cross`` for the candidates from the rows of the recent items."""
    n = len(candidates)
    cross, where, query = scratch.cross, scratch.where, scratch.query
    for r in range(n):
        where[candidates[r]] = r
        for c in range(CROSS):
            cross[r, c] = 0.0
    for k in range(length):
        f4, u4 = items.f4[recent[k]], items.u4[recent[k]]
        total = f4[layout.co_total_f4]
        fast_total = f4[layout.co_total_f4 + 1]
        if total > 0.0:
            aged = weights[k] * decay(now_ms - items.i8[recent[k], I_CO_CLOCK], layout.co_rate)
            for j in range(layout.co_size):
                key = u4[layout.co_u4 + j]
                if key == 0:
                    break
                r = where[key]
                if r >= 0:
                    share = f4[layout.co_f4 + j] / total
                    if k == 0:
                        cross[r, 0] = np.float32(share)
                    cross[r, 1] = np.float32(cross[r, 1] + weights[k] * share)
                    cross[r, 2] += np.float32(1.0)
                    cross[r, 5] = np.float32(cross[r, 5] + aged * f4[layout.co_f4 + j])
                    if fast_total > 0.0:
                        fast_share = f4[layout.co_fast_f4 + j] / fast_total
                        if k == 0:
                            cross[r, 6] = np.float32(fast_share)
                        cross[r, 7] = np.float32(cross[r, 7] + weights[k] * fast_share)
    for r in range(n):
        where[candidates[r]] = -1
    if length > 0:
        content_query(items, layout, recent, weights, length, query)
        size = layout.content_size
        for r in range(n):
            row = candidates[r]
            if items.u4[row, I_FLAGS] & FLAG_CONTENT:
                last, mean = 0.0, 0.0
                for c in range(size):
                    value = items.f4[row, layout.content_f4 + c]
                    last += value * query[0, c]
                    mean += value * query[1, c]
                cross[r, 3] = np.float32(last)
                cross[r, 4] = np.float32(mean)


@inline
def content_query(items: Rows, layout: Layout, recent: Int64, weights: Float64, length: int, query: Float32) -> None:
    """``query[0]``: content of the latest item; ``query[1]``: weighted mean of the recent items, unit length."""
    size = layout.content_size
    for c in range(size):
        query[0, c] = items.f4[recent[0], layout.content_f4 + c]
        query[1, c] = 0.0
    for k in range(length):
        for c in range(size):
            query[1, c] = np.float32(query[1, c] + weights[k] * items.f4[recent[k], layout.content_f4 + c])
    norm = 0.0
    for c in range(size):
        norm += np.float64(query[1, c]) * np.float64(query[1, c])
    if norm > 0.0:
        scale = 1.0 / np.sqrt(norm)
        for c in range(size):
            query[1, c] = np.float32(query[1, c] * scale)


@inline
def _item_decayed(items: Rows, row: int, cell: int, rate: float, now_ms: int) -> float:
    value = items.f4[row, cell]
    if value == 0.0:
        return 0.0
    return float(value * decay(now_ms - items.i8[row, I_CLOCK], rate))


@inline
def born_ms(items: Rows, row: int) -> int:
    """When an item was published, or else first seen; 0: neither is known."""
    published = items.i8[row, I_PUBLISHED]
    return int(published if published != 0 else items.i8[row, I_FIRST])


@inline
def _hours(now_ms: int, then_ms: int) -> float:
    return max(now_ms - then_ms, 0) / HOUR_MS


@kernel
def _assemble(
    user: User, items: Rows, candidates: Int64, segment_0: int, segment_1: int, now_ms: int,
    layout: Layout, reads: ReadProgram, scratch: Scratch, out: Float32,
) -> None:  # fmt: skip
    n = len(candidates)
    recent = np.empty(DEPTH, np.int64)
    weights = np.empty(DEPTH, np.float64)
    length = recent_items(user, layout, recent, weights)
    _cross(items, candidates, layout, scratch, recent, weights, length, now_ms)
    cross = scratch.cross
    clock = user.i8[U_CLOCK]
    segments = (segment_0, segment_1)
    for d in range(len(reads.op)):
        op, cell, other = reads.op[d], reads.cell[d, 0], reads.cell[d, 1]
        rate, other_rate = reads.rate[d, 0], reads.rate[d, 1]
        first, second = reads.parameter[d, 0], reads.parameter[d, 1]
        if op == DECAYED_USER:
            value = user.f4[cell] * decay(now_ms - clock, rate)
            for r in range(n):
                out[r, d] = value
        elif op == DECAYED_ITEM:
            for r in range(n):
                out[r, d] = _item_decayed(items, candidates[r], cell, rate, now_ms)
        elif op == SHARE_ITEM:
            total = _item_decayed(items, 0, cell, rate, now_ms)
            for r in range(n):
                out[r, d] = _item_decayed(items, candidates[r], cell, rate, now_ms) / total if total > 0.0 else 0.0
        elif op == RATE_ITEM:
            for r in range(n):
                row = candidates[r]
                out[r, d] = (_item_decayed(items, row, cell, rate, now_ms) + first) / (
                    _item_decayed(items, row, other, other_rate, now_ms) + second
                )
        elif op == TREND_ITEM:
            for r in range(n):
                row = candidates[r]
                short = _item_decayed(items, row, cell, rate, now_ms) / first
                long = _item_decayed(items, row, other, other_rate, now_ms) / second
                out[r, d] = min(short / long, MAX_RATIO) if long > 0.0 else 0.0
        elif op == COUNT_USER:
            for r in range(n):
                out[r, d] = user.u4[cell]
        elif op == COUNT_ITEM:
            for r in range(n):
                out[r, d] = items.u4[candidates[r], cell]
        elif op == SINCE_USER:
            since = _hours(now_ms, user.i8[cell]) if user.i8[cell] > 0 else -1.0
            for r in range(n):
                out[r, d] = since
        elif op == SINCE_ITEM:
            for r in range(n):
                then = items.i8[candidates[r], cell]
                out[r, d] = _hours(now_ms, then) if then > 0 else -1.0
        elif op == AGE_ITEM:
            for r in range(n):
                born = born_ms(items, candidates[r])
                out[r, d] = _hours(now_ms, born) if born > 0 else 0.0
        elif op == LENGTH_USER:
            for r in range(n):
                out[r, d] = user.u4[U_RECENT_LENGTH]
        elif op == AFFINITY:
            _affinity(user, items, candidates, layout, out, d)
        elif CROSS_AT[op] >= 0:
            for r in range(n):
                out[r, d] = cross[r, CROSS_AT[op]]
        elif op == CO_LIFT:
            total = _item_decayed(items, 0, cell, rate, now_ms)
            for r in range(n):
                share = _item_decayed(items, candidates[r], cell, rate, now_ms)
                out[r, d] = min(cross[r, 1] * total / share, MAX_RATIO) if share > 0.0 else 0.0
        elif op in (SEGMENT_SHARE, SEGMENT_LIFT):
            segment = segments[np.int64(first)]
            if segment < 0 or segment >= layout.segment_size:
                segment = 0
            everyone = items.f4[0, cell]
            group = items.f4[0, cell + segment]
            group_clock = items.i8[0, I_CLOCK]
            for r in range(n):
                row = candidates[r]
                part = items.f4[row, cell + segment]
                share = part / group if group > 0.0 else 0.0
                # the item's clock may stand before that of row 0: bring both to the same moment
                share *= decay(group_clock - items.i8[row, I_CLOCK], rate)
                if op == SEGMENT_LIFT:
                    whole = items.f4[row, cell]
                    share = min(part / whole / (group / everyone), MAX_RATIO) if whole > 0.0 and group > 0.0 else 0.0
                out[r, d] = share
        elif op == HOUR:
            hour = (now_ms // 3_600_000) % 24
            for r in range(n):
                out[r, d] = hour
        elif op == WEEKDAY:
            weekday = (now_ms // 86_400_000 + 3) % 7
            for r in range(n):
                out[r, d] = weekday
        elif op == PRICE:
            for r in range(n):
                out[r, d] = items.f4[candidates[r], layout.price_f4]
        elif op == SAME_CATEGORY:
            for r in range(n):
                category = items.u4[candidates[r], I_CATEGORIES]
                total = 0.0
                for k in range(length):
                    if category != 0 and items.u4[recent[k], I_CATEGORIES] == category:
                        total += weights[k]
                out[r, d] = total


@inline
def _affinity(user: User, items: Rows, candidates: Int64, layout: Layout, out: Float32, d: int) -> None:
    total = 0.0
    for k in range(layout.affinity_size):
        total += user.f4[layout.affinity_f4 + k]
    for r in range(len(candidates)):
        best = 0.0
        if total > 0.0:
            for c in range(MAX_CATEGORIES):
                category = items.u4[candidates[r], I_CATEGORIES + c]
                if category == 0:
                    break
                for k in range(layout.affinity_size):
                    if user.u4[layout.affinity_u4 + k] == category:
                        best = max(best, user.f4[layout.affinity_f4 + k] / total)
        out[r, d] = best


def anchor_user(user: User, item: int, layout: Layout) -> None:
    """Make the row about one item: it becomes the whole recent sequence; all else, the seen ring too, stays."""
    user.u4[layout.recent_keys : layout.seen] = 0
    user.u4[U_RECENT_LENGTH] = 1
    user.u4[layout.recent_keys] = item


def assemble(
    plan: Plan,
    user: User,
    items: Rows,
    candidates: Int64,
    context: Context,
    now_ms: int,
    scratch: Scratch,
    out: Float32,
) -> Float32:
    """Assemble the columns of ``plan`` for ``candidates`` (``int64[n]``, rows of ``items``) at ``now_ms``.

    Returns ``out[:n]``, ``float32[n, d]``. ``scratch.where`` must cover all rows of ``items``, and
    ``scratch.cross`` and ``out`` at least ``n`` candidates.
    """
    rows = out[: len(candidates)]
    _assemble(
        user, items, candidates, context.segments[0], context.segments[1], now_ms,
        plan.layout, plan.reads, scratch, rows,
    )  # fmt: skip
    return rows


@kernel
def co_visit_candidates(user: User, items: Rows, layout: Layout, now_ms: int, scores: Float32, touched: Int64) -> int:
    """Sum of discounted ``P(item | recent item)``, aged to now, over all partners of the recent items.

    ``scores`` (``float32[items]``, zeros) receives the score by item and ``touched`` the items it was
    written for; returns how many. The caller zeroes ``scores[touched]`` afterwards.
    """
    recent, weights = np.empty(DEPTH, np.int64), np.empty(DEPTH, np.float64)
    length = recent_items(user, layout, recent, weights)
    count = 0
    for k in range(length):
        f4, u4 = items.f4[recent[k]], items.u4[recent[k]]
        total = f4[layout.co_total_f4]
        if total > 0.0:
            # partners of a row that nobody visited for long count less than those of a busy one
            scale = weights[k] * decay(now_ms - items.i8[recent[k], I_CO_CLOCK], layout.co_rate) / total
            for j in range(layout.co_size):
                key = np.int64(u4[layout.co_u4 + j])
                if key == 0:
                    break
                if scores[key] == 0.0:
                    if count == len(touched):
                        break
                    touched[count] = key
                    count += 1
                scores[key] = np.float32(scores[key] + scale * f4[layout.co_f4 + j])
    return count
