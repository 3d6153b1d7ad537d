"""State in LMDB: rows and the log offset they stand at, in one transaction.

The environment is not synced: after a reboot it may be gone or old, and is rebuilt from the log. One
process (the fold) writes; servers open it read-only. Item rows reach the servers as epochs: all rows that
changed since the epoch before, tied to the offset of their commit.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np
import numpy.typing as npt

from headwater.features.fold import Delta
from headwater.features.packing import packed_clock
from headwater.features.plan import Plan
from headwater.features.rows import CorruptStateError, ItemTable, User, unpack_user
from headwater.features.store import (
    KEPT_EPOCHS,
    NO_ITEMS,
    TABLES,
    UNFINISHED,
    Frozen,
    LogChangedError,
    Meta,
    PlanChangedError,
    Row,
    State,
    StateConflictError,
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
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from headwater.features.redis_wire import Wire

__all__ = [
    "KEPT_EPOCHS",
    "LmdbState",
    "LogChangedError",
    "Meta",
    "PlanChangedError",
    "StateConflictError",
    "open_for_fold",
    "open_store",
]

MAP_SIZE = 1 << 38  # address space, not disk
_FILLED_AT_ONCE = 8192  # rows a transaction
_U4 = struct.Struct(">I")
_U8 = struct.Struct(">Q")
_META = b"meta"
_PATIENCE_S = 2.0  # a server waits so long for item rows, many at once


class LmdbState:
    """A state environment. ``writable`` for the one fold, read-only for everyone else.

    ``log_id`` names the log that it belongs to: the first commit writes it down, and from then on a state of another
    log is refused. "" does not ask; a state that does not know its log (of an older release) is taken for this one's.
    """

    def __init__(self, path: Path, plan: Plan, *, writable: bool, log_id: str = "") -> None:
        self.plan, self.path, self.log_id, self._writable = plan, path, log_id, writable
        self._where = f"the state in {path}"
        self._layout = plan.layout
        if writable:
            path.mkdir(parents=True, exist_ok=True)
        try:
            self._env = lmdb.open(
                str(path), max_dbs=8, map_size=MAP_SIZE, subdir=True, readonly=not writable, create=writable,
                sync=False, metasync=False, max_readers=512, lock=True,
            )  # fmt: skip
        except lmdb.Error as error:
            raise UnavailableError(f"{self._where} cannot be opened: {error}") from error
        try:
            self._users, self._items, self._catalogue, self._epochs, self._meta = (
                self._env.open_db(name, create=writable)
                for name in (b"users", b"items", b"catalogue", b"epochs", _META)
            )
        except lmdb.Error as error:
            self._env.close()
            raise UnavailableError(f"{self._where} is not ready yet: {error}") from error
        self._tables = dict(zip(TABLES, (self._users, self._items, self._catalogue), strict=True))
        try:
            meta = self.meta()
            check_origin(meta, plan, log_id, self._where)
        except (CorruptStateError, PlanChangedError, LogChangedError):
            self._env.close()
            raise
        self.offset, self.received_ms = meta.offset, meta.received_ms

    def close(self) -> None:
        self._env.close()

    # -- writing -------------------------------------------------------------------------------------

    def commit(self, delta: Delta) -> None:
        """Write rows, catalogue, the epoch if one is due, and the offset, in one transaction.

        Raises:
            StateConflictError: the stored offset is not the one that this process left there.
        """
        if not self._writable:
            raise read_only(self._where)
        with self._env.begin(write=True) as txn:
            meta = self._read_meta(txn)
            if meta.offset != self.offset:
                raise moved_on(self._where, self.offset, meta.offset)
            meta = moved_meta(meta, delta, self.log_id)
            users = [(_U4.pack(user), packed) for user, packed in delta.users]
            txn.cursor(self._users).putmulti([(key, packed) for key, packed in users if packed is not None])
            for key, packed in users:
                if packed is None:
                    txn.delete(key, db=self._users)
            txn.cursor(self._items).putmulti([(_U4.pack(item), value) for item, value in item_values(delta)])
            txn.cursor(self._catalogue).putmulti([(_U4.pack(item), value) for item, value in catalogue_values(delta)])
            if delta.epoch is not None:
                txn.put(_U8.pack(meta.epoch), epoch_value(delta, delta.epoch), db=self._epochs)
                txn.delete(_U8.pack(max(meta.epoch - KEPT_EPOCHS, 0)), db=self._epochs)
            txn.put(_META, encode_meta(meta), db=self._meta)
        self.offset, self.received_ms = delta.offset, delta.received_ms

    def fill(self, meta: Meta, rows: Iterable[Row]) -> None:
        """See :meth:`headwater.features.store.State.fill`; in many transactions, the position in the last."""
        if not self._writable:
            raise read_only(self._where)
        check_origin(meta, self.plan, self.log_id, "what is to be filled in")
        with self._env.begin(write=True) as txn:
            if txn.get(_META, db=self._meta) is not None or any(
                txn.stat(db)["entries"] for db in self._tables.values()
            ):
                raise not_empty(self._where)
            txn.put(_META, UNFINISHED, db=self._meta)
        rows = iter(rows)
        while part := list(islice(rows, _FILLED_AT_ONCE)):
            with self._env.begin(write=True) as txn:
                for name, db in self._tables.items():
                    pairs = [(_U4.pack(key), value) for table, key, value in part if table == name]
                    if txn.cursor(db).putmulti(pairs, append=True)[1] != len(pairs):
                        raise CorruptStateError(
                            f"the {name} rows to be filled in are not in the order of their numbers"
                        )
        with self._env.begin(write=True) as txn:
            txn.put(_META, encode_meta(meta), db=self._meta)
        self.offset, self.received_ms = meta.offset, meta.received_ms

    # -- reading -------------------------------------------------------------------------------------

    def meta(self) -> Meta:
        """Where the state stands now."""
        with self._env.begin() as txn:
            return self._read_meta(txn)

    def types(self) -> dict[int, str]:
        return self.meta().types

    def clocks(self, after: int, limit: int) -> list[tuple[int, int]]:
        """See :class:`~headwater.features.fold.StateStore`."""
        found: list[tuple[int, int]] = []
        with self._env.begin(db=self._users, buffers=True) as txn:
            cursor = txn.cursor()
            more = cursor.set_range(_U4.pack(after + 1))
            while more and len(found) < limit:
                found.append((_U4.unpack(cursor.key())[0], packed_clock(cursor.value())))
                more = cursor.next()
        return found

    def user(self, user: int) -> bytes | None:
        """The packed row of a dense user."""
        with self._env.begin(db=self._users) as txn:
            found = txn.get(_U4.pack(user))
            return None if found is None else bytes(found)

    def read_user(self, user: int, into: User) -> int:
        """Unpack the row of ``user`` (0 or unknown: zeros) into ``into``; returns the offset it stands at."""
        with self._env.begin(buffers=True) as txn:
            offset = self._read_meta(txn).offset
            found = txn.get(_U4.pack(user), db=self._users) if user else None
            if found is None:
                for part in into:
                    part[:] = 0
            else:
                unpack_user(found, into, self._layout)
        return offset

    def item_record(self, item: int) -> ItemRecord | None:
        """What the catalogue says of a dense item."""
        with self._env.begin() as txn:
            return decode_record(txn.get(_U4.pack(item), db=self._catalogue))

    def load_items(self, table: ItemTable) -> None:
        """Fill ``table`` with all item rows."""
        with self._env.begin(buffers=True) as txn:
            self._load_in(txn, self._read_meta(txn), table)

    def refresh_items(self, table: ItemTable, epoch: int) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """See :meth:`headwater.features.store.State.refresh_items`."""
        with self._env.begin(buffers=True) as txn:
            meta = self._read_meta(txn)
            if epoch == meta.epoch:
                return epoch, meta.offset, NO_ITEMS
            missed = missed_epochs(meta, epoch)
            if missed is not None:
                found = [txn.get(_U8.pack(number), db=self._epochs) for number in missed]
                values = [value for value in found if value is not None]
                if len(values) == len(missed):
                    return meta.epoch, *apply_epochs(table, values)
            self._load_in(txn, meta, table)
            return meta.epoch, meta.offset, None

    @contextmanager
    def frozen(self) -> Iterator[Frozen]:
        """All rows of one moment. Space that the fold frees meanwhile is reused only afterwards."""
        with self._env.begin() as txn:
            counts = {name: txn.stat(db)["entries"] for name, db in self._tables.items()}
            yield Frozen(self._read_meta(txn), counts, self._rows(txn))

    def dump(self) -> Iterator[Row]:
        """Every stored row as (table, key, bytes), ordered: two equal states dump the same."""
        with self.frozen() as frozen:
            yield from frozen.rows

    def _rows(self, txn: lmdb.Transaction) -> Iterator[Row]:
        for name, db in self._tables.items():
            for key, value in txn.cursor(db):
                yield name, _U4.unpack(key)[0], bytes(value)

    def _load_in(self, txn: lmdb.Transaction, meta: Meta, table: ItemTable) -> None:
        fill_table(table, meta, ((_U4.unpack(key)[0], value) for key, value in txn.cursor(self._items)))

    def _read_meta(self, txn: lmdb.Transaction) -> Meta:
        return decode_meta(txn.get(_META, db=self._meta), self.plan)


def open_for_fold(path: Path, plan: Plan, log_id: str = "") -> tuple[LmdbState, str | None]:
    """Open the state for writing; one of another plan or log (or unreadable) is dropped and folded anew.

    Returns the state and why it was dropped, if it was.
    """
    try:
        return LmdbState(path, plan, writable=True, log_id=log_id), None
    except (PlanChangedError, LogChangedError, UnavailableError, CorruptStateError) as error:
        shutil.rmtree(path)
        return LmdbState(path, plan, writable=True, log_id=log_id), str(error)


def open_store(
    config: Config, path: Path, plan: Plan, *, writable: bool, log_id: str = "", hurried: bool = True
) -> State:
    """Open the store that ``[state]`` of the configuration names; ``path`` is the folder of the one in LMDB.

    The password of Redis is the one in ``state.url``, else that in the environment (``HEADWATER_STATE_PASSWORD``).

    A ``hurried`` reader of Redis waits ``state.timeout_ms`` for an answer; if there is none it asks no more until one comes
    on the side.

    Raises:
        UnavailableError: it is not there (yet), or cannot be reached.
        PlanChangedError, LogChangedError, PartitionsChangedError, CorruptStateError: it cannot be used; drop it and
            fold anew.
        ConfigurationError: see :func:`open_wire`.
    """
    if config.state.store == "lmdb":
        return LmdbState(path, plan, writable=writable, log_id=log_id)
    wire = open_wire(config, hurried=hurried and not writable)
    from headwater.features.state_redis import RedisState

    try:
        return RedisState(wire, plan, writable=writable, log_id=log_id, partitions=config.state.partitions)
    except BaseException:
        wire.close()
        raise


def open_wire(config: Config, *, hurried: bool = False) -> Wire:
    """A connection to the Redis of the configuration; ``hurried``: for a server whose requests wait for it.

    Raises:
        UnavailableError: it cannot be reached.
        ConfigurationError: it would throw rows away when memory is short, or its client is not installed.
    """
    try:
        from headwater.features.redis_wire import Wire
    except ImportError as error:
        raise ConfigurationError(
            f"state.store: \"redis\" needs the extra `scale` (pip install 'headwater[scale]'): {error}"
        ) from error
    password = os.environ.get("HEADWATER_STATE_PASSWORD")
    if not hurried:
        return Wire(config.state.url, password=password)
    timeout_s = config.state.timeout_ms / 1e3
    patience_s = max(timeout_s, _PATIENCE_S)
    return Wire(config.state.url, password=password, timeout_s=timeout_s, patience_s=patience_s, reads=True)
