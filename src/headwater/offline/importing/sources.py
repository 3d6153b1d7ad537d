"""Files as numbered ranges of rows, in the order of the file or of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.offline.importing import columns
from headwater.offline.importing.files import CsvTable, Format, ParquetTable, format_of, line_chunks
from headwater.offline.importing.lines import RecordReader
from headwater.offline.importing.mapping import CHUNK_ROWS, Resolved, TimeUnit
from headwater.offline.importing.rejects import Verdicts

Table = CsvTable | ParquetTable


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How to read a file. None: by its name, UTF-8."""

    format: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class TableRange:
    """Rows ``start`` to ``end`` of the chosen order; ``numbers`` (``int64[n]``) count from 1 in the file."""

    start: int
    end: int
    table: pa.Table
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LineRange:
    """As :class:`TableRange`, for lines."""

    start: int
    end: int
    lines: list[bytes]
    numbers: npt.NDArray[np.int64]


def open_table(path: Path, options: FileOptions) -> Table | None:
    """The table in a file; None for JSON lines.

    Raises:
        ImportFailedError: there is no such file, or its format is unknown.
    """
    kind: Format = format_of(path, options.format)
    if kind == "jsonl":
        return None
    return (
        ParquetTable(path)
        if kind == "parquet"
        else CsvTable(path, delimiter=options.delimiter, encoding=options.encoding)
    )


def table_ranges(
    table: Table,
    resolved: Resolved,
    *,
    rows: int = CHUNK_ROWS,
    sort_unit: TimeUnit | None = None,
    sort: bool = False,
    change: Callable[[pa.Table], pa.Table] = lambda read: read,
) -> Iterator[TableRange]:
    """Ranges of ``rows`` rows; with ``sort`` the whole file is read first and ordered by its time column.

    ``change`` is applied to every table that is read (it may add columns, not rows).
    """
    wanted = [name for name in resolved.columns if name in table.columns]
    if not sort:
        start = 0
        for chunk in table.chunks(wanted, rows):
            end = start + chunk.num_rows
            yield TableRange(start, end, change(chunk), np.arange(start, end, dtype=np.int64) + 1)
            start = end
        return
    read = list(table.chunks(wanted, rows))
    if not read:
        return
    whole = change(pa.concat_tables(read))
    time_ms = _time_of(whole, resolved, sort_unit)
    order = np.argsort(time_ms, kind="stable")
    for start in range(0, len(order), rows):
        taken = order[start : start + rows]
        yield TableRange(start, start + len(taken), whole.take(pa.array(taken)), taken.astype(np.int64) + 1)


def line_ranges(path: Path, reader: RecordReader, *, rows: int = CHUNK_ROWS, sort: bool = False) -> Iterator[LineRange]:
    """Ranges of ``rows`` lines; with ``sort`` ordered by their time."""
    if not sort:
        start = 0
        for chunk in line_chunks(path, rows):
            end = start + len(chunk)
            yield LineRange(start, end, chunk, np.arange(start, end, dtype=np.int64) + 1)
            start = end
        return
    lines = [line for chunk in line_chunks(path, rows) for line in chunk]
    order = np.argsort(np.array([_line_time(line, reader) for line in lines], np.int64), kind="stable")
    for start in range(0, len(order), rows):
        taken = order[start : start + rows]
        yield LineRange(start, start + len(taken), [lines[int(row)] for row in taken], taken.astype(np.int64) + 1)


def _time_of(table: pa.Table, resolved: Resolved, unit: TimeUnit | None) -> npt.NDArray[np.int64]:
    if "time" not in resolved.sources:
        return np.zeros(table.num_rows, np.int64)
    # the verdicts are given when the range is parsed; what has no time comes first
    return columns.times(table.column(resolved.sources["time"]), "time", Verdicts(table.num_rows), unit)


def _line_time(line: bytes, reader: RecordReader) -> int:
    try:
        time = reader.from_line(line).get("time", -1)
    except msgspec.DecodeError:
        return -1
    return time if isinstance(time, int) and abs(time) < 2**62 else -1
