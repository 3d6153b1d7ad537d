"""HTTP/1.1 in the worker's own loop: uvicorn's protocol on a listening socket that others share.

The loop reads, parses and answers; no other thread has a part in a request (why: docs/adr/0021-http-in-the-loop.md). What uvicorn
leaves to a proxy in front is done here: a request's head has to come within a time and a size, a connection on which nothing
begins is closed, and so is one whose body goes on after its answer.
"""

from __future__ import annotations

import asyncio
import math
import socket
from email.utils import formatdate
from typing import Any, cast

from litestar.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headwater.online.admission import WHOLE
from headwater.online.errors import RefusalError

BACKLOG = 1024
MAX_CONNECTIONS = 16_384
"""Open at the same time; who comes later is turned away. Idle and slow ones count, so it is far above what is at work."""
MAX_HEAD = 65_536  # bytes of a request line and its headers
MAX_HELD = 65_536  # bytes of an answer that are sent in one piece
LOOK_S = 0.5  # how often connections are looked at that wait for a request
DRAIN_S = 8.0  # what is being answered when the server stops has so long; the supervisor waits for 10 s


class InOnePiece(asyncio.Transport):
    """``transport``, which gets the head and the body of an answer in one write: each is a call of the system, and wakes the peer.

    What is written goes out when :meth:`flush` is called, in the next turn of the loop, or when it is more than ``MAX_HELD`` bytes.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(bytes(data))
        self._size += len(data)
        if self._size > MAX_HELD:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            data, self._held, self._size = b"".join(self._held), [], 0
            if not self._transport.is_closing():  # else nobody is there any more
                self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._held, self._size = [], 0
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


class Connection(HttpToolsProtocol):
    """One connection. ``waiting_since``: when it began to wait for the head of a request, seconds of the loop; None: it has one."""

    waiting_since: float | None = None
    _head = 0  # bytes of the head that is coming

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._whole = InOnePiece(transport, self.loop)
        super().connection_made(self._whole)
        self.waiting_since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.waiting_since is not None and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD and not self._discards():
                self._refuse(RefusalError(431, f"The head of the request is larger than {MAX_HEAD} bytes"))

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.waiting_since, self._head = None, 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.scope[WHOLE] = True  # type: ignore[literal-required]  # an own key, as ASGI allows

    def on_response_complete(self) -> None:
        self._whole.flush()
        super().on_response_complete()
        if not self.pipeline:
            self.waiting_since, self._head = self.loop.time(), 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(RefusalError(400, msg))

    def _discards(self) -> bool:
        """Whether what comes is the rest of a body that was answered already."""
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's types say
        return cycle is not None and bool(cycle.more_body)

    def _refuse(self, refusal: RefusalError) -> None:
        """Answer what is no request that an application could be asked, and end the connection."""
        body = refusal.body()
        reason = {400: "Bad Request", 431: "Request Header Fields Too Large"}[refusal.status]
        head = (
            f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class HttpServer:
    """Serves ``app`` on ``listener``, which stays open whatever becomes of this server: its queue outlives the process.

    ``header_timeout_s``: so long a connection may wait for the whole head of a request.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, header_timeout_s: float) -> None:
        self._listener, self._timeout_s = listener, header_timeout_s
        self._state = ServerState()
        self._config = Config(
            cast(Any, app), http=Connection, ws="none", lifespan="off", interface="asgi3", access_log=False, log_config=None,
            proxy_headers=False, server_header=False, date_header=False, timeout_keep_alive=math.ceil(header_timeout_s),
        )  # fmt: skip
        self._stopped = asyncio.Event()
        self._accepting: asyncio.Server | None = None

    async def serve(self) -> None:
        """Answer until :meth:`stop`, then finish what was begun."""
        self._config.load()
        loop = asyncio.get_running_loop()
        self._tell_time()
        self._accepting = await loop.create_server(
            lambda: Connection(self._config, self._state, {}, loop), sock=self._listener.dup(), backlog=BACKLOG
        )
        try:
            while not self._stopped.is_set():
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._stopped.wait()
                except TimeoutError:
                    self._tell_time()
                    self._close_waiting(loop.time() - self._timeout_s)
        finally:
            self.leave_queue()
            await self._finish()

    def leave_queue(self) -> None:
        """Take no more connections; those that are there go on. The socket stays as it is: others accept from it."""
        if self._accepting is not None:
            self._accepting.close()
            self._accepting = None

    def stop(self) -> None:
        """Have :meth:`serve` come to its end."""
        self._stopped.set()

    def _tell_time(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    def _close_waiting(self, since: float) -> None:
        """End the connections that have waited for a head since ``since`` or longer."""
        for connection in list(self._state.connections):
            waiting = cast(Connection, connection).waiting_since
            if waiting is not None and waiting <= since:
                connection.transport.abort()  # also where the peer takes nothing of an answer any more

    async def _finish(self) -> None:
        """End connections that are idle, and the others as soon as they have their answers."""
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=DRAIN_S)
        await asyncio.sleep(0)  # what was written last goes out in the next turn of the loop
        for connection in list(self._state.connections):
            connection.transport.close()
