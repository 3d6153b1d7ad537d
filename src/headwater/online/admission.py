"""Admission: what stands between the socket and the application when more comes than can be answered.

A request is looked at before its body is read. It is let in, waits for its turn (:mod:`headwater.online.gate`), or is
answered with 503 and ``Retry-After`` at once. Answers and writes have a gate each: a writer that has stopped must not
stop recommendations. What tells how the server is, is never turned away, nor is the script of pages, which says when to
try again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from litestar.enums import ScopeType
from litestar.types import (
    ASGIApp,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Receive,
    ReceiveMessage,
    Scope,
    Send,
)

from headwater.online.bodies import MAX_BODY
from headwater.online.errors import RefusalError
from headwater.online.gate import PATIENCE, Gate, Priority
from headwater.online.metrics import Metrics
from headwater.prometheus import Labelled
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

PRIORITY_HEADER = "x-priority"
RETRY_AFTER_S = 1
SPARE_TURNS = 2
"""Turns of the loop between two releases. An arrival needs two from the socket to the gate (it is read, then its task
runs), and waits for one computation on the way instead of two."""
WHOLE = "headwater.whole"
"""Key of a request's scope: the server has read all of its body, so that nobody has to wait for it."""
LEAST_BYTES_PER_S = 16_384  # a body gets `overload.body_timeout`, and time for what arrived at this rate

Reason = Literal["full", "late"]

_NEVER_SHED = {"/healthz", "/readyz", "/metrics", "/schema", "/schema/openapi.json", "/v1/headwater.js"}
_WRITES = ("/v1/events", "/v1/items", "/v1/users", "/v1/logins")
_BODYLESS = {"GET", "HEAD", "DELETE", "OPTIONS"}
_PRIORITIES = {priority.name.lower().encode(): priority for priority in Priority}
_HEADER = PRIORITY_HEADER.encode()


class _Canned:
    """An answer that never changes, made once: turning away has to be cheap."""

    def __init__(self, refusal: RefusalError, *, close: bool = False) -> None:
        body = refusal.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        if close:
            headers.append((b"connection", b"close"))
        self._start: HTTPResponseStartEvent = {
            "type": "http.response.start", "status": refusal.status, "headers": headers,
        }  # fmt: skip
        self._body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}

    async def send(self, send: Send) -> None:
        await send({**self._start})  # whoever adds a header on the way adds it to this one
        await send(self._body)


_BUSY = "The server has more requests than it can answer in time; send it again after the time in Retry-After"
_SHED = _Canned(RefusalError(503, _BUSY, retry_after_s=RETRY_AFTER_S))
_BAD_PRIORITY = _Canned(
    RefusalError(400, f"Expected one of {', '.join(p.name.lower() for p in Priority)}", PRIORITY_HEADER)
)
_SLOW = _Canned(RefusalError(408, "The body came too slowly; send smaller batches", "$"), close=True)


class _Place:
    """A request's place among those at work, how long it had it, and when it came (seconds of the lane's clock)."""

    __slots__ = ("came", "held_s", "lane", "priority", "since")

    def __init__(self, lane: _Lane, priority: Priority, came: float, now: float) -> None:
        self.lane, self.priority, self.came, self.since, self.held_s = lane, priority, came, now, 0.0


_PLACE: ContextVar[_Place | None] = ContextVar("place", default=None)


@contextmanager
def place_given_up() -> Iterator[None]:
    """Round a wait for something that costs no processor time: others may be let in meanwhile."""
    place = _PLACE.get()
    if place is None:
        yield
        return
    lane = place.lane
    place.held_s += lane.clock() - place.since
    lane.gate.running -= 1
    lane.pace()
    try:
        yield
    finally:
        lane.gate.running += 1  # above the limit for a moment, perhaps: who was let in once does not queue again
        place.since = lane.clock()


def waited_ms() -> float:
    """How long ago the request at hand came, in milliseconds: its time at the gate is part of its deadline."""
    place = _PLACE.get()
    return 0.0 if place is None else 1e3 * (place.lane.clock() - place.came)


async def another_turn() -> None:
    """Between two parts of one request: whoever waits at the gate goes first, as if the next part had only now come.

    It is not turned away any more: what was begun is finished, late if it has to be.
    """
    place = _PLACE.get()
    if place is None:
        await asyncio.sleep(0)
        return
    with place_given_up():
        await place.lane.passed_by(place.priority)


class Admission:
    """``app``, and nothing of it for requests that could not be answered in time."""

    def __init__(self, app: ASGIApp, config: Config, metrics: Metrics) -> None:
        overload, clock = config.overload, time.perf_counter
        target_ms = overload.target_ms or config.ladder.deadline_ms
        self._app = app
        self._answers = _Lane(Gate(overload, target_ms / 1e3, clock=clock, adapt=True), clock)
        # what a write takes is up to the disk, not to how many there are: their number has a bound that stays
        self._writes = _Lane(Gate(overload, overload.write_target_ms / 1e3, clock=clock, adapt=False), clock)
        self._body_timeout_s = parse_duration(config.overload.body_timeout) / 1e3
        self._shed: Labelled[tuple[Priority, Reason], Callable[[], None]] = Labelled(
            lambda key: metrics.shed.labels(key[0].name.lower(), key[1]).inc
        )
        self._metrics = metrics
        metrics.concurrency_limit.set(self._answers.gate.limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] == ScopeType.WEBSOCKET or path in _NEVER_SHED:
            await self._app(scope, receive, send)
            return
        priority = _priority(scope)
        if priority is None:
            await _BAD_PRIORITY.send(send)
            return
        lane = self._writes if path.startswith(_WRITES) else self._answers
        came = lane.clock()
        if lane.gate.full_for(priority):
            self._shed[priority, "full"]()
            await _SHED.send(send)
            return
        if scope["method"] not in _BODYLESS and WHOLE not in scope:
            try:
                receive = await _with_body(receive, self._body_timeout_s)
            except TimeoutError:
                self._metrics.slow_bodies.inc()
                await _SLOW.send(send)
                return
        if not lane.gate.goes_at_once():
            if lane.gate.full_for(priority):
                self._shed[priority, "full"]()
                await _SHED.send(send)
                return
            queued = lane.clock()
            go = await lane.turn_of(priority, PATIENCE * lane.gate.target_s)
            self._metrics.admission_wait.observe(lane.clock() - queued)
            if not go:
                self._shed[priority, "late"]()
                await _SHED.send(send)
                return
        limit = lane.gate.limit
        await lane.run(self._app, scope, receive, send, _Place(lane, priority, came, lane.clock()))
        if lane.gate.limit != limit and lane is self._answers:
            self._metrics.concurrency_limit.set(lane.gate.limit)


class _Lane:
    """A gate and the loop that it paces."""

    def __init__(self, gate: Gate, clock: Callable[[], float]) -> None:
        self.gate = gate
        self.clock = clock
        self._paced = False

    async def turn_of(self, priority: Priority, limit_s: float) -> bool:
        """Wait in the queue, at most ``limit_s``; whether the request may go. It then is one of those at work."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[bool] = loop.create_future()

        def tell(go: bool) -> None:
            if not told.done():
                told.set_result(go)
            elif go:  # whoever waited is gone
                self.gate.finish(0.0)

        waiter = self.gate.wait(priority, tell)
        timer = loop.call_later(limit_s, self.gate.expire, waiter)
        self.pace()
        try:
            go = await told
        except asyncio.CancelledError:
            self.gate.expire(waiter)
            if not told.cancelled() and told.result():  # it was let in, and cancelled before it noticed
                self.gate.finish(0.0)
            raise
        finally:
            timer.cancel()
        return go

    async def passed_by(self, priority: Priority) -> None:
        """Until those who wait now and go before ``priority`` have gone, at most until the target."""
        if not self.gate.waiting:
            await asyncio.sleep(0)
            return
        if await self.turn_of(priority, self.gate.target_s):
            self.gate.running -= 1  # this was its place in the queue, not among those at work

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, place: _Place) -> None:
        """Run ``app`` on a request that was let in to ``place``."""
        _PLACE.set(place)
        self.pace()
        try:
            await app(scope, receive, send)
        finally:
            self.gate.finish(place.held_s + self.clock() - place.since)
            if self.gate.waiting:
                self.pace()

    def pace(self) -> None:
        """Look at the queue in a coming turn of the loop."""
        if not self._paced:
            self._paced = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop, spare: int = SPARE_TURNS) -> None:
        if spare:
            loop.call_soon(self._turn, loop, spare - 1)
            return
        self._paced = False
        if self.gate.turn():
            self.pace()


def _priority(scope: Scope) -> Priority | None:
    """What the request's header says; None: nothing that is known."""
    for name, value in scope["headers"]:
        if name == _HEADER:
            return _PRIORITIES.get(value.strip().lower())
    return Priority.NORMAL


async def _with_body(receive: Receive, timeout_s: float) -> Receive:
    """A ``receive`` that has the body ready. Raises :class:`TimeoutError` when it comes too slowly."""
    messages: deque[ReceiveMessage] = deque()
    got = 0
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    async with asyncio.timeout_at(until) as timeout:
        while got <= MAX_BODY:  # what is larger is refused by the application when it asks for the rest
            message = await receive()
            messages.append(message)
            if message["type"] != "http.request" or not message.get("more_body"):
                break
            got += len(message["body"])
            timeout.reschedule(until + got / LEAST_BYTES_PER_S)

    async def ready() -> ReceiveMessage:
        return messages.popleft() if messages else await receive()

    return ready
