"""The archived part of the log: a Delta table whose columns are the header of a record, and its payload.

A file holds records with contiguous offsets in their order; the files follow each other without a gap. The last
archived offset is the version of the table's application transaction, so it moves with the commit that adds the
records: each is there once. Delta has no unsigned numbers: those of 64 bits (``surrogate``, ``event_key``) keep
their bits, smaller ones stand in the next wider type.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.log.environment import StoreError
from headwater.log.protocol import READ_LIMIT, Commit, CorruptLogError, ImportRange, TrimmedError, Vocabulary
from headwater.log.record import RECORD, SEGMENT_KEYS, Kind, Namespace, RecordBlock, crcs_of

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

FORMAT = 1
ROW_GROUP = 65_536

_SEGMENTS = tuple(f"segment_{k}" for k in range(SEGMENT_KEYS))
_NOT_STORED = ("payload_at", "payload_size", "segments")  # they follow from the payloads, or stand apart
_FIELDS = tuple(name for name in RECORD.names or () if name not in _NOT_STORED)
_WIDER = {"<u8": "<i8", "<u4": "<i8", "<u2": "<i4", "|u1": "<i2"}
_DECODED = 6  # row groups kept, for readers that are at several places at once


class LakeDescription(msgspec.Struct, frozen=True):
    """What the table says of itself: whose log it holds."""

    log: str
    format: int = FORMAT


class LakeFile(NamedTuple):
    """A file of the table and the records in it, both ends included."""

    path: str
    first: int
    last: int
    last_received_ms: int
    size: int


def lake_dir(data: Path) -> Path:
    """The folder of the table in a data directory."""
    return data / "lake" / "log"


def app_id(log_id: str) -> str:
    """The name of the table's application transaction; its version is the last archived offset."""
    return f"headwater-log-{log_id}"


def lake_schema() -> pa.Schema:
    """Columns of the table."""
    import pyarrow as pa

    columns = [pa.field(name, pa.from_numpy_dtype(_stored_type(RECORD[name])), nullable=False) for name in _FIELDS]
    columns += [pa.field(name, pa.int32(), nullable=False) for name in _SEGMENTS]
    return pa.schema([*columns, pa.field("payload", pa.binary(), nullable=False)])


def to_table(blocks: Sequence[RecordBlock]) -> pa.Table:
    """Records as rows of the lake. Payloads must lie in record order without gaps, as they do in what a log reads."""
    import pyarrow as pa

    records = np.concatenate([block.records for block in blocks])
    columns: list[Any] = []
    for name in _FIELDS:
        values, kind = np.ascontiguousarray(records[name]), _stored_type(RECORD[name])
        columns.append(pa.array(values.view(kind) if kind.itemsize == values.itemsize else values.astype(kind)))
    columns += [pa.array(records["segments"][:, k].astype(np.int32)) for k in range(SEGMENT_KEYS)]
    ends = np.zeros(len(records) + 1, np.int64)
    np.cumsum(records["payload_size"], out=ends[1:])
    heap = b"".join(block.heap.tobytes() for block in blocks)
    if len(heap) != int(ends[-1]):
        raise ValueError(f"The payloads take {int(ends[-1])} bytes, the heaps hold {len(heap)}")
    sizes = pa.py_buffer(ends.astype(np.int32))
    columns.append(pa.Array.from_buffers(pa.binary(), len(records), [None, sizes, pa.py_buffer(heap)]))
    return pa.Table.from_arrays(columns, schema=lake_schema())


def to_block(table: pa.Table) -> RecordBlock:
    """The records of rows, their payloads back to back; what :func:`to_table` was given. Checks nothing."""
    import pyarrow as pa

    table = table.combine_chunks()
    records = np.zeros(len(table), RECORD)
    for name in _FIELDS:
        column = table.column(name).to_numpy()
        kind = RECORD[name]
        records[name] = column.view(kind) if kind.itemsize == 8 else column.astype(kind, copy=False)
    for k, name in enumerate(_SEGMENTS):
        records["segments"][:, k] = table.column(name).to_numpy()
    payloads = table.column("payload").cast(pa.large_binary()).combine_chunks()
    payload = payloads.chunk(0) if isinstance(payloads, pa.ChunkedArray) else payloads
    _, ends, heap = payload.buffers()
    at = np.frombuffer(ends, np.int64)[payload.offset : payload.offset + len(table) + 1]
    records["payload_size"] = np.diff(at)
    records["payload_at"] = at[:-1] - at[0]
    data = np.zeros(0, np.uint8) if heap is None else np.frombuffer(heap, np.uint8)[int(at[0]) : int(at[-1])]
    return RecordBlock(records, data)


def slice_of(block: RecordBlock, start: int, stop: int) -> RecordBlock:
    """Records ``start`` to ``stop`` (exclusive) with a heap of their own, as a log reads them."""
    records = block.records[start:stop].copy()
    if not len(records):
        return RecordBlock(records, np.zeros(0, np.uint8))
    base = int(records["payload_at"][0])
    end = int(records["payload_at"][-1]) + int(records["payload_size"][-1])
    records["payload_at"] -= np.uint32(base)
    return RecordBlock(records, block.heap[base:end].copy())


def join(blocks: Sequence[RecordBlock]) -> RecordBlock:
    """Blocks that follow each other as one."""
    if len(blocks) == 1:
        return blocks[0]
    records = np.concatenate([block.records for block in blocks])
    shifts = np.cumsum([0, *(len(block.heap) for block in blocks[:-1])])
    records["payload_at"] += np.repeat(shifts, [len(block) for block in blocks]).astype(np.uint32)
    return RecordBlock(records, np.concatenate([block.heap for block in blocks]))


class LakeLog:
    """An :class:`~headwater.log.protocol.EventLog` of what is archived in the table in folder ``path``.

    It stands at the version of the table at which it was opened; :meth:`refresh` moves it to the newest one.

    Raises:
        StoreError: there is no such table, or it holds something else.
        CorruptLogError: its files do not follow each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._decoded: OrderedDict[tuple[str, int], RecordBlock] = OrderedDict()
        self._groups: dict[
            str, npt.NDArray[np.int64]
        ] = {}  # of a file: the first offset of each row group, and the end
        self._vocabulary: Vocabulary | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the newest version of the table."""
        table = open_table(self.path)
        described = describe_table(table, self.path)
        with self._lock:
            self.log_id, self.version = described.log, table.version()
            self.last_offset = int(table.transaction_version(app_id(self.log_id)) or 0)
            self.files = lake_files(table)
            self._check_files()
            self._firsts = np.array([file.first for file in self.files], np.int64)

    def _check_files(self) -> None:
        expected = self.files[0].first if self.files else self.last_offset + 1
        for file in self.files:
            if file.first != expected or file.last < file.first:
                raise CorruptLogError(expected, f"the file {file.path} of the lake begins with {file.first}")
            expected = file.last + 1
        if expected != self.last_offset + 1:
            raise CorruptLogError(expected, f"the lake says that it ends at {self.last_offset}")

    @property
    def first_offset(self) -> int:
        return self.files[0].first if self.files else self.last_offset + 1

    @property
    def last_received_ms(self) -> int:
        return self.files[-1].last_received_ms if self.files else 0

    def append(self, commit: Commit) -> None:
        raise StoreError(
            f"{self.path} is written by `headwater archive` alone: {len(commit.block)} records are refused"
        )

    def trim(self, upto: int) -> int:
        raise StoreError(f"{self.path} is trimmed by `headwater retain --lake-days`, not to offset {upto}")

    def read(self, after: int, limit: int = READ_LIMIT) -> RecordBlock | None:
        if after >= self.last_offset or limit < 1:
            return None
        if after + 1 < self.first_offset:
            raise TrimmedError(after + 1, self.first_offset, f"the lake {self.path}")
        parts: list[RecordBlock] = []
        found = 0
        while found < limit and after < self.last_offset:
            group = self._group_with(after + 1)
            start = after + 1 - group.first_offset
            parts.append(slice_of(group, start, min(len(group), start + limit - found)))
            found += len(parts[-1])
            after = parts[-1].last_offset
        return join(parts)

    def _group_with(self, offset: int) -> RecordBlock:
        """The decoded row group that holds a record."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._lock:
            file = self.files[int(np.searchsorted(self._firsts, offset, side="right")) - 1]
            try:
                if file.path not in self._groups:
                    with pq.ParquetFile(self.path / file.path) as opened:
                        sizes = [opened.metadata.row_group(k).num_rows for k in range(opened.num_row_groups)]
                    self._groups[file.path] = file.first + np.cumsum([0, *sizes])
                bounds = self._groups[file.path]
                if int(bounds[-1]) != file.last + 1:
                    raise CorruptLogError(file.first, f"{file.path} does not hold as many records as the table says")
                at = int(np.searchsorted(bounds, offset, side="right")) - 1
                group = self._decoded.get((file.path, at))
                if group is None:
                    with pq.ParquetFile(self.path / file.path) as opened:
                        group = to_block(opened.read_row_group(at))
                    _check(group, int(bounds[at]), int(bounds[at + 1]), file.path)
                    self._decoded[file.path, at] = group
                    if len(self._decoded) > _DECODED:
                        self._decoded.popitem(last=False)
                else:
                    self._decoded.move_to_end((file.path, at))
            except FileNotFoundError as error:
                raise StoreError(
                    f"{self.path / file.path} is gone: retention removed it while it was read. Start again"
                ) from error
            except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
                raise CorruptLogError(offset, f"{file.path} in the lake cannot be read: {error}") from error
            return group

    def vocabulary(self) -> Vocabulary:
        """Terms, gathered by reading all of the lake once; the log keeps its own."""
        if self._vocabulary is None:
            texts: dict[Namespace, list[str]] = {namespace: [] for namespace in Namespace}
            for block, row in self._records_of(Kind.TERM):
                texts[Namespace(int(block.records["type"][row]))].append(block.payload(row).decode())
            self._vocabulary = Vocabulary(lambda namespace, size: texts[namespace][size:])
        return self._vocabulary

    def imported(self, file_sha256: str, mapping: str) -> list[tuple[int, int]]:
        decode = msgspec.msgpack.Decoder(ImportRange).decode
        found = (decode(block.payload(row)) for block, row in self._records_of(Kind.IMPORT))
        return sorted(
            (one.start_row, one.end_row) for one in found if (one.file_sha256, one.mapping) == (file_sha256, mapping)
        )

    def _records_of(self, kind: Kind) -> Iterator[tuple[RecordBlock, int]]:
        after = self.first_offset - 1
        while (block := self.read(after, ROW_GROUP)) is not None:
            for row in np.flatnonzero(block.records["kind"] == kind).tolist():
                yield block, row
            after = block.last_offset

    def close(self) -> None:
        with self._lock:
            self._decoded.clear()


def open_table(path: Path) -> DeltaTable:
    """The newest version of the table. Raises :class:`StoreError` when there is none that can be read."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(path)
    except TableNotFoundError as error:
        raise StoreError(f"There is no lake in {path}: `headwater archive` makes it") from error
    except (DeltaError, OSError, ValueError) as error:
        raise StoreError(
            f"The lake {path} cannot be read: {error}. `headwater archive --once` mends a commit that was broken off; "
            "otherwise restore it from a backup"
        ) from error


def describe_table(table: DeltaTable, path: Path) -> LakeDescription:
    """Whose log the table holds. Raises :class:`StoreError` when it is no archive, or one of another format."""
    try:
        described = msgspec.json.decode(table.metadata().description or "", type=LakeDescription)
    except msgspec.DecodeError as error:
        raise StoreError(f"The table {path} is no archive of a log: choose another data directory") from error
    if described.format != FORMAT:
        raise StoreError(f"The lake {path} has format {described.format}; this release reads format {FORMAT}")
    return described


def lake_files(table: DeltaTable) -> list[LakeFile]:
    """The files of the table's version, in the order of their records."""
    import pyarrow as pa

    rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return sorted(
        (LakeFile(r["path"], r["min.offset"], r["max.offset"], r["max.received_ms"], r["size_bytes"]) for r in rows),
        key=lambda file: file.first,
    )


def _check(group: RecordBlock, first: int, stop: int, path: str) -> None:
    expected = np.arange(first, stop, dtype=np.uint64)
    if len(group) != len(expected) or not np.array_equal(group.records["offset"], expected):
        raise CorruptLogError(first, f"{path} in the lake does not hold records {first} to {stop - 1} in their order")
    crcs, outside = crcs_of(group)
    wrong = np.flatnonzero(crcs != group.records["crc"])
    if outside or len(wrong):
        at = first + int(wrong[0]) if len(wrong) else first
        raise CorruptLogError(at, f"a record in {path} in the lake does not match its checksum")


def _stored_type(kind: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(_WIDER.get(kind.str, kind.str))
