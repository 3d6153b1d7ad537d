"""Served lists, those of shadows, and exposures on their way to the log: buffered, batched, counted when lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog
from prometheus_client import Counter, Gauge

from headwater.breaker import jittered
from headwater.log.commands import Appended, ExposureEntry, ServedEntry
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

E = TypeVar("E", bound=ServedEntry | ExposureEntry)


class ServedAppender(Protocol):
    """The one thing that served lists need of a writer client."""

    async def append_served(self, entries: Sequence[ServedEntry]) -> Appended: ...


class ShadowAppender(Protocol):
    """The one thing that lists of shadows need of a writer client."""

    async def append_shadows(self, entries: Sequence[ServedEntry]) -> Appended: ...


class ExposureAppender(Protocol):
    """The one thing that exposures need of a writer client."""

    async def append_exposures(self, entries: Sequence[ExposureEntry]) -> Appended: ...


class _Figures(NamedTuple):
    logged: Counter
    lost: Counter
    waiting: Gauge


class Outgoing(Generic[E]):
    """A bounded buffer in front of the writer. ``what`` is what log lines call the entries.

    A batch whose acknowledgement did not come is sent again, so an entry may be recorded twice: readers tell
    by its request id. When the buffer is full the oldest entries go, and are counted.
    """

    def __init__(
        self, append: Callable[[Sequence[E]], Awaitable[Appended]], figures: _Figures, what: str, *, max_entries: int
    ) -> None:
        self._send = append
        self._figures = figures
        self._what = what
        self._max_entries = max_entries
        self._entries: deque[E] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._lost_since_log = 0

    def add(self, entry: E) -> None:
        """Queue an entry; never waits."""
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
            self._figures.waiting.set(0)

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
        self._figures.waiting.set(len(self._entries) + len(batch))
        try:
            await self._send(batch)
        except RefusedError as error:
            log.error(f"{self._what}_refused", error=str(error), entries=len(batch))
            self._bytes -= sum(len(entry.payload) for entry in batch)
            self._figures.lost.inc(len(batch))
            return True
        except UnavailableError as error:
            log.warning(f"{self._what}_waits_for_writer", error=str(error), entries=len(self._entries) + len(batch))
            self._entries.extendleft(reversed(batch))
            return False
        except asyncio.CancelledError:
            self._entries.extendleft(reversed(batch))
            raise
        self._bytes -= sum(len(entry.payload) for entry in batch)
        self._figures.logged.inc(len(batch))
        self._report()
        return True

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._bytes -= len(self._entries.popleft().payload)
        self._figures.lost.inc(count)
        self._lost_since_log += count

    def _report(self) -> None:
        if self._lost_since_log:
            log.error(f"{self._what}_lost", entries=self._lost_since_log)
            self._lost_since_log = 0


class ServedLog(Outgoing[ServedEntry]):
    """Lists that were served."""

    def __init__(self, writer: ServedAppender, metrics: Metrics, *, max_entries: int = MAX_ENTRIES) -> None:
        figures = _Figures(metrics.served_logged, metrics.served_lost, metrics.served_waiting)
        super().__init__(writer.append_served, figures, "served", max_entries=max_entries)


class ShadowLog(Outgoing[ServedEntry]):
    """Lists that shadows would have given."""

    def __init__(self, writer: ShadowAppender, metrics: Metrics, *, max_entries: int = MAX_ENTRIES) -> None:
        figures = _Figures(metrics.shadows_logged, metrics.shadows_lost, metrics.shadows_waiting)
        super().__init__(writer.append_shadows, figures, "shadows", max_entries=max_entries)


class ExposureLog(Outgoing[ExposureEntry]):
    """Exposures to experiments."""

    def __init__(self, writer: ExposureAppender, metrics: Metrics, *, max_entries: int = MAX_ENTRIES) -> None:
        figures = _Figures(metrics.exposures_logged, metrics.exposures_lost, metrics.exposures_waiting)
        super().__init__(writer.append_exposures, figures, "exposures", max_entries=max_entries)
