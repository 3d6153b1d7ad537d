"""``/metrics`` of a role without routes: who may read it, and what is no request."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from headwater.online import metrics_port
from headwater.online.keys import add_key
from headwater.online.metrics_port import MOST_HEAD, MetricsPort
from headwater.online.supervisor import listen
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.keys import Scope

HOST = b"host: localhost\r\n"


def asked(data: Path, *requests: bytes) -> list[bytes]:
    """The answers to ``requests``, each on a connection of its own."""

    async def run() -> list[bytes]:
        (listener,) = listen("127.0.0.1", 0, 1)
        address = listener.getsockname()
        async with MetricsPort(Config(), data, data / "metrics").serving(listener):
            return [await _ask(address, request) for request in requests]

    return asyncio.run(run())


async def _ask(address: tuple[str, int], request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_without_keys_this_machine_reads_it_and_no_page_of_another(tmp_path: Path) -> None:
    head = b"GET /metrics?name=x HTTP/1.1\r\n"
    good, foreign, page = asked(
        tmp_path, head + HOST + b"\r\n", head + b"host: evil.example\r\n\r\n", head + HOST + b"origin: https://evil.example\r\n\r\n"
    )  # fmt: skip
    assert status(good) == 200
    assert b"content-type: text/plain" in good
    head, _, body = foreign.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body)
    assert (status(foreign), status(page)) == (421, 403)
    assert b"allowed_hosts" in foreign


def test_with_keys_it_takes_the_scope_read(tmp_path: Path) -> None:
    head = b"GET /metrics HTTP/1.1\r\nhost: elsewhere.example\r\n"
    keys = [
        add_key(tmp_path, scope.value, [scope], now_ms=wall_ms())[0].encode() for scope in (Scope.READ, Scope.INGEST)
    ]
    good, lacks, none = asked(
        tmp_path, *(head + b"authorization: Bearer " + key + b"\r\n\r\n" for key in keys), head + b"\r\n"
    )
    assert [status(answer) for answer in (good, lacks, none)] == [200, 403, 401]
    assert b"www-authenticate: Bearer" in none


def test_what_is_no_request_is_refused(tmp_path: Path) -> None:
    answers = asked(
        tmp_path, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", b"POST /metrics HTTP/1.1\r\n" + HOST + b"\r\n", b"hello\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", b"GET /metrics HTTP/1.1\r\nx: " + b"y" * MOST_HEAD + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + 2 * HOST + b"\r\n", b"GET /metrics HTTP/1.1\r\n" + HOST + b"na me: x\r\n\r\n", b"\r\n\r\n",
        b"HEAD /metrics HTTP/1.1\r\n" + HOST + b"\r\n", b"\xff\x00 /metrics HTTP/1.1\r\n" + HOST + b"\r\n",
    )  # fmt: skip
    assert [status(answer) for answer in answers] == [404, 405, 400, 400, 431, 400, 400, 400, 405, 400]


def test_slow_ones_are_let_go_and_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port, "PATIENCE_S", 1.0)

    async def run() -> None:
        (listener,) = listen("127.0.0.1", 0, 1)
        address = listener.getsockname()
        async with MetricsPort(Config(), tmp_path, tmp_path / "metrics").serving(listener):
            with socket.create_connection(address) as slow:
                slow.send(b"GET /met")
                slow.setblocking(False)
                assert status(await _ask(address, b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n")) == 200
                assert (
                    await asyncio.wait_for(asyncio.get_running_loop().sock_recv(slow, 1), 60.0) == b""
                )  # it is closed

    asyncio.run(run())
