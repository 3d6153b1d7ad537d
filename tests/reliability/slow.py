"""Connections that send a byte a second, and how long the server keeps them."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

_HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
_PATIENCE_S = 60.0


class Slow(Struct, frozen=True):
    """``closed`` of ``connections`` were closed by the server, the last after ``last_closed_s``."""

    connections: int
    closed: int
    last_closed_s: float


async def hold(host: str, port: int, connections: int, opened: asyncio.Event | None = None) -> Slow:
    """Open them all, then send to each a byte a second until the server closes it: headers to one half, a body to the other."""
    streams = [await asyncio.open_connection(host, port) for _ in range(connections)]
    if opened is not None:
        opened.set()
    kept = await asyncio.gather(*(_drip(*stream, n) for n, stream in enumerate(streams)))
    closed = [seconds for seconds in kept if seconds is not None]
    return Slow(connections, len(closed), round(max(closed, default=0.0), 2))


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> float | None:
    """Seconds until the server closed the connection; None: it never did."""
    began = time.perf_counter()
    head = _HEAD + (b"content-length: 1000\r\n\r\n" if number % 2 else b"x-slow: ")
    ended = asyncio.create_task(_until_closed(reader))
    try:
        writer.write(head)
        while not ended.done() and time.perf_counter() - began < _PATIENCE_S:
            writer.write(b" ")
            await asyncio.wait((ended,), timeout=1.0)
        return time.perf_counter() - began if ended.done() else None
    finally:
        ended.cancel()
        writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4_096):
            pass
    except ConnectionError:  # the server closed it while a byte was on its way
        return
