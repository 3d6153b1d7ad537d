"""The api process: one event loop, one HTTP server on a listening socket that it was handed.

When another plan comes into service, workers of both are there for a moment. The new one does all that takes time,
says that it is ready and waits; then the old one leaves the queue of connections, answers what it has with
``connection: close``, and goes. No request is cut off.
"""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from litestar.types import ASGIApp

from headwater.features.pinned import expected_plan
from headwater.log.lmdb import LmdbLog
from headwater.online.app import create_app
from headwater.online.http_server import HttpServer
from headwater.online.intake import Intake
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.online.stores import open_stores, wait_for
from headwater.online.traces import open_traces
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

log = structlog.get_logger()

SWITCH_INTERVAL_S = 0.0005
"""How long the loop waits for the interpreter while another thread computes, such as the one that opens a bundle; Python's
default of 5 ms would be paid each time."""
LINGER_S = 2.0  # a retired worker answers on the connections it has for so long, so that their next request ends them
HOLD_POLL_S = 0.02


@dataclass(slots=True)
class Orders:
    """What the process is told from outside: to end, or to give way to another worker and then end.

    ``control`` is the socket to the supervisor; with ``hold`` it says when requests may be answered.
    """

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    retire: asyncio.Event = field(default_factory=asyncio.Event)
    control: socket.socket | None = None
    hold: bool = False


async def run_worker(
    config: Config,
    data: Path,
    listener: socket.socket,
    *,
    clock: Callable[[], int],
    worker: int,
    orders: Orders,
    plan_hash: str | None = None,
    role: Role = Role.ALL,
    pinned: Path | None = None,
    console: Callable[[Service], ASGIApp] | None = None,
) -> None:
    """Answer the requests of ``role`` that come in on ``listener`` as ordered; ``worker`` counts from 0, ``pinned`` is where
    ``config`` was read. ``console`` makes the console of a worker that recommends.

    Raises:
        ConfigurationError: the plan of ``config`` is not the one with ``plan_hash`` (None: any will do).
        StateReplacedError: the fold started state anew; a new process has to read it.
    """
    plan = expected_plan(config, plan_hash)
    service: Intake
    serving: Service | None = None
    if role is Role.INGEST:
        event_log = await wait_for(lambda: LmdbLog(data / "log", readonly=True), orders.stop)
        if event_log is None:
            return
        service = Intake(config, plan, data, event_log)
    else:
        stores = await wait_for(lambda: open_stores(config, data, plan), orders.stop, far=config.state.store == "redis")
        if stores is None:
            return
        seed = config.ranker.seed + worker
        service = serving = Service(config, plan, data, stores, clock=clock, seed=seed, role=role, pinned=pinned)
    try:
        service.start()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        header_timeout_s = parse_duration(config.overload.header_timeout) / 1e3
        seen = None if console is None or serving is None else console(serving)
        service.traces = open_traces(config, role.value, random.random)
        server = HttpServer(create_app(service, seen, service.traces), listener, header_timeout_s)
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        log.info("worker_ready", worker=worker, **service.health())
        ended: asyncio.Future[None] = service.failed
        stopping = asyncio.create_task(orders.stop.wait())
        releasing = asyncio.create_task(_until_released(service, orders))
        await asyncio.wait((releasing, stopping, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
        if releasing.done() and releasing.result():
            await _serve(service, server, orders, stopping)
        for task in (releasing, stopping):
            task.cancel()
        log.info("worker_stopped", worker=worker)
    finally:
        await service.close()


async def _until_released(service: Intake, orders: Orders) -> bool:
    """Tell the supervisor that all is ready; whether to answer requests now (False: it changed its mind)."""
    if orders.control is None:
        return True
    said = ""
    while orders.hold and (reasons := await service.why_not_ready()):
        if reasons[0] != said:
            said = reasons[0]
            log.info("worker_holds", reasons=reasons)
        await asyncio.sleep(HOLD_POLL_S)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(orders.control, f"ready {service.plan.hash}\n".encode())
    return not orders.hold or bool(await loop.sock_recv(orders.control, 16))


async def _serve(service: Intake, server: HttpServer, orders: Orders, stopping: asyncio.Task[bool]) -> None:
    serving = asyncio.create_task(server.serve())
    retiring = asyncio.create_task(orders.retire.wait())
    ends: list[asyncio.Future[Any]] = [service.failed, serving, stopping]
    await asyncio.wait((*ends, retiring), return_when=asyncio.FIRST_COMPLETED)
    if retiring.done() and not any(end.done() for end in ends):
        server.leave_queue()
        service.retiring = True
        log.info("worker_retires", plan=service.plan.hash)
        await asyncio.wait(ends, timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED)
    retiring.cancel()
    if not serving.done():
        server.stop()
        await serving
    for ended in (service.failed, serving):
        if ended.done():
            ended.result()
