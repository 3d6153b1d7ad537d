"""Those who hand things to the writer process: an asyncio client and a blocking one."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Self, cast

from headwater.breaker import Breaker, RetryBudget, jittered
from headwater.log.commands import Appended, AsyncCommands, Command, Commands
from headwater.log.frames import (
    OFFSET,
    FrameError,
    Frames,
    Outcome,
    Subscribe,
    appended,
    check_socket_path,
    decode_reply,
    encode_request,
)
from headwater.schema.errors import UnavailableError

ACK_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
_FIRST_REST_S, _LONGEST_REST_S = 0.25, 2.0  # how long a writer that did not answer is left alone
_READ = 64 * 1024


class _Link(asyncio.Protocol):
    """One connection of a :class:`WriterClient` and the requests that are under way on it."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._number = 0
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._room.set()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(UnavailableError("The writer went away before it answered; try again"))

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                reply = decode_reply(body)
                future = self._waiting.pop(reply.number, None)
                if future is not None and not future.done():
                    future.set_result(reply.outcome)
        except FrameError:
            self.close()  # everyone who waits learns of it in connection_lost

    async def request(self, command: Command) -> Outcome:
        await self._room.wait()
        if self._transport is None or self._transport.is_closing():
            raise UnavailableError("The writer went away; try again")
        self._number += 1
        number = self._number
        frame = encode_request(number, command)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._transport.write(frame)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class WriterClient(AsyncCommands):
    """Asks the writer behind the Unix socket ``path``; any number of requests may be under way at once.

    Connects when it is first used and again after the writer was restarted. ``UnavailableError`` means that
    no acknowledgement came: the command may or may not have happened. Trying again is safe for everything but
    events without an ``event_id``, which might be recorded twice; so nothing is sent twice here. When an acknowledgement
    does not come in time, ``breaker`` opens: commands fail at once, but for one now and then that tries the writer.
    One that is away is waited for (``connect_timeout_s``, all who ask together), but not by :meth:`ping`.
    """

    def __init__(
        self, path: Path, *, ack_timeout_s: float = ACK_TIMEOUT_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._path = check_socket_path(path)
        self._ack_timeout_s = ack_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self.breaker, self.budget = Breaker(_FIRST_REST_S, _LONGEST_REST_S), RetryBudget()

    async def commit(self, command: Command) -> Appended:
        tries = self.breaker.is_open and self.breaker.trial()
        if self.breaker.is_open and not tries:
            raise UnavailableError("The writer does not answer; it is tried again in a moment")
        self.budget.call()
        try:
            link = self._link
            if link is None or not link.is_open:
                link = await self._connect()
            async with asyncio.timeout(self._ack_timeout_s):
                outcome = await link.request(command)
        except TimeoutError as error:
            self.breaker.failed()
            raise UnavailableError(f"The writer did not answer within {self._ack_timeout_s:g} s; try again") from error
        except BaseException:  # the trial must not stay open, however it ends
            if tries:
                self.breaker.failed()
            raise
        if self.breaker.is_open:
            self.breaker.succeeded()
        return appended(outcome)

    async def ping(self) -> Appended:
        """Where the log ends. A writer that is not there is not waited for: ``UnavailableError`` at once."""
        if self._link is None or not self._link.is_open:
            try:
                await self._dial()
            except OSError as error:
                raise _not_there(self._path, error) from error
        return await super().ping()

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_timeout_s  # for all who wait together, not for each after the other
        async with self._connecting:
            pause = _FIRST_PAUSE_S
            while True:
                try:
                    return await self._dial()
                except OSError as error:
                    if loop.time() + pause > deadline:
                        raise _not_there(self._path, error) from error
                await asyncio.sleep(jittered(pause))
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _dial(self) -> _Link:
        """The connection, made now if there is none. Raises OSError: the writer is not there."""
        if self._closed:
            raise UnavailableError("This client is closed")
        if self._link is not None and self._link.is_open:
            return self._link
        _, made = await asyncio.get_running_loop().create_unix_connection(_Link, self._path)
        if self._link is not None and self._link.is_open:  # a ping and a command connected in the same moment
            made.close()
            return self._link
        self._link = made
        return made

    async def follow(self) -> AsyncGenerator[int, None]:
        """The log's end now and after each commit, newest only, on a connection of its own; reconnects for ever."""
        newest, pause = -1, _FIRST_PAUSE_S
        while not self._closed:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:  # the writer is not there (yet): wait for it
                await asyncio.sleep(jittered(pause))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            try:
                writer.write(encode_request(0, Subscribe()))
                rest = b""
                while data := await reader.read(_READ):
                    offset, rest = _newest(rest + data)
                    if offset is not None and offset > newest:
                        newest = offset
                        yield newest
            except ConnectionError:
                continue
            finally:
                writer.close()
            await asyncio.sleep(_FIRST_PAUSE_S)

    async def close(self) -> None:
        """Drop the connection; requests under way fail."""
        self._closed = True
        if self._link is not None:
            self._link.close()
            await asyncio.sleep(0)  # let connection_lost run

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class SyncWriterClient(Commands):
    """The blocking client, one request at a time; any thread may use it. Errors as with :class:`WriterClient`."""

    def __init__(
        self, path: Path, *, ack_timeout_s: float = ACK_TIMEOUT_S, connect_timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._path = check_socket_path(path)
        self._ack_timeout_s = ack_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._socket: socket.socket | None = None
        self._frames = Frames()
        self._number = 0
        self._lock = threading.Lock()

    def commit(self, command: Command) -> Appended:
        with self._lock:
            self._number += 1
            frame = encode_request(self._number, command)
            if self._socket is None:
                self._socket = self._connect(self._ack_timeout_s)
                self._frames = Frames()
            try:
                self._socket.sendall(frame)
                outcome = self._receive(self._socket, self._number)
            except (OSError, FrameError) as error:
                self._disconnect()
                raise UnavailableError("The writer went away before it answered; try again") from error
        return appended(outcome)

    def _connect(self, timeout_s: float | None) -> socket.socket:
        deadline = time.monotonic() + self._connect_timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connect(self._path)
            except OSError as error:
                made.close()
                if time.monotonic() + pause > deadline:
                    raise _not_there(self._path, error) from error
            else:
                made.settimeout(timeout_s)
                return made
            time.sleep(jittered(pause))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _receive(self, connection: socket.socket, number: int) -> Outcome:
        while True:
            data = connection.recv(_READ)
            if not data:
                raise ConnectionResetError("closed by the writer")
            for body in self._frames.feed(data):
                reply = decode_reply(body)
                if reply.number == number:
                    return reply.outcome

    def follow(self) -> Generator[int, None, None]:
        """The log's end now and after each commit, newest only; ends when the writer goes away."""
        connection = self._connect(None)
        with connection:
            connection.sendall(encode_request(0, Subscribe()))
            rest, newest = b"", -1
            while data := connection.recv(_READ):
                offset, rest = _newest(rest + data)
                if offset is not None and offset > newest:
                    newest = offset
                    yield newest

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Drop the connection."""
        with self._lock:
            self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _newest(data: bytes) -> tuple[int | None, bytes]:
    """The last whole offset in ``data`` and the bytes behind it."""
    whole = len(data) // OFFSET.size * OFFSET.size
    if whole == 0:
        return None, data
    return int(OFFSET.unpack_from(data, whole - OFFSET.size)[0]), data[whole:]


def _not_there(path: str, error: OSError) -> UnavailableError:
    return UnavailableError(f"No writer answers at {path} ({error.strerror or error}); start it and try again")
