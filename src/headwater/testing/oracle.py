"""The slow, obvious fold: one record after the other into plain objects of dicts and lists.

It is written from the documented meaning of the aggregations, not from the kernels, and rounds to ``float32``
where a stored number is one, so that the kernels can be compared with it to the bit. ``oracle_cells`` has the
aggregations; ``oracle_rows`` lays the objects out as the plan says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from headwater.features.aggregations import FOLLOWED, Affinity, Aggregation, Attribute
from headwater.features.co_visits import BACKWARD
from headwater.features.content import content_vector
from headwater.features.defaults import default_affinity
from headwater.features.definitions import Column, popularity_cell
from headwater.features.module import configured_columns
from headwater.features.plan import of_everybody
from headwater.log.batch import ItemRecord, TableRecord
from headwater.log.record import FLAG_RETRACT, FLAG_TRIAL, Kind, Namespace, RecordBlock
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.events import Scalar
from headwater.schema.users import UserProfile
from headwater.testing.oracle_cells import (
    Happening,
    SlowRow,
    decay,
    f32,
    left,
    rescaled,
    text_code,
    weight_at,
)
from headwater.testing.oracle_factors import PLACES, SlowFactors, drawn

__all__ = ["Entry", "Liked", "Partner", "SlowFold", "SlowItem", "SlowUser", "decay", "f32"]

Unseal = Callable[[int, bytes], bytes | None]


@dataclass(slots=True)
class Liked:
    """A key of an affinity: what it weighs, and the second of the latest event with it."""

    key: int
    weight: float
    time_s: int


@dataclass(slots=True)
class Partner:
    """A co-visited item: its weight at the slow half-life, and at the fast one."""

    key: int
    weight: float
    fast: float


@dataclass(slots=True)
class Entry:
    """One event of a recent sequence. ``slot`` is the position of its type in the configuration, from 1."""

    time_s: int
    item: int
    slot: int


@dataclass(slots=True)
class Untouched:
    """An item that was shown and not touched: how often, and the second of the latest time."""

    item: int
    count: int
    time_s: int


@dataclass(slots=True)
class SlowUser(SlowRow):
    """``seen`` is every item that was ever added; the ring holds the last ones of it."""

    segments: list[int] = field(default_factory=lambda: [0, 0])
    zone: int = 0
    liked: dict[Affinity, list[Liked]] = field(default_factory=dict)
    recent: list[Entry] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    untouched: list[Untouched] = field(default_factory=list)

    def move(self, time: int) -> None:
        """Bring the clock to ``time`` if that is later."""
        if time > self.clock:
            for cell, keys in self.liked.items():
                for liked in keys:
                    liked.weight = rescaled(liked.weight, self.clock, time, cell.half_life_ms)
        SlowRow.move(self, time)

    def like(self, cell: Affinity, keys: Iterable[int], weight: float, time_s: int, *, retract: bool = False) -> None:
        """Add ``weight`` to each key; a retraction changes only keys that are here, and no time."""
        row = self.liked.setdefault(cell, [])
        for key in keys:
            place = next((liked for liked in row if liked.key == key), None)
            if place is None:
                if retract:
                    continue
                if len(row) < cell.slots:
                    if weight <= 0.0:
                        continue
                    place = Liked(key, 0.0, 0)
                    row.append(place)
                else:
                    place = min(row, key=lambda liked: liked.weight)
                    if place.weight >= weight:
                        continue
                    place.key, place.weight, place.time_s = key, 0.0, 0
            if retract:
                place.weight = f32(left(place.weight + weight, weight))
            else:
                place.weight = max(f32(place.weight + weight), 0.0)
                place.time_s = max(place.time_s, time_s)


@dataclass(slots=True)
class SlowItem(SlowRow):
    """``segments[k][s]`` is the weight in segment term ``s`` of key ``k``; term 0 is everybody.

    Its rest has the name ``(k, s)``.
    """

    rests: dict[Hashable, float] | None = field(default_factory=dict)
    known: bool = False
    hidden: bool = False
    published: int = 0
    expires: int = 0
    price: float = 0.0
    categories: list[int] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    content: list[float] | None = None
    said: dict[str, Scalar] = field(default_factory=dict)  # the item's attributes
    segment_ms: int = 0
    segments: dict[int, dict[int, float]] = field(default_factory=dict)
    co_clock: int = 0
    co_total: float = 0.0
    co_fast_total: float = 0.0
    partners: list[Partner] = field(default_factory=list)

    def move(self, time: int) -> None:
        """Bring the clock to ``time`` if that is later."""
        if time > self.clock:
            for key, cells in self.segments.items():
                for segment, value in cells.items():
                    cells[segment] = rescaled(value, self.clock, time, self.segment_ms)
                    self.move_rest((key, segment), time, self.segment_ms)
        SlowRow.move(self, time)

    def keys(self, cell: Affinity) -> list[int]:
        """The item's keys for an affinity."""
        if cell.key == "category":
            return self.categories
        code = text_code(self.said.get(cell.key))
        return [code] if code else []


class SlowFold:
    """State as a function of the log, by the book. Item 0 stands for all items together."""

    def __init__(
        self, config: Config, columns: tuple[Column, ...] | None = None, *, unseal: Unseal | None = None
    ) -> None:
        self.config, self.unseal = config, unseal
        self.columns = configured_columns(config) if columns is None else columns
        features = config.features
        popular = [popularity_cell(config, parse_duration(text)) for text in features.item_half_lives]
        read = [aggregation for column in self.columns for aggregation in column.reads]
        self.kept: list[Aggregation] = list(dict.fromkeys([default_affinity(config), *popular, *read]))
        self.everybody = of_everybody(self.columns)
        self.counting: dict[tuple[str, str], list[Aggregation]] = {
            (entity, name): [
                cell
                for cell in self.kept
                if cell.entity == entity and name in getattr(cell, "types", ()) and not isinstance(cell, Affinity)
            ]
            for entity in ("user", "item")
            for name in (*(event.name for event in config.events), FOLLOWED)
        }
        self.slots = {event.name: slot for slot, event in enumerate(config.events, 1)}
        self.idle_ms = 0 if features.idle_after == "never" else parse_duration(features.idle_after)
        self.segment_ms = parse_duration(features.segment_half_life)
        self.co_ms = parse_duration(features.co_visits.half_life)
        self.co_fast_ms = parse_duration(features.co_visits.fast_half_life)
        self.factors = SlowFactors(features.factors)
        self.users: dict[int, SlowUser] = {}
        self.items: dict[int, SlowItem] = {}
        self.types: dict[int, str] = {}
        self.offset = 0

    def user(self, user: int, received_ms: int) -> SlowUser:
        """The user as of a record that was received then: nothing is left of one who was idle for too long."""
        if user not in self.users or self.is_idle(self.users[user], received_ms):
            self.users[user] = SlowUser()
            self.factors.vectors.pop(("user", user), None)
        return self.users[user]

    def item(self, item: int) -> SlowItem:
        return self.items.setdefault(item, SlowItem(segment_ms=self.segment_ms))

    def is_idle(self, user: SlowUser, now_ms: int) -> bool:
        """Whether a user row is as good as none."""
        return self.idle_ms > 0 and user.clock > 0 and now_ms - user.clock > self.idle_ms

    def apply(self, block: RecordBlock) -> None:
        """Fold the records of ``block``, each by its kind."""
        for i, record in enumerate(block.records):
            self.offset = int(record["offset"])
            kind, user, item = Kind(int(record["kind"])), int(record["user"]), int(record["item"])
            received_ms = int(record["received_ms"])
            if kind is Kind.TERM and int(record["type"]) == Namespace.EVENT_TYPE:
                self.types[item] = block.payload(i).decode()
            elif kind is Kind.EVENT:
                self._event(record)
            elif kind is Kind.ITEM:
                record_of = msgspec.msgpack.decode(block.payload(i), type=ItemRecord)
                self._upsert(self.item(item), record_of, received_ms)
            elif kind is Kind.ITEM_DELETED:
                self.item(item).hidden = True
            elif kind is Kind.PROFILE:
                self._profile(user, record, block.payload(i))
            elif kind is Kind.TABLE:
                self._table(user, item, record, msgspec.msgpack.decode(block.payload(i), type=TableRecord))
            elif kind is Kind.ERASURE:
                self.users.pop(user, None)
                self.factors.vectors.pop(("user", user), None)
            elif kind is Kind.LOGIN:
                anonymous = int.from_bytes(block.payload(i), "little")
                self._merge(self.user(anonymous, received_ms), self.user(user, received_ms))
                self._merge_factors(anonymous, user)
                del self.users[anonymous]

    # -- events ----------------------------------------------------------------------------------------

    def _event(self, record: np.void) -> None:
        name, received_ms = self.types[int(record["type"])], int(record["received_ms"])
        user, item = int(record["user"]), int(record["item"])
        slot = self.slots.get(name)
        if slot is None:
            return
        kind, who, what = self.config.events[slot - 1], self.user(user, received_ms), self.item(item)
        value = float(record["value"])
        event = Happening(
            time=min(int(record["time_ms"]), received_ms),
            value=None if math.isnan(value) else value,
            retract=bool(record["flags"] & FLAG_RETRACT),
            user=user,
            item=item,
            category=what.categories[0] if what.categories else 0,
        )
        self._place(who, [int(s) for s in record["segments"]])
        trial = bool(record["flags"] & FLAG_TRIAL)
        followed = kind.positive and not event.retract and not trial and self._co_visit(who, item, event.time) > 0
        if kind.positive and not event.retract and not trial and self.config.features.factors.size:
            self.factors.take(user, item, self.visit(who, event.time), who.segments)
        names = (name, FOLLOWED) if followed else (name,)
        rows: tuple[SlowRow, ...] = (who,) if trial else (self.item(0), what, who)
        for row in rows:
            row.first = row.first or event.time
            row.move(event.time)
            for counted in names:
                for cell in self.counting["user" if row is who else "item", counted]:
                    if row is self.item(0) and cell not in self.everybody:
                        continue  # nobody asks for it
                    row.take(cell, counted, event)
        if kind.positive and not trial:
            for row in (self.item(0), what):
                amount = event.sign * kind.weight * weight_at(event.time, row.clock, self.segment_ms)
                for k in range(len(self.config.segments.keys)):
                    cells = row.segments.setdefault(k, {})
                    for segment in dict.fromkeys((0, who.segments[k])):
                        if segment < self.config.features.segment_slots:
                            weight = cells.get(segment, 0.0) + row.rest((k, segment)) + amount
                            weight = left(weight, amount) if event.retract else max(weight, 0.0)
                            cells[segment] = row.kept((k, segment), weight)
        for cell in self.kept:
            if isinstance(cell, Affinity) and name in cell.types:
                taste = cell.weights[cell.types.index(name)]
                if taste != 0.0:
                    amount = event.sign * taste * weight_at(event.time, who.clock, cell.half_life_ms)
                    who.like(cell, what.keys(cell), amount, event.time // 1000, retract=event.retract)
        if event.retract:
            if kind.sequence:
                self._forget(who, item, slot)
            return
        if kind.sequence:
            self._remember(who, Entry(event.time // 1000, item, slot))
        if kind.seen:
            self._see(who, item)
        fatigue = self.config.fatigue
        if fatigue.impressions and name in fatigue.types:
            self._show(who, Untouched(item, 1, event.time // 1000))
        elif fatigue.impressions and kind.weight > 0.0:
            who.untouched = [shown for shown in who.untouched if shown.item != item]

    def _place(self, user: SlowUser, segments: list[int]) -> None:
        """What an event or a profile says of the user's segments; 0 says nothing."""
        user.segments = [new or old for new, old in zip(segments, user.segments, strict=True)]

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

    def visit(self, user: SlowUser, time_ms: int) -> dict[int, int]:
        """The latest distinct positive items at or before ``time_ms`` inside the window of a visit, latest first, and how many seconds before."""
        now_s, window_s = time_ms // 1000, parse_duration(self.config.features.co_visits.window) // 1000
        found: dict[int, int] = {}
        for entry in reversed(user.recent):
            if 0 < entry.time_s < now_s - window_s or len(found) == PLACES:  # all before it are older
                break
            if entry.time_s <= now_s and self.config.events[entry.slot - 1].positive:
                found.setdefault(entry.item, now_s - entry.time_s if entry.time_s else 0)
        return found

    def _merge_factors(self, anonymous: int, user: int) -> None:
        theirs, own = self.factors.of(("user", anonymous)), self.factors.of(("user", user))
        if theirs.squares > own.squares:
            self.factors.vectors["user", user] = theirs
        del self.factors.vectors["user", anonymous]

    def _pair(self, a: int, b: int, weight: float, time_ms: int) -> None:
        """Add a co-visit ``a → b``; who is kept is decided by the slow weights alone."""
        row = self.item(a)
        if time_ms > row.co_clock:
            for partner in row.partners:
                partner.weight = rescaled(partner.weight, row.co_clock, time_ms, self.co_ms)
                partner.fast = rescaled(partner.fast, row.co_clock, time_ms, self.co_fast_ms)
            row.co_total = rescaled(row.co_total, row.co_clock, time_ms, self.co_ms)
            row.co_fast_total = rescaled(row.co_fast_total, row.co_clock, time_ms, self.co_fast_ms)
            row.co_clock = time_ms
        slow = weight * weight_at(time_ms, row.co_clock, self.co_ms)
        fast = weight * weight_at(time_ms, row.co_clock, self.co_fast_ms)
        row.co_total, row.co_fast_total = f32(row.co_total + slow), f32(row.co_fast_total + fast)
        for partner in row.partners:
            if partner.key == b:
                partner.weight, partner.fast = f32(partner.weight + slow), f32(partner.fast + fast)
                return
        if len(row.partners) < self.config.features.co_visits.neighbours:
            row.partners.append(Partner(b, f32(slow), f32(fast)))
            return
        lightest = min(row.partners, key=lambda partner: partner.weight)
        if drawn(a, b, time_ms) * (slow + lightest.weight) < slow:
            lightest.key, lightest.weight, lightest.fast = b, f32(lightest.weight + slow), f32(fast)

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

    def _show(self, user: SlowUser, shown: Untouched) -> None:
        """Impressions count together while no two of an item lie more than a window apart; the list forgets the oldest."""
        fatigue = self.config.fatigue
        window_s = parse_duration(fatigue.window) // 1000
        for known in user.untouched:
            if known.item == shown.item:
                if abs(shown.time_s - known.time_s) <= window_s:
                    known.count, known.time_s = min(known.count + shown.count, 255), max(known.time_s, shown.time_s)
                elif shown.time_s > known.time_s:
                    known.count, known.time_s = shown.count, shown.time_s
                return
        if len(user.untouched) < fatigue.size:
            user.untouched.append(shown)
            return
        oldest = min(user.untouched, key=lambda known: known.time_s)
        if shown.time_s >= oldest.time_s:
            oldest.item, oldest.count, oldest.time_s = shown.item, shown.count, shown.time_s

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
        row.said = dict(item.attributes or {})
        row.attributes = {
            cell: row.said[cell.name]
            for cell in self.kept
            if isinstance(cell, Attribute) and cell.entity == "item" and cell.name in row.said
        }

    def _profile(self, user: int, record: np.void, payload: bytes) -> None:
        who = self.user(user, int(record["received_ms"]))
        who.move(int(record["received_ms"]))
        self._place(who, [int(s) for s in record["segments"]])
        who.zone = int(record["zone"]) or who.zone
        wanted = [cell for cell in self.kept if isinstance(cell, Attribute) and cell.entity == "user"]
        if wanted and self.unseal is not None:
            plain = self.unseal(user, payload)
            profile = None if plain is None else msgspec.msgpack.decode(plain, type=UserProfile)
            said = {cell: None if profile is None else profile.field_of(cell.name) for cell in wanted}
            who.attributes = {cell: value for cell, value in said.items() if value is not None}

    def _table(self, user: int, item: int, record: np.void, payload: TableRecord) -> None:
        entity = "user" if user else "item"
        wanted = {
            cell.column
            for cell in self.kept
            if cell.entity == entity and getattr(cell, "table", None) == payload.table and hasattr(cell, "column")
        }
        if not wanted:  # a table that no feature reads
            return
        row: SlowRow = self.item(item)
        if user:
            row = self.user(user, int(record["received_ms"]))
            row.move(int(record["received_ms"]))
        values = {column: payload.values.get(column) for column in wanted}
        row.load(payload.table, int(record["time_ms"]), values)

    def _merge(self, source: SlowUser, target: SlowUser) -> None:
        """A login: what the anonymous row holds belongs to the user from now on.

        What a profile or a table said of the user stays; of the anonymous one only segments and time zone go over.
        """
        clock = max(source.clock, target.clock)
        source.move(clock)
        target.move(clock)
        target.merge(source)
        self._place(target, [old or new for old, new in zip(target.segments, source.segments, strict=True)])
        target.zone = target.zone or source.zone
        for cell, keys in source.liked.items():
            for liked in keys:
                target.like(cell, [liked.key], liked.weight, liked.time_s)
        for entry in source.recent:
            self._remember(target, entry)
        for item in source.seen[-self.config.features.seen :]:
            self._see(target, item)
        for shown in source.untouched:
            self._show(target, shown)
