"""A whole state in one file: at one offset, every byte under a checksum, there entirely or not at all.

    magic · header · frame · frame · … · end

All numbers are little-endian. The header is a length (4 bytes), its MessagePack form and a CRC-32 of it. A frame holds rows
of one table in the order of their numbers: ``F``, table (1 byte), rows (4), bytes of the values (4), the numbers of the
rows (4 each), the sizes of their values (4 each), the values as the store keeps them, and a CRC-32 over all of
that. The end is ``E``, the number of frames (8) and a BLAKE2b-256 over everything before the digest; nothing follows.

A file is written beside its name, synced, renamed, and its folder synced: a crash leaves the old file or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NamedTuple, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.features.rows import CorruptStateError
from headwater.features.state_memory import MemoryState
from headwater.features.store import TABLES, Frozen, Meta, Row, State, check_origin, matches
from headwater.schema.errors import HeadwaterError, UnavailableError

MAGIC = b"HWSTATE\x01"  # the last byte is the version
FRAME_BYTES = 1 << 20  # a frame is closed when its values are this long
FRAME_ROWS = 8192
_MOST = 1 << 30  # no frame or header is longer
_FRAME = struct.Struct("<cBII")
_END = struct.Struct("<cQ")
_DIGEST = 32
_U4 = struct.Struct("<I")

UInt32 = npt.NDArray[np.uint32]


class SnapshotError(HeadwaterError):
    """A file is no whole snapshot; nothing of it was used."""


class SnapshotHeader(msgspec.Struct, frozen=True):
    """What a snapshot says of itself: the position of the state, and the rows of each table."""

    meta: Meta
    counts: dict[str, int]

    @property
    def offset(self) -> int:
        return self.meta.offset


class Frame(NamedTuple):
    """Rows of one table: their numbers (``uint32[n]``, rising), and ``n`` stored values."""

    table: str
    keys: UInt32
    values: list[bytes]


_decode_header = msgspec.msgpack.Decoder(SnapshotHeader).decode


# -- writing ---------------------------------------------------------------------------------------------


class Freezes(Protocol):
    """What all rows can be taken of at one moment: a store, or a state in Redis whose plan is not known."""

    def frozen(self) -> AbstractContextManager[Frozen]: ...


def write_snapshot(store: Freezes, path: Path) -> SnapshotHeader:
    """Write the whole state of ``store`` to ``path``, replacing what is there. Memory: one frame.

    Raises:
        CorruptStateError: a row does not match its checksum.
        StateMovedError: the store cannot hold a moment fast just now.
        SnapshotError: another process writes the same snapshot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with _locked(partial) as file:
        try:
            with store.frozen() as frozen:
                header = _write(frozen, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)  # noqa: PTH105  (one system call, named as what it is)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)
    return header


def _locked(partial: Path) -> IO[bytes]:
    """The file beside the snapshot, empty, for this process alone; one that a crash left there is used again."""
    file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=1 << 20)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat())):
            raise BlockingIOError  # it was finished between opening and locking
    except BlockingIOError as error:
        file.close()
        raise SnapshotError(f"another process writes {partial}; wait for it") from error
    file.truncate(0)
    return file


def _write(frozen: Frozen, file: IO[bytes]) -> SnapshotHeader:
    digest = hashlib.blake2b(digest_size=_DIGEST)

    def put(*parts: bytes) -> None:
        for part in parts:
            digest.update(part)
            file.write(part)

    header = SnapshotHeader(frozen.meta, frozen.counts)
    body = msgspec.msgpack.encode(header)
    put(MAGIC, _U4.pack(len(body)), body, _U4.pack(zlib.crc32(body)))
    frames, counts = 0, dict.fromkeys(TABLES, 0)
    for table, keys, values in _framed(frozen.rows):
        parts = (
            _FRAME.pack(b"F", TABLES.index(table), len(keys), sum(map(len, values))),
            np.array(keys, "<u4").tobytes(),
            np.fromiter(map(len, values), "<u4", len(values)).tobytes(),
            b"".join(values),
        )
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        put(*parts, _U4.pack(crc))
        frames += 1
        counts[table] += len(keys)
    if counts != frozen.counts:
        raise CorruptStateError(f"the state has {counts} rows and says {frozen.counts}; rebuild the state from the log")
    put(_END.pack(b"E", frames))
    file.write(digest.digest())
    return header


def _framed(rows: Iterable[Row]) -> Iterator[tuple[str, list[int], list[bytes]]]:
    """Rows in groups of one table; each is compared with its checksum."""
    of, keys, values, size = "", [], [], 0  # type: str, list[int], list[bytes], int
    for table, key, value in rows:
        if not matches(value):
            raise CorruptStateError(
                f"a stored row of {table} does not match its checksum, no snapshot was written; rebuild the state "
                "from the log"
            )
        if keys and (table != of or size >= FRAME_BYTES or len(keys) >= FRAME_ROWS):
            yield of, keys, values
            keys, values, size = [], [], 0
        of = table
        keys.append(key)
        values.append(value)
        size += len(value)
    if keys:
        yield of, keys, values


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading ---------------------------------------------------------------------------------------------


class Snapshot:
    """A snapshot that was read through once and found whole.

    Raises:
        SnapshotError: it is torn, damaged, or none.
        PlanChangedError, LogChangedError: it belongs to another plan, or to another log than ``log_id`` ("": any).
        UnavailableError: the file cannot be read.
    """

    def __init__(self, path: Path, plan: Plan, *, log_id: str = "") -> None:
        self.path = path
        header = verify_snapshot(path)
        check_origin(header.meta, plan, log_id, f"the snapshot {path}")
        self.header = header

    def frames(self) -> Iterator[Frame]:
        """All rows in their order, a frame at a time; compared with the checksums again.

        Raises:
            SnapshotError: the file changed since it was opened. What was taken so far must not be used.
        """
        with _Reading(self.path) as reading:
            if reading.header != self.header:
                raise reading.damaged("it was replaced while it was read")
            yield from reading.frames()

    def rows(self) -> Iterator[Row]:
        """The same, a row at a time."""
        for table, keys, values in self.frames():
            for key, value in zip(keys.tolist(), values, strict=True):
                yield table, key, value


def verify_snapshot(path: Path) -> SnapshotHeader:
    """Read the whole file; returns its header.

    Raises:
        SnapshotError: it is torn, damaged, or no snapshot.
        UnavailableError: it cannot be read.
    """
    with _Reading(path) as reading:
        for _ in reading.frames():
            pass
        return reading.header


def snapshot_header(path: Path) -> SnapshotHeader:
    """What the file says of itself, without the rest being read. Raises :class:`SnapshotError`: its beginning is damaged."""
    with _Reading(path) as reading:
        return reading.header


def read_snapshot(path: Path, into: State) -> SnapshotHeader:
    """Make ``into``, an empty store, the state of the snapshot. Nothing is taken from a file that is not whole.

    Raises:
        StateConflictError: the store is not empty.
        and what :class:`Snapshot` raises.
    """
    snapshot = Snapshot(path, into.plan, log_id=into.log_id)
    into.fill(snapshot.header.meta, snapshot.rows())
    return snapshot.header


def open_snapshot(path: Path, plan: Plan, *, log_id: str = "") -> MemoryState:
    """The state of a snapshot, in memory; see :func:`read_snapshot`."""
    state = MemoryState(plan, log_id=log_id)
    read_snapshot(path, state)
    return state


class _Reading:
    """One pass over a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.blake2b(digest_size=_DIGEST)
        try:
            self._file = path.open("rb", buffering=1 << 20)
        except OSError as error:
            raise UnavailableError(f"the snapshot {path} cannot be read: {error}") from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def damaged(self, why: str) -> SnapshotError:
        return SnapshotError(f"{self._path} is no whole snapshot: {why}. Take an older one, or fold the log anew")

    def frames(self) -> Iterator[Frame]:
        """All frames; the file is known to be whole only when the last one was taken."""
        counts, frames, last = dict.fromkeys(TABLES, 0), 0, (-1, -1)
        while (kind := self._take(1)) == b"F":
            head = kind + self._take(_FRAME.size - 1)
            _, number, rows, size = _FRAME.unpack(head)
            if number >= len(TABLES) or not 0 < rows <= FRAME_ROWS:
                raise self.damaged("a frame has an impossible head")
            body = self._take(8 * rows + size)
            if zlib.crc32(body, zlib.crc32(head)) != _U4.unpack(self._take(4))[0]:
                raise self.damaged("a frame does not match its checksum")
            keys, sizes = np.frombuffer(body, "<u4", 2 * rows).reshape(2, rows)
            ends = 8 * rows + np.cumsum(sizes, dtype=np.int64)
            first = (number, int(keys[0]))
            if ends[-1] != len(body) or first <= last or (np.diff(keys.astype(np.int64)) <= 0).any():
                raise self.damaged("a frame contradicts itself")
            starts = ends - sizes
            values = [body[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
            last = (number, int(keys[-1]))
            frames += 1
            counts[TABLES[number]] += rows
            yield Frame(TABLES[number], keys, values)
        if kind != b"E":
            raise self.damaged("where a frame should begin there is something else")
        said = _END.unpack(kind + self._take(_END.size - 1))[1]
        digest = self._digest.digest()
        if said != frames or self._take(_DIGEST) != digest:
            raise self.damaged("it does not match its digest")
        if counts != self.header.counts:
            raise self.damaged("rows are missing")
        if self._file.read(1):
            raise self.damaged("something follows its end")

    def _read_header(self) -> SnapshotHeader:
        magic = self._take(len(MAGIC))
        if magic[:-1] != MAGIC[:-1]:
            raise self.damaged("it does not begin like one")
        if magic != MAGIC:
            raise self.damaged(f"it has version {magic[-1]}, this program reads version {MAGIC[-1]}")
        body = self._take(_U4.unpack(self._take(4))[0])
        if zlib.crc32(body) != _U4.unpack(self._take(4))[0]:
            raise self.damaged("its header does not match its checksum")
        try:
            return _decode_header(body)
        except msgspec.DecodeError as error:
            raise self.damaged(f"its header cannot be understood ({error})") from error

    def _take(self, size: int) -> bytes:
        """The next bytes, all of them. A length that damage made up is refused before memory is asked for."""
        if size > min(_MOST, self._size - self._file.tell()):
            raise self.damaged("it ends too early")
        data = self._file.read(size)
        if len(data) != size:
            raise self.damaged("it ends too early")
        self._digest.update(data)
        return data
