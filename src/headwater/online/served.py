"""Served lists on their way to the log: buffered, batched, counted when lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import structlog

from headwater.breaker import jittered
from headwater.log.commands import Appended, ServedEntry
from headwater.log.protocol import RefusedError
from headwater.online.metrics import Metrics
from headwater.schema.errors import UnavailableError

log = structlog.get_logger()

MAX_ENTRIES = 16_384
MAX_BYTES = 64 * 1024 * 1024
BATCH = 512
GATHER_S = 0.05
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class ServedAppender(Protocol):
    """The one thing this needs of a writer client."""

    async def append_served(self, entries: Sequence[ServedEntry]) -> Appended: ...


class ServedLog:
    """A bounded buffer in front of the writer.

    A batch whose acknowledgement did not come is sent again, so a list may be recorded twice: readers tell
    by its request id. When the buffer is full the oldest lists go, and are counted.
    """

    def __init__(self, writer: ServedAppender, metrics: Metrics, *, max_entries: int = MAX_ENTRIES) -> None:
        self._writer = writer
        self._metrics = metrics
        self._max_entries = max_entries
        self._entries: deque[ServedEntry] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._lost_since_log = 0

    def add(self, entry: ServedEntry) -> None:
        """Queue a list; never waits."""
        self._entries.append(entry)
        self._bytes += len(entry.payload)
        while len(self._entries) > self._max_entries or self._bytes > MAX_BYTES:
            self._drop(1)
        self._wake.set()

    async def run(self) -> None:
        """Append what is queued until cancelled."""
        pause = _FIRST_PAUSE_S
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            while self._entries:
                if await self._append():
                    pause = _FIRST_PAUSE_S
                else:
                    await asyncio.sleep(jittered(pause))
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
            self._metrics.served_waiting.set(0)

    async def flush(self, timeout_s: float) -> None:
        """Append what is left, at shutdown; what cannot be appended in time is counted as lost."""
        with contextlib.suppress(TimeoutError):  # what is left then is counted below
            async with asyncio.timeout(timeout_s):
                while self._entries:
                    if not await self._append():
                        await asyncio.sleep(_FIRST_PAUSE_S)
        if self._entries:
            self._drop(len(self._entries))
        self._report()

    async def _append(self) -> bool:
        batch = [self._entries.popleft() for _ in range(min(BATCH, len(self._entries)))]
        self._metrics.served_waiting.set(len(self._entries) + len(batch))
        try:
            await self._writer.append_served(batch)
        except RefusedError as error:
            log.error("served_refused", error=str(error), lists=len(batch))
            self._bytes -= sum(len(entry.payload) for entry in batch)
            self._metrics.served_lost.inc(len(batch))
            return True
        except UnavailableError as error:
            log.warning("served_waits_for_writer", error=str(error), lists=len(self._entries) + len(batch))
            self._entries.extendleft(reversed(batch))
            return False
        except asyncio.CancelledError:
            self._entries.extendleft(reversed(batch))
            raise
        self._bytes -= sum(len(entry.payload) for entry in batch)
        self._metrics.served_logged.inc(len(batch))
        self._report()
        return True

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._bytes -= len(self._entries.popleft().payload)
        self._metrics.served_lost.inc(count)
        self._lost_since_log += count

    def _report(self) -> None:
        if self._lost_since_log:
            log.error("served_lost", lists=self._lost_since_log)
            self._lost_since_log = 0
