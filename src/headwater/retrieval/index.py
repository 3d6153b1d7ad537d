"""What the sources look things up in: the item table, lists that change by the second, content vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.features.decay import since_landmark
from headwater.features.layout import FLAG_CONTENT, FLAG_HIDDEN, I_FLAGS, WIDE
from headwater.features.plan import Plan
from headwater.features.rows import ItemTable
from headwater.jit import inline, kernel
from headwater.retrieval.columns import Columns
from headwater.retrieval.kept import KeptLists, Key

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

TTL_MS = 1_000
_DIGITS = 17  # bits of a float32 that `best` does not look at first: 6 of the fraction's stay
_BINS = 1 << (31 - _DIGITS)
LIST_DEPTH = 4  # a list is this many times as long as its width, so that seen items can be skipped


@dataclass(frozen=True, slots=True)
class Ranked:
    """Items with scores, best first: ``int64[n]``, ``float32[n]``."""

    items: Int64
    scores: Float32

    def __len__(self) -> int:
        return len(self.items)


NOTHING = Ranked(np.zeros(0, np.int64), np.zeros(0, np.float32))


def in_order(items: Int64, scores: Float32, count: int) -> Ranked:
    """The ``count`` of ``items`` int64[n] with the highest ``scores`` float32[n] (no NaN), equal ones by the lower item number."""
    keys = _keys(items, scores)
    keys.sort()
    chosen = keys[:count]
    found, their = np.empty(len(chosen), np.int64), np.empty(len(chosen), np.float32)
    _of_keys(chosen, found, their.view(np.uint32))
    return Ranked(found, their)


def places(items: Int64, scores: Float32) -> Int64:
    """Positions of ``items`` int64[n], each there once, in the order of :func:`in_order`, int64[n]."""
    return _keys(items, scores).argsort()


def _keys(items: Int64, scores: Float32) -> UInt64:
    """One number each, which numpy sorts with vector instructions."""
    keys = np.empty(len(items), np.uint64)
    _order_keys(items, scores.view(np.uint32), keys)
    return keys


@kernel
def _order_keys(items: Int64, bits: UInt32, out: UInt64) -> None:
    """Keys that ascend where scores descend, then item numbers ascend; ``bits`` are those of float32."""
    for r in range(len(items)):
        b = bits[r]
        if b == np.uint32(0x80000000):  # -0 is no other score than 0
            b = np.uint32(0)
        falling = b if b >> np.uint32(31) else np.uint32(0x7FFFFFFF) - b
        out[r] = (np.uint64(falling) << np.uint64(32)) | np.uint64(items[r])


@kernel
def _of_keys(keys: UInt64, items: Int64, bits: UInt32) -> None:
    for r in range(len(keys)):
        items[r] = np.int64(keys[r] & np.uint64(0xFFFFFFFF))
        falling = np.uint32(keys[r] >> np.uint64(32))
        bits[r] = falling if falling >> np.uint32(31) else np.uint32(0x7FFFFFFF) - falling


def best(scores: Float32, count: int) -> Ranked:
    """The ``count`` highest positive scores (``float32[items]``), ties by the lower item number."""
    count = min(count, len(scores))
    if count == 0:
        return NOTHING
    if len(scores) <= 4 * count:  # so few are sorted sooner than cut
        positive = np.flatnonzero(scores > 0.0)
        return in_order(positive, scores[positive], count)
    cut = np.empty(len(scores), np.int64)
    cut = cut[: _cut(scores, scores.view(np.uint32), count, np.zeros(_BINS, np.int32), cut)]
    return in_order(cut, scores[cut], count)


@kernel
def _cut(scores: Float32, bits: UInt32, count: int, bins: Int32, out: Int64) -> int:
    """Positions of the ``count`` highest positive scores, and of some that are nearly as high; returns how many.

    Numbers are counted by exponent and first digits: in weights that span many powers of two no bin holds much of the whole.
    """
    for i in range(len(scores)):
        if scores[i] > 0.0:
            bins[bits[i] >> _DIGITS] += 1
    least, above = _BINS, 0
    while least > 0 and above < count:
        least -= 1
        above += bins[least]
    found = 0
    for i in range(len(scores)):
        if scores[i] > 0.0 and bits[i] >> _DIGITS >= least:
            out[found] = i
            found += 1
    return found


@inline
def showable(flags: UInt32, published: Int64, expires: Int64, i: int, now_ms: int) -> bool:
    """Whether an item is published, not expired and not hidden at ``now_ms``: true for everyone or for nobody."""
    return not flags[i] & FLAG_HIDDEN and published[i] <= now_ms and (expires[i] == 0 or expires[i] > now_ms)


@kernel
def _popularity(
    sums: Float32, flags: UInt32, published: Int64, expires: Int64, clock: Int64, count: int, rate: float, period_ms: int,
    now_ms: int, out: Float32,
) -> None:  # fmt: skip
    """Decayed sums at ``now_ms`` of all items that may be shown to anybody; 0 for the others."""
    low = high = np.int64(0)
    factor = 0.0
    out[0] = np.float32(0.0)
    for i in range(1, count):
        out[i] = np.float32(0.0)
        value = sums[i]
        if value > 0.0 and showable(flags, published, expires, i, now_ms):
            at = clock[i]
            if (
                at < low or at >= high or at > now_ms
            ):  # else the factor is that of the clock before, as they share a landmark
                low = at // period_ms * period_ms
                high = low + period_ms if at <= now_ms else low
                factor = since_landmark(at, now_ms, rate, period_ms)
            out[i] = np.float32(value * factor)


@kernel
def _freshness(
    flags: UInt32, published: Int64, expires: Int64, born: Int64, count: int, max_age_ms: int, now_ms: int, out: Float32
) -> None:  # fmt: skip
    """1 for an item that was published (or first seen) just now, falling to 0 at ``max_age_ms``."""
    out[0] = np.float32(0.0)
    for i in range(1, count):
        out[i] = np.float32(0.0)
        if born[i] == 0 or born[i] > now_ms or not showable(flags, published, expires, i, now_ms):
            continue
        age = now_ms - born[i]
        if age < max_age_ms:
            out[i] = np.float32(1.0 - age / max_age_ms)


class ItemIndex:
    """One item table as the sources see it. Not thread-safe: it belongs to one worker.

    Lists (popular, trending, by segment, fresh) are computed when asked for and kept in ``lists`` (by default for a second of the
    request clock); eligibility is checked again for every request, so a stale list cannot show a hidden item.
    """

    def __init__(self, plan: Plan, table: ItemTable, lists: KeptLists[Ranked] | None = None) -> None:
        self.plan, self.table = plan, table
        self.lists = KeptLists[Ranked](TTL_MS) if lists is None else lists
        self.content = np.zeros((len(table.dirty), plan.layout.content_size), np.float32)
        self.has_content = np.zeros(len(table.dirty), np.bool_)
        self.content_items = 0
        self.version = (
            0  # counts the changes of content, price and birth; `stamps` says at which one an item last changed
        )
        self.stamps = np.zeros(len(table.dirty), np.int64)
        self.price = np.zeros(len(table.dirty), np.float32)
        self.columns = Columns()
        self.update(None)

    def update(self, changed: Int64 | None) -> None:
        """Take over columns and content of ``changed`` items (``None``: of all)."""
        layout, rows, count = self.plan.layout, self.table.rows, self.table.count
        if len(self.has_content) < len(self.table.dirty):
            grown = np.zeros((len(self.table.dirty), layout.content_size), np.float32)
            grown[: len(self.content)] = self.content
            self.content = grown
            self.stamps = np.concatenate([self.stamps, np.zeros(len(grown) - len(self.stamps), np.int64)])
            self.price = np.concatenate([self.price, np.zeros(len(grown) - len(self.price), np.float32)])
            self.has_content = np.concatenate(
                [self.has_content, np.zeros(len(grown) - len(self.has_content), np.bool_)]
            )
        ids = np.arange(count) if changed is None else changed
        moved = self.columns.update(rows, ids)
        has = (rows.u4[ids, I_FLAGS] & FLAG_CONTENT) != 0
        touched = ids[has | self.has_content[ids]]
        content = rows.f4[touched, layout.content_f4 : layout.content_f4 + layout.content_size]
        price = rows.f4[ids, layout.price_f4]
        others = np.concatenate(
            [touched[(content != self.content[touched]).any(axis=1)], ids[(price != self.price[ids]) | moved]]
        )
        if len(others):
            self.version += 1
            self.stamps[others] = self.version
        self.content[touched] = content
        self.price[ids] = price
        self.has_content[ids] = has
        if len(touched) or changed is None:
            self.content_items = int(self.has_content[:count].sum())

    def popular(self, half_life: int, width: int, now_ms: int) -> Ranked:
        """Most positive weight at the configured half-life number ``half_life``."""
        cell, life = self.plan.popular_cells[half_life], self.plan.popular_lives[half_life]
        return self._weight_list(("popular", half_life, width), cell, life, width, now_ms)

    def popular_in_segment(self, key: int, segment: int, width: int, now_ms: int) -> Ranked:
        """Most positive weight in ``segment`` of segment key number ``key``; empty for an unknown segment."""
        layout = self.plan.layout
        if not 0 < segment < layout.segment_size:
            return NOTHING
        cell = layout.segment_f4 + WIDE * (key * layout.segment_size + segment)
        return self._weight_list(("segment", key, segment, width), cell, layout.segment_life, width, now_ms)

    def fresh(self, max_age_ms: int, width: int, now_ms: int) -> Ranked:
        """The newest items."""

        def make(now_ms: int) -> Ranked:
            out = np.zeros(self.table.count, np.float32)
            held = self.columns
            _freshness(held.flags, held.published, held.expires, held.born, self._followed(), max_age_ms, now_ms, out)
            return best(out, width * LIST_DEPTH)

        return self.lists.get(("fresh", max_age_ms, width), now_ms, make)

    def _followed(self) -> int:
        """How many items of the table there are columns of: a table that is folded into may have grown since the last update."""
        return min(self.table.count, len(self.columns.clock))

    def _weight_list(self, key: Key, cell: int, life: int, width: int, now_ms: int) -> Ranked:
        return self.lists.get(key, now_ms, lambda at_ms: best(self.weights(cell, life, at_ms), width * LIST_DEPTH))

    def weights(self, cell: int, life: int, now_ms: int) -> Float32:
        """``float32[items]``: the decayed sum in f4 cell ``cell`` at ``now_ms``; 0 for items that nobody may be shown."""
        out = np.zeros(self.table.count, np.float32)
        lives, held = self.plan.lives, self.columns
        _popularity(
            held.sums(self.table.rows, cell), held.flags, held.published, held.expires, held.clock, self._followed(),
            lives.rate[life], lives.period_ms[life], now_ms, out,
        )  # fmt: skip
        return out
