"""The jobs behind ``headwater import events`` and ``headwater import items``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from headwater.log.commands import PutItems
from headwater.log.protocol import ImportRange
from headwater.offline.importing.events import parse_lines, parse_table
from headwater.offline.importing.files import FileIdentity, ParquetTable, identify
from headwater.offline.importing.items import TIMES as ITEM_TIMES
from headwater.offline.importing.items import parse_item_lines, parse_item_rows
from headwater.offline.importing.lines import RecordReader
from headwater.offline.importing.mapping import (
    EVENT_FIELDS,
    EVENT_REQUIRED,
    ITEM_FIELDS,
    ITEM_REQUIRED,
    Mapping,
    Resolved,
    check_event_types,
    mapping_digest,
    resolve,
)
from headwater.offline.importing.rejects import RejectFile
from headwater.offline.importing.run import ImportReport, ImportRun, Progress, Silent
from headwater.offline.importing.sources import (
    FileOptions,
    LineRange,
    Table,
    TableRange,
    line_ranges,
    open_table,
    table_ranges,
)
from headwater.schema.config import Config

ITEM_ROWS = 4_096  # items of one commit: texts may be long
WRONG_WIDTH = "row: Wrong number of columns"


@dataclass(frozen=True, slots=True)
class Target:
    """Where an import goes, and who watches. ``rejects`` None: a file of its own in ``data``/rejects."""

    data: Path
    config: Config
    rejects: Path | None = None
    progress: Progress = field(default_factory=Silent)
    clock: Callable[[], float] = time.monotonic

    def run(self, name: str, sha256: str) -> tuple[ImportRun, RejectFile]:
        """Connect to the writer."""
        rejects = RejectFile(self.rejects or self.data / "rejects" / f"{name}-{sha256[:12]}.jsonl")
        return ImportRun(self.data, self.config, rejects, self.progress, self.clock), rejects


def import_events(
    path: Path, mapping: Mapping, target: Target, *, options: FileOptions | None = None, sort: bool = False
) -> ImportReport:
    """Append the events of a file to the log; ``received_ms`` is each event's own time.

    Raises:
        ImportFailedError: the file, its mapping or a whole column is wrong.
        UnavailableError: the server's writer went away; running the import again goes on from there.
    """
    check_event_types(mapping, [event.name for event in target.config.events])
    table = open_table(path, options or FileOptions())
    resolved = resolve(mapping, None if table is None else table.columns, EVENT_FIELDS, EVENT_REQUIRED)
    identity = identify(path, count_lines=not isinstance(table, ParquetTable))
    run, rejects = target.run(path.name, identity.sha256)
    with rejects, run:
        target.progress.begin(path.name, row_count(table, identity, path))
        if table is not None:
            run.ignore(resolved.ignored)
            ranges = table_ranges(table, resolved, sort=sort, sort_unit=mapping.time_unit)
            digest = mapping_digest("events", mapping, sort=sort)
            send_event_tables(run, target.config, ranges, table, resolved, mapping, identity.sha256, digest)
        else:
            _send_event_lines(run, target.config, path, resolved, mapping, identity.sha256, sort=sort)
        return run.finish()


def send_event_tables(
    run: ImportRun,
    config: Config,
    ranges: Iterator[TableRange],
    table: Table,
    resolved: Resolved,
    mapping: Mapping,
    sha256: str,
    digest: str,
) -> None:
    """Parse ranges of a table and send them on."""
    types, keys = [event.name for event in config.events], config.segments.keys
    recorded = run.recorded(sha256, digest)
    malformed = 0
    for part in ranges:
        if (part.start, part.end) in recorded:
            run.skip(part.end - part.start)
            malformed = len(table.malformed)
            continue
        parsed = parse_table(part.table, resolved, mapping, types, keys)
        run.refuse((None, WRONG_WIDTH, row.text) for row in table.malformed[malformed:])
        malformed = len(table.malformed)
        run.refuse(_with_rows(part, parsed.refused))
        run.events(parsed.batch, ImportRange(sha256, part.start, part.end, digest), part.end - part.start)
    run.refuse((None, WRONG_WIDTH, row.text) for row in table.malformed[malformed:])


def _send_event_lines(
    run: ImportRun, config: Config, path: Path, resolved: Resolved, mapping: Mapping, sha256: str, *, sort: bool
) -> None:
    reader = RecordReader(
        mapping,
        resolved,
        fields=EVENT_FIELDS,
        ids=("user", "item", "event_id", "request_id", "session"),
        times=("time",),
    )
    types, keys = [event.name for event in config.events], config.segments.keys
    digest = mapping_digest("events", mapping, sort=sort)
    recorded = run.recorded(sha256, digest)
    for part in line_ranges(path, reader, sort=sort):
        if (part.start, part.end) in recorded:
            run.skip(part.end - part.start)
            continue
        parsed = parse_lines(part.lines, reader, types, keys)
        run.refuse(_with_lines(part, parsed.refused))
        run.events(parsed.batch, ImportRange(sha256, part.start, part.end, digest), part.end - part.start)
    run.ignore(reader.ignored)


def import_items(
    path: Path,
    mapping: Mapping,
    target: Target,
    *,
    options: FileOptions | None = None,
    at_ms: int | None = None,
) -> ImportReport:
    """Put the items of a file into the catalogue.

    ``at_ms``: when they became known; None: where the log stands (a running server: its clock).

    Raises:
        ImportFailedError: the file or its mapping is wrong.
        UnavailableError: the server's writer went away; running the import again goes on from there.
    """
    table = open_table(path, options or FileOptions())
    resolved = resolve(mapping, None if table is None else table.columns, ITEM_FIELDS, ITEM_REQUIRED)
    identity = identify(path, count_lines=not isinstance(table, ParquetTable))
    digest = mapping_digest("items", mapping, sort=False)
    reader = RecordReader(mapping, resolved, fields=ITEM_FIELDS, ids=("id",), times=ITEM_TIMES)
    run, rejects = target.run(path.name, identity.sha256)
    with rejects, run:
        target.progress.begin(path.name, row_count(table, identity, path))
        recorded = run.recorded(identity.sha256, digest)
        ranges: Iterator[TableRange | LineRange] = (
            table_ranges(table, resolved, rows=ITEM_ROWS)
            if table is not None
            else line_ranges(path, reader, rows=ITEM_ROWS)
        )
        run.ignore(resolved.ignored)
        for part in ranges:
            if (part.start, part.end) in recorded:
                run.skip(part.end - part.start)
                continue
            if isinstance(part, TableRange):
                parsed = parse_item_rows(part.table.to_pylist(), reader, mapping)
                run.refuse(_with_rows(part, parsed.refused))
            else:
                parsed = parse_item_lines(part.lines, reader)
                run.refuse(_with_lines(part, parsed.refused))
            source = ImportRange(identity.sha256, part.start, part.end, digest)
            run.others(PutItems(list(parsed.items), at_ms, source), part.end - part.start)
        if table is not None:
            run.refuse((None, WRONG_WIDTH, row.text) for row in table.malformed)
        run.ignore(reader.ignored)
        return run.finish()


def row_count(table: Table | None, identity: FileIdentity, path: Path) -> int | None:
    """About how many rows a file has; None when it is compressed."""
    if isinstance(table, ParquetTable):
        return table.rows
    if path.suffix == ".gz":
        return None
    return max(identity.lines - (table is not None), 0)


def _with_rows(part: TableRange, refused: Sequence[tuple[int, str]]) -> list[tuple[int | None, str, Any]]:
    """(row number, reason, row) of refused positions."""
    if not refused:
        return []
    rows = part.table.take(pa.array([position for position, _ in refused])).to_pylist()
    return [(int(part.numbers[position]), reason, row) for (position, reason), row in zip(refused, rows, strict=True)]


def _with_lines(part: LineRange, refused: Sequence[tuple[int, str]]) -> list[tuple[int | None, str, Any]]:
    return [(int(part.numbers[position]), reason, _shown(part.lines[position])) for position, reason in refused]


def _shown(line: bytes) -> Any:
    """The object of a line, or its text when it is none."""
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        return line.decode("utf-8", errors="replace")
