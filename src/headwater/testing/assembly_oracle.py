"""The slow, obvious assembly: one candidate, one column, one term at a time, from the plain objects of ``oracle``.

A term is a number, or ``None`` where there is none; a column whose formula lacks a term has its default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.features.aggregations import Affinity
from headwater.features.assemble import MAX_RATIO
from headwater.features.definitions import Column, Formula, Side, Term, TermOp
from headwater.features.recent import DEPTH, DISCOUNT
from headwater.schema.durations import parse_duration
from headwater.testing.oracle import Liked, SlowFold, SlowItem, SlowUser
from headwater.testing.oracle_cells import (
    SlowRow,
    decay,
    estimate,
    f32,
    number_of,
    registers,
    text_code,
    worth_now,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Moment:
    """One request: who asks, in which segments, when and where, and the user's recent items with their weights."""

    fold: SlowFold
    user: SlowUser
    segments: tuple[int, int]
    surface: int
    now_ms: int
    offset_ms: int
    recent: list[tuple[int, float]]
    content: list[float]  # of the recent items, their weighted mean
    factors: list[list[float]]  # of its parts, and of all of it

    def item(self, item: int) -> SlowItem:
        return self.fold.items.get(item, SlowItem())

    def hours(self, then_ms: int) -> float:
        """Hours since a moment, 0 for one that is still to come."""
        return max(self.now_ms - then_ms, 0) / HOUR_MS


def assemble_slowly(
    fold: SlowFold,
    user: SlowUser | None,
    candidates: Sequence[int],
    segments: tuple[int, int],
    now_ms: int,
    offset_ms: int = 0,
    surface: int = 0,
) -> npt.NDArray[np.float32]:
    """What ``features.assemble`` must give for ``candidates``: ``float32[n, d]``. An idle user is a stranger."""
    who = SlowUser() if user is None or fold.is_idle(user, now_ms) else user
    recent = recent_items(fold, who)
    moment = Moment(
        fold,
        who,
        segments,
        surface,
        now_ms,
        offset_ms,
        recent,
        _mean_content(fold, recent),
        _context(fold, who, segments, now_ms),
    )
    rows = [[f32(column_value(moment, column, item)) for column in fold.columns] for item in candidates]
    return np.array(rows, np.float32).reshape(len(candidates), len(fold.columns))


def recent_items(fold: SlowFold, user: SlowUser) -> list[tuple[int, float]]:
    """The latest ``DEPTH`` distinct items, latest first: weight ``DISCOUNT^k · 2^(-age / co-visit window)``."""
    window_s = parse_duration(fold.config.features.co_visits.window) // 1000
    found: list[tuple[int, float]] = []
    discount = 1.0
    for entry in reversed(user.recent):
        if len(found) < DEPTH and entry.item not in [item for item, _ in found]:
            found.append((entry.item, discount * decay(user.recent[-1].time_s - entry.time_s, window_s)))
            discount *= DISCOUNT
    return found


def _context(fold: SlowFold, user: SlowUser, segments: tuple[int, int], now_ms: int) -> list[list[float]]:
    """The parts of the context of online factors, and the whole of it."""
    number = next((number for number, row in fold.users.items() if row is user), 0)
    visit, factors = fold.visit(user, now_ms), fold.factors
    names = factors.context(number, list(visit), segments)
    parts = factors.sums(names)
    whole = [a + b + c for a, b, c in zip(*parts, strict=True)]
    return [*parts, factors.mixed(whole, factors.units(factors.inputs(names, list(visit.values()))))]


# -- columns ---------------------------------------------------------------------------------------------


def column_value(m: Moment, column: Column, item: int) -> float:
    """The column before it is rounded."""
    terms = [term_value(m, term, item) for term in column.terms]
    given = [term for term in terms if term is not None]
    if len(given) < len(terms):
        return column.default
    value = _FORMULAS[column.formula](*given, *column.parameters)
    return column.default if value is None or math.isnan(value) else value


def _over(a: float, b: float) -> float:
    """``a / b`` as IEEE 754 has it."""
    with np.errstate(all="ignore"):
        return float(np.float64(a) / np.float64(b))


def _rate(a: float, b: float, prior: float = 0.0, strength: float = 0.0) -> float | None:
    return _over(a + prior, b + strength) if b + strength != 0.0 else None


def _trend(a: float, b: float, p: float, q: float) -> float:
    return min(_over(a / p, b / q), MAX_RATIO) if b > 0.0 else 0.0


_FORMULAS: dict[Formula, Callable[..., float | None]] = {
    Formula.VALUE: lambda a: a,
    Formula.RATE: _rate,
    Formula.SHARE: lambda a, b: _over(a, b) if b != 0.0 else 0.0,
    Formula.TREND: _trend,
    Formula.LIFT: lambda a, b, c: min(_over(a * c, b), MAX_RATIO) if b > 0.0 else 0.0,
    Formula.DIFFERENCE: lambda a, b: a - b,
    Formula.PRODUCT: lambda a, b: a * b,
    Formula.LOG: lambda a: math.log1p(a) if a > -1.0 else None,
}


# -- terms -----------------------------------------------------------------------------------------------


def term_value(m: Moment, term: Term, item: int) -> float | None:
    """What the term reads for one candidate."""
    if term.op in _STORED:
        row: SlowRow = {Side.USER: m.user, Side.ITEM: m.item(item), Side.EVERYBODY: m.item(0)}[term.side]
        return _STORED[term.op](m, row, term.reads, term)
    return _CROSSED[term.op](m, term, item)


def _decayed(m: Moment, row: SlowRow, cell: Any, _term: Term) -> float:
    return row.sums.get(cell, 0.0) * worth_now(row.clock, m.now_ms, cell.half_life_ms)


def _since(m: Moment, row: SlowRow, cell: Any, _term: Term) -> float | None:
    then_ms = row.latest.get(cell, 0)
    return m.hours(then_ms) if then_ms else None


def _window(m: Moment, row: SlowRow, cell: Any, _term: Term) -> float:
    head, total = max(m.now_ms, row.clock) // cell.tile_ms, 0.0
    for tile, value in sorted(row.tiles.get(cell, {}).items()):
        if tile > head - cell.tiles:
            total += value
    return total


def _extreme(_m: Moment, row: SlowRow, cell: Any, _term: Term) -> float | None:
    value = row.extremes.get(cell)
    return None if value is None else value + 0.0


def _last(_m: Moment, row: SlowRow, cell: Any, _term: Term) -> float | None:
    time, value = row.last.get(cell, (0, 0.0))
    return value if time else None  # as with latest times, a time of 0 is none


def _code(_m: Moment, row: SlowRow, cell: Any, term: Term) -> float | None:
    code = text_code(row.attributes.get(cell))
    return float((code - 1) % int(term.parameters[0]) + 1) if code else None


def _number(_m: Moment, row: SlowRow, cell: Any, _term: Term) -> float | None:
    value = number_of(row.attributes.get(cell))
    return None if value is None or math.isnan(value) else value + 0.0


def _table(m: Moment, row: SlowRow, cell: Any, term: Term) -> float | None:
    valid_ms, values = row.tables.get(cell.table, (0, {}))
    value, age, oldest = values.get(cell.column), m.now_ms - valid_ms, term.parameters[0]
    if value is None or math.isnan(value) or age < 0 or 0 < oldest < age:
        return None
    return f32(value) + 0.0


_STORED: dict[TermOp, Callable[[Moment, SlowRow, Any, Term], float | None]] = {
    TermOp.DECAYED: _decayed,
    TermOp.COUNT: lambda _m, row, cell, _term: float(row.counts.get(cell, 0)),
    TermOp.SINCE: _since,
    TermOp.WINDOW: _window,
    TermOp.EXTREME: _extreme,
    TermOp.LAST: _last,
    TermOp.DISTINCT: lambda _m, row, cell, _term: estimate(registers(row.shown.get(cell, ()), cell.precision)),
    TermOp.NUMBER: _number,
    TermOp.CODE: _code,
    TermOp.TABLE: _table,
}


def _embedding(m: Moment, term: Term, item: int) -> float:
    content = m.item(item).content
    return 0.0 if content is None else content[int(term.parameters[0])]


def _age(m: Moment, _term: Term, item: int) -> float | None:
    born = m.item(item).published or m.item(item).first
    return m.hours(born) if born else None


def _recent(m: Moment, term: Term, _item: int) -> float | None:
    place = int(term.parameters[0])
    if place >= len(m.user.recent):
        return None
    entry = m.user.recent[-1 - place]
    if term.op is TermOp.RECENT_ITEM:
        return float(entry.item)
    return float(entry.slot) if term.op is TermOp.RECENT_TYPE else m.hours(1000 * entry.time_s)


def _affinity(m: Moment, term: Term, item: int) -> float | None:
    cell = term.reads
    if not isinstance(cell, Affinity):
        raise TypeError(f"{cell} is no affinity")
    row = m.user.liked.get(cell, [])
    matching: list[Liked] = [liked for key in m.item(item).keys(cell) for liked in row if liked.key == key]
    total = 0.0
    if term.op is TermOp.AFFINITY_SINCE:
        return m.hours(1000 * max(liked.time_s for liked in matching)) if matching else None
    if term.op is TermOp.AFFINITY_WEIGHT:
        for liked in matching:
            total += liked.weight
        return total * worth_now(m.user.clock, m.now_ms, cell.half_life_ms)
    for liked in row:
        total += liked.weight
    return max((liked.weight for liked in matching), default=0.0) / total if total > 0.0 else 0.0


def _same_category(m: Moment, _term: Term, item: int) -> float:
    mine, total = m.item(item).categories[:1], 0.0
    for recent, weight in m.recent:
        if mine and m.item(recent).categories[:1] == mine:
            total += weight
    return total


def _co_shares(m: Moment, item: int, fast: bool) -> list[tuple[int, float, float]]:
    """(place among the recent items, its weight, P(item | that one)) of each that leads to ``item`` by co-visits."""
    found = []
    for k, (recent, weight) in enumerate(m.recent):
        row = m.item(recent)
        total = row.co_fast_total if fast else row.co_total
        partner = next((p for p in row.partners if p.key == item), None)
        if partner is not None and row.co_total > 0.0 and total > 0.0:
            found.append((k, weight, f32((partner.fast if fast else partner.weight) / total)))
    return found


def _co_last(m: Moment, item: int, fast: bool) -> float:
    return next((share for k, _, share in _co_shares(m, item, fast) if k == 0), 0.0)


def _co_sum(m: Moment, item: int, fast: bool) -> float:
    total = 0.0
    for _, weight, share in _co_shares(m, item, fast):
        total += weight * share
    return total


def _co_weight(m: Moment, _term: Term, item: int) -> float:
    total = 0.0
    for recent, weight in m.recent:
        row = m.item(recent)
        for partner in row.partners:
            if partner.key == item and row.co_total > 0.0:
                total += weight * worth_now(row.co_clock, m.now_ms, m.fold.co_ms) * partner.weight
    return total


def _content(m: Moment, item: int, query: list[float]) -> float:
    content, total = m.item(item).content, 0.0
    for a, b in zip(content or [], query, strict=False):
        total += f32(a * b)
    return total


def _content_of(fold: SlowFold, item: int) -> list[float]:
    return fold.items.get(item, SlowItem()).content or [0.0] * fold.config.features.content_size


def _mean_content(fold: SlowFold, recent: list[tuple[int, float]]) -> list[float]:
    """Weighted mean of the recent items' content, of unit length."""
    query = [0.0] * fold.config.features.content_size
    for item, weight in recent:
        query = [f32(q + weight * c) for q, c in zip(query, _content_of(fold, item), strict=True)]
    norm = 0.0
    for q in query:
        norm += q * q
    if norm == 0.0:
        return query
    scale = 1.0 / float(np.sqrt(norm))
    return [f32(q * scale) for q in query]


def _segment(m: Moment, term: Term, item: int) -> float:
    """What the candidate has inside a segment; an unknown segment, or one without a cell, is everybody."""
    key = int(term.parameters[0])
    segment = m.segments[key] if m.segments[key] < m.fold.config.features.segment_slots else 0
    row, everyone = m.item(item), m.item(0)
    part, whole = (row.segments.get(key, {}).get(s, 0.0) for s in (segment, 0))
    group, all_of_them = (everyone.segments.get(key, {}).get(s, 0.0) for s in (segment, 0))
    part_now = part * worth_now(row.clock, m.now_ms, m.fold.segment_ms)
    group_now = group * worth_now(everyone.clock, m.now_ms, m.fold.segment_ms)
    if term.op is TermOp.SEGMENT_WEIGHT:
        return part_now
    if term.op is TermOp.SEGMENT_SHARE:
        return part_now / group_now if group_now > 0.0 else 0.0
    if whole <= 0.0 or group <= 0.0:
        return 0.0
    return min(_over(part / whole, _over(group, all_of_them)), MAX_RATIO)


def _factors(m: Moment, term: Term, item: int) -> float:
    return m.fold.factors.lift(m.factors[_PARTS.index(term.op)], item)


_PARTS = (TermOp.FACTORS_RECENT, TermOp.FACTORS_SEGMENTS, TermOp.FACTORS_USER, TermOp.FACTORS)
_CROSSED: dict[TermOp, Callable[[Moment, Term, int], float | None]] = {
    TermOp.PRICE: lambda m, _term, item: m.item(item).price,
    TermOp.EMBEDDING: _embedding,
    TermOp.AGE: _age,
    TermOp.LENGTH: lambda m, _term, _item: float(len(m.user.recent)),
    TermOp.RECENT_ITEM: _recent,
    TermOp.RECENT_TYPE: _recent,
    TermOp.RECENT_AGE: _recent,
    TermOp.AFFINITY_SHARE: _affinity,
    TermOp.AFFINITY_WEIGHT: _affinity,
    TermOp.AFFINITY_SINCE: _affinity,
    TermOp.SAME_CATEGORY: _same_category,
    TermOp.CO_LAST: lambda m, _term, item: _co_last(m, item, fast=False),
    TermOp.CO_SUM: lambda m, _term, item: _co_sum(m, item, fast=False),
    TermOp.CO_COUNT: lambda m, _term, item: float(len(_co_shares(m, item, fast=False))),
    TermOp.CONTENT_LAST: lambda m, _term, item: (
        _content(m, item, _content_of(m.fold, m.recent[0][0])) if m.recent else 0.0
    ),
    TermOp.CONTENT_MEAN: lambda m, _term, item: _content(m, item, m.content) if m.recent else 0.0,
    TermOp.CO_WEIGHT: _co_weight,
    TermOp.CO_FAST_LAST: lambda m, _term, item: _co_last(m, item, fast=True),
    TermOp.CO_FAST_SUM: lambda m, _term, item: _co_sum(m, item, fast=True),
    TermOp.SEGMENT_WEIGHT: _segment,
    TermOp.SEGMENT_SHARE: _segment,
    TermOp.SEGMENT_LIFT: _segment,
    **dict.fromkeys(_PARTS, _factors),
    TermOp.SURFACE_CODE: lambda m, _term, _item: float(m.surface),
    TermOp.SEGMENT_CODE: lambda m, term, _item: float(m.segments[int(term.parameters[0])]),
    TermOp.HOUR: lambda m, _term, _item: float((m.now_ms + m.offset_ms) // HOUR_MS % 24),
    TermOp.WEEKDAY: lambda m, _term, _item: float(((m.now_ms + m.offset_ms) // DAY_MS + 3) % 7),  # day 0: a Thursday
}
