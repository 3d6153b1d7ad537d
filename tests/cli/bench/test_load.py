"""The load process against a small HTTP server whose behaviour is known."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Self

import msgspec
import numpy as np
import pytest

from headwater.cli.bench import load
from headwater.cli.bench.load import BrokenAnswerError, drive, parse_answer
from headwater.cli.bench.measure import failures, lag_p99_ms, percentile_ms, send
from headwater.cli.bench.schedule import Arrival, Outcome, Plan, http_request, in_order, poisson_times

Handler = Callable[[str, bytes], Awaitable[tuple[int, object]]]


class Server:
    """Answers with what ``handler`` makes of (path, body); counts connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = next(
                    (int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0
                )
                status, answer = await self._handler(head.split()[1], await reader.readexactly(size))
                if status == 0:
                    break
                body = msgspec.json.encode(answer)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run(
    handler: Handler, arrivals: list[Arrival], connections: int = 16, closed: int = 0, stop_after_s: float = 60.0
) -> tuple[list[Outcome], int]:
    """Outcomes in the order of the plan, and how many connections were made."""

    async def measured() -> tuple[list[Outcome], int]:
        async with Server(handler) as server:
            outcomes = await drive(Plan("127.0.0.1", server.port, arrivals, connections, closed, stop_after_s))
            return sorted(outcomes, key=lambda o: o.index), server.connections

    return asyncio.run(measured())


async def quick(_: str, __: bytes) -> tuple[int, object]:
    return 200, {"accepted": 3, "token": "9"}


def test_open_loop_sends_in_time_and_reads_answers() -> None:
    arrivals = [Arrival(n * 0.01, "a", http_request("POST", "/v1/events", b"[]")) for n in range(20)]
    began = time.perf_counter()
    outcomes, connections = run(quick, arrivals)
    took_ms = 1e3 * (time.perf_counter() - began)
    assert [o.index for o in outcomes] == list(range(20))
    assert all(o.ok and o.status == 200 and o.accepted == 3 for o in outcomes)
    assert all(0 <= o.lag_ms <= o.latency_ms <= took_ms for o in outcomes)
    assert connections <= 16


def test_a_stall_is_charged_to_everything_that_arrives_meanwhile() -> None:
    """One connection, and the first answer takes 200 ms: the requests behind it count from their own times."""
    turns = itertools.count()

    async def stalls_once(path: str, body: bytes) -> tuple[int, object]:
        if next(turns) == 0:
            await asyncio.sleep(0.2)
        return await quick(path, body)

    arrivals = [Arrival(n * 0.02, "a", http_request("GET", "/x")) for n in range(6)]
    outcomes, connections = run(stalls_once, arrivals, connections=1)
    assert connections == 1
    latencies = [o.latency_ms for o in outcomes]
    assert latencies[0] >= 200
    for n in range(1, 6):
        assert latencies[n] >= 200 - n * 20 - 15
        assert outcomes[n].lag_ms > 50


def test_failures_are_outcomes() -> None:
    async def fails(path: str, _: bytes) -> tuple[int, object]:
        return {"/500": 500, "/gone": 0}.get(path, 200), {"detail": "no"}

    arrivals = [Arrival(0.0, "a", http_request("GET", path)) for path in ("/500", "/gone", "/fine")]
    outcomes, _ = run(fails, arrivals)
    assert [(o.ok, o.status) for o in outcomes] == [(False, 500), (False, 0), (True, 200)]
    assert "connection lost" in outcomes[1].note
    assert len(failures(outcomes)) == 2

    refused = asyncio.run(drive(Plan("127.0.0.1", 1, arrivals[:1])))
    assert not refused[0].ok
    assert "cannot connect" in refused[0].note


def test_closed_loop_keeps_so_many_under_way_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most, answered, ahead_s = 0, 0, 0, 0.0
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead_s))

    async def slow(path: str, body: bytes) -> tuple[int, object]:
        nonlocal under_way, most, answered, ahead_s
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        answered += 1
        if answered == 40:
            ahead_s = 100.0  # the time to stop has come
        return await quick(path, body)

    arrivals = [Arrival(0.0, "a", http_request("GET", "/x")) for _ in range(10_000)]
    outcomes, _ = run(slow, arrivals, closed=4, stop_after_s=60.0)
    assert most == 4
    assert 40 <= len(outcomes) < 44, "those under way come to their end"
    assert max(o.at_s for o in outcomes) <= 60.0


class Recommender:
    """Reflects clicks at once, or not at all, or only in the log position."""

    def __init__(self, *, reflects: bool = True, drops: bool = True) -> None:
        self.reflects, self.drops = reflects, drops
        self.clicked: set[str] = set()
        self.offset = 40

    async def __call__(self, path: str, body: bytes) -> tuple[int, object]:
        if path == "/v1/events":
            event = msgspec.json.decode(body)[0]
            assert event["type"] == "click"
            self.clicked.add(event["item"])
            self.offset += 1
            return 201, {"accepted": 1, "duplicates": 0, "rejected": [], "token": str(self.offset)}
        request = msgspec.json.decode(body)
        assert request["user"] == "u1"
        items = [{"id": i} for i in ("a", "b", "c") if not (self.drops and i in self.clicked)]
        offset = int(request.get("token", 0)) if self.reflects else 0
        return 200, {"items": items, "address": {"user_offset": offset}}


@pytest.mark.parametrize(
    ("server", "note"),
    [
        (Recommender(), ""),
        (Recommender(reflects=False), "reflects offset 0, not 41"),
        (Recommender(drops=False), "the clicked item is still in the list"),
    ],
)
def test_a_probe_counts_only_when_the_click_is_reflected(server: Recommender, note: str) -> None:
    began = time.perf_counter()
    outcomes, _ = run(server, [Arrival(0.3, "probe", probe_user="u1")])
    took_ms = 1e3 * (time.perf_counter() - began - 0.3)  # from its time on
    assert outcomes[0].note == note
    assert outcomes[0].ok is (note == "")
    assert server.clicked == {"a"}
    assert 0 < outcomes[0].latency_ms <= took_ms


def test_a_probe_without_a_list_fails() -> None:
    async def empty(_: str, __: bytes) -> tuple[int, object]:
        return 200, {"items": [], "address": {"user_offset": 0}}

    outcomes, _ = run(empty, [Arrival(0.0, "probe", probe_user="u1")])
    assert "no list to click on" in outcomes[0].note


def test_the_load_process_does_the_same() -> None:
    async def measured() -> list[Outcome]:
        async with Server(quick) as server:
            arrivals = [Arrival(n * 0.005, "a", http_request("GET", "/x")) for n in range(50)]
            return await asyncio.to_thread(send, Plan("127.0.0.1", server.port, arrivals))

    outcomes = asyncio.run(measured())
    assert len(outcomes) == 50
    assert all(o.ok for o in outcomes)
    p50, p99 = percentile_ms(outcomes, 50), percentile_ms(outcomes, 99)
    assert p50 is not None
    assert p99 is not None
    assert p50 <= p99
    assert lag_p99_ms(outcomes) is not None
    assert percentile_ms([], 50) is None


def test_answers_are_cut_from_the_stream_of_bytes() -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    for cut in range(len(one)):
        assert parse_answer(bytearray(one[:cut])) is None
    buffer = bytearray(one + b"HTTP/1.1 204 No Content\r\n\r\nrest")
    first, second = parse_answer(buffer), parse_answer(buffer)
    assert first is not None
    assert (first.status, first.body, first.reusable) == (200, b"ok", False)
    assert second is not None
    assert (second.status, second.body, second.reusable) == (204, b"", True)
    assert bytes(buffer) == b"rest"
    for broken in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"nonsense\r\n\r\n"):
        with pytest.raises(BrokenAnswerError):
            parse_answer(bytearray(broken))


def test_poisson_times_have_the_rate() -> None:
    times = poisson_times(np.random.default_rng(1), 200.0, 5.0, 50.0)
    assert times == sorted(times)
    assert times[0] >= 5.0
    assert times[-1] < 55.0
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert poisson_times(np.random.default_rng(1), 0.0, 0.0, 9.0) == []
    assert [a.at_s for a in in_order([Arrival(2.0, "a")], [Arrival(1.0, "b"), Arrival(3.0, "b")])] == [1.0, 2.0, 3.0]
