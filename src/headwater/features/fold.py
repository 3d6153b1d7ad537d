"""The driver of the fold: records in log order → rows, and from time to time a commit to a state store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from headwater.features.attributes import attribute_code, table_number
from headwater.features.content import content_vector
from headwater.features.fold_kernel import (
    Events,
    Programs,
    Workspace,
    fold_events,
    fold_shown,
    new_workspace,
    touch_user,
)
from headwater.features.layout import (
    FLAG_CONTENT,
    FLAG_HIDDEN,
    FLAG_KNOWN,
    I_CATEGORIES,
    I_EXPIRES,
    I_FIRST,
    I_FLAGS,
    I_PUBLISHED,
    I_REGIONS,
    U_SEGMENT,
    U_ZONE,
)
from headwater.features.merge import merge_user
from headwater.features.packing import pack_users
from headwater.features.plan import Plan
from headwater.features.rows import ItemTable, UserTable
from headwater.features.rowset import Rows
from headwater.log.batch import ItemRecord, TableRecord
from headwater.log.record import FLAG_TRIAL, Kind, Namespace, RecordBlock
from headwater.schema.errors import HeadwaterError
from headwater.schema.feed import Changes
from headwater.schema.items import MAX_CATEGORIES, MAX_REGIONS
from headwater.schema.requests import ServedList
from headwater.schema.users import UserProfile

log = structlog.get_logger()

_SINGLE = np.array([Kind.ITEM, Kind.ITEM_DELETED, Kind.PROFILE, Kind.ERASURE, Kind.LOGIN, Kind.TABLE], np.uint8)
_decode_item = msgspec.msgpack.Decoder(ItemRecord).decode
_decode_table = msgspec.msgpack.Decoder(TableRecord).decode
_decode_served = msgspec.msgpack.Decoder(ServedList).decode
_decode_profile = msgspec.msgpack.Decoder(UserProfile).decode

IDLE_MARGIN_MS = 3_600_000

Unseal = Callable[[int, bytes], bytes | None]


def foldable(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The events among ``records`` that are of a user and an item."""
    chosen: npt.NDArray[np.void] = records[
        (records["kind"] == Kind.EVENT) & (records["user"] > 0) & (records["item"] > 0)
    ]
    return chosen


class FoldOrderError(HeadwaterError):
    """A block does not follow the offset that the state stands at."""


@dataclass(slots=True)
class Delta:
    """What a commit changes: everything since the last one, and the offset it stands at."""

    offset: int
    received_ms: int
    users: list[tuple[int, bytes | None]]  # packed rows; None: gone
    items: npt.NDArray[np.int64]  # dense items whose rows changed
    rows: Rows  # the item table (only `items` are new)
    count: int
    catalogue: list[tuple[int, bytes | None]]  # ItemRecord payloads
    types: dict[int, str]
    epoch: npt.NDArray[np.int64] | None  # items changed since the last epoch, when one is due


class StateStore(Protocol):
    """Keeps rows and offset together: a commit is all or nothing."""

    offset: int
    received_ms: int

    def user(self, user: int) -> bytes | None: ...
    def load_items(self, table: ItemTable) -> None: ...
    def types(self) -> dict[int, str]: ...
    def commit(self, delta: Delta) -> None: ...

    def clocks(self, after: int, limit: int) -> list[tuple[int, int]]:
        """(dense user, clock in ms) of stored rows with numbers above ``after``, in order: at most ``limit``; empty: none left."""
        ...


@dataclass(slots=True)
class FoldCounts:
    """What the fold has met since it started."""

    records: int = 0
    events: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class Fold:
    """State as a function of the log.

    Without a ``store`` all rows stay in memory, those at rest packed (training, evaluation, verification); with one
    the fold resumes at its offset and ``commit`` writes what changed. ``unseal(user, payload)`` opens a sealed
    profile (None: the user was erased); a plan with features of the profile needs it.
    """

    def __init__(
        self, plan: Plan, store: StateStore | None = None, *, cache_users: int = 32_768, unseal: Unseal | None = None
    ) -> None:
        if plan.user_attributes and unseal is None:
            names = ", ".join(sorted({attribute.name for attribute, _ in plan.user_attributes}))
            raise HeadwaterError(
                f"the plan reads the profile ({names}): its fold needs the identity store to open profiles"
            )
        self.plan = plan
        self.store = store
        self.unseal = unseal
        self.cache_users = cache_users
        self.programs = Programs(
            plan.layout, plan.lives, plan.types, plan.users, plan.items, plan.everybody, plan.affinities, plan.factors
        )
        self.workspace: Workspace = new_workspace(plan.lives, plan.factors)
        counts_served = plan.outcomes is not None and plan.outcomes.served
        self._single = np.append(_SINGLE, np.uint8(Kind.SERVED)) if counts_served else _SINGLE
        self.items = ItemTable(plan.layout)
        # room for the whole cache from the start (the pages come with use): growing copies every row, a stall that
        # the freshness of whoever acts at that moment would pay for
        room = 2 * cache_users
        self.users = UserTable(
            plan.layout, store.user if store is not None else None, hot=cache_users, capacity=room,
            load_many=getattr(store, "users", None),
        )  # fmt: skip
        self.offset = 0
        self.received_ms = 0
        self.counts = FoldCounts()
        self.catalogue: dict[int, ItemRecord] = {}  # kept when there is no store
        self._catalogue_changes: list[tuple[int, bytes | None]] = []
        self._gone: set[int] = set()
        self._types: dict[int, str] = {}
        self._type_slot = np.zeros(65_536, np.int64)
        self._epoch_dirty = np.zeros(0, np.uint8)
        self._swept = 0  # the last user that `remove_idle` looked at
        if store is not None:
            self.offset, self.received_ms = store.offset, store.received_ms
            store.load_items(self.items)
            for index, name in store.types().items():
                self._learn_type(index, name)

    def apply(self, block: RecordBlock) -> None:
        """Fold the next records.

        Raises:
            FoldOrderError: the block does not start right behind ``offset``.
        """
        if len(block) == 0:
            return
        if block.first_offset != self.offset + 1:
            raise FoldOrderError(f"the state stands at offset {self.offset}; cannot fold from {block.first_offset}")
        records = block.records
        kinds = records["kind"]
        # terms precede their first use, so learning all of a block's terms first changes nothing
        for i in np.flatnonzero(kinds == Kind.TERM).tolist():
            if int(records["type"][i]) == Namespace.EVENT_TYPE:
                self._learn_type(int(records["item"][i]), block.payload(i).decode())
        self.items.reserve(int(records["item"][kinds != Kind.TERM].max(initial=0)) + 1)
        start = 0
        for i in np.flatnonzero(np.isin(kinds, self._single)).tolist():
            self._fold_run(block, start, i)
            self._fold_one(block, i)
            start = i + 1
        self._fold_run(block, start, len(records))
        self.offset = block.last_offset
        self.received_ms = int(records["received_ms"][-1])
        self.counts.records += len(block)

    def commit(self, *, epoch: bool) -> Changes:
        """Store everything since the last commit; ``epoch`` also offers the changed items to the servers.

        Returns the users whose rows it changed.
        """
        if self.store is None:
            raise HeadwaterError("this fold has no store to commit to")
        changed = np.flatnonzero(self.items.dirty)
        self._note_epoch(changed)
        dirty_users = np.flatnonzero(self.users.dirty)
        kept = dirty_users
        if self._gone:
            kept = kept[~np.isin(self.users.owners[kept], np.fromiter(self._gone, np.uint32))]
        packed: list[tuple[int, bytes | None]] = list(
            zip(self.users.owners[kept].tolist(), pack_users(self.users.rows, kept, self.plan.layout), strict=True)
        )
        changes = Changes(self.users.owners[kept].tolist(), sorted(self._gone))
        packed.extend((user, None) for user in sorted(self._gone))
        self.store.commit(
            Delta(
                offset=self.offset,
                received_ms=self.received_ms,
                users=packed,
                items=changed,
                rows=self.items.rows,
                count=self.items.count,
                catalogue=self._catalogue_changes,
                types=self._types,
                epoch=np.flatnonzero(self._epoch_dirty) if epoch else None,
            )
        )
        self.items.dirty[changed] = 0
        self.users.dirty[dirty_users] = 0
        self.users.shrink(self.cache_users)
        self._catalogue_changes = []
        self._gone.clear()
        if epoch:
            self._epoch_dirty[:] = 0
        return changes

    def start_from(self, other: Fold) -> None:
        """Take over a copy of the state of a fold without a store."""
        self.users, self.items = other.users.copy(), other.items.copy()
        self.offset, self.received_ms = other.offset, other.received_ms
        self._types, self._type_slot = dict(other._types), other._type_slot.copy()
        self._gone = set(other._gone)
        self.catalogue = dict(other.catalogue)

    def remove_idle(self, limit: int) -> int:
        """Look at the next ``limit`` stored users; who was idle for too long is gone with the next commit. Returns how many.

        An idle row is as good as none to every reader, so when it is removed changes no number.
        """
        layout = self.plan.layout
        if self.store is None or layout.idle_ms == 0:
            return 0
        clocks = self.store.clocks(self._swept, limit)
        self._swept = clocks[-1][0] if clocks else 0
        # a moment more than is needed: a request may be answered by a clock that stands a little behind the log's
        before = self.received_ms - layout.idle_ms - IDLE_MARGIN_MS
        idle = [user for user, clock in clocks if 0 < clock < before and not self.users.is_hot(user)]
        self._gone.update(idle)
        return len(idle)

    def offer_everything(self) -> None:
        """Put every item row into the next epoch; what is stored stays as it is."""
        self._note_epoch(np.arange(self.items.count))

    @property
    def epoch_pending(self) -> bool:
        """Whether item rows changed since the last epoch."""
        return bool(self._epoch_dirty.any()) or bool(self.items.dirty.any())

    def _note_epoch(self, changed: npt.NDArray[np.int64]) -> None:
        if len(self._epoch_dirty) < len(self.items.dirty):
            grown = np.zeros(len(self.items.dirty), np.uint8)
            grown[: len(self._epoch_dirty)] = self._epoch_dirty
            self._epoch_dirty = grown
        self._epoch_dirty[changed] = 1

    def _learn_type(self, index: int, name: str) -> None:
        self._types[index] = name
        if name in self.plan.event_types:
            self._type_slot[index] = self.plan.event_types.index(name) + 1

    def _fold_run(self, block: RecordBlock, start: int, stop: int) -> None:
        """Fold the records ``start … stop - 1`` of a block: events, and such as change no row."""
        chosen = foldable(block.records[start:stop])
        if len(chosen) == 0:
            return
        events = self.events_of(chosen, self.users.slots_of(np.ascontiguousarray(chosen["user"])))
        self.note_events(
            chosen,
            events,
            fold_events(
                events, 0, len(chosen), self.users.rows, self.items.rows, self.programs, self.workspace,
                self.users.dirty, self.items.dirty,
            ),
        )  # fmt: skip

    def events_of(self, chosen: npt.NDArray[np.void], slots: npt.NDArray[np.int64]) -> Events:
        """The columns of event records for the kernel; ``slots`` are the rows of their users."""
        return Events(
            user=slots,
            item=chosen["item"].astype(np.int64),
            type=self._type_slot[chosen["type"]],
            time_ms=np.minimum(chosen["time_ms"], chosen["received_ms"]),
            received_ms=np.ascontiguousarray(chosen["received_ms"]),
            value=np.ascontiguousarray(chosen["value"]),
            flags=np.ascontiguousarray(chosen["flags"]),
            segments=np.ascontiguousarray(chosen["segments"]),
            person=chosen["user"].astype(np.int64),
        )

    def note_events(self, chosen: npt.NDArray[np.void], events: Events, skipped: int) -> None:
        """Account for event records that the kernel has folded."""
        if self._gone:
            # an emptied user that acts again starts from an empty row; an event that is skipped is no act
            self._gone.difference_update(np.unique(chosen["user"][events.type != 0]).tolist())
        self.counts.events += len(chosen)
        if skipped:
            for index in np.unique(chosen["type"][events.type == 0]).tolist():
                name = self._types.get(index, f"#{index}")
                if name not in self.counts.skipped:
                    log.warning("fold_skips_event_type", type=name, hint="add it to [[events]] or ignore this")
                count = int(np.sum(chosen["type"] == index))
                self.counts.skipped[name] = self.counts.skipped.get(name, 0) + count

    def _fold_one(self, block: RecordBlock, i: int) -> None:
        record = block.records[i]
        kind, item, user = int(record["kind"]), int(record["item"]), int(record["user"])
        if kind == Kind.ITEM:
            self._fold_item(item, block.payload(i), int(record["received_ms"]))
        elif kind == Kind.ITEM_DELETED:
            self.items.rows.u4[item, I_FLAGS] |= np.uint32(FLAG_HIDDEN)
            self.items.dirty[item] = 1
        elif kind == Kind.PROFILE:
            self._fold_profile(record, block.payload(i))
        elif kind == Kind.TABLE:
            self._fold_table(block.payload(i), user, item, int(record["time_ms"]), int(record["received_ms"]))
        elif kind == Kind.SERVED and not record["flags"] & FLAG_TRIAL:
            self._fold_served(block.payload(i), min(int(record["time_ms"]), int(record["received_ms"])))
        elif kind == Kind.ERASURE:
            self._empty_user(user)
        elif kind == Kind.LOGIN:
            anonymous = int.from_bytes(block.payload(i)[:4], "little")
            slots = self.users.slots_of(np.array([anonymous, user], np.uint32))
            source, target, received_ms = int(slots[0]), int(slots[1]), int(record["received_ms"])
            merge_user(self.users.rows, source, target, received_ms, self.programs, self.workspace)
            self.users.dirty[slots[1]] = 1
            self._gone.discard(user)
            self._empty_user(anonymous)

    def _fold_profile(self, record: np.void, payload: bytes) -> None:
        user = int(record["user"])
        slot = self._touched(user, int(record["received_ms"]))
        u4 = self.users.rows.u4[slot]
        for k, segment in enumerate(record["segments"].tolist()):
            if segment:
                u4[U_SEGMENT + k] = segment
        if record["zone"]:
            u4[U_ZONE] = record["zone"]
        if self.plan.user_attributes and self.unseal is not None:
            plain = self.unseal(user, payload)
            profile = None if plain is None else _decode_profile(plain)
            for attribute, at in self.plan.user_attributes:
                u4[at] = 0 if profile is None else attribute_code(profile.field_of(attribute.name), attribute.kind)

    def _fold_served(self, payload: bytes, time_ms: int) -> None:
        """Count the places of a list (a plan that asks for them: ``features.outcomes``)."""
        shown = np.array(_decode_served(payload).items, np.int64)
        self.items.reserve(int(shown.max(initial=0)) + 1)
        fold_shown(shown, time_ms, self.items.rows, self.programs, self.workspace, self.items.dirty)

    def _fold_table(self, payload: bytes, user: int, item: int, valid_ms: int, received_ms: int) -> None:
        record = _decode_table(payload)
        found = self.plan.tables.get(("user" if user else "item", record.table))
        if found is None:  # a table that no feature reads
            return
        valid_at, columns = found
        if user:
            at = self._touched(user, received_ms)  # may move all rows: look at them after it
            rows = self.users.rows
        else:
            at, rows = item, self.items.rows
            self.items.dirty[item] = 1
        if valid_ms < rows.i8[at, valid_at]:
            return
        rows.i8[at, valid_at] = valid_ms
        for name, cell in columns.items():
            rows.u4[at, cell] = table_number(record.values.get(name))

    def _touched(self, user: int, received_ms: int) -> int:
        slot = self.users.slot(user)
        touch_user(self.users.rows, slot, received_ms, self.programs, self.workspace)
        self.users.dirty[slot] = 1
        self._gone.discard(user)
        return slot

    def _empty_user(self, user: int) -> None:
        slot = self.users.slot(user)
        for part in self.users.rows:
            part[slot] = 0
        self.users.dirty[slot] = 1
        self._gone.add(user)

    def _fold_item(self, item: int, payload: bytes, received_ms: int) -> None:
        record = _decode_item(payload)
        layout, rows = self.plan.layout, self.items.rows
        i8, f4, u4 = rows.i8[item], rows.f4[item], rows.u4[item]
        if i8[I_FIRST] == 0:
            i8[I_FIRST] = received_ms
        i8[I_PUBLISHED] = record.item.published or 0
        i8[I_EXPIRES] = record.item.expires or 0
        f4[layout.price_f4] = record.item.price or 0.0
        vector = content_vector(record.item, layout.content_size)
        f4[layout.content_f4 : layout.content_f4 + layout.content_size] = 0.0 if vector is None else vector
        u4[I_FLAGS] = (
            FLAG_KNOWN | (0 if record.item.available else FLAG_HIDDEN) | (0 if vector is None else FLAG_CONTENT)
        )
        for start, size, values in (
            (I_CATEGORIES, MAX_CATEGORIES, record.categories),
            (I_REGIONS, MAX_REGIONS, record.regions),
        ):
            u4[start : start + size] = 0
            u4[start : start + len(values)] = values
        for attribute, at in self.plan.item_attributes:
            u4[at] = attribute_code((record.item.attributes or {}).get(attribute.name), attribute.kind)
        self.items.dirty[item] = 1
        if self.store is None:
            self.catalogue[item] = record
        else:
            self._catalogue_changes.append((item, payload))
