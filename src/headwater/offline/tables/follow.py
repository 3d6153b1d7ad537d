"""Looks for new rows of tables again and again, and has them in the log at the moment when they are due."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from headwater.offline.importing.run import connect
from headwater.offline.tables.load import TableLoader, TableReport, chosen_tables, served_writer
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import HeadwaterError, UnavailableError

log = structlog.get_logger()

ROWS_PER_S = 4_000  # to a running server: a third of the time of its fold, which takes in events meanwhile
RETRY_MS = 5_000


class LoadingStoppedError(HeadwaterError):
    """Whoever loads was asked to stop; what is written stays."""


class ServedPace:
    """Lets at most ``ROWS_PER_S`` rows through, and nothing after ``stop``."""

    def __init__(self, sleep: Callable[[float], object] = time.sleep) -> None:
        self.stop = threading.Event()
        self._sleep = sleep

    def __call__(self, rows: int) -> None:
        if self.stop.is_set():
            raise LoadingStoppedError("Loading was stopped")
        self._sleep(rows / ROWS_PER_S)


async def follow_tables(
    config: Config, data: Path, *, clock: Callable[[], int], stop: asyncio.Event, names: Sequence[str] = (),
    served: bool = False, told: Callable[[TableReport], object] | None = None,
) -> None:  # fmt: skip
    """Load every table (``names``: these) now, every ``refresh`` and whenever a row that was held back is due.

    What goes wrong with one table is logged and tried again; ``told`` hears of every look that was of use.
    ``clock`` returns Unix milliseconds, the time of the writer. ``served``: there is a server, or will be; only its
    writer is used.

    Raises:
        TableError: one of ``names`` is not known.
    """
    tables = chosen_tables(config, names)
    pace = ServedPace()
    loader = TableLoader(config, data, pace, served_writer if served else connect)
    at = {source.name: 0 for source in tables}
    stopping = asyncio.create_task(_pass_on(stop, pace.stop))
    try:
        while not stop.is_set():
            for source in tables:
                if at[source.name] > clock() or stop.is_set():
                    continue
                refresh_ms = parse_duration(source.refresh)
                try:
                    report = await asyncio.to_thread(loader.load, source, clock())
                except LoadingStoppedError:
                    return
                except HeadwaterError as error:
                    gone = isinstance(error, UnavailableError)
                    at[source.name] = clock() + (min(RETRY_MS, refresh_ms) if gone else refresh_ms)
                    log.warning("table_not_loaded", table=source.name, reason=str(error))
                    continue
                at[source.name] = min(clock() + refresh_ms, report.next_due_ms or at[source.name] + 2**62)
                if report.written or report.refused:
                    log.info("table_loaded", table=source.name, rows=report.written, held=report.held,
                             refused=report.refused, newest_valid_from_ms=report.newest_valid_from_ms)  # fmt: skip
                if told is not None:
                    told(report)
            wait_ms = min(at.values(), default=clock() + RETRY_MS) - clock()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(wait_ms, 1) / 1000)
    finally:
        stopping.cancel()
        await asyncio.wait((stopping,))


async def _pass_on(stop: asyncio.Event, to: threading.Event) -> None:
    await stop.wait()
    to.set()
