"""The assembly: one user row and ``n`` item rows become ``float32[n, d]``.

Serving, training and replay call :func:`assemble` (replay its kernel, :func:`assemble_row`); a row of the result depends
on the user row, that item's row, the rows of the user's recent items, item row 0, the context and ``now_ms``, never on
the other candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.decay import since_landmark
from headwater.features.definitions import Formula, Side, TermOp
from headwater.features.factors import (
    CONTEXTS,
    PARTS,
    FactorProgram,
    add_hidden,
    context,
    new_units,
    recent_positives,
    score_all,
)
from headwater.features.factors import DEPTH as VISIT
from headwater.features.fold_kernel import idle
from headwater.features.layout import (
    I_CATEGORIES,
    I_CLOCK,
    I_FIRST,
    I_PUBLISHED,
    ITEM_BITS,
    U_CLOCK,
    U_RECENT_LENGTH,
    WIDE,
    AffinityProgram,
    Layout,
    Lives,
    ReadProgram,
)
from headwater.features.plan import Plan
from headwater.features.recent import DEPTH, cross_terms, recent_items
from headwater.features.rows import User, new_rows
from headwater.features.rowset import Rows
from headwater.features.sketch import decode_number, estimate
from headwater.jit import ahead, inline, kernel

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

HOUR_MS = 3_600_000.0
MAX_RATIO = 1e6  # ratios of weights that decayed to almost nothing stop here

(
    _DECAYED, _COUNT, _SINCE, _WINDOW, _EXTREME, _LAST, _DISTINCT, _NUMBER, _CODE, _TABLE, _PRICE, _EMBEDDING, _AGE,
    _LENGTH, _RECENT_ITEM, _RECENT_TYPE, _RECENT_AGE, _AFFINITY_SHARE, _AFFINITY_WEIGHT, _AFFINITY_SINCE,
    _SAME_CATEGORY,
) = (int(op) for op in TermOp if op <= TermOp.SAME_CATEGORY)  # fmt: skip
_SEGMENT_WEIGHT, _SEGMENT_SHARE, _SEGMENT_LIFT, _SEGMENT_CODE, _HOUR, _WEEKDAY, _CONSTANT, _SURFACE_CODE = (
    int(op) for op in TermOp if TermOp.SEGMENT_WEIGHT <= op <= TermOp.SURFACE_CODE
)
_FACTORS_RECENT, _FACTORS = int(TermOp.FACTORS_RECENT), int(TermOp.FACTORS)
_VALUE, _RATE, _SHARE, _TREND, _LIFT, _DIFFERENCE, _PRODUCT, _LOG = (int(formula) for formula in Formula)
_USER, _ITEM, _EVERYBODY = (int(side) for side in Side)


class Context(NamedTuple):
    """The request as numbers: one dense segment term a key (0: unknown), the offset of local time from UTC, a code of the surface."""

    segments: tuple[int, int]
    offset_ms: int = 0
    surface: int = 0


class Scratch(NamedTuple):
    """Reused memory of a worker: ``where`` maps an item to its candidate row, -1 elsewhere."""

    where: Int32  # (items,)
    terms: Float64  # (terms, candidates)
    factors: Float64  # (lives, candidates)
    query: Float32  # (2, content_size)
    recent: Int64  # (DEPTH,)
    weights: Float64  # (DEPTH,)
    contexts: Float64  # (CONTEXTS, size) of online factors
    units: Float64  # and of their hidden layer
    visit: Int64  # (2, VISIT) recent items in their context, and their ages


def new_scratch(items: int, candidates: int, plan: Plan) -> Scratch:
    """Memory for tables of up to ``items`` rows and ``candidates`` candidates."""
    return Scratch(
        np.full(items, -1, np.int32),
        np.zeros((len(plan.reads.op), candidates), np.float64),
        np.zeros((len(plan.lives.rate), candidates), np.float64),
        np.zeros((2, plan.layout.content_size), np.float32),
        np.zeros(DEPTH, np.int64),
        np.zeros(DEPTH, np.float64),
        np.zeros((CONTEXTS, plan.factors.size), np.float64),
        new_units(plan.factors),
        np.zeros((2, VISIT), np.int64),
    )


def stranger(plan: Plan) -> User:
    """The empty user row."""
    rows = new_rows(1, plan.layout.user_i8, plan.layout.user_f4, plan.layout.user_u4)
    return User(rows.i8[0], rows.f4[0], rows.u4[0])


@inline
def born_ms(items: Rows, row: int) -> int:
    """When an item was published, or else first seen; 0: neither is known."""
    published = items.i8[row, I_PUBLISHED]
    return int(published if published != 0 else items.i8[row, I_FIRST])


@inline
def _hours(now_ms: int, then_ms: int) -> float:
    return max(now_ms - then_ms, 0) / HOUR_MS


@inline
def _window(f4: Float32, clock_ms: int, head: int, oldest: int, at: int, tiles: int, tile_ms: int) -> float:
    """Sum of the tiles of a row with this clock that a window holds whose newest tile is ``head``.

    ``oldest`` is the place of the window's first tile in the ring. Summed from the oldest on; divisions are avoided
    where the row's clock lies in the newest tile.
    """
    newest = head
    if clock_ms < head * tile_ms or clock_ms >= (head + 1) * tile_ms:
        newest = clock_ms // tile_ms
    place = oldest
    if newest > head:  # a clock behind the moment that is asked about counts as that moment
        head = newest
        place = (head + 1) % tiles
    first = head - tiles + 1
    if first < 0:
        first, place = 0, 0
    total = 0.0
    for _ in range(newest - first + 1):
        total += f4[at + place]
        place = place + 1 if place + 1 < tiles else 0
    return total


@inline
def _read(
    op: int, i8: Int64, f4: Float32, u4: UInt32, clock_at: int, cell: int, other: int, tile_ms: int,
    parameter: float, factor: float, now_ms: int,
) -> float:  # fmt: skip
    """A term that reads one row, of a user, an item or everybody; NaN: there is none."""
    if op == _DECAYED:
        return float(f4[cell] * factor)
    if op == _COUNT:
        return float(u4[cell])
    if op == _SINCE:
        return _hours(now_ms, i8[cell]) if i8[cell] > 0 else np.nan
    if op == _WINDOW:
        head = now_ms // tile_ms
        return _window(f4, i8[clock_at], head, (head + 1) % other, cell, other, tile_ms)
    if op == _EXTREME:
        return parameter * decode_number(u4[cell]) + 0.0  # no -0
    if op == _LAST:
        return float(f4[cell]) if i8[other] > 0 else np.nan
    if op == _DISTINCT:
        return estimate(u4, cell, other)
    if op == _NUMBER:
        return decode_number(u4[cell])
    if op == _CODE:
        return float((np.int64(u4[cell]) - 1) % np.int64(parameter) + 1) if u4[cell] != 0 else np.nan
    if op == _TABLE:
        age = now_ms - i8[other]
        return decode_number(u4[cell]) if age >= 0 and (parameter == 0.0 or age <= parameter) else np.nan
    return np.nan


@inline
def _affinity(
    op: int, u_f4: Float32, u_u4: UInt32, i_u4: UInt32, group: int, factor: float, now_ms: int,
    affinities: AffinityProgram,
) -> float:  # fmt: skip
    weights, keys, size = affinities.f4[group], affinities.u4[group], affinities.size[group]
    total, best, own, latest = 0.0, 0.0, 0.0, -1
    if op == _AFFINITY_SHARE:
        for k in range(size):
            total += u_f4[weights + k]
    for c in range(affinities.keys[group]):
        key = i_u4[affinities.key[group] + c]
        if key == 0:
            break
        for k in range(size):
            if u_u4[keys + k] == key:
                best = max(best, np.float64(u_f4[weights + k]))
                own += u_f4[weights + k]
                latest = max(latest, int(u_u4[keys + size + k]))
    if op == _AFFINITY_SHARE:
        return best / total if total > 0.0 else 0.0
    if op == _AFFINITY_WEIGHT:
        return own * factor
    return _hours(now_ms, 1000 * latest) if latest >= 0 else np.nan


@inline
def _of_user(
    t: int, u_i8: Int64, u_f4: Float32, u_u4: UInt32, segments: tuple[int, int], surface: int, offset_ms: int, now_ms: int,
    layout: Layout, lives: Lives, reads: ReadProgram,
) -> float:  # fmt: skip
    """A term that is the same for every candidate."""
    op = reads.op[t]
    if op == _LENGTH:
        return float(u_u4[U_RECENT_LENGTH])
    if op == _HOUR:
        return float((now_ms + offset_ms) // 3_600_000 % 24)
    if op == _WEEKDAY:
        return float(((now_ms + offset_ms) // 86_400_000 + 3) % 7)
    if op == _SURFACE_CODE:
        return float(surface)
    if op == _SEGMENT_CODE:
        return float(segments[np.int64(reads.parameter[t])])
    if op in (_RECENT_ITEM, _RECENT_TYPE, _RECENT_AGE):
        place = np.int64(u_u4[U_RECENT_LENGTH]) - 1 - np.int64(reads.parameter[t])
        if place < 0:
            return np.nan
        key = np.int64(u_u4[layout.recent_keys + place])
        if op == _RECENT_ITEM:
            return float(key & ((1 << ITEM_BITS) - 1))
        if op == _RECENT_TYPE:
            return float(key >> ITEM_BITS)
        return _hours(now_ms, 1000 * int(u_u4[layout.recent_times + place]))
    life = reads.life[t]
    factor = 1.0
    if op == _DECAYED:
        factor = since_landmark(u_i8[U_CLOCK], now_ms, lives.rate[life], lives.period_ms[life])
    return _read(op, u_i8, u_f4, u_u4, U_CLOCK, reads.cell[t], reads.other[t], reads.tile_ms[t], reads.parameter[t],
                 factor, now_ms)  # fmt: skip


@inline
def _segment(op: int, items: Rows, row: int, cell: int, segment: int, ours: float, theirs: float) -> float:
    """``ours`` and ``theirs`` bring the cells of the item and of everybody to the same moment."""
    at = cell + WIDE * segment
    part, group = np.float64(items.f4[row, at]), np.float64(items.f4[0, at])
    if op == _SEGMENT_WEIGHT:
        return part * ours
    if op == _SEGMENT_SHARE:
        return part * ours / (group * theirs) if group * theirs > 0.0 else 0.0
    whole, everyone = np.float64(items.f4[row, cell]), np.float64(items.f4[0, cell])
    if whole > 0.0 and group > 0.0:
        return min(part / whole / (group / everyone), MAX_RATIO)
    return 0.0


@inline
def _nothing(a: float, b: float) -> float:
    """0, or NaN where a term is missing."""
    return np.nan if np.isnan(a) or np.isnan(b) else 0.0


@inline
def _formula(formula: int, a: float, b: float, c: float, p: float, q: float) -> float:
    if formula == _VALUE:
        return a
    if formula == _RATE:
        return (a + p) / (b + q) if b + q != 0.0 else np.nan
    if formula == _SHARE:
        return a / b if b != 0.0 else _nothing(a, b)
    if formula == _TREND:
        return min((a / p) / (b / q), MAX_RATIO) if b > 0.0 else _nothing(a, b)
    if formula == _LIFT:
        return min(a * c / b, MAX_RATIO) if b > 0.0 else _nothing(a * c, b)
    if formula == _DIFFERENCE:
        return a - b
    if formula == _PRODUCT:
        return a * b
    return math.log1p(a) if a > -1.0 else np.nan


@inline
def assemble_row(
    u_i8: Int64, u_f4: Float32, u_u4: UInt32, items: Rows, candidates: Int64, segment_0: int, segment_1: int,
    surface: int, offset_ms: int, now_ms: int, layout: Layout, lives: Lives, affinities: AffinityProgram, factors: FactorProgram,
    reads: ReadProgram, scratch: Scratch, out: Float32,
) -> None:  # fmt: skip
    """All terms of all candidates, then all columns, into ``out[:n]``."""
    n = len(candidates)
    terms, faded = scratch.terms, scratch.factors
    segments = (segment_0, segment_1)
    length = recent_items(u_u4, layout, scratch.recent, scratch.weights)
    cross_terms(items, candidates, layout, lives, reads, scratch.where, terms, scratch.query, scratch.recent,
                scratch.weights, length, now_ms)  # fmt: skip
    if factors.size > 0:
        visit = recent_positives(u_u4, 0, now_ms // 1000, layout, factors.positive, scratch.visit)
        context(u_f4, items, scratch.visit, visit, segment_0, segment_1, factors, scratch.units, scratch.contexts)
        if factors.hidden > 0:
            add_hidden(items, factors, scratch.units, scratch.contexts[PARTS])
    for u in range(len(reads.item_lives)):
        h = reads.item_lives[u]
        for r in range(n):
            ahead(items.i8, candidates, r, I_CLOCK)
            faded[h, r] = since_landmark(items.i8[candidates[r], I_CLOCK], now_ms, lives.rate[h], lives.period_ms[h])
    for t in range(len(reads.op)):
        op, side, cell, life = reads.op[t], reads.side[t], reads.cell[t], reads.life[t]
        if side == _USER:
            value = _of_user(t, u_i8, u_f4, u_u4, segments, surface, offset_ms, now_ms, layout, lives, reads)
            for r in range(n):
                terms[t, r] = value
        elif side == _EVERYBODY:
            factor = since_landmark(items.i8[0, I_CLOCK], now_ms, lives.rate[life], lives.period_ms[life])
            value = _read(op, items.i8[0], items.f4[0], items.u4[0], I_CLOCK, cell, reads.other[t], reads.tile_ms[t],
                          reads.parameter[t], factor, now_ms)  # fmt: skip
            for r in range(n):
                terms[t, r] = value
        elif op == _DECAYED:
            for r in range(n):
                ahead(items.f4, candidates, r, cell)
                terms[t, r] = items.f4[candidates[r], cell] * faded[life, r]
        elif op == _WINDOW:
            tiles, tile_ms = reads.other[t], reads.tile_ms[t]
            head = now_ms // tile_ms
            oldest = (head + 1) % tiles
            for r in range(n):
                row = candidates[r]
                ahead(items.f4, candidates, r, cell)
                terms[t, r] = _window(items.f4[row], items.i8[row, I_CLOCK], head, oldest, cell, tiles, tile_ms)
        elif op < _PRICE:
            for r in range(n):
                row = candidates[r]
                if op == _LAST:
                    ahead(items.f4, candidates, r, cell)
                elif op != _SINCE:
                    ahead(items.u4, candidates, r, cell)
                terms[t, r] = _read(op, items.i8[row], items.f4[row], items.u4[row], I_CLOCK, cell, reads.other[t],
                                    reads.tile_ms[t], reads.parameter[t], 1.0, now_ms)  # fmt: skip
        elif op == _PRICE:
            for r in range(n):
                ahead(items.f4, candidates, r, layout.price_f4)
                terms[t, r] = items.f4[candidates[r], layout.price_f4]
        elif op == _EMBEDDING:
            for r in range(n):
                ahead(items.f4, candidates, r, cell)
                terms[t, r] = items.f4[candidates[r], cell]
        elif op == _AGE:
            for r in range(n):
                born = born_ms(items, candidates[r])
                terms[t, r] = _hours(now_ms, born) if born > 0 else np.nan
        elif op in (_AFFINITY_SHARE, _AFFINITY_WEIGHT, _AFFINITY_SINCE):
            group_life = affinities.life[cell]
            factor = since_landmark(u_i8[U_CLOCK], now_ms, lives.rate[group_life], lives.period_ms[group_life])
            for r in range(n):
                terms[t, r] = _affinity(op, u_f4, u_u4, items.u4[candidates[r]], cell, factor, now_ms, affinities)
        elif op == _SAME_CATEGORY:
            for r in range(n):
                category = items.u4[candidates[r], I_CATEGORIES]
                total = 0.0
                for k in range(length):
                    if category != 0 and items.u4[scratch.recent[k], I_CATEGORIES] == category:
                        total += scratch.weights[k]
                terms[t, r] = total
        elif op >= _SEGMENT_WEIGHT and op <= _SEGMENT_LIFT:
            segment = segments[np.int64(reads.parameter[t])]
            if segment < 0 or segment >= layout.segment_size:
                segment = 0
            h = layout.segment_life
            theirs = since_landmark(items.i8[0, I_CLOCK], now_ms, lives.rate[h], lives.period_ms[h])
            for r in range(n):
                ahead(items.f4, candidates, r, cell + WIDE * segment)
                terms[t, r] = _segment(op, items, candidates[r], cell, segment, faded[h, r], theirs)
        elif op == _CONSTANT:
            for r in range(n):
                terms[t, r] = np.nan
        elif op >= _FACTORS_RECENT and op <= _FACTORS:
            score_all(items, candidates, op - _FACTORS_RECENT, factors, scratch.contexts, terms, t)
    for d in range(len(reads.formula)):
        formula, first, second, third = reads.formula[d], reads.term[d, 0], reads.term[d, 1], reads.term[d, 2]
        p, q, default = reads.constants[d, 0], reads.constants[d, 1], reads.default[d]
        for r in range(n):
            value = _formula(formula, terms[first, r], terms[second, r], terms[third, r], p, q)
            out[r, d] = np.float32(default if np.isnan(value) else value)


@kernel
def _assemble(
    user: User, items: Rows, candidates: Int64, segment_0: int, segment_1: int, surface: int, offset_ms: int,
    now_ms: int, layout: Layout, lives: Lives, affinities: AffinityProgram, factors: FactorProgram, reads: ReadProgram,
    scratch: Scratch, out: Float32,
) -> None:  # fmt: skip
    assemble_row(user.i8, user.f4, user.u4, items, candidates, segment_0, segment_1, surface, offset_ms, now_ms, layout, lives,
                 affinities, factors, reads, scratch, out)  # fmt: skip


def anchor_user(user: User, item: int, layout: Layout, before: Sequence[int] = ()) -> None:
    """Make the row about ``item``, and the items ``before`` it (oldest first, at most ``recent_size`` - 1).

    They become the whole recent sequence; all else, the seen ring too, stays.
    """
    user.u4[layout.recent_keys : layout.seen] = 0
    user.u4[U_RECENT_LENGTH] = 1 + len(before)
    for k, each in enumerate((*before, item)):
        user.u4[layout.recent_keys + k] = each


def forget_idle(user: User, now_ms: int, plan: Plan) -> None:
    """Empty the row of a user who was idle for longer than ``features.idle_after``: it is as good as none."""
    if idle(int(user.i8[U_CLOCK]), now_ms, plan.layout):
        for part in user:
            part[:] = 0


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
    ``scratch.terms`` and ``out`` at least ``n`` candidates.
    """
    rows = out[: len(candidates)]
    _assemble(
        user, items, candidates, context.segments[0], context.segments[1], context.surface, context.offset_ms, now_ms,
        plan.layout, plan.lives, plan.affinities, plan.factors, plan.reads, scratch, rows,
    )  # fmt: skip
    return rows
