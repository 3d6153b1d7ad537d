"""What every state store keeps and how: the protocol, the position, row checksums, epochs.

A store holds four tables: packed user rows, item rows, what the catalogue says of an item, and epochs (all item rows
that changed since the epoch before, tied to the offset of their commit). Whatever is stored ends in a CRC-32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from struct import Struct
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.fold import Delta, StateStore
from headwater.features.plan import Plan
from headwater.features.rows import CorruptStateError, ItemTable, User
from headwater.log.batch import ItemRecord
from headwater.schema.errors import HeadwaterError, UnavailableError

KEPT_EPOCHS = 64
TABLES = ("users", "items", "catalogue")
NO_ITEMS: npt.NDArray[np.int64] = np.zeros(0, np.int64)
UNFINISHED = b"unfinished"  # stands for the position while rows are being filled in

Row = tuple[str, int, bytes]  # table, dense number, stored bytes

_EPOCH = Struct("<QqII")  # offset, received_ms, table size, changed rows


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
    """Two processes fold into one state, or what is to be filled is not empty; nothing was written."""


class PlanChangedError(HeadwaterError):
    """The stored state was folded with another plan."""


class LogChangedError(HeadwaterError):
    """The stored state was folded from another log."""


class PartitionsChangedError(HeadwaterError):
    """The stored state is spread over another number of partitions."""


class StateReplacedError(UnavailableError):
    """The state that was opened was dropped, perhaps folded anew since: what was read of it is to be forgotten."""


class StateMovedError(UnavailableError):
    """All of the state was to be read as of one moment, and that moment could not be held fast."""


class Frozen(NamedTuple):
    """A whole state at one offset. ``rows`` come table by table, ordered by number; ``counts`` says how many there are."""

    meta: Meta
    counts: dict[str, int]
    rows: Iterator[Row]


class State(StateStore, Protocol):
    """A state store: what the fold writes (:class:`StateStore`) and what everyone else reads.

    Opened ``writable`` by the one fold, read-only by all others. Rows and offset move together: a commit is all or
    nothing, and who reads a row learns the offset it stands at.
    """

    plan: Plan
    log_id: str

    def meta(self) -> Meta:
        """Where the state stands now."""
        ...

    def read_user(self, user: int, into: User) -> int:
        """Unpack the row of ``user`` (0 or unknown: zeros) into ``into``; returns the offset it stands at."""
        ...

    def item_record(self, item: int) -> ItemRecord | None:
        """What the catalogue says of a dense item."""
        ...

    def refresh_items(self, table: ItemTable, epoch: int) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """Bring ``table``, which stands at ``epoch`` (-1: empty), to the newest one.

        Returns (epoch, its log offset, the items that changed; ``None``: all). A reader that fell too far
        behind loads all rows anew.
        """
        ...

    def frozen(self) -> AbstractContextManager[Frozen]:
        """All rows of one moment, streamed.

        Raises:
            StateMovedError: (Redis) no moment was found, or it was let go because nobody took rows.
        """
        ...

    def dump(self) -> Iterator[Row]:
        """The rows of :meth:`frozen`: two equal states dump the same."""
        ...

    def fill(self, meta: Meta, rows: Iterable[Row]) -> None:
        """Make an empty store the state that ``meta`` and ``rows`` describe. Ended half-way it is refused when opened.

        Raises:
            StateConflictError: the store is not empty.
            PlanChangedError, LogChangedError: ``meta`` belongs to another plan or log.
        """
        ...

    def close(self) -> None: ...


def check_origin(meta: Meta, plan: Plan, log_id: str, where: str) -> None:
    """Refuse a state of another plan or log. A state that does not know its log is taken for this one's."""
    if meta.plan != plan.hash:
        raise PlanChangedError(f"{where} was folded with plan {meta.plan}, the configuration has {plan.hash}")
    if log_id and meta.log and meta.log != log_id:
        raise LogChangedError(f"{where} was folded from log {meta.log}, this one is {log_id}")


def moved_on(where: str, left: int, found: int) -> StateConflictError:
    """The error of a fold that finds another one's commit."""
    return StateConflictError(
        f"{where} moved from offset {left} to {found}: another process folds into it; stop one of the two"
    )


def read_only(where: str) -> HeadwaterError:
    """The error of a commit by a reader."""
    return HeadwaterError(f"{where} was opened to read it only; open it writable to fold into it")


def not_empty(where: str) -> StateConflictError:
    """The error of filling what holds something."""
    return StateConflictError(f"{where} is not empty: a whole state goes into a new one only; drop it first")


# -- bytes -----------------------------------------------------------------------------------------------


def checked(body: bytes) -> bytes:
    """``body`` and its CRC-32."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def matches(value: bytes | memoryview) -> bool:
    """Whether a stored value ends in its CRC-32."""
    value = memoryview(value)
    return len(value) >= 4 and zlib.crc32(value[:-4]) == int.from_bytes(value[-4:], "little")


def unchecked(value: bytes | memoryview, what: str) -> memoryview:
    """``value`` without its checksum.

    Raises:
        CorruptStateError: it does not match.
    """
    if not matches(value):
        raise CorruptStateError(f"a stored {what} does not match its checksum; rebuild the state from the log")
    return memoryview(value)[:-4]


_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_item = msgspec.msgpack.Decoder(ItemRecord).decode


def encode_meta(meta: Meta) -> bytes:
    return checked(msgspec.msgpack.encode(meta))


def decode_meta(value: bytes | memoryview | None, plan: Plan) -> Meta:
    """The stored position; that of an empty state when there is none.

    Raises:
        CorruptStateError: it is unreadable, or says that filling the state did not come to its end.
    """
    if value is None:
        return Meta(plan.hash, 0, 0, 0, 1, {})
    if bytes(value[: len(UNFINISHED)]) == UNFINISHED:
        raise CorruptStateError(
            "the state was being filled and that did not finish; fill it again or rebuild it from the log"
        )
    try:
        return _decode_meta(unchecked(value, "position"))
    except (CorruptStateError, msgspec.DecodeError) as error:
        raise CorruptStateError(
            f"the position of the state is unreadable; rebuild the state from the log: {error}"
        ) from error


def decode_record(value: bytes | memoryview | None) -> ItemRecord | None:
    """What the catalogue stored of an item; None when it says nothing."""
    payload = None if value is None else unchecked(value, "catalogue entry")
    return _decode_item(payload) if payload else None


def moved_meta(meta: Meta, delta: Delta, log_id: str) -> Meta:
    """The position behind a commit."""
    epoch = meta.epoch + (delta.epoch is not None)
    return Meta(
        meta.plan, delta.offset, delta.received_ms, epoch, delta.count, dict(delta.types), log_id or meta.log
    )  # fmt: skip


def item_values(delta: Delta) -> list[tuple[int, bytes]]:
    """The changed item rows as they are stored."""
    parts = [part[delta.items] for part in delta.rows]
    return [
        (item, checked(b"".join(part[k].tobytes() for part in parts))) for k, item in enumerate(delta.items.tolist())
    ]


def catalogue_values(delta: Delta) -> list[tuple[int, bytes]]:
    return [(item, checked(payload or b"")) for item, payload in delta.catalogue]


def fill_row(table: ItemTable, item: int, value: bytes | memoryview) -> None:
    """Put a stored item row into ``table``."""
    body = unchecked(value, "item row")
    table.reserve(item + 1)
    at = 0
    for part in table.rows:
        size = part.shape[1] * part.itemsize
        part[item] = np.frombuffer(body[at : at + size], part.dtype)
        at += size


def fill_table(table: ItemTable, meta: Meta, rows: Iterable[tuple[int, bytes | memoryview]]) -> None:
    """Make ``table`` the stored item rows."""
    table.reserve(max(meta.items, 1))
    for part in table.rows:
        part[:] = 0
    for item, value in rows:
        fill_row(table, item, value)


def epoch_value(delta: Delta, changed: npt.NDArray[np.int64]) -> bytes:
    """An epoch as it is stored: position, items, and their rows part by part."""
    return checked(
        b"".join(
            (
                _EPOCH.pack(delta.offset, delta.received_ms, delta.count, len(changed)),
                changed.astype(np.uint32).tobytes(),
                *(part[changed].tobytes() for part in delta.rows),
            )
        )
    )


def apply_epoch(table: ItemTable, value: bytes | memoryview) -> tuple[int, npt.NDArray[np.int64]]:
    """Bring ``table`` from the epoch before to this one; returns its offset and items."""
    body = unchecked(value, "epoch")
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


def missed_epochs(meta: Meta, epoch: int) -> range | None:
    """The epochs that a reader at ``epoch`` has to apply; None: it has to load all rows."""
    if epoch < 0 or epoch > meta.epoch or meta.epoch - epoch >= KEPT_EPOCHS:
        return None
    return range(epoch + 1, meta.epoch + 1)


def apply_epochs(table: ItemTable, values: Iterable[bytes | memoryview]) -> tuple[int, npt.NDArray[np.int64]]:
    """Apply one or more epochs in order; returns the last one's offset and all items that changed."""
    offset, changed = 0, [NO_ITEMS]
    for value in values:
        offset, items = apply_epoch(table, value)
        changed.append(items)
    return offset, np.unique(np.concatenate(changed))
