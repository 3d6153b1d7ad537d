"""What a process needs that takes things in: the writer it hands them to, and the log's dictionaries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from headwater.features.plan import Plan
from headwater.log.client import WriterClient
from headwater.log.lmdb import LmdbLog
from headwater.online.access import Access
from headwater.online.answering import WriterAnswers
from headwater.online.metrics import Metrics
from headwater.online.roles import Role
from headwater.online.traces import Traces
from headwater.prometheus import FLUSH_S
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

log = structlog.get_logger()

ACK_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0


class Intake:
    """Everything behind the routes that write. Create it inside a running loop, ``start`` it, ``close`` it."""

    role = Role.INGEST

    def __init__(self, config: Config, plan: Plan, data: Path, log: LmdbLog) -> None:
        self.config = config
        self.plan = plan
        self.data = data
        self.log = log
        self.retiring = False  # another plan is in service: the connections that are left end with their next answer
        self.metrics = Metrics()
        self.traces: Traces | None = None
        self.access = Access(
            data,
            config.limits,
            self.metrics,
            clock=wall_ms,
            timer=time.monotonic,
            origins=config.cors.origins,
            hosts=config.serving.allowed_hosts,
        )
        self.writer = WriterClient(
            data / "run" / "writer.sock", ack_timeout_s=ACK_TIMEOUT_S, connect_timeout_s=CONNECT_TIMEOUT_S
        )
        self._answers = WriterAnswers(self.writer.ping)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow the key file, tell the figures. Requests may come once this returns."""
        self.follow(self.access.run(), self._tell_often())

    def follow(self, *parts: Coroutine[Any, Any, None]) -> None:
        """Run ``parts`` until :meth:`close`; the process must not go on without one of them."""
        for part in parts:
            task = asyncio.create_task(part)
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    async def close(self) -> None:
        """Hand over what is left, then let go of everything."""
        for task in self._tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hand_over()
        self.metrics.flush()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.shut_down)  # it may wait for the collector
        await self._answers.close()
        await self.writer.close()
        self.release()
        if not self.failed.done():
            self.failed.cancel()

    async def hand_over(self) -> None:
        """Give the writer what it has not got yet."""

    def release(self) -> None:
        """Close the stores."""
        self.log.close()

    async def why_not_ready(self, *, waiting: bool = True) -> Sequence[str]:
        """Reasons not to send requests here; empty when there are none. Not ``waiting`` for a writer that hung a moment ago."""
        problem = await (self._answers.problem() if waiting else self._answers.known_problem())
        return [problem] if problem else []

    def health(self) -> dict[str, Any]:
        """What ``/healthz`` says beside that the process is alive."""
        return {}

    def expose_metrics(self) -> bytes:
        """The text for Prometheus."""
        self.tell()
        return self.metrics.expose()

    def tell(self) -> None:
        """Bring the figures to where every process can show them."""
        self.metrics.flush()

    async def _tell_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                self.tell()
            except HeadwaterError as error:  # figures are no reason to end a worker that answers
                log.warning("figures_not_told", reason=str(error))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A background task that ends has failed: the worker must not go on without it."""
        if not task.cancelled():
            self._fail(task.exception() or RuntimeError("A background task of the worker returned"))

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)
