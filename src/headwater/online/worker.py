"""The api process: one event loop, one Granian server on a listening socket that it was handed."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from litestar.types import ASGIApp

from headwater.features.plan import compile_plan
from headwater.online.app import create_app
from headwater.online.service import Service
from headwater.online.stores import wait_for_stores
from headwater.schema.config import Config

log = structlog.get_logger()

BACKLOG = 1024


class EmbeddedServer(Server):
    """Granian inside our own loop, on a socket that the supervisor keeps open.

    The socket outlives this process: who connects while a killed worker is replaced waits in its queue
    and is not turned away. (Granian's own process manager would bind anew.)
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            log_enabled=False,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        self._ssp = None
        holder: Any = SocketHolder  # its stub does not know the arguments
        self._shd = holder(os.dup(self._listener.fileno()), False, BACKLOG)  # Granian closes the one it gets


async def run_worker(
    config: Config, data: Path, listener: socket.socket, *, clock: Callable[[], int], worker: int, stop: asyncio.Event
) -> None:
    """Answer requests that come in on ``listener`` until ``stop`` is set; ``worker`` counts from 0.

    Raises:
        StateReplacedError: the fold started state anew; a new process has to read it.
    """
    plan = compile_plan(config)
    stores = await wait_for_stores(data, plan, stop)
    if stores is None:
        return
    service = Service(config, plan, data, stores, clock=clock, seed=config.ranker.seed + worker)
    try:
        service.start()
        server = EmbeddedServer(create_app(service), listener)
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        serving = asyncio.create_task(server.serve())
        stopping = asyncio.create_task(stop.wait())
        model = service.recommender.model
        log.info("worker_ready", worker=worker, plan=plan.hash, model=model.version if model is not None else None)
        ends: list[asyncio.Future[Any]] = [service.failed, serving, stopping]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            server.stop()  # type: ignore[no-untyped-call]
            await serving
        for ended in (service.failed, serving):
            if ended.done():
                ended.result()
        log.info("worker_stopped", worker=worker)
    finally:
        await service.close()
