"""The api process: one event loop, one Granian server on a listening socket that it was handed.

When another plan comes into service, workers of both are there for a moment. The new one does all that takes time,
says that it is ready and waits; then the old one leaves the queue of connections, answers what it has with
``connection: close``, and goes. No request is cut off.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server
from litestar.types import ASGIApp

from headwater.features.pinned import expected_plan
from headwater.log.lmdb import LmdbLog
from headwater.online.app import create_app
from headwater.online.intake import Intake
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.online.stores import open_stores, wait_for
from headwater.online.traces import open_traces
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

log = structlog.get_logger()

BACKLOG = 1024
MAX_CONNECTIONS = 16_384
"""Open at the same time; who comes later waits in the backlog. Idle and slow ones count, so it is far above what is at work."""
SWITCH_INTERVAL_S = 0.0005
"""How long the server's thread, which reads requests, waits for the interpreter while the loop computes; Python's
default of 5 ms would be paid for each request."""
LINGER_S = 2.0  # a retired worker answers on the connections it has for so long, so that their next request ends them
HOLD_POLL_S = 0.02


class EmbeddedServer(Server):
    """Granian inside our own loop, on a socket that the supervisor keeps open.

    The socket outlives this process: who connects while a killed worker is replaced waits in its queue
    and is not turned away. (Granian's own process manager would bind anew.)
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, header_timeout_ms: int) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=MAX_CONNECTIONS,
            http1_settings=HTTP1Settings(header_read_timeout=header_timeout_ms),
            log_enabled=False,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        self._ssp = None
        holder: Any = SocketHolder  # its stub does not know the arguments
        self._shd = holder(os.dup(self._listener.fileno()), False, BACKLOG)  # Granian closes the one it gets

    def leave_queue(self) -> None:
        """Take no more connections from the listening socket; those that are there go on.

        The socket itself must stay as it is, for others accept from it. So every descriptor of this process for it is
        made one of a socket that nobody can connect to: accepting there finds nobody, for ever. (``stop`` would
        also end connections on which a request is just arriving.)
        """
        inode = os.fstat(self._listener.fileno()).st_ino
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.setblocking(False)
            nobody.bind("")  # a name of the kernel's choice
            nobody.listen(1)
            for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
                if number != self._listener.fileno() and _inode(number) == inode:
                    os.dup2(nobody.fileno(), number, inheritable=False)


def _inode(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:  # the one that listed the folder
        return None


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
        header_timeout_ms = parse_duration(config.overload.header_timeout)
        seen = None if console is None or serving is None else console(serving)
        service.traces = open_traces(config, role.value, random.random)
        server = EmbeddedServer(create_app(service, seen, service.traces), listener, header_timeout_ms)
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


async def _serve(service: Intake, server: EmbeddedServer, orders: Orders, stopping: asyncio.Task[bool]) -> None:
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
        server.stop()  # type: ignore[no-untyped-call]
        await serving
    for ended in (service.failed, serving):
        if ended.done():
            ended.result()
