"""Hostile bodies: each is refused, and none of them makes the worker grow."""

from __future__ import annotations

import json
import socket
import zlib
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import httpx
import pytest

from headwater.online.bodies import MAX_BODY
from tests.online.conftest import Site

MIB = 1024 * 1024
GROWTH = 20_000_000


class Worker:
    """The memory of an api process."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc") / str(pid)

    def start(self) -> int:
        """Forget the peak so far; bytes that are resident now."""
        (self._folder / "clear_refs").write_text("5")
        return self._figure("VmRSS")

    def peak(self) -> int:
        return self._figure("VmHWM")

    def _figure(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def send_raw(url: str, path: str, headers: str, chunks: Iterator[bytes]) -> bytes:
    """The first line of the answer; sends for as long as the server takes it."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=20.0) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode())
        try:
            for chunk in chunks:
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            return connection.recv(4096).partition(b"\r\n")[0]
        except ConnectionResetError:
            return b""


def chunked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    yield b"0\r\n\r\n"


EVENT = b'{"user":"a","item":"b","type":"view"}'
BOMB = zlib.compress(b"0" * 100 * MIB)
BODIES: list[tuple[str, bytes, dict[str, str], tuple[int, ...]]] = [
    ("a bomb", BOMB, {"content-encoding": "gzip"}, (415,)),
    ("a bomb beside nothing", BOMB, {"content-encoding": "identity, deflate"}, (415,)),
    ("a bomb that is not named", BOMB, {}, (400,)),
    ("deep arrays", b"[" * 10_000 + b"]" * 10_000, {}, (400,)),
    ("deep objects", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, {}, (400,)),
    ("8 MiB of depth", b"[" * (MAX_BODY - 1), {}, (400, 413)),
    ("4 million entries", b"[" + b"0," * 4_000_000 + b"0]", {}, (400, 413)),
    ("200,000 events", b"[" + (EVENT + b",") * 200_000 + EVENT + b"]", {}, (400, 413)),
    ("2 million exclusions", b'{"exclude":[' + b'"a",' * 2_000_000 + b'"a"]}', {}, (413,)),
    (
        "700,000 attributes",
        EVENT[:-1] + b',"attributes":{' + b",".join(b'"%x":1' % i for i in range(700_000)) + b"}}",
        {},
        (413,),
    ),
]  # fmt: skip
PATHS = ("/v1/events", "/v1/items", "/v1/users", "/v1/recommend")


@pytest.fixture(scope="module")
def worker(server: Site) -> Worker:
    """The worker, after it has seen the largest good bodies: what those take is no growth."""
    for _ in range(3):
        assert server.post("/v1/events", [json.loads(EVENT)] * 10_000).status_code == 200
        server.recommend(k=10)
    (pid,) = server.pids("api")
    return Worker(pid)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "body", "headers", "statuses"), BODIES, ids=[body[0] for body in BODIES])
def test_a_hostile_body_is_refused_and_takes_no_memory(
    server: Site, worker: Worker, path: str, name: str, body: bytes, headers: dict[str, str], statuses: tuple[int, ...]
) -> None:
    before = worker.start()
    response = server.http.post(path, content=body, headers=headers)
    assert response.status_code in statuses, response.text[:300]
    assert response.json()["error"]["reason"]
    assert worker.peak() - before < GROWTH


@pytest.mark.parametrize("path", PATHS)
def test_100_mb_are_refused_and_take_no_memory(server: Site, worker: Worker, path: str) -> None:
    before = worker.start()
    for headers, chunks in (
        (f"content-length: {100 * MIB}\r\n", repeat(b" " * MIB, 100)),
        ("transfer-encoding: chunked\r\n", chunked(repeat(b" " * MIB, 100))),
    ):
        assert send_raw(server.url, path, headers, chunks)[:12] in (b"HTTP/1.1 413", b"")
    assert worker.peak() - before < GROWTH
    assert server.recommend(k=1)["items"]
