"""State in LMDB: rows and the log offset they stand at, in one transaction.

The environment is not synced: after a reboot it may be gone or old, and is rebuilt from the log. One
process (the fold) writes; servers open it read-only. Item rows reach the servers as epochs: all rows that
changed since the epoch before, tied to the offset of their commit.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.assemble import User
from headwater.features.fold import Delta
from headwater.features.plan import Plan
from headwater.features.rows import CorruptStateError, ItemTable, unpack_user
from headwater.log.batch import ItemRecord
from headwater.schema.errors import HeadwaterError, UnavailableError

MAP_SIZE = 1 << 38  # address space, not disk
KEPT_EPOCHS = 64
_NO_ITEMS = np.zeros(0, np.int64)
_U4 = struct.Struct(">I")
_U8 = struct.Struct(">Q")
_EPOCH = struct.Struct("<QqII")  # offset, received_ms, table size, changed rows
_META = b"meta"


class Meta(msgspec.Struct, array_like=True):
    """Where the state stands."""

    plan: str
    offset: int
    received_ms: int
    epoch: int
    items: int
    types: dict[int, str]
    log: str = ""  # id of the log it was folded from; "": not known


class StateConflictError(HeadwaterError):
    """Two processes fold into one state; nothing was written."""


class PlanChangedError(HeadwaterError):
    """The stored state was folded with another plan."""


class LogChangedError(HeadwaterError):
    """The stored state was folded from another log."""


class LmdbState:
    """A state environment. ``writable`` for the one fold, read-only for everyone else.

    ``log_id`` names the log that it belongs to: the first commit writes it down, and from then on a state of another
    log is refused. "" does not ask; a state that does not know its log (of an older release) is taken for this one's.
    """

    def __init__(self, path: Path, plan: Plan, *, writable: bool, log_id: str = "") -> None:
        self.plan, self.path, self.log_id = plan, path, log_id
        self._layout = plan.layout
        if writable:
            path.mkdir(parents=True, exist_ok=True)
        try:
            self._env = lmdb.open(
                str(path), max_dbs=8, map_size=MAP_SIZE, subdir=True, readonly=not writable, create=writable,
                sync=False, metasync=False, max_readers=512, lock=True,
            )  # fmt: skip
        except lmdb.Error as error:
            raise UnavailableError(f"the state in {path} cannot be opened: {error}") from error
        try:
            self._users, self._items, self._catalogue, self._epochs, self._meta = (
                self._env.open_db(name, create=writable)
                for name in (b"users", b"items", b"catalogue", b"epochs", _META)
            )
        except lmdb.Error as error:
            self._env.close()
            raise UnavailableError(f"the state in {path} is not ready yet: {error}") from error
        try:
            meta = self.meta()
        except CorruptStateError:
            self._env.close()
            raise
        self.offset, self.received_ms = meta.offset, meta.received_ms
        if meta.plan != plan.hash:
            self._env.close()
            raise PlanChangedError(
                f"the state in {path} was folded with plan {meta.plan}, the configuration has {plan.hash}"
            )
        if log_id and meta.log and meta.log != log_id:
            self._env.close()
            raise LogChangedError(f"the state in {path} was folded from log {meta.log}, this one is {log_id}")

    def close(self) -> None:
        self._env.close()

    # -- writing -------------------------------------------------------------------------------------

    def commit(self, delta: Delta) -> None:
        """Write rows, catalogue, the epoch if one is due, and the offset, in one transaction.

        Raises:
            StateConflictError: the stored offset is not the one that this process left there.
        """
        with self._env.begin(write=True) as txn:
            meta = self._read_meta(txn)
            if meta.offset != self.offset:
                raise StateConflictError(
                    f"the state in {self.path} moved from offset {self.offset} to {meta.offset}: another process "
                    "folds into it; stop one of the two"
                )
            users = [(_U4.pack(user), packed) for user, packed in delta.users]
            cursor = txn.cursor(self._users)
            cursor.putmulti([(key, packed) for key, packed in users if packed is not None])
            for key, packed in users:
                if packed is None:
                    txn.delete(key, db=self._users)
            rows = delta.rows
            cursor = txn.cursor(self._items)
            cursor.putmulti([(_U4.pack(i), _checked(_row_bytes(rows, i))) for i in delta.items.tolist()])
            for item, payload in delta.catalogue:
                txn.put(_U4.pack(item), payload or b"", db=self._catalogue)
            if delta.epoch is not None:
                meta.epoch += 1
                self._put_epoch(txn, meta.epoch, delta)
            meta.offset, meta.received_ms, meta.items, meta.types = (
                delta.offset, delta.received_ms, delta.count, delta.types,
            )  # fmt: skip
            meta.log = self.log_id or meta.log
            txn.put(_META, msgspec.msgpack.encode(meta), db=self._meta)
        self.offset, self.received_ms = delta.offset, delta.received_ms

    def _put_epoch(self, txn: lmdb.Transaction, epoch: int, delta: Delta) -> None:
        changed = delta.epoch
        if changed is None:
            return
        body = b"".join(
            (
                _EPOCH.pack(delta.offset, delta.received_ms, delta.count, len(changed)),
                changed.astype(np.uint32).tobytes(),
                *(part[changed].tobytes() for part in delta.rows),
            )
        )
        txn.put(_U8.pack(epoch), _checked(body), db=self._epochs)
        txn.delete(_U8.pack(max(epoch - KEPT_EPOCHS, 0)), db=self._epochs)

    # -- reading -------------------------------------------------------------------------------------

    def meta(self) -> Meta:
        """Where the state stands now."""
        with self._env.begin() as txn:
            return self._read_meta(txn)

    def types(self) -> dict[int, str]:
        return self.meta().types

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
            found = txn.get(_U4.pack(item), db=self._catalogue)
        return msgspec.msgpack.decode(found, type=ItemRecord) if found else None

    def load_items(self, table: ItemTable) -> None:
        """Fill ``table`` with all item rows."""
        with self._env.begin(buffers=True) as txn:
            self._load_in(txn, self._read_meta(txn), table)

    def refresh_items(self, table: ItemTable, epoch: int) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """Bring ``table``, which stands at ``epoch`` (-1: empty), to the newest one.

        Returns (epoch, its log offset, the items that changed; ``None``: all). A reader that fell too far
        behind loads all rows anew.
        """
        with self._env.begin(buffers=True) as txn:
            meta = self._read_meta(txn)
            if epoch == meta.epoch:
                return epoch, meta.offset, _NO_ITEMS
            offset = 0
            changed: list[npt.NDArray[np.int64]] = []
            if epoch >= 0 and meta.epoch - epoch < KEPT_EPOCHS:
                for number in range(epoch + 1, meta.epoch + 1):
                    body = txn.get(_U8.pack(number), db=self._epochs)
                    if body is None:
                        break
                    offset, items = self._apply_epoch(table, _unchecked(body, "epoch"))
                    changed.append(items)
                else:
                    return meta.epoch, offset, np.unique(np.concatenate(changed))
            self._load_in(txn, meta, table)
            return meta.epoch, meta.offset, None

    def _apply_epoch(self, table: ItemTable, body: memoryview) -> tuple[int, npt.NDArray[np.int64]]:
        offset, _received_ms, count, changed = _EPOCH.unpack_from(body)
        table.reserve(count)
        at = _EPOCH.size
        ids = np.frombuffer(body[at : at + 4 * changed], np.uint32).astype(np.int64)
        at += 4 * changed
        for part in table.rows:
            size = changed * part.shape[1] * part.itemsize
            part[ids] = np.frombuffer(body[at : at + size], part.dtype).reshape(changed, part.shape[1])
            at += size
        return offset, ids

    def _load_in(self, txn: lmdb.Transaction, meta: Meta, table: ItemTable) -> None:
        table.reserve(max(meta.items, 1))
        for part in table.rows:
            part[:] = 0
        for key, value in txn.cursor(self._items):
            _fill_row(table, _U4.unpack(key)[0], _unchecked(value, "item row"))

    def dump(self) -> Iterator[tuple[str, int, bytes]]:
        """Every stored row as (table, key, bytes), ordered: two equal states dump the same."""
        with self._env.begin() as txn:
            for name, db in (("users", self._users), ("items", self._items), ("catalogue", self._catalogue)):
                for key, value in txn.cursor(db):
                    yield name, _U4.unpack(key)[0], bytes(value)

    def _read_meta(self, txn: lmdb.Transaction) -> Meta:
        found = txn.get(_META, db=self._meta)
        if found is None:
            return Meta(self.plan.hash, 0, 0, 0, 1, {})
        try:
            return _decode_meta(found)
        except msgspec.DecodeError as error:
            raise CorruptStateError(
                f"the position of the state is unreadable; rebuild the state from the log: {error}"
            ) from error


_decode_meta = msgspec.msgpack.Decoder(Meta).decode


def _row_bytes(rows: tuple[npt.NDArray[np.generic], ...], i: int) -> bytes:
    return b"".join(part[i].tobytes() for part in rows)


def _checked(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def _unchecked(value: bytes | memoryview, what: str) -> memoryview:
    value = memoryview(value)
    if len(value) < 4 or zlib.crc32(value[:-4]) != int.from_bytes(value[-4:], "little"):
        raise CorruptStateError(f"a stored {what} does not match its checksum; rebuild the state from the log")
    return value[:-4]


def _fill_row(table: ItemTable, item: int, body: memoryview) -> None:
    table.reserve(item + 1)
    at = 0
    for part in table.rows:
        size = part.shape[1] * part.itemsize
        part[item] = np.frombuffer(body[at : at + size], part.dtype)
        at += size


def open_for_fold(path: Path, plan: Plan, log_id: str = "") -> tuple[LmdbState, str | None]:
    """Open the state for writing; one of another plan or log (or unreadable) is dropped and folded anew.

    Returns the state and why it was dropped, if it was.
    """
    try:
        return LmdbState(path, plan, writable=True, log_id=log_id), None
    except (PlanChangedError, LogChangedError, UnavailableError, CorruptStateError) as error:
        shutil.rmtree(path)
        return LmdbState(path, plan, writable=True, log_id=log_id), str(error)
