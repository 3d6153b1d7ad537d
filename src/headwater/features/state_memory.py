"""State in the memory of this process: packed rows, for jobs that need a store and no disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.features.fold import Delta
from headwater.features.packing import packed_clock
from headwater.features.plan import Plan
from headwater.features.rows import ItemTable, User, unpack_user
from headwater.features.store import (
    KEPT_EPOCHS,
    NO_ITEMS,
    TABLES,
    UNFINISHED,
    Frozen,
    Meta,
    Row,
    apply_epochs,
    catalogue_values,
    check_origin,
    decode_meta,
    decode_record,
    encode_meta,
    epoch_value,
    fill_table,
    item_values,
    missed_epochs,
    moved_meta,
    moved_on,
    not_empty,
    read_only,
)
from headwater.log.batch import ItemRecord
from headwater.schema.errors import UnavailableError

_WHERE = "the state in memory"


@dataclass(slots=True)
class MemoryPlace:
    """What is stored, by dense number; it outlives the :class:`MemoryState` objects that are opened on it."""

    tables: dict[str, dict[int, bytes]] = field(default_factory=lambda: {name: {} for name in TABLES})
    epochs: dict[int, bytes] = field(default_factory=dict)
    meta: bytes | None = None
    made: bool = False  # somebody opened it for writing
    lock: threading.RLock = field(default_factory=threading.RLock)


class MemoryState:
    """A state in ``place`` (default: a new one). Several may be open on one place, also in other threads."""

    def __init__(
        self, plan: Plan, place: MemoryPlace | None = None, *, writable: bool = True, log_id: str = ""
    ) -> None:
        self.plan, self.log_id, self._writable = plan, log_id, writable
        self._place = MemoryPlace() if place is None else place
        if not writable and not self._place.made:
            raise UnavailableError(f"{_WHERE} is not there yet")
        meta = self.meta()
        check_origin(meta, plan, log_id, _WHERE)
        self._place.made = True
        self.offset, self.received_ms = meta.offset, meta.received_ms

    def close(self) -> None:
        """Nothing is held; the place keeps its rows."""

    def commit(self, delta: Delta) -> None:
        """Store rows, catalogue, the epoch if one is due, and the offset.

        Raises:
            StateConflictError: the stored offset is not the one that was left there.
        """
        if not self._writable:
            raise read_only(_WHERE)
        items, catalogue = item_values(delta), catalogue_values(delta)
        with self._place.lock:
            place, meta = self._place, self.meta()
            if meta.offset != self.offset:
                raise moved_on(_WHERE, self.offset, meta.offset)
            meta = moved_meta(meta, delta, self.log_id)
            epoch = None if delta.epoch is None else epoch_value(delta, delta.epoch)
            encoded = encode_meta(meta)
            users = place.tables["users"]
            users.update((user, packed) for user, packed in delta.users if packed is not None)
            for user, packed in delta.users:
                if packed is None:
                    users.pop(user, None)
            place.tables["items"].update(items)
            place.tables["catalogue"].update(catalogue)
            if epoch is not None:
                place.epochs[meta.epoch] = epoch
                place.epochs.pop(meta.epoch - KEPT_EPOCHS, None)
            place.meta = encoded
        self.offset, self.received_ms = delta.offset, delta.received_ms

    def fill(self, meta: Meta, rows: Iterable[Row]) -> None:
        """See :meth:`headwater.features.store.State.fill`."""
        if not self._writable:
            raise read_only(_WHERE)
        check_origin(meta, self.plan, self.log_id, "what is to be filled in")
        place = self._place
        with place.lock:
            if place.meta is not None or any(place.tables.values()):
                raise not_empty(_WHERE)
            place.meta = UNFINISHED
            for table, key, value in rows:
                place.tables[table][key] = bytes(value)
            place.meta = encode_meta(meta)
        self.offset, self.received_ms = meta.offset, meta.received_ms

    def meta(self) -> Meta:
        """Where the state stands now."""
        return decode_meta(self._place.meta, self.plan)

    def types(self) -> dict[int, str]:
        return self.meta().types

    def clocks(self, after: int, limit: int) -> list[tuple[int, int]]:
        """See :class:`~headwater.features.fold.StateStore`."""
        with self._place.lock:
            users = self._place.tables["users"]
            chosen = sorted(user for user in users if user > after)[:limit]
            return [(user, packed_clock(users[user])) for user in chosen]

    def user(self, user: int) -> bytes | None:
        """The packed row of a dense user."""
        return self._place.tables["users"].get(user)

    def read_user(self, user: int, into: User) -> int:
        """Unpack the row of ``user`` (0 or unknown: zeros) into ``into``; returns the offset it stands at."""
        with self._place.lock:
            offset, found = self.meta().offset, self.user(user) if user else None
        if found is None:
            for part in into:
                part[:] = 0
        else:
            unpack_user(found, into, self.plan.layout)
        return offset

    def item_record(self, item: int) -> ItemRecord | None:
        """What the catalogue says of a dense item."""
        return decode_record(self._place.tables["catalogue"].get(item))

    def load_items(self, table: ItemTable) -> None:
        """Fill ``table`` with all item rows."""
        with self._place.lock:
            fill_table(table, self.meta(), self._place.tables["items"].items())

    def refresh_items(self, table: ItemTable, epoch: int) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """See :meth:`headwater.features.store.State.refresh_items`."""
        with self._place.lock:
            meta = self.meta()
            if epoch == meta.epoch:
                return epoch, meta.offset, NO_ITEMS
            missed = missed_epochs(meta, epoch)
            if missed is not None and all(number in self._place.epochs for number in missed):
                return meta.epoch, *apply_epochs(table, [self._place.epochs[number] for number in missed])
            self.load_items(table)
            return meta.epoch, meta.offset, None

    @contextmanager
    def frozen(self) -> Iterator[Frozen]:
        """All rows of one moment: the rows are shared, the index of them is copied."""
        with self._place.lock:
            meta, tables = self.meta(), {name: dict(rows) for name, rows in self._place.tables.items()}
        counts = {name: len(rows) for name, rows in tables.items()}
        yield Frozen(meta, counts, ((name, key, rows[key]) for name, rows in tables.items() for key in sorted(rows)))

    def dump(self) -> Iterator[Row]:
        """Every stored row as (table, key, bytes), ordered: two equal states dump the same."""
        with self.frozen() as frozen:
            yield from frozen.rows
