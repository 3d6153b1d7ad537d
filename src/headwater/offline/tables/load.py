"""Rows of tables into the log: each once, in the order of their times, none before it is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Struct

from headwater.features.module import configured_columns
from headwater.log.client import SyncWriterClient
from headwater.log.commands import Appended, PutTable
from headwater.log.environment import StoreError
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import ImportRange
from headwater.log.writer import LogWriter
from headwater.offline.importing.run import connect
from headwater.offline.tables.parts import Part, Parts, TableError
from headwater.offline.tables.read import Reads, SortedRows, read_rows, reading_digest, reads_of
from headwater.offline.tables.standing import Standing, read_standing, write_standing
from headwater.schema.config import Config
from headwater.schema.durations import parse_delay
from headwater.schema.tables import TableSource

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]

BATCH = 4_096  # rows of a commit
SERVED_BATCH = 256  # and to a running server: the fold takes them in between two events, about 0.1 ms each
UNKNOWN_ITEM = "unknown item"


class TableReport(Struct, frozen=True, kw_only=True):
    """What one look at a table did.

    ``rows`` lie in its ``files``: ``already`` were loaded before, ``written`` are loaded now, ``refused`` were not taken
    (by reason, in this run), and ``held`` are not due; the first of them is at ``next_due_ms``. ``staleness_ms`` is how long ago
    the newest loaded row became valid; ``stale``: longer than every feature of the table allows (``max_age_ms``).
    """

    table: str
    rows: int
    written: int
    already: int
    held: int
    refused: dict[str, int]
    columns: list[str]
    files: int
    version: int | None
    newest_valid_from_ms: int | None
    staleness_ms: int | None
    max_age_ms: int | None
    stale: bool
    next_due_ms: int | None


def no_pace(_: int) -> None:
    """Loading waits for nobody."""


class _Run(NamedTuple):
    """Rows ``start`` to ``stop`` of a part, which follow each other in the order of all parts."""

    part: int
    start: int
    stop: int


@dataclass(slots=True)
class _Open:
    """A part with rows that are not in the log yet: those from ``reach`` on."""

    part: Part
    reach: int
    rows: SortedRows
    due: int  # rows before this one are due


@dataclass(slots=True)
class TableLoader:
    """Loads the tables of ``config`` into the log of ``data``, through a running server's writer or one of its own.

    ``pace`` is told how many rows have just gone to a running server, and may wait. ``writer`` connects
    to the writer of the log. Keep the loader for the next look: it knows the hashes of files.
    """

    config: Config
    data: Path
    pace: Callable[[int], None] = no_pace
    writer: Callable[[Path, Config], LogWriter | SyncWriterClient] = connect
    _parts: Parts = field(default_factory=Parts)
    _writer: LogWriter | SyncWriterClient | None = None

    def reads(self, source: TableSource) -> Reads:
        """What features read of a table. Raises :class:`TableError` when nothing does."""
        return reads_of(source, configured_columns(self.config))

    def load(self, source: TableSource, now_ms: int, *, at_ms: int | None = None) -> TableReport:
        """Write all rows that are due at ``now_ms`` and not in the log.

        ``at_ms``: received then (a log that nobody serves: at ``now_ms`` in any case).

        Raises:
            TableError: the table cannot be read; what was written stays, and the next look goes on behind it.
            UnavailableError: the server's writer went away.
        """
        reads = self.reads(source)
        parts, version = self._parts.of(source)
        digest = reading_digest(source, reads.columns)
        reached = self._reached(parts, digest)
        opened = [
            self._open(source, reads, part, reach, now_ms)
            for part, reach in zip(parts, reached, strict=True)
            if reach < part.rows
        ]
        written, already, refused = 0, sum(reached), Counter[str]()
        newest = read_standing(self.data).get(source.name, Standing()).newest_ms
        if newest is None:
            newest = self._newest(source, reads, parts, reached)
        try:
            if any(one.due > one.reach for one in opened):
                self._writer = self.writer(self.data, self.config)
            batch = SERVED_BATCH if isinstance(self._writer, SyncWriterClient) else BATCH
            for run in _runs(opened, batch):
                one = opened[run.part]
                count, reasons = self._write(source, reads, digest, one, run, now_ms, at_ms)
                written += count
                already += run.stop - run.start - count - reasons.total()
                refused.update(reasons)
                newest = max(newest or 0, int(one.rows.valid_ms[run.stop - 1]), 0) or None
        finally:
            self._close()
        return self._report(source, reads, parts, version, opened, written, refused, newest, now_ms, already)

    def _reached(self, parts: Sequence[Part], digest: str) -> list[int]:
        """How many rows of each part are in the log, from the first on."""
        try:
            event_log = LmdbLog(self.data / "log", readonly=True)
        except StoreError:  # nothing was ever written
            return [0] * len(parts)
        with closing(event_log):
            return [_reach(event_log.imported(part.sha256, digest)) for part in parts]

    def _open(self, source: TableSource, reads: Reads, part: Part, reach: int, now_ms: int) -> _Open:
        rows = read_rows(part.path, source, reads.columns)
        self._parts.check(source, part)
        delay = parse_delay(source.available_after)
        return _Open(part, reach, rows, max(reach, int(np.searchsorted(rows.valid_ms + delay, now_ms, side="right"))))

    def _newest(self, source: TableSource, reads: Reads, parts: Sequence[Part], reached: Sequence[int]) -> int | None:
        """The latest time among the rows that are in the log, from the files."""
        found = [
            int(read_rows(part.path, source, reads.columns).valid_ms[reach - 1])
            for part, reach in zip(parts, reached, strict=True)
            if reach
        ]
        return max((time for time in found if time > 0), default=None)

    def _write(
        self, source: TableSource, reads: Reads, digest: str, one: _Open, run: _Run, now_ms: int, at_ms: int | None
    ) -> tuple[int, Counter[str]]:
        rows = one.rows
        chosen = [row for row in range(run.start, run.stop) if not rows.reasons[row]]
        refused = Counter(reason for reason in rows.reasons[run.start : run.stop] if reason)
        values = rows.values[chosen]
        command = PutTable(
            source.name,
            source.entity,
            list(reads.columns),
            [rows.ids[row] for row in chosen],
            rows.valid_ms[chosen].tolist(),
            [[None if value != value else value for value in row] for row in values.tolist()],  # NaN: none
            at_ms,
            ImportRange(one.part.sha256, run.start, run.stop, digest),
        )
        outcome = self._commit(command, now_ms)
        if outcome.already:  # another loader was here in between, or a file stands there twice
            return 0, Counter()
        if outcome.accepted < len(chosen):
            refused[UNKNOWN_ITEM] += len(chosen) - outcome.accepted
        return outcome.accepted, refused

    def _commit(self, command: PutTable, now_ms: int) -> Appended:
        if self._writer is None:
            raise ValueError("There is no writer to commit to")
        if isinstance(self._writer, SyncWriterClient):
            outcome = self._writer.commit(command)
            self.pace(len(command.ids))
            return outcome
        timed = command.at_ms if command.at_ms is not None else now_ms  # a writer in this process has the log's clock
        return self._writer.commit(msgspec.structs.replace(command, at_ms=timed))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _report(
        self, source: TableSource, reads: Reads, parts: Sequence[Part], version: int | None, opened: Sequence[_Open],
        written: int, refused: Counter[str], newest: int | None, now_ms: int, already: int,
    ) -> TableReport:  # fmt: skip
        delay = parse_delay(source.available_after)
        waiting = [int(one.rows.valid_ms[one.due]) + delay for one in opened if one.due < len(one.rows)]
        staleness = None if newest is None else max(now_ms - newest, 0)
        stale = reads.max_age_ms is not None and (staleness is None or staleness > reads.max_age_ms)
        report = TableReport(
            table=source.name, rows=sum(part.rows for part in parts), written=written, already=already,
            held=sum(len(one.rows) - one.due for one in opened), refused=dict(refused.most_common()),
            columns=list(reads.columns), files=len(parts), version=version, newest_valid_from_ms=newest,
            staleness_ms=staleness, max_age_ms=reads.max_age_ms, stale=stale, next_due_ms=min(waiting, default=None),
        )  # fmt: skip
        write_standing(self.data, source.name, Standing(newest, now_ms, reads.max_age_ms, report.held))
        if stale:
            log.warning("table_is_stale", table=source.name, staleness_ms=staleness, max_age_ms=reads.max_age_ms,
                        hint="features of this table are at their defaults: see to the job that computes it")  # fmt: skip
        return report


def served_writer(data: Path, _: Config) -> SyncWriterClient:
    """The writer of a running server, and no other: one that is being started must not find its place taken."""
    return SyncWriterClient(data / "run" / "writer.sock")


def load_tables(
    loader: TableLoader, now_ms: int, *, at_ms: int | None = None, names: Sequence[str] = ()
) -> list[TableReport]:
    """One look at each table of the configuration (``names``: at these).

    Raises:
        TableError: a table is not known, or cannot be read.
    """
    return [loader.load(source, now_ms, at_ms=at_ms) for source in chosen_tables(loader.config, names)]


def chosen_tables(config: Config, names: Sequence[str]) -> list[TableSource]:
    """The tables of the configuration, or those of ``names``. Raises :class:`TableError` for one that is not there."""
    known = {table.name: table for table in config.tables}
    for name in names:
        if name not in known:
            others = f"[[tables]] has {', '.join(known)}" if known else "the configuration has no [[tables]]"
            raise TableError(f'There is no table "{name}": {others}')
    return [known[name] for name in names] if names else list(config.tables)


def _reach(ranges: Sequence[tuple[int, int]]) -> int:
    """Where the ranges that follow each other from row 0 on end."""
    reached = 0
    for start, end in sorted(ranges):
        if start <= reached:
            reached = max(reached, end)
    return reached


def _runs(opened: Sequence[_Open], batch: int) -> Iterator[_Run]:
    """All rows that are due, by their time, then by part, then by place: in runs of one part, at most ``batch`` long."""
    counts = [one.due - one.reach for one in opened]
    if not sum(counts):
        return
    part = np.repeat(np.arange(len(opened)), counts)
    row = np.concatenate([np.arange(one.reach, one.due) for one in opened])
    valid = np.concatenate([one.rows.valid_ms[one.reach : one.due] for one in opened])
    order = np.lexsort((row, part, valid))
    part, row = part[order], row[order]
    starts = np.flatnonzero(np.concatenate([[True], part[1:] != part[:-1]]))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(part)], strict=True):
        for begin in range(start, stop, batch):
            end = min(begin + batch, stop)
            yield _Run(int(part[begin]), int(row[begin]), int(row[end - 1]) + 1)
