"""The HTTP server of a worker, on a socket of its own, with an application that repeats what it gets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import uvloop

from headwater.online import http_server
from headwater.online.http_server import MAX_HEAD, MAX_HELD, HttpServer, InOnePiece

TIMEOUT_S = 0.3
begun: list[str] = []
"""The paths of the requests that the application has got."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def repeat(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body; of ``/early`` before there is any, of ``/slow`` after a moment."""
    begun.append(scope["path"])
    body = b"early"
    if scope["path"] != "/early":
        body = (await receive())["body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def request(path: str, body: bytes = b"", length: int | None = None) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n".encode()
        + body
    )


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"\r\ndate: " in head or b"connection: close" in head
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split(b" ")[1]), await reader.readexactly(size)


def serving(scenario: Callable[[HttpServer, Callable[[], Awaitable[Streams]], socket.socket], Awaitable[None]]) -> None:
    """Run ``scenario`` beside a server; it is told how to connect."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            server = HttpServer(repeat, listener, TIMEOUT_S)
            task = asyncio.create_task(server.serve())

            async def connect() -> Streams:
                return await asyncio.open_connection(*listener.getsockname())

            try:
                await scenario(server, connect, listener)
            finally:
                server.stop()
                await task

    uvloop.run(run())


async def closed_at(reader: asyncio.StreamReader) -> float:
    """When the server closed it, by the clock of the loop."""
    with suppress(ConnectionResetError):
        while await asyncio.wait_for(reader.read(4_096), 60.0):
            pass
    return asyncio.get_running_loop().time()


def test_requests_on_one_connection_are_answered_in_their_order() -> None:
    async def scenario(_: HttpServer, connect: Any, __: socket.socket) -> None:
        reader, writer = await connect()
        writer.write(request("/slow", b"first") + request("/", b"second"))
        assert [await answer(reader), await answer(reader)] == [(200, b"first"), (200, b"second")]
        writer.close()

    serving(scenario)


def test_what_is_no_request_is_refused_in_the_shape_of_the_api() -> None:
    async def scenario(_: HttpServer, connect: Any, __: socket.socket) -> None:
        endless = b"GET / HTTP/1.1\r\nx: ".ljust(MAX_HEAD + 1, b"a")  # no byte more: a reset would overtake the answer
        for raw, status in ((b"nothing of the kind\r\n\r\n", 400), (endless, 431)):
            reader, writer = await connect()
            writer.write(raw)
            found, body = await answer(reader)
            assert (found, list(json.loads(body))) == (status, ["error"])
            assert await reader.read() == b""
            writer.close()

    serving(scenario)


def test_who_is_too_slow_is_closed_and_who_waits_for_an_answer_is_not(monkeypatch: Any) -> None:
    monkeypatch.setattr(http_server, "LOOK_S", 0.05)

    async def scenario(_: HttpServer, connect: Any, __: socket.socket) -> None:
        began = asyncio.get_running_loop().time()
        slow = [await connect() for _ in range(4)]
        slow[1][1].write(b"POST / HTTP/1.1\r\nhost: ")  # a head that does not end
        slow[2][1].write(request("/", b"x"))  # idle after an answer
        slow[3][1].write(request("/early", b"x", 1_000))  # a body that goes on after its answer
        ends = await asyncio.gather(*(closed_at(reader) for reader, _ in slow))
        assert min(ends) >= began + TIMEOUT_S - 0.002, "the clock of the loop goes by milliseconds"
        reader, writer = await connect()
        for _again in range(3):  # longer than the time of a head in all, and never idle
            writer.write(request("/slow", b"y"))
            assert await answer(reader) == (200, b"y")
        for _, each in (*slow, (reader, writer)):
            each.close()

    serving(scenario)


def test_a_server_that_leaves_the_queue_answers_who_is_there_and_leaves_the_others_to_the_next() -> None:
    async def scenario(server: HttpServer, connect: Any, listener: socket.socket) -> None:
        reader, writer = await connect()
        writer.write(request("/", b"before"))
        assert await answer(reader) == (200, b"before")
        server.leave_queue()
        writer.write(request("/", b"after"))
        assert await answer(reader) == (200, b"after")
        later, sender = await connect()  # the queue of the socket itself
        sender.write(request("/", b"next"))
        other = HttpServer(repeat, listener, TIMEOUT_S)
        task = asyncio.create_task(other.serve())
        assert await answer(later) == (200, b"next")
        begun.clear()
        writer.write(request("/slow", b"begun"))
        sender.close()
        while "/slow" not in begun:
            await asyncio.sleep(0.001)
        server.stop()
        assert await answer(reader) == (200, b"begun")
        other.stop()
        await task
        writer.close()

    serving(scenario)


class Recorder(asyncio.Transport):
    """A transport that keeps what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.done.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.done) and self.done[-1] in ("closed", "aborted")

    def close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")


def test_head_and_body_go_out_in_one_write() -> None:
    async def run() -> list[bytes | str]:
        below = Recorder()
        transport = InOnePiece(below, asyncio.get_running_loop())
        transport.write(b"head ")
        transport.write(b"body")
        assert below.done == []
        transport.flush()
        assert below.done == [b"head body"]
        transport.write(b"begun")
        await asyncio.sleep(0)  # nobody says that it is all: it goes out all the same
        assert below.done.pop() == b"begun"
        transport.write(b"x" * MAX_HELD)
        transport.write(b"y")
        assert below.done.pop() == b"x" * MAX_HELD + b"y"
        transport.write(b"last")
        transport.close()
        transport.write(b"nobody is there")
        transport.flush()
        transport.write(b"never")
        transport.abort()
        await asyncio.sleep(0)
        return below.done

    assert uvloop.run(run()) == [b"head body", b"last", "closed", "aborted"]
