"""Where training rows are kept: a folder of Parquet files, or a Delta table. A repeated run adds nothing to either."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from headwater import __version__
from headwater.learning.rows import Definition, Piece, RowTables
from headwater.schema.errors import HeadwaterError

ROW_GROUP = 65_536
METADATA_KEY = "headwater"

_NAME = re.compile(r"rows-(\d{12})-(\d{12})-(\d{5})-of-(\d{5})\.parquet")

Span = tuple[int, int]  # offsets of the log, both ends included


class RowStore(Protocol):
    """Takes the rows of a span of the log once."""

    def remaining(self, wanted: Span) -> Span | None:
        """The part of ``wanted`` whose rows are not there yet; None when all of them are.

        Raises:
            HeadwaterError: the place holds rows of another definition, or what remains is no single span.
        """
        ...

    def write(self, span: Span, tables: RowTables, pieces: Iterator[Piece], count: int, threads: int) -> None:
        """Write the ``count`` pieces of a span; they are all there, or none is."""
        ...


class ParquetRows:
    """Files ``rows-FIRST-LAST-K-of-N.parquet``: the k-th of the n pieces of a span of offsets."""

    def __init__(self, folder: Path, definition: Definition) -> None:
        self.folder, self.definition = folder, definition

    def remaining(self, wanted: Span) -> Span | None:
        spans, _ = _sets(self.folder)
        for files in spans.values():
            found = pq.read_schema(files[0]).metadata or {}
            stored = msgspec.json.decode(found.get(METADATA_KEY.encode(), b"{}")).get("definition")
            _check_definition(self.folder, stored, self.definition)
        first, last = wanted
        for low, high in sorted(spans):
            if low <= first <= high:
                first = high + 1
        for low, high in sorted(spans, reverse=True):
            if low <= last <= high:
                last = low - 1
        if first > last:
            return None
        for low, high in spans:
            if first <= low <= last or first <= high <= last:
                raise HeadwaterError(
                    f"{self.folder} holds the rows of offsets {low} to {high} already, in the middle of {first} to "
                    f"{last}: choose --from and --to on one side of them, or another folder"
                )
        return first, last

    def write(self, span: Span, tables: RowTables, pieces: Iterator[Piece], count: int, threads: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [*_sets(self.folder)[1], *self.folder.glob("rows-*.part")]:  # of a run that was broken off
            path.unlink()
        metadata = {METADATA_KEY: msgspec.json.encode(describe(self.definition, span), order="deterministic")}
        paths: list[Path] = []
        running: deque[Future[None]] = deque()

        def one(piece: Piece, path: Path) -> None:
            table = tables.table(piece).replace_schema_metadata(metadata)
            pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)

        with ThreadPoolExecutor(threads, thread_name_prefix="rows") as pool:
            for k, piece in enumerate(pieces):
                name = f"rows-{span[0]:012d}-{span[1]:012d}-{k + 1:05d}-of-{count:05d}.parquet"
                paths.append(self.folder / f"{name}.part")
                if len(running) > threads:  # what waits is held in memory
                    running.popleft().result()
                running.append(pool.submit(one, piece, paths[-1]))
            while running:
                running.popleft().result()
        for path in paths:
            path.rename(path.with_suffix(""))


class DeltaRows:
    """A Delta table; the last offset of every run is its application transaction."""

    def __init__(self, folder: Path, definition: Definition) -> None:
        self.folder, self.definition = folder, definition
        text = msgspec.json.encode(definition, order="deterministic")
        self.app_id = f"headwater-rows-{hashlib.sha256(text).hexdigest()[:16]}"

    def remaining(self, wanted: Span) -> Span | None:
        from deltalake import DeltaTable

        if not DeltaTable.is_deltatable(str(self.folder)):
            return wanted
        table = DeltaTable(self.folder)
        stored = msgspec.json.decode(table.metadata().description or "{}").get("definition")
        _check_definition(self.folder, stored, self.definition)
        first = max(wanted[0], (table.transaction_version(self.app_id) or 0) + 1)
        return (first, wanted[1]) if first <= wanted[1] else None

    def write(self, span: Span, tables: RowTables, pieces: Iterator[Piece], count: int, threads: int) -> None:  # noqa: ARG002  (Delta's writer has its own)
        from deltalake import CommitProperties, Transaction, WriterProperties, write_deltalake

        described = msgspec.json.encode(describe(self.definition, span), order="deterministic").decode()
        schema = _delta_schema(tables.schema)
        batches = (batch for piece in pieces for batch in tables.table(piece).cast(schema).to_batches())
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        write_deltalake(
            self.folder,
            pa.RecordBatchReader.from_batches(schema, batches),
            mode="append",
            name="training rows",
            description=described,
            writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=ROW_GROUP),
            commit_properties=CommitProperties(
                custom_metadata={METADATA_KEY: described}, app_transactions=[Transaction(self.app_id, span[1])]
            ),
        )


def describe(definition: Definition, span: Span) -> dict[str, object]:
    """What files and commits say about their rows."""
    return {"version": __version__, "definition": definition, "first_offset": span[0], "last_offset": span[1]}


def load_rows(path: str | Path) -> pl.LazyFrame:
    """The training rows at ``path``, of either format, as a lazy frame in the order in which they were written.

    Raises:
        HeadwaterError: there are none, or a run was broken off while it put them there.
    """
    folder = Path(path)
    if (folder / "_delta_log").is_dir():
        return pl.scan_delta(str(folder))
    spans, broken = _sets(folder)
    if broken:
        raise HeadwaterError(f"{folder} holds part of a run ({broken[0].name}): run `features materialize` again")
    if not spans:
        raise HeadwaterError(f"{folder} holds no training rows: write some with `headwater features materialize`")
    return pl.scan_parquet([file for span in sorted(spans) for file in spans[span]])


def _sets(folder: Path) -> tuple[dict[Span, list[Path]], list[Path]]:
    """Complete sets of files by span, and the files of incomplete ones."""
    found: dict[tuple[int, int, int], list[Path]] = {}
    for path in sorted(folder.glob("rows-*.parquet")):
        if match := _NAME.fullmatch(path.name):
            first, last, _, count = map(int, match.groups())
            found.setdefault((first, last, count), []).append(path)
    complete = {(first, last): files for (first, last, count), files in found.items() if len(files) == count}
    return complete, [path for (_, _, count), files in found.items() if len(files) != count for path in files]


def _check_definition(folder: Path, stored: object, wanted: Definition) -> None:
    ours = msgspec.json.decode(msgspec.json.encode(wanted))
    if not isinstance(stored, dict):
        raise HeadwaterError(f"{folder} holds files that are no training rows of this system: choose another folder")
    if different := [f"{key} {stored.get(key)} and not {ours[key]}" for key in ours if stored.get(key) != ours[key]]:
        raise HeadwaterError(f"{folder} holds other rows: {'; '.join(different)}; choose another folder")


def _delta_schema(schema: pa.Schema) -> pa.Schema:
    """Delta knows neither dictionaries nor unsigned numbers."""
    kinds = {pa.uint8(): pa.int8()}
    return pa.schema(
        (f.name, f.type.value_type if pa.types.is_dictionary(f.type) else kinds.get(f.type, f.type)) for f in schema
    )
