"""The slow, obvious assembly: one candidate, one column at a time, from the plain objects of ``oracle``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import DEPTH, DISCOUNT, MAX_RATIO
from headwater.features.definitions import Aggregation, Column, Counted, Decayed, LastTime, Op
from headwater.schema.durations import parse_duration
from headwater.testing.oracle import SlowFold, SlowItem, SlowUser, decay, f32

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Moment:
    """One request: who asks, in which segments, when, and the user's recent items with their weights."""

    fold: SlowFold
    user: SlowUser
    segments: tuple[int, int]
    now_ms: int
    recent: list[tuple[int, float]]

    def item(self, item: int) -> SlowItem:
        return self.fold.items.get(item, SlowItem())

    def decayed(self, item: int, cell: Aggregation) -> float:
        """A decayed sum of an item, aged to now."""
        if not isinstance(cell, Decayed):
            raise TypeError(f"{cell} does not decay")
        row = self.item(item)
        return row.decayed.get(cell, 0.0) * decay(self.now_ms - row.clock, cell.half_life_ms)


def assemble_slowly(
    fold: SlowFold, user: SlowUser | None, candidates: Sequence[int], segments: tuple[int, int], now_ms: int
) -> npt.NDArray[np.float32]:
    """What ``features.assemble`` must give for ``candidates``: ``float32[n, d]``."""
    who = user or SlowUser()
    moment = Moment(fold, who, segments, now_ms, recent_items(fold, who))
    values = [[_READ[column.op](moment, column, item) for column in fold.columns] for item in candidates]
    return np.array(values, np.float32).reshape(len(candidates), len(fold.columns))


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
        total = f32(total + weight * share)
    return total


def _co_weight(m: Moment, item: int) -> float:
    total = 0.0
    for recent, weight in m.recent:
        row = m.item(recent)
        for partner in row.partners:
            if partner.key == item and row.co_total > 0.0:
                aged = weight * decay(m.now_ms - row.co_clock, m.fold.co_ms)
                total = f32(total + aged * partner.weight)
    return total


def _content(m: Moment, item: int, query: list[float]) -> float:
    content, total = m.item(item).content, 0.0
    if content is None:
        return 0.0
    for a, b in zip(content, query, strict=True):
        total += f32(a * b)
    return total


def _content_of(m: Moment, item: int) -> list[float]:
    return m.item(item).content or [0.0] * m.fold.config.features.content_size


def _mean_content(m: Moment) -> list[float]:
    """Weighted mean of the recent items' content, of unit length."""
    query = [0.0] * m.fold.config.features.content_size
    for item, weight in m.recent:
        query = [f32(q + weight * c) for q, c in zip(query, _content_of(m, item), strict=True)]
    norm = 0.0
    for q in query:
        norm += q * q
    if norm == 0.0:
        return query
    scale = 1.0 / float(np.sqrt(norm))
    return [f32(q * scale) for q in query]


def _hours(m: Moment, then_ms: int) -> float:
    return max(m.now_ms - then_ms, 0) / HOUR_MS


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0.0 else 0.0


# -- one function an op ----------------------------------------------------------------------------------


def _decayed_user(m: Moment, c: Column, _item: int) -> float:
    cell = c.reads[0]
    if not isinstance(cell, Decayed):
        raise TypeError(f"{cell} does not decay")
    return m.user.decayed.get(cell, 0.0) * decay(m.now_ms - m.user.clock, cell.half_life_ms)


def _rate(m: Moment, c: Column, item: int) -> float:
    prior, strength = c.parameters
    return (m.decayed(item, c.reads[0]) + prior) / (m.decayed(item, c.reads[1]) + strength)


def _trend(m: Moment, c: Column, item: int) -> float:
    short_ms, long_ms = c.parameters
    return min(_ratio(m.decayed(item, c.reads[0]) / short_ms, m.decayed(item, c.reads[1]) / long_ms), MAX_RATIO)


def _count(row: SlowUser | SlowItem, cell: Aggregation) -> float:
    if not isinstance(cell, Counted):
        raise TypeError(f"{cell} does not count")
    return float(row.counts.get(cell, 0))


def _since(m: Moment, row: SlowUser | SlowItem, cell: Aggregation) -> float:
    if not isinstance(cell, LastTime):
        raise TypeError(f"{cell} is no latest time")
    then_ms = row.latest.get(cell, 0)
    return _hours(m, then_ms) if then_ms else -1.0


def _age(m: Moment, _c: Column, item: int) -> float:
    born = m.item(item).published or m.item(item).first
    return _hours(m, born) if born else 0.0


def _affinity(m: Moment, _c: Column, item: int) -> float:
    total = 0.0
    for liked in m.user.affinity:
        total += liked.weight
    weights = [liked.weight for liked in m.user.affinity if liked.key in m.item(item).categories]
    return max((_ratio(weight, total) for weight in weights), default=0.0)


def _co_lift(m: Moment, c: Column, item: int) -> float:
    return min(_ratio(_co_sum(m, item, fast=False) * m.decayed(0, c.reads[0]), m.decayed(item, c.reads[0])), MAX_RATIO)


def _same_category(m: Moment, _c: Column, item: int) -> float:
    mine, total = m.item(item).categories[:1], 0.0
    for recent, weight in m.recent:
        if mine and m.item(recent).categories[:1] == mine:
            total += weight
    return total


def _segment(m: Moment, c: Column, item: int) -> float:
    """Share inside the segment; an unknown segment, or one without a cell, is everybody."""
    key = int(c.parameters[0])
    segment = m.segments[key] if m.segments[key] < m.fold.config.features.segment_slots else 0
    ours, theirs = m.item(item).segments.get(key, {}), m.item(0).segments.get(key, {})
    share = f32(_ratio(ours.get(segment, 0.0), theirs.get(segment, 0.0)))
    if c.op is Op.SEGMENT_SHARE:
        return share * decay(m.item(0).clock - m.item(item).clock, m.fold.segment_ms)
    if ours.get(0, 0.0) <= 0.0 or theirs.get(segment, 0.0) <= 0.0:
        return 0.0
    return min(f32(f32(ours.get(segment, 0.0) / ours[0]) / f32(theirs[segment] / theirs[0])), MAX_RATIO)


_READ: dict[Op, Callable[[Moment, Column, int], float]] = {
    Op.DECAYED_USER: _decayed_user,
    Op.DECAYED_ITEM: lambda m, c, item: m.decayed(item, c.reads[0]),
    Op.SHARE_ITEM: lambda m, c, item: _ratio(m.decayed(item, c.reads[0]), m.decayed(0, c.reads[0])),
    Op.RATE_ITEM: _rate,
    Op.TREND_ITEM: _trend,
    Op.COUNT_USER: lambda m, c, _item: _count(m.user, c.reads[0]),
    Op.COUNT_ITEM: lambda m, c, item: _count(m.item(item), c.reads[0]),
    Op.SINCE_USER: lambda m, c, _item: _since(m, m.user, c.reads[0]),
    Op.SINCE_ITEM: lambda m, c, item: _since(m, m.item(item), c.reads[0]),
    Op.AGE_ITEM: _age,
    Op.LENGTH_USER: lambda m, _c, _item: float(len(m.user.recent)),
    Op.AFFINITY: _affinity,
    Op.CO_LAST: lambda m, _c, item: _co_last(m, item, fast=False),
    Op.CO_SUM: lambda m, _c, item: _co_sum(m, item, fast=False),
    Op.CO_COUNT: lambda m, _c, item: float(len(_co_shares(m, item, fast=False))),
    Op.CO_FAST_LAST: lambda m, _c, item: _co_last(m, item, fast=True),
    Op.CO_FAST_SUM: lambda m, _c, item: _co_sum(m, item, fast=True),
    Op.CO_LIFT: _co_lift,
    Op.CO_WEIGHT: lambda m, _c, item: _co_weight(m, item),
    Op.CONTENT_LAST: lambda m, _c, item: _content(m, item, _content_of(m, m.recent[0][0])) if m.recent else 0.0,
    Op.CONTENT_MEAN: lambda m, _c, item: _content(m, item, _mean_content(m)) if m.recent else 0.0,
    Op.SEGMENT_SHARE: _segment,
    Op.SEGMENT_LIFT: _segment,
    Op.HOUR: lambda m, _c, _item: float(m.now_ms // HOUR_MS % 24),
    Op.WEEKDAY: lambda m, _c, _item: float((m.now_ms // 86_400_000 + 3) % 7),
    Op.PRICE: lambda m, _c, item: m.item(item).price,
    Op.SAME_CATEGORY: _same_category,
}  # fmt: skip
