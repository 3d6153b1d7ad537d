"""Keeps the processes of a role running: writer, fold, the api workers, whoever loads tables, the learner.

It holds the listening sockets, so no connection is refused while a worker is replaced; it starts a dead
process again at once, and slower when it keeps dying; it takes them down in the order in which data flows.
Children die with it, whatever kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import structlog

from headwater.features.paths import state_dirs
from headwater.online.roles import Role, home
from headwater.schema.errors import ConfigurationError, UnavailableError

log = structlog.get_logger()

EXIT_INPUT = 2  # a child that ends with this would do the same again
DRAIN_S = 10.0
POLL_S = 0.05
QUICK_RESTARTS = 3
STEADY_S = 2.0  # a process that lived this long has started well
LONGEST_PAUSE_S = 5.0
BACKLOG = 1024
LOCK_S = 0.2

_PR_SET_PDEATHSIG = 1
PARENT_VARIABLE = "HEADWATER_SUPERVISOR"
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def die_with_supervisor() -> None:
    """Have the kernel kill this process when its supervisor dies (does nothing without one)."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it died before we asked
        sys.exit(0)
    for number in (signal.SIGINT, signal.SIGHUP):  # those of a terminal go to everyone; the supervisor decides
        signal.signal(number, signal.SIG_IGN)


def has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """``count`` listening sockets on one address; the kernel spreads connections over them. Port 0: any free one.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        with socket.socket(family) as probe:  # sharing would let two servers have one port without a word
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
            port = int(probe.getsockname()[1])
        for _ in range(count):
            listener = socket.socket(family)
            made.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in made:
            listener.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Stop what uses it, or choose another --port"
        ) from error
    return made


# A worker is one core. BLAS would answer a single matrix-vector product with a pool of threads that go on spinning
# and take the other processes' cores: 117% of a core at 50 lists/s, 23% with one thread.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# What a request reads lies all over its worker's memory, and much of where it lies is forgotten until the next one comes: with pages
# of 2 MiB instead of 4 KiB a list takes 3 to 4% less time and a worker 1% more memory. Only glibc reads it.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def pause_after(failures: int) -> float:
    """Seconds until a process is started again that died ``failures`` times in a row, each time soon after its start."""
    if failures <= QUICK_RESTARTS:
        return 0.0
    return min(LONGEST_PAUSE_S, 0.1 * (1 << min(failures - QUICK_RESTARTS, 10)))  # 2^1024 would be no float any more


class ServeLock:
    """One supervisor at ``path``; ``doing`` says what it does."""

    def __init__(self, path: Path, doing: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < until:  # `serving_process` holds it for an instant
                    time.sleep(POLL_S)
                    continue
                holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "another process"
                os.close(self._handle)
                raise ConfigurationError(f"Process {holder} {doing} already; stop it first") from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another one serve."""
        os.close(self._handle)


def serving_process(data: Path, role: Role = Role.ALL) -> int | None:
    """The process id of the supervisor that has ``role`` on ``data`` now; None: there is none."""
    try:
        handle = os.open(home(data, role) / "serve.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        while not (said := os.pread(handle, 32, 0)):  # it has the lock and has not said its number yet
            time.sleep(POLL_S)
        return int(said)
    finally:
        os.close(handle)
    return None


@dataclass(slots=True)
class Child:
    """One process to keep running: ``command`` are its arguments.

    ``listener`` is handed to it, and with it a socket of its own on which it says ``ready`` and the hash of its plan.
    One that is to ``hold`` answers nobody before :meth:`Supervisor.release`. ``retired``: it is not started again. ``vital`` False: a start
    does without it, if it cannot start.
    """

    part: str
    command: Sequence[str]
    listener: socket.socket | None = None
    hold: bool = False
    vital: bool = True
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    code: int | None = None
    plan: str | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    retired: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)
    control: socket.socket | None = field(default=None, repr=False)


class Supervisor:
    """Runs ``children`` until asked to stop. ``data`` is the directory they share, ``address`` where they answer (None: none of them
    does), ``own`` the folder where their metrics go (None: ``run`` in ``data``).

    ``order`` is how they are taken down: those who feed the next one first.
    """

    order = ("monitor", "api", "tables", "learner", "writer", "fold")

    def __init__(
        self, children: Sequence[Child], data: Path, address: tuple[str, int] | None, own: Path | None = None
    ) -> None:
        self.children = list(children)
        self._data = data
        self._address = address
        self._stop = asyncio.Event()
        self._ready = False
        self._fatal: str | None = None
        self._metrics = (home(data, Role.ALL) if own is None else own) / "metrics"

    def stop(self) -> None:
        """Take everything down, politely."""
        self._stop.set()

    async def run(
        self, on_ready: Callable[[], object], watch: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """Start all, tell ``on_ready`` when they answer, keep them running until :meth:`stop`; ``watch`` runs meanwhile.

        Raises:
            UnavailableError: a process gave up before everything was up; its own message is in the log.
        """
        self._metrics.mkdir(parents=True, exist_ok=True)
        for left in self._metrics.glob("*.db"):
            left.unlink()
        watching: asyncio.Task[None] | None = None
        for child in self.children:
            child.keeper = asyncio.create_task(self._keep(child))
        try:
            if await self._until_ready():
                self._ready = True
                on_ready()
                if watch is not None:
                    watching = asyncio.create_task(watch())
                    watching.add_done_callback(_watch_ended)
                await self._stop.wait()
        finally:
            self._stop.set()
            if watching is not None:
                watching.cancel()
                await asyncio.wait((watching,))
            await self._take_down()
        if self._fatal is not None:
            raise UnavailableError(self._fatal)

    def add(self, children: Sequence[Child]) -> None:
        """Start these too and keep them running."""
        for child in children:
            self.children.append(child)
            child.keeper = asyncio.create_task(self._keep(child))

    def release(self, child: Child) -> None:
        """Let a child that was told to hold answer requests."""
        child.hold = False
        if child.control is not None:
            with contextlib.suppress(OSError):  # it died just now; the next one is not told to hold
                child.control.send(b"go\n")

    async def restart(self, child: Child, command: Sequence[str]) -> None:
        """Have a child end politely and start again, with ``command``; returns when the new process runs."""
        starts, child.command = child.starts, command
        if child.process is not None and child.process.returncode is None:
            child.process.terminate()
        while child.starts == starts and not self._stop.is_set():
            await asyncio.sleep(POLL_S)

    async def retire(self, children: Sequence[Child], number: signal.Signals, patience_s: float = DRAIN_S) -> None:
        """End these for good: with signal ``number``, and those that are still there after ``patience_s`` the hard way."""
        for child in children:
            child.retired.set()
            if child.process is not None and child.process.returncode is None:
                child.process.send_signal(number)
        keepers = [child.keeper for child in children if child.keeper is not None]
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=patience_s)
            if late:
                log.warning("process_killed", child=children[0].part, after_s=patience_s)
                for child in children:
                    if child.process is not None and child.process.returncode is None:
                        child.process.kill()
                await asyncio.wait(late)
        self.children = [child for child in self.children if child not in children]

    async def _keep(self, child: Child) -> None:
        failures = 0
        while not (self._stop.is_set() or child.retired.is_set()):
            began = time.monotonic()
            try:
                code, pid = await self._run_once(child)
            except OSError as error:  # the machine has no memory or no number for one more process; it may have soon
                failures += 1
                log.error("process_not_started", child=child.part, reason=str(error), failures=failures)
            else:
                if self._stop.is_set():
                    return
                self._clear_up(child, pid)
                if child.retired.is_set():
                    log.info("process_retired", child=child.part, child_pid=pid, code=code)
                    return
                failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
                log.warning("process_died", child=child.part, child_pid=pid, code=code, failures=failures)
                if code == EXIT_INPUT and (
                    (child.vital and not self._ready) or self.children == [child]
                ):  # alone, it keeps nobody up
                    self._fatal = f"The {child.part} process could not start; its message is above"
                    self._stop.set()
                    return
            if pause := pause_after(failures):
                log.warning("process_keeps_dying", child=child.part, next_start_s=pause)
                try:
                    await asyncio.wait_for(self._stop.wait(), pause)
                except TimeoutError:
                    continue

    async def _run_once(self, child: Child) -> tuple[int, int]:
        environment = {
            **ONE_THREAD,
            **LARGE_PAGES,
            **os.environ,
            PARENT_VARIABLE: str(os.getpid()),
            METRICS_VARIABLE: str(self._metrics),
        }
        command, handed = list(child.command), list[int]()
        theirs: socket.socket | None = None
        if child.listener is not None:
            child.control, theirs = socket.socketpair()
            child.control.setblocking(False)
            handed += [child.listener.fileno(), theirs.fileno()]
            command += ["--listen-fd", str(handed[0]), "--control-fd", str(handed[1])]
            command += ["--hold"] if child.hold else []
        try:
            child.process = await asyncio.create_subprocess_exec(
                *command, env=environment, pass_fds=handed, stdin=asyncio.subprocess.DEVNULL
            )
        except OSError:
            if child.control is not None:
                child.control.close()
                child.control = None
            raise
        finally:
            if theirs is not None:
                theirs.close()
        child.starts += 1
        log.info("process_started", child=child.part, child_pid=child.process.pid, start=child.starts)
        listening = None if child.control is None else asyncio.create_task(_hear(child, child.control))
        child.code = await child.process.wait()
        child.ready.clear()
        if listening is not None and child.control is not None:
            listening.cancel()
            await asyncio.wait((listening,))
            child.control.close()
            child.control = None
        return child.code, child.process.pid

    def _clear_up(self, child: Child, pid: int) -> None:
        """Free what a killed process held: reader slots keep old pages alive, live gauges keep old values."""
        for stale in self._metrics.glob(f"gauge_live*_{pid}.db"):
            stale.unlink(missing_ok=True)
        for path in (self._data / "log", self._data / "identity", *state_dirs(self._data)):
            if not (path / "data.mdb").exists():
                continue
            try:
                with lmdb.open(str(path), readonly=True, create=False, max_dbs=16) as environment:
                    freed = environment.reader_check()
            except lmdb.Error as error:  # it may be in the middle of being made anew
                log.info("readers_not_checked", store=path.name, reason=str(error))
                continue
            if freed:
                log.info("stale_readers_freed", store=path.name, readers=freed, child=child.part)

    async def _until_ready(self) -> bool:
        """Wait until ``/readyz`` says yes (with no api child: until all were started); False when stopped before."""
        while not self._stop.is_set():
            if self._address is None or await _is_ready(*self._address):
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _take_down(self) -> None:
        for part in self.order:
            running = [child for child in self.children if child.part == part]
            for child in running:
                if child.process is not None and child.process.returncode is None:
                    child.process.terminate()
            keepers = [child.keeper for child in running if child.keeper is not None]
            if not keepers:
                continue
            _, late = await asyncio.wait(keepers, timeout=DRAIN_S)
            if late:
                log.warning("process_killed", child=part, after_s=DRAIN_S)
                for child in running:
                    if child.process is not None and child.process.returncode is None:
                        child.process.kill()
                await asyncio.wait(late)
        for child in self.children:
            if child.listener is not None:
                child.listener.close()


async def _hear(child: Child, control: socket.socket) -> None:
    """Wait until the child says that it is ready, and with which plan."""
    loop, said = asyncio.get_running_loop(), b""
    while not said.endswith(b"\n"):
        got = await loop.sock_recv(control, 256)
        if not got:
            return
        said += got
    child.plan = said.decode("ascii", "replace").split()[-1]
    child.ready.set()


def _watch_ended(task: asyncio.Task[None]) -> None:
    """Serving goes on without it, and somebody has to know."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("flip_watch_failed", error=repr(error), hint="start the server again to change plans")


async def _is_ready(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split()[1:2] == [b"200"]
