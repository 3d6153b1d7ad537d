"""``/metrics`` of a role that has no routes of its own (fold, learn, monitor), from its supervisor: it is there while a child is replaced.

One request a connection, parsed by h11, and no framework: a role without requests should not carry one for a page that is asked four times a minute. The server of
the standard library has a time limit for each read and none for the whole head, and takes heads of megabytes.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import h11
import structlog

from headwater.online.access import SCOPES, Access
from headwater.online.errors import RefusalError, internal
from headwater.online.metrics import Metrics
from headwater.prometheus import CONTENT_TYPE, shown_of
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

PATH, JSON = "/metrics", "application/json"
MOST_HEAD = 16_384  # bytes of request line and headers
MOST_CONNECTIONS = 16
PATIENCE_S = 5.0  # for a request to come, and for its answer to be taken

Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger()


class MetricsPort:
    """Answers ``GET /metrics`` with what the processes that share ``folder`` count, to those whom the API would let read it.

    Raises:
        ConfigurationError: there is a key file in ``data`` and it cannot be read.
    """

    def __init__(self, config: Config, data: Path, folder: Path) -> None:
        self._folder = folder
        # refusals are counted by nobody: figures of this process are none of those that its children share
        self._access = Access(
            data, config.limits, Metrics(), clock=wall_ms, timer=time.monotonic, hosts=config.serving.allowed_hosts
        )
        self._connections = 0

    @asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """Answer those who connect to ``listener``, which is closed in the end."""
        self._folder.mkdir(parents=True, exist_ok=True)  # the first request may come before the first child
        async with await asyncio.start_server(self._connected, sock=listener, limit=MOST_HEAD):
            yield

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._connections <= MOST_CONNECTIONS:
                    writer.write(await self._answered(reader))
                    await writer.drain()
        except (
            OSError,
            TimeoutError,
            asyncio.IncompleteReadError,
        ):  # who does not ask, or does not take the answer, has none
            writer.transport.abort()
        finally:
            self._connections -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answered(self, reader: asyncio.StreamReader) -> bytes:
        http, method = h11.Connection(h11.SERVER), ""
        try:
            method, path, headers = await _request(http, reader)
            if path != PATH:
                raise RefusalError(404, f"Here is {PATH} only: this role answers nothing else")
            if (method, path) not in SCOPES:
                raise RefusalError(405, f"{PATH} takes GET", headers={"allow": "GET"})
            self._let_in(method, headers)
            status, kind, body, more = 200, CONTENT_TYPE, await asyncio.to_thread(shown_of, self._folder), {}
        except RefusalError as refused:
            status, kind, body, more = refused.status, JSON, refused.body(), refused.headers
        except Exception as error:  # noqa: BLE001  (a fault of ours: the log says which)
            failed = internal(PATH, error)
            status, kind, body, more = failed.status, JSON, failed.body(), {}
        said = {"content-type": kind, "content-length": str(len(body)), "connection": "close", **more}
        head = http.send(h11.Response(status_code=status, headers=list(said.items()))) or b""
        return head if method == "HEAD" else head + body

    def _let_in(self, method: str, headers: Headers) -> None:
        """Raises :class:`RefusalError` as :meth:`headwater.online.access.Access.check` does."""
        try:
            self._access.refresh()
        except ConfigurationError as error:
            log.error("keys_refused", reason=str(error), hint="the keys from before stay in force")
        bucket = self._access.allowed(method, PATH, headers)
        if bucket is not None:
            self._access.spend(bucket, 1)


async def _request(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[str, str, Headers]:
    """Method, path without its query, and headers with names in lower case.

    Raises:
        RefusalError: 431, it is too long; 400, it is no head of an HTTP request.
    """
    try:
        http.receive_data(await reader.readuntil(b"\r\n\r\n"))
        asked = http.next_event()
    except asyncio.LimitOverrunError as error:
        raise RefusalError(431, f"The request line and its headers are more than {MOST_HEAD:,} bytes") from error
    except h11.RemoteProtocolError as error:
        raise RefusalError(400, f"This is no HTTP/1.1 request: {error}") from error
    if not isinstance(asked, h11.Request):  # empty lines alone
        raise RefusalError(400, "This is no HTTP/1.1 request")
    return asked.method.decode("ascii"), asked.target.partition(b"?")[0].decode("ascii"), list(asked.headers)
