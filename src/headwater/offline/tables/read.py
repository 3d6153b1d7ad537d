"""Rows of a table, checked and in the order of their times."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.features.aggregations import TableValue
from headwater.features.definitions import Column, TermOp
from headwater.offline.importing import columns as checked
from headwater.offline.importing.mapping import ImportFailedError
from headwater.offline.importing.rejects import Verdicts
from headwater.offline.tables.parts import TableError, find_files
from headwater.schema.tables import TableSource

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SortedRows:
    """All ``n`` rows of a file, by their time (rows without one first), then as the file has them.

    ``values`` is ``float64[n, columns]``, NaN where there is none; ``reasons[i]`` says why row i is refused ("": it
    is not). ``row number`` in this order is what imports record.
    """

    ids: list[str]
    valid_ms: Int64
    values: npt.NDArray[np.float64]
    reasons: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Reads:
    """What features read of one table: columns, in their order, and the largest ``max_age`` in ms (None: any age)."""

    columns: tuple[str, ...]
    max_age_ms: int | None


def reads_of(source: TableSource, features: Sequence[Column]) -> Reads:
    """What is loaded of a table: the columns it names, else those that ``features`` read.

    Raises:
        TableError: it names none and no feature reads it.
    """
    found: dict[str, None] = {}
    ages: list[float] = []
    for column in features:
        for term in column.terms:
            if isinstance(term.reads, TableValue) and term.op is TermOp.TABLE and term.reads.table == source.name:
                found[term.reads.column] = None
                ages.append(term.parameters[0])
    columns = source.columns or tuple(found)
    if not columns:
        raise TableError(
            f'table "{source.name}": no feature reads it; declare one (headwater.features.declare.table) or name `columns`'
        )
    return Reads(columns, None if not ages or min(ages) == 0.0 else int(max(ages)))


def reading_digest(source: TableSource, columns: Sequence[str]) -> str:
    """What is equal when the same rows of a file are read in the same way: an import is recorded under it."""
    said = ["table", source.name, source.entity, source.key, source.valid_from, *columns]
    return "table:" + hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:32]


def read_rows(path: Path, source: TableSource, columns: Sequence[str]) -> SortedRows:
    """Read and check one file.

    Raises:
        TableError: a column is not there, or holds something else than ids, times or numbers.
    """
    table = _read(path, source, columns)
    verdicts = Verdicts(table.num_rows)
    try:
        ids = checked.texts(table.column(source.key), source.key, verdicts, required=True)
        valid_ms = _times(table.column(source.valid_from), source, path, verdicts)
        values = [_numbers(table.column(name), name, verdicts) for name in columns]
    except ImportFailedError as error:
        raise TableError(f'table "{source.name}": {path}: {error}') from error
    order = np.argsort(valid_ms, kind="stable")
    reasons = [""] * table.num_rows
    for row, reason in verdicts.refused():
        reasons[row] = reason
    texts = [*ids.values, ""]  # the last one stands for none
    return SortedRows(
        [texts[code] for code in ids.codes[order].tolist()],
        valid_ms[order],
        np.stack(values, axis=1)[order],
        [reasons[row] for row in order.tolist()],
    )


def read_table(source: TableSource, columns: Sequence[str]) -> tuple[pl.DataFrame, Counter[str]]:
    """All accepted rows of a table, and why others were refused.

    The frame has ``key`` (text), ``valid_ms`` and ``columns`` (``Float64``, null where there is none), in the order of
    time, and of files where times are equal.
    """
    refused: Counter[str] = Counter()
    frames = []
    for path in find_files(source).files:
        rows = read_rows(path, source, columns)
        refused.update(reason for reason in rows.reasons if reason)
        keep = np.array([not reason for reason in rows.reasons], np.bool_)
        frames.append(
            pl.DataFrame({
                "key": pl.Series(rows.ids, dtype=pl.String).filter(pl.Series(keep)),
                "valid_ms": rows.valid_ms[keep],
                **{name: rows.values[keep, k] for k, name in enumerate(columns)},
            }).with_columns(pl.col(list(columns)).fill_nan(None))
        )  # fmt: skip
    return pl.concat(frames).sort("valid_ms", maintain_order=True), refused


def _read(path: Path, source: TableSource, columns: Sequence[str]) -> pa.Table:
    wanted = [source.key, source.valid_from, *columns]
    try:
        file = pq.ParquetFile(path)
        there = list(file.schema_arrow.names)
        for name in wanted:
            if name not in there:
                close = difflib.get_close_matches(name, there, n=1)
                raise TableError(
                    f'table "{source.name}": {path} has no column "{name}"'
                    + (f', did you mean "{close[0]}"?' if close else f"; it has {', '.join(there)}")
                )
        return file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f'table "{source.name}": {path}: Not a Parquet file: {error}') from error


def _times(column: pa.ChunkedArray, source: TableSource, path: Path, verdicts: Verdicts) -> Int64:
    """Unix milliseconds, -1 where there is none."""
    kind, name = column.type, source.valid_from
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_integer(kind)):
        raise TableError(
            f'table "{source.name}": {path}: the column "{name}" holds {kind}; expected datetime, or whole Unix milliseconds'
        )
    found = checked.times(column, name, verdicts, "ms")
    latest = int(found.max(initial=0))
    if pa.types.is_integer(kind) and 0 < latest < checked.EARLIEST_LIKELY_MS:
        raise TableError(
            f'table "{source.name}": {path}: the times of "{name}" end before March 1973 when read as milliseconds; '
            "multiply seconds by 1000"
        )
    verdicts.refuse(found == 0, f"{name}: Expected a time after 1970")
    return np.where(found == 0, -1, found)


def _numbers(column: pa.ChunkedArray, name: str, verdicts: Verdicts) -> npt.NDArray[np.float64]:
    kind = column.type
    numeric = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )
    if not (numeric or pa.types.is_null(kind)):
        raise ImportFailedError(f'the column "{name}" holds {kind}; expected numbers or truth values')
    return checked.numbers(column, name, verdicts)
