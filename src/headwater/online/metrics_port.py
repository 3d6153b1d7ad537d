"""``/metrics`` of a role that has no routes of its own (fold, learn, monitor), from its supervisor: it is there while a child is replaced.

One request a connection, and no framework: a role without requests should not carry one for a page that is asked four times a minute.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from headwater.online.access import SCOPES, Access
from headwater.online.errors import RefusalError, internal
from headwater.online.keys import wall_ms
from headwater.online.metrics import Metrics
from headwater.prometheus import CONTENT_TYPE, shown_of
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

PATH = "/metrics"
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
        try:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError as error:
                raise RefusalError(
                    431, f"The request line and its headers are more than {MOST_HEAD:,} bytes"
                ) from error
            method, path, headers = parsed(head)
            if path != PATH:
                raise RefusalError(404, f"Here is {PATH} only: this role answers nothing else")
            if (method, path) not in SCOPES:
                raise RefusalError(405, f"{PATH} takes GET", headers={"allow": "GET"})
            self._let_in(method, headers)
            return response(200, CONTENT_TYPE, await asyncio.to_thread(shown_of, self._folder))
        except RefusalError as refused:
            return response(refused.status, "application/json", refused.body(), refused.headers)
        except Exception as error:  # noqa: BLE001  (a fault of ours: the log says which)
            failed = internal(PATH, error)
            return response(failed.status, "application/json", failed.body())

    def _let_in(self, method: str, headers: Headers) -> None:
        """Raises :class:`RefusalError` as :meth:`headwater.online.access.Access.check` does."""
        try:
            self._access.refresh()
        except ConfigurationError as error:
            log.error("keys_refused", reason=str(error), hint="the keys from before stay in force")
        bucket = self._access.allowed(method, PATH, headers)
        if bucket is not None:
            self._access.spend(bucket, 1)


def parsed(head: bytes) -> tuple[str, str, Headers]:
    """Method, path without its query, and headers with names in lower case.

    Raises:
        RefusalError: 400, that is no head of an HTTP request.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    words = first.split(b" ")
    named = [line.partition(b":") for line in lines]
    if (
        len(words) != 3
        or not words[2].startswith(b"HTTP/1.")
        or any(not name.strip() or not sign for name, sign, _ in named)
    ):
        raise RefusalError(400, "This is no HTTP/1.1 request")
    path = words[1].partition(b"?")[0].decode("latin-1")
    return words[0].decode("latin-1"), path, [(name.lower(), value.strip()) for name, _, value in named]


def response(status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """An answer after which the connection is closed."""
    said = {"content-type": content_type, "content-length": str(len(body)), "connection": "close", **(headers or {})}
    lines = [f"HTTP/1.1 {status} ", *(f"{name}: {value}" for name, value in said.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
