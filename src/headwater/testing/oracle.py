"""The slow, obvious fold: one record after the other into plain objects of dicts and lists.

It is written from the documented meaning of the aggregations, not from the kernels, and rounds to ``float32``
where a stored number is one, so that the kernels can be compared with it to the bit. ``oracle_rows`` lays
its objects out as the plan says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from headwater.features.content import content_vector
from headwater.features.definitions import (
    FOLLOWED,
    Aggregation,
    Column,
    Counted,
    Decayed,
    LastTime,
    default_columns,
    popularity_cell,
)
from headwater.features.fold_kernel import BACKWARD
from headwater.log.batch import ItemRecord
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

_LN2 = math.log(2.0)
_MASK = 2**64 - 1


def f32(value: float) -> float:
    """``value`` as a ``float32`` holds it."""
    return float(np.float32(value))


def decay(age: int, half_life: float) -> float:
    """``2 ** (-age / half_life)``, both in one unit: 1 for no age, exactly 0 from 1,000 half-lives on.

    ``2^-(n+f) = 2^-(n+1) · e^((1-f) ln 2)`` with the Taylor polynomial of degree 15 by Horner's rule: the one
    definition of the value's last bits.
    """
    if age <= 0:
        return 1.0
    exponent = age * (1.0 / half_life) if half_life > 0 else math.inf
    if exponent >= 1000.0:
        return 0.0
    whole = math.floor(exponent)
    fraction = 1.0 - (exponent - whole)
    power = 0.0
    for k in range(15, -1, -1):
        power = power * fraction + _LN2**k / math.factorial(k)
    return power * 2.0 ** -(whole + 1)


def admission(a: int, b: int, time_ms: int) -> float:
    """The number in [0, 1) that decides whether partner ``b`` gets a place in the full row of ``a``."""
    z = (a * 0x9E3779B97F4A7C15 & _MASK) ^ (b * 0xC2B2AE3D27D4EB4F & _MASK) ^ time_ms
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return ((z ^ z >> 31) >> 11) / 2**53


@dataclass(slots=True)
class Weighted:
    """Something (an item, a category) and what it weighs at its row's clock."""

    key: int
    weight: float


@dataclass(slots=True)
class Partner(Weighted):
    """A co-visited item: its weight at the slow half-life, and at the fast one."""

    fast: float


@dataclass(slots=True)
class Entry:
    """One event of a recent sequence. ``slot`` is the position of its type in the configuration, from 1."""

    time_s: int
    item: int
    slot: int


@dataclass(slots=True)
class SlowRow:
    """What users and items have in common: numbers that are all worth their value at ``clock``."""

    clock: int = 0
    first: int = 0
    decayed: dict[Decayed, float] = field(default_factory=dict)
    counts: dict[Counted, int] = field(default_factory=dict)
    latest: dict[LastTime, int] = field(default_factory=dict)


@dataclass(slots=True)
class SlowUser(SlowRow):
    """``seen`` is every item that was ever added; the ring holds the last ones of it."""

    segments: list[int] = field(default_factory=lambda: [0, 0])
    affinity: list[Weighted] = field(default_factory=list)
    recent: list[Entry] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)


@dataclass(slots=True)
class SlowItem(SlowRow):
    """``segments[k][s]`` is the weight in segment term ``s`` of key ``k``; term 0 is everybody."""

    known: bool = False
    hidden: bool = False
    published: int = 0
    expires: int = 0
    price: float = 0.0
    categories: list[int] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    content: list[float] | None = None
    segments: dict[int, dict[int, float]] = field(default_factory=dict)
    co_clock: int = 0
    co_total: float = 0.0
    co_fast_total: float = 0.0
    partners: list[Partner] = field(default_factory=list)


class SlowFold:
    """State as a function of the log, by the book. Item 0 stands for all items together."""

    def __init__(self, config: Config, columns: tuple[Column, ...] | None = None) -> None:
        self.config = config
        self.columns = default_columns(config) if columns is None else columns
        lives = [parse_duration(text) for text in config.features.item_half_lives]
        kept: list[Aggregation] = [popularity_cell(config, ms) for ms in lives]
        kept += [aggregation for column in self.columns for aggregation in column.reads]
        self.kept = list(dict.fromkeys(kept))
        self.slots = {event.name: slot for slot, event in enumerate(config.events, 1)}
        self.affinity_ms = parse_duration(config.features.affinity_half_life)
        self.segment_ms = parse_duration(config.features.segment_half_life)
        self.co_ms = parse_duration(config.features.co_visits.half_life)
        self.co_fast_ms = parse_duration(config.features.co_visits.fast_half_life)
        self.users: dict[int, SlowUser] = {}
        self.items: dict[int, SlowItem] = {}
        self.types: dict[int, str] = {}
        self.offset = 0

    def user(self, user: int) -> SlowUser:
        return self.users.setdefault(user, SlowUser())

    def item(self, item: int) -> SlowItem:
        return self.items.setdefault(item, SlowItem())

    def apply(self, block: RecordBlock) -> None:
        """Fold the records of ``block``, each by its kind."""
        for i, record in enumerate(block.records):
            self.offset = int(record["offset"])
            kind, user, item = Kind(int(record["kind"])), int(record["user"]), int(record["item"])
            segments = [int(s) for s in record["segments"]]
            if kind is Kind.TERM and int(record["type"]) == Namespace.EVENT_TYPE:
                self.types[item] = block.payload(i).decode()
            elif kind is Kind.EVENT:
                time_ms = min(int(record["time_ms"]), int(record["received_ms"]))
                name, retract = self.types[int(record["type"])], bool(record["flags"] & FLAG_RETRACT)
                self._event(user, item, name, time_ms, retract, segments)
            elif kind is Kind.ITEM:
                record_of = msgspec.msgpack.decode(block.payload(i), type=ItemRecord)
                self._upsert(self.item(item), record_of, int(record["received_ms"]))
            elif kind is Kind.ITEM_DELETED:
                self.item(item).hidden = True
            elif kind is Kind.PROFILE:
                self._place(self.user(user), segments)
            elif kind is Kind.ERASURE:
                self.users.pop(user, None)
            elif kind is Kind.LOGIN:
                anonymous = int.from_bytes(block.payload(i), "little")
                self._merge(self.user(anonymous), self.user(user))
                del self.users[anonymous]

    # -- events ----------------------------------------------------------------------------------------

    def _event(self, user: int, item: int, name: str, time_ms: int, retract: bool, segments: list[int]) -> None:
        slot = self.slots.get(name)
        if slot is None:
            return
        event, who = self.config.events[slot - 1], self.user(user)
        sign = -1.0 if retract else 1.0
        self._place(who, segments)
        followed = event.positive and not retract and self._co_visit(who, item, time_ms) > 0
        for row in (self.item(0), self.item(item)):
            age = self._move(row, time_ms)
            self._add(row, "item", name, sign, time_ms, age)
            if followed:
                self._add(row, "item", FOLLOWED, sign, time_ms, age)
            if event.positive:
                amount = sign * event.weight * decay(age, self.segment_ms)
                for k in range(len(self.config.segments.keys)):
                    cells = row.segments.setdefault(k, {})
                    for segment in dict.fromkeys((0, who.segments[k])):
                        if segment < self.config.features.segment_slots:
                            cells[segment] = f32(max(cells.get(segment, 0.0) + amount, 0.0))
        age = self._move(who, time_ms)
        self._add(who, "user", name, sign, time_ms, age)
        if event.weight != 0.0:
            self._like(who, self.item(item).categories, sign * event.weight * decay(age, self.affinity_ms))
        if retract:
            if event.sequence:
                self._forget(who, item, slot)
            return
        if event.sequence:
            self._remember(who, Entry(time_ms // 1000, item, slot))
        if event.seen:
            self._see(who, item)

    def _place(self, user: SlowUser, segments: list[int]) -> None:
        """What an event or a profile says of the user's segments; 0 says nothing."""
        user.segments = [new or old for new, old in zip(segments, user.segments, strict=True)]

    def _move(self, row: SlowRow, time_ms: int) -> int:
        """Bring a row's clock to ``time_ms``; returns how much older than the clock the moment is."""
        passed = time_ms - row.clock
        if passed <= 0:
            return -passed
        for cell, value in row.decayed.items():
            row.decayed[cell] = f32(value * decay(passed, cell.half_life_ms))
        if isinstance(row, SlowUser):
            for liked in row.affinity:
                liked.weight = f32(liked.weight * decay(passed, self.affinity_ms))
        if isinstance(row, SlowItem):
            for cells in row.segments.values():
                for segment, value in cells.items():
                    cells[segment] = f32(value * decay(passed, self.segment_ms))
        row.clock = time_ms
        return 0

    def _add(self, row: SlowRow, entity: str, name: str, sign: float, time_ms: int, age: int) -> None:
        """One event into the decayed sums, counts and latest times of its type."""
        row.first = row.first or time_ms
        for cell in self.kept:
            if cell.entity != entity or name not in cell.types:
                continue
            if isinstance(cell, Decayed):
                weight = cell.weights[cell.types.index(name)]
                value = row.decayed.get(cell, 0.0) + sign * weight * decay(age, cell.half_life_ms)
                row.decayed[cell] = f32(max(value, 0.0) if sign < 0 else value)
            elif isinstance(cell, Counted):
                row.counts[cell] = max(row.counts.get(cell, 0) + int(sign), 0)
            elif sign > 0:
                row.latest[cell] = max(row.latest.get(cell, 0), time_ms)

    def _co_visit(self, user: SlowUser, item: int, time_ms: int) -> int:
        """Pair ``item`` with the ``depth`` latest positive events on others at or before it, inside the window."""
        co = self.config.features.co_visits
        now_s, window_s = time_ms // 1000, parse_duration(co.window) // 1000
        pairs = 0
        for before in reversed(user.recent):
            if pairs == co.depth:
                break
            if before.time_s > now_s or now_s - before.time_s > window_s:
                continue
            if before.item == item or not self.config.events[before.slot - 1].positive:
                continue
            weight = 1.0 / (1.0 + pairs)
            self._pair(before.item, item, weight, time_ms)
            self._pair(item, before.item, BACKWARD * weight, time_ms)
            pairs += 1
        return pairs

    def _pair(self, a: int, b: int, weight: float, time_ms: int) -> None:
        """Add a co-visit ``a → b``; who is kept is decided by the slow weights alone."""
        row, fast = self.item(a), weight
        passed = time_ms - row.co_clock
        if passed > 0:
            slower, faster = decay(passed, self.co_ms), decay(passed, self.co_fast_ms)
            for partner in row.partners:
                partner.weight, partner.fast = f32(partner.weight * slower), f32(partner.fast * faster)
            row.co_total, row.co_fast_total = f32(row.co_total * slower), f32(row.co_fast_total * faster)
            row.co_clock = time_ms
        else:
            weight *= decay(-passed, self.co_ms)
            fast *= decay(-passed, self.co_fast_ms)
        row.co_total, row.co_fast_total = f32(row.co_total + weight), f32(row.co_fast_total + fast)
        for partner in row.partners:
            if partner.key == b:
                partner.weight, partner.fast = f32(partner.weight + weight), f32(partner.fast + fast)
                return
        if len(row.partners) < self.config.features.co_visits.neighbours:
            row.partners.append(Partner(b, f32(weight), f32(fast)))
            return
        lightest = min(row.partners, key=lambda partner: partner.weight)
        if admission(a, b, time_ms) * (weight + lightest.weight) < weight:
            lightest.key, lightest.weight, lightest.fast = b, f32(lightest.weight + weight), f32(fast)

    def _remember(self, user: SlowUser, entry: Entry) -> None:
        user.recent.append(entry)
        user.recent.sort(key=lambda e: e.time_s)  # stable: ties stay in log order
        del user.recent[: -self.config.features.recent]

    def _forget(self, user: SlowUser, item: int, slot: int) -> None:
        for k in range(len(user.recent) - 1, -1, -1):
            if (user.recent[k].item, user.recent[k].slot) == (item, slot):
                del user.recent[k]
                return

    def _see(self, user: SlowUser, item: int) -> None:
        if item not in user.seen[-self.config.features.seen :]:
            user.seen.append(item)

    def _like(self, user: SlowUser, categories: Iterable[int], weight: float) -> None:
        for category in categories:
            place = next((liked for liked in user.affinity if liked.key == category), None)
            if place is None:
                if len(user.affinity) < self.config.features.affinity:
                    if weight <= 0.0:
                        continue
                    place = Weighted(category, 0.0)
                    user.affinity.append(place)
                else:
                    place = min(user.affinity, key=lambda liked: liked.weight)
                    if place.weight >= weight:
                        continue
                    place.key, place.weight = category, 0.0
            place.weight = max(f32(place.weight + weight), 0.0)

    # -- everything else -------------------------------------------------------------------------------

    def _upsert(self, row: SlowItem, record: ItemRecord, received_ms: int) -> None:
        item = record.item
        row.first = row.first or received_ms
        row.known, row.hidden = True, not item.available
        row.published, row.expires = item.published or 0, item.expires or 0
        row.price = f32(item.price or 0.0)
        row.categories, row.regions = list(record.categories), list(record.regions)
        vector = content_vector(item, self.config.features.content_size)
        row.content = None if vector is None else [float(x) for x in vector]

    def _merge(self, source: SlowUser, target: SlowUser) -> None:
        """A login: what the anonymous row holds belongs to the user from now on."""
        clock = max(source.clock, target.clock)
        self._move(source, clock)
        self._move(target, clock)
        target.first = min(first for first in (source.first, target.first) if first) if source.first else target.first
        for last, time_ms in source.latest.items():
            target.latest[last] = max(target.latest.get(last, 0), time_ms)
        for cell, value in source.decayed.items():
            target.decayed[cell] = f32(target.decayed.get(cell, 0.0) + value)
        for count, events in source.counts.items():
            target.counts[count] = target.counts.get(count, 0) + events
        self._place(target, [old or new for old, new in zip(target.segments, source.segments, strict=True)])
        for liked in source.affinity:
            self._like(target, [liked.key], liked.weight)
        for entry in source.recent:
            self._remember(target, entry)
        for item in source.seen[-self.config.features.seen :]:
            self._see(target, item)
