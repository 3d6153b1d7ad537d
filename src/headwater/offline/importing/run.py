"""One import: ranges of rows go to the writer in order, while the next ones are being parsed.

Every range is recorded together with what came of it, under the file's hash and the mapping's. So a second
import adds nothing, and one that was killed goes on where it stood.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from msgspec import Struct

from headwater.log.batch import EventBatch
from headwater.log.client import SyncWriterClient
from headwater.log.commands import Appended, AppendEvents, Command, PutItems, PutProfiles
from headwater.log.environment import GIB
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import ImportRange
from headwater.log.space import MB
from headwater.log.writer import LogWriter, open_writer
from headwater.offline.importing.rejects import RejectFile, by_reason
from headwater.schema.config import Config
from headwater.schema.errors import UnavailableError

_UNDER_WAY = 2  # groups that wait for the disk while the next one is parsed


class Progress(Protocol):
    """Whoever shows how far an import is."""

    def begin(self, what: str, rows: int | None) -> None:
        """A file starts; ``rows`` about how many it has, None when nobody knows."""
        ...

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, what: str, rows: int | None) -> None:
        """Ignore it."""

    def advance(self, rows: int) -> None:
        """Ignore it."""


class ImportReport(Struct, frozen=True, kw_only=True):
    """What an import did. ``rows`` = accepted + rejected + duplicates + already imported.

    ``late``: events that are older than one before them; they count as received when that one was.
    """

    rows: int
    accepted: int
    rejected: dict[str, int]
    rows_per_s: float
    duplicates: int
    already_imported: int
    late: int
    seconds: float
    offset: int
    rejects_file: str | None
    ignored_columns: list[str]


class ImportRun:
    """Carries ranges to the writer of ``data``: to a running server's if it answers, else to one in this process.

    ``clock`` returns seconds of a steady clock. Use it as a context manager.
    """

    def __init__(
        self, data: Path, config: Config, rejects: RejectFile, progress: Progress, clock: Callable[[], float]
    ) -> None:
        self._rejects = rejects
        self._progress = progress
        self._clock = clock
        self._started = clock()
        self._accepted = self._duplicates = self._already = self._late = self._offset = 0
        self._ignored: dict[str, None] = {}
        self._writer: LogWriter | SyncWriterClient = connect(data, config)
        self._log = LmdbLog(data / "log", readonly=True)
        self._latest_ms = self._log.last_received_ms
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="import-commit")
        self._largest_group = config.log.max_batch
        self._group: list[tuple[Command, int]] = []
        self._pending: deque[tuple[Future[list[Appended]], list[int]]] = deque()

    def recorded(self, sha256: str, mapping: str) -> set[tuple[int, int]]:
        """The ranges of a file that are in the log already."""
        return set(self._log.imported(sha256, mapping))

    def skip(self, rows: int) -> None:
        """Count rows that are in the log already."""
        self._already += rows
        self._progress.advance(rows)

    def ignore(self, columns: Iterable[str]) -> None:
        """Note columns that no field takes."""
        self._ignored.update(dict.fromkeys(columns))

    def refuse(self, refused: Iterable[tuple[int | None, str, Any]]) -> None:
        """Write refused rows down."""
        self._rejects.write(refused)

    def events(self, batch: EventBatch, source: ImportRange, rows: int) -> None:
        """Send the events of a range of ``rows`` rows."""
        if len(batch):
            times = np.maximum.accumulate(np.maximum(batch.time_ms, self._latest_ms))
            self._late += int(np.count_nonzero(batch.time_ms < times))
            self._latest_ms = int(times[-1])
        self._send(AppendEvents(batch, source), rows)

    def others(self, command: PutItems | PutProfiles, rows: int) -> None:
        """Send the items or profiles of a range of ``rows`` rows."""
        self._send(command, rows)

    def _send(self, command: Command, rows: int) -> None:
        """Collect commands to groups: one commit each, because a commit costs an fsync and random writes."""
        self._group.append((command, rows))
        if sum(rows for _, rows in self._group) >= self._largest_group:
            self._flush()

    def _flush(self) -> None:
        while len(self._pending) >= _UNDER_WAY:
            self._settle()
        group, self._group = self._group, []
        if group:
            commands = [command for command, _ in group]
            self._pending.append((self._pool.submit(self._commit, commands), [rows for _, rows in group]))

    def _commit(self, commands: list[Command]) -> list[Appended]:
        if isinstance(self._writer, SyncWriterClient):
            return [self._writer.commit(command) for command in commands]
        done: list[Appended] = []
        for outcome in self._writer.commit_group(commands):
            if not isinstance(outcome, Appended):
                raise outcome
            done.append(outcome)
        return done

    def _settle(self) -> None:
        future, counts = self._pending.popleft()
        for appended, rows in zip(future.result(), counts, strict=True):
            if appended.already:
                self._already += rows
            self._accepted += appended.accepted
            self._duplicates += appended.duplicates
            self._offset = max(self._offset, appended.offset)
            self._progress.advance(rows)

    def finish(self) -> ImportReport:
        """Wait until all is durable."""
        self._flush()
        while self._pending:
            self._settle()
        seconds = self._clock() - self._started
        refused = self._rejects.counts
        rows = self._accepted + self._duplicates + self._already + sum(refused.values())
        return ImportReport(
            rows=rows,
            accepted=self._accepted,
            rejected=by_reason(refused),
            rows_per_s=round(rows / seconds, 1) if seconds > 0 else 0.0,
            duplicates=self._duplicates,
            already_imported=self._already,
            late=self._late,
            seconds=round(seconds, 3),
            offset=self._offset or self._log.last_offset,
            rejects_file=None if self._rejects.written is None else str(self._rejects.written),
            ignored_columns=list(self._ignored),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._log.close()
        self._writer.close()


def connect(data: Path, config: Config) -> LogWriter | SyncWriterClient:
    """The writer of a running server if its socket answers, else one in this process, on the log's own clock.

    Raises:
        WriterRunningError: another process writes this log and does not answer.
    """
    socket = data / "run" / "writer.sock"
    if socket.exists():
        client = SyncWriterClient(socket, connect_timeout_s=0.5)
        try:
            client.ping()
        except UnavailableError:
            client.close()  # a socket that was left behind by a crash
        else:
            return client
    return open_writer(
        data,
        segment_keys=config.segments.keys,
        dedup_window=config.log.dedup_window,
        map_size=int(config.log.map_size_gib * GIB),
        min_free=int(config.log.min_free_mb * MB),
    )
