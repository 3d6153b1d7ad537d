"""The load process: sends a plan over keep-alive connections and writes down what came of every arrival.

Open loop: a request is sent when its time has come, whatever became of those before it, and its
latency counts from that time. So a server that stalls is charged for everything that would have
arrived meanwhile, and a slow load process makes figures worse, never better.

``python -m headwater.cli.bench.load PLAN OUTCOMES`` (both MessagePack files).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import msgspec
import uvloop
from msgspec import Struct

from headwater.cli.bench.schedule import Arrival, Outcome, Plan, http_request

START_DELAY_S = 0.3
PROBE_LEAD_S = 0.25
ANSWER_TIMEOUT_S = 10.0
# Makes event ids of this run differ from those of others on a kept log: a repeated id changes nothing.
RUN = f"{time.time_ns():x}"


class _Ingested(Struct):
    accepted: int = 0
    token: str = ""


class _Listed(Struct):
    id: str


class _Where(Struct):
    user_offset: int


class _List(Struct):
    items: list[_Listed]
    address: _Where


_INGESTED = msgspec.json.Decoder(_Ingested)
_LIST = msgspec.json.Decoder(_List)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; status 0 when none came, ``body`` then says why."""

    status: int
    body: bytes
    reusable: bool = True


class BrokenAnswerError(Exception):
    """The bytes are not an HTTP/1.1 answer that this client understands."""


def parse_answer(buffer: bytearray) -> Answer | None:
    """The answer that ``buffer`` starts with, which is taken out of it; ``None``: it is not complete yet.

    Raises:
        BrokenAnswerError: no HTTP/1.1 answer with a content length.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = bytes(buffer[:end]).split(b"\r\n")
    try:
        status = int(lines[0].split(b" ", 2)[1])
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        size = int(fields[b"content-length"]) if status not in (204, 304) else 0
    except (IndexError, KeyError, ValueError) as error:
        raise BrokenAnswerError(f"{lines[0]!r}: {type(error).__name__} {error}") from error
    if len(buffer) < end + 4 + size:
        return None
    body = bytes(buffer[end + 4 : end + 4 + size])
    del buffer[: end + 4 + size]
    return Answer(status, body, fields.get(b"connection", b"").lower() != b"close")


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class; TCP has no other

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            answer = parse_answer(self._buffer)
        except BrokenAnswerError as error:
            self._answer(Answer(0, str(error).encode(), reusable=False))
            return
        if answer is not None:
            self._answer(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._answer(Answer(0, f"connection lost: {exc or 'closed by the server'}".encode(), reusable=False))

    def _answer(self, answer: Answer) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, raw: bytes) -> Answer:
        if self._transport is None:
            return Answer(0, b"connection lost", reusable=False)
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        try:
            return await asyncio.wait_for(self._waiting, ANSWER_TIMEOUT_S)
        except TimeoutError:
            return Answer(0, b"no answer in time", reusable=False)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Asker(Protocol):
    """Sends one request and waits for its answer; ``on_sent`` is called when it goes out."""

    async def __call__(self, raw: bytes, on_sent: Callable[[], None] | None = None) -> Answer: ...


class Pool:
    """At most ``most`` connections; the one that was used last is used first. Requests beyond them wait in order."""

    def __init__(self, host: str, port: int, most: int) -> None:
        self._host, self._port, self._most = host, port, most
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._busy = 0

    async def ask(self, raw: bytes, on_sent: Callable[[], None] | None = None) -> Answer:
        if self._busy >= self._most:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            await turn  # whoever ends hands its place over
        else:
            self._busy += 1
        try:
            connection = await self._connection()
            if on_sent is not None:
                on_sent()
            answer = await connection.ask(raw)
            if answer.reusable and connection.open:
                self._idle.append(connection)
            else:
                self._all.discard(connection)
                connection.close()
            return answer
        except OSError as error:
            return Answer(0, f"cannot connect: {error}".encode(), reusable=False)
        finally:
            if self._queue:
                self._queue.popleft().set_result(None)
            else:
                self._busy -= 1

    async def open_ahead(self, count: int) -> None:
        """Open connections before the clock starts; a server that is not there shows at the first request."""
        try:
            self._idle += [await self._open() for _ in range(min(count, self._most))]
        except OSError:
            return

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
            self._all.discard(connection)
        return await self._open()

    async def _open(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        self._all.add(connection)
        return connection

    def close(self) -> None:
        for connection in self._all:
            connection.close()


async def drive(plan: Plan) -> list[Outcome]:
    """Send everything and wait for all answers; outcomes stand in the order in which they came."""
    pool = Pool(plan.host, plan.port, plan.connections)
    await pool.open_ahead(8)
    try:
        return await (_closed_loop(plan, pool) if plan.closed else _open_loop(plan, pool))
    finally:
        pool.close()


async def _open_loop(plan: Plan, pool: Pool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = time.perf_counter() + START_DELAY_S

    async def one(index: int, arrival: Arrival) -> None:
        if arrival.probe_user is None:
            outcomes.append(await _request(pool.ask, index, arrival, start + arrival.at_s))
        else:
            outcomes.append(await _probe(pool.ask, index, arrival, arrival.probe_user, start + arrival.at_s))

    early = sorted(
        (arrival.at_s - (PROBE_LEAD_S if arrival.probe_user is not None else 0.0), index)
        for index, arrival in enumerate(plan.arrivals)
    )
    loop, over = asyncio.get_running_loop(), threading.Event()

    def begin(group: asyncio.TaskGroup, index: int) -> None:
        group.create_task(one(index, plan.arrivals[index]))

    def pace(group: asyncio.TaskGroup) -> None:
        for at_s, index in early:
            over.wait(max(start + at_s - time.perf_counter(), 0.0))
            if over.is_set():
                return
            loop.call_soon_threadsafe(begin, group, index)

    try:
        async with asyncio.TaskGroup() as group:  # a fault of the load itself ends the run instead of losing a request
            await asyncio.to_thread(pace, group)  # a thread of its own: timers of the loop count whole milliseconds
    finally:
        over.set()
    return outcomes


async def _closed_loop(plan: Plan, pool: Pool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = time.perf_counter()
    left = iter(enumerate(plan.arrivals))

    async def worker() -> None:
        for index, arrival in left:
            now = time.perf_counter()
            if now - start > plan.stop_after_s:
                return
            timed = msgspec.structs.replace(arrival, at_s=now - start)
            outcomes.append(await _request(pool.ask, index, timed, now))

    await asyncio.gather(*(worker() for _ in range(plan.closed)))
    return outcomes


async def _sleep_until(at: float) -> None:
    wait = at - time.perf_counter()
    if wait > 0:
        await asyncio.sleep(wait)


async def _request(ask: Asker, index: int, arrival: Arrival, due: float) -> Outcome:
    sent = due

    def on_sent() -> None:
        nonlocal sent
        sent = time.perf_counter()

    answer = await ask(arrival.raw, on_sent)
    done = time.perf_counter()
    ok, accepted, note = 200 <= answer.status < 300, 0, ""
    if ok and b'"accepted"' in answer.body[:200]:
        try:
            accepted = _INGESTED.decode(answer.body).accepted
        except msgspec.DecodeError as error:
            ok, note = False, str(error)
    elif not ok:
        note = f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}"
    return _outcome(index, arrival, due, sent, done, answer.status, ok, accepted, note)


async def _probe(ask: Asker, index: int, arrival: Arrival, user: str, due: float) -> Outcome:
    """See :class:`Arrival`: ok when the answer reflects the click's token and the clicked item is gone."""

    def post(path: str, body: dict[str, object] | list[dict[str, object]]) -> bytes:
        return http_request("POST", path, msgspec.json.encode(body))

    def failed(what: str, answer: Answer) -> Outcome:
        note = f"{what}: HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}"
        return _outcome(index, arrival, due, due, time.perf_counter(), answer.status, False, 0, note)

    answer = await ask(post("/v1/recommend", {"user": user}))
    try:
        before = _LIST.decode(answer.body) if answer.status < 300 else None
    except msgspec.DecodeError:
        before = None
    if before is None or not before.items:
        return failed("no list to click on", answer)
    clicked = before.items[0].id
    event: dict[str, object] = {"user": user, "item": clicked, "type": "click", "event_id": f"probe-{RUN}-{index}"}
    click = post("/v1/events", [event])
    await _sleep_until(due)
    sent = time.perf_counter()
    answer = await ask(click)
    try:
        token = _INGESTED.decode(answer.body).token
        answer = await ask(post("/v1/recommend", {"user": user, "token": token}))
        done = time.perf_counter()
        after = _LIST.decode(answer.body)
    except msgspec.DecodeError as error:
        return failed(str(error), answer)
    if after.address.user_offset < int(token):
        note = f"reflects offset {after.address.user_offset}, not {token}"
    elif clicked in {item.id for item in after.items}:
        note = "the clicked item is still in the list"
    elif not after.items:
        note = "the list is empty"
    else:
        note = ""
    return _outcome(index, arrival, due, sent, done, answer.status, not note, 1, note)


def _outcome(
    index: int,
    arrival: Arrival,
    due: float,
    sent: float,
    done: float,
    status: int,
    ok: bool,
    accepted: int,
    note: str,
) -> Outcome:
    lag_ms, latency_ms = max(sent - due, 0.0) * 1_000, (done - due) * 1_000
    return Outcome(index, arrival.stream, arrival.at_s, lag_ms, latency_ms, status, ok, accepted, note)


def _first_in_line() -> None:
    """Real-time priority, where that is allowed: what the server does beside its worker on the processor of the load, and whatever
    else the machine does there, must delay neither a request nor the reading of its answer. `lag_ms` tells how well it went.
    """
    # not on other systems than Linux, and not for everybody: then it waits as others do
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main(plan_path: str, outcomes_path: str) -> None:
    """Entry point of the load process."""
    plan = msgspec.msgpack.decode(Path(plan_path).read_bytes(), type=Plan)
    if not plan.closed:  # a closed loop would take what it measures the processor that both are on
        _first_in_line()
    gc.collect()
    gc.freeze()
    gc.disable()  # a pause of this process would count as the server's
    outcomes = uvloop.run(drive(plan))
    Path(outcomes_path).write_bytes(msgspec.msgpack.encode(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
