"""The writer's door: a Unix socket, commands gathered into groups, answers after the group is durable.

While one group is on its way to disk the next one gathers, so a group is as large as the load makes
it. A commit that fails stops the process: what was not acknowledged is not there, what was is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog

from headwater.log.client import SyncWriterClient, WriterClient
from headwater.log.commands import Appended, Command
from headwater.log.frames import (
    OFFSET,
    Failed,
    FrameError,
    Frames,
    Outcome,
    Refused,
    Subscribe,
    check_socket_path,
    decode_request,
    encode_reply,
)
from headwater.log.metrics import WriterMetrics
from headwater.log.protocol import RefusedError
from headwater.log.space import FullError
from headwater.log.writer import LogWriter
from headwater.log.writer import Outcome as Done

__all__ = ["EXIT_COMMIT_FAILED", "SyncWriterClient", "WriterClient", "WriterServer", "serve_writer"]

log = structlog.get_logger()

EXIT_COMMIT_FAILED = 70

MAX_GROUP_COMMANDS = 4096
MAX_GROUP_BYTES = 32 * 1024 * 1024
MAX_QUEUED_BYTES = 128 * 1024 * 1024
SUBSCRIBER_BUFFER = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Waiting:
    connection: _Connection
    number: int
    command: Command
    size: int
    came_s: float


class WriterServer:
    """Serves one :class:`LogWriter`. Create it, ``start`` it inside a running loop, ``stop`` it.

    ``exit_process`` is what a failed commit calls with 70; tests pass their own.
    """

    def __init__(self, writer: LogWriter, *, exit_process: Callable[[int], object] = os._exit) -> None:
        self._writer = writer
        self.metrics = WriterMetrics()
        self._exit_process = exit_process
        self._pending: deque[_Waiting] = deque()
        self._in_flight: list[_Waiting] = []
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._connections: set[_Connection] = set()
        self._subscribers: set[_Connection] = set()
        self._paused: set[_Connection] = set()
        self._pushed = -1
        self._server: asyncio.Server | None = None
        self._committer: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="commit")

    async def start(self, path: Path) -> None:
        """Listen on ``path`` (mode 0600). The writer's lock is held, so a socket that is there is a dead one's."""
        name = check_socket_path(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        # the first commit must not wait for a kernel to be loaded
        await asyncio.get_running_loop().run_in_executor(self._executor, self._writer.warm)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), path=name)
        finally:
            os.umask(before)
        self._committer = asyncio.create_task(self._commit_forever())
        log.info("writer_listening", socket=name, last_offset=self._writer.last_offset)

    async def stop(self) -> None:
        """Take no more requests, commit what is queued, close. Raises what the committer raised."""
        if self._server is not None:
            self._server.close()
        self._stopping = True
        self._wake.set()
        try:
            if self._committer is not None:
                await self._committer
        finally:
            for connection in list(self._connections):
                connection.close()
            self._executor.shutdown()

    async def wait_failed(self) -> None:
        """Return (or raise) when the committer ends."""
        if self._committer is not None:
            await asyncio.shield(self._committer)

    def submit(self, connection: _Connection, number: int, command: Command, size: int) -> None:
        """Queue a command; its answer is sent when it is durable."""
        if self._stopping:
            connection.send(encode_reply(number, Failed()))
            return
        self._pending.append(_Waiting(connection, number, command, size, time.monotonic()))
        self._queued_bytes += size
        if self._queued_bytes > MAX_QUEUED_BYTES and connection not in self._paused:
            self._paused.add(connection)
            connection.pause()
        self._wake.set()

    def subscribe(self, connection: _Connection) -> None:
        """Send the log's end to ``connection`` now and after each commit."""
        self._subscribers.add(connection)
        connection.push(self._writer.last_offset)

    def connected(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection; what it asked for is still committed."""
        self._connections.discard(connection)
        self._subscribers.discard(connection)
        self._paused.discard(connection)

    async def _commit_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                self._in_flight = self._gather()
                began_s = time.monotonic()
                try:
                    outcomes = await loop.run_in_executor(
                        self._executor, self._writer.commit_group, [waiting.command for waiting in self._in_flight]
                    )
                except asyncio.CancelledError:
                    raise  # the loop goes down; nothing of this group is acknowledged
                except BaseException as error:
                    self._fail_stop(error)
                    raise
                self._count(outcomes, began_s)
                self._answer(outcomes)
            if self._stopping:
                return

    def _gather(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._pending and len(group) < MAX_GROUP_COMMANDS and size < MAX_GROUP_BYTES:
            waiting = self._pending.popleft()
            group.append(waiting)
            size += waiting.size
        self._queued_bytes -= size
        if self._paused and self._queued_bytes <= MAX_QUEUED_BYTES:
            paused, self._paused = self._paused, set()
            for connection in paused:
                connection.resume()
        return group

    def _count(self, outcomes: Sequence[Done], began_s: float) -> None:
        now_s = time.monotonic()
        self.metrics.commits.observe(now_s - began_s)
        self.metrics.waits.observe(now_s - self._in_flight[0].came_s)  # they wait in the order in which they came
        self.metrics.offset.set(self._writer.last_offset)
        if full := sum(isinstance(outcome, FullError) for outcome in outcomes):
            self.metrics.full.inc(full)

    def _answer(self, outcomes: Sequence[Done]) -> None:
        for waiting, outcome in zip(self._in_flight, outcomes, strict=True):
            waiting.connection.send(encode_reply(waiting.number, _answer_of(outcome)))
        self._in_flight = []
        offset = self._writer.last_offset
        if offset != self._pushed:
            self._pushed = offset
            for connection in self._subscribers:
                connection.push(offset)

    def _fail_stop(self, error: BaseException) -> None:
        """Nothing of this group may be acknowledged, and nothing may be written after it."""
        self._stopping = True
        log.critical("commit_failed", error=repr(error), commands=len(self._in_flight), exit_code=EXIT_COMMIT_FAILED)
        for waiting in (*self._in_flight, *self._pending):
            waiting.connection.send(encode_reply(waiting.number, Failed()))
        self._in_flight = []
        self._pending.clear()
        self._exit_process(EXIT_COMMIT_FAILED)


def _answer_of(outcome: Done) -> Outcome:
    match outcome:
        case Appended():
            return outcome
        case RefusedError():
            return Refused(str(outcome))
        case FullError():
            return Failed(str(outcome))


class _Connection(asyncio.Protocol):
    def __init__(self, server: WriterServer) -> None:
        self._server = server
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._subscribed = False
        self._blocked = False  # the other side does not read
        self._held = False  # the server's queue is full
        self._unsent: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=SUBSCRIBER_BUFFER)
        self._server.connected(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._receive(body)
        except FrameError as error:
            log.warning("writer_bad_frame", error=str(error))
            self.close()

    def _receive(self, body: bytes) -> None:
        if self._subscribed:
            raise FrameError("A subscriber's connection carries no requests")
        number, command = decode_request(body)
        match command:
            case Refused():
                self.send(encode_reply(number, command))
            case Subscribe():
                self._subscribed = True
                self._server.subscribe(self)
            case _:
                self._server.submit(self, number, command, len(body))

    def send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def push(self, offset: int) -> None:
        """Send an offset; one who reads slowly gets the newest when there is room again."""
        if self._blocked:
            self._unsent = offset
        else:
            self.send(OFFSET.pack(offset))

    def pause_writing(self) -> None:
        self._blocked = True
        self._update_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        self._update_reading()
        if self._unsent is not None:
            offset, self._unsent = self._unsent, None
            self.push(offset)

    def pause(self) -> None:
        self._held = True
        self._update_reading()

    def resume(self) -> None:
        self._held = False
        self._update_reading()

    def _update_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._held or self._blocked:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def serve_writer(
    writer: LogWriter,
    path: Path,
    *,
    stop: asyncio.Event,
    exit_process: Callable[[int], object] = os._exit,
    on_ready: Callable[[], object] | None = None,
) -> None:
    """Serve ``writer`` on the Unix socket ``path`` until ``stop`` is set, then commit what is queued and return.

    A failed commit answers everyone with a failure and calls ``exit_process(70)``.
    """
    server = WriterServer(writer, exit_process=exit_process)
    await server.start(path)
    if on_ready is not None:
        on_ready()
    stopped = asyncio.create_task(stop.wait())
    failed = asyncio.create_task(server.wait_failed())
    try:
        await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        failed.cancel()
        await asyncio.gather(stopped, failed, return_exceptions=True)
        path.unlink(missing_ok=True)
        await server.stop()
