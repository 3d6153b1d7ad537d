"""Admission on a real event loop, before a small application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send

from headwater.online.admission import Admission, another_turn, place_given_up, waited_ms
from headwater.online.metrics import Metrics
from headwater.schema.config import Config
from headwater.schema.limits import Overload

Headers = list[tuple[bytes, bytes]]


class Site:
    """An application that computes for as long as ``release`` is not set, behind admission."""

    def __init__(self, config: Config | None = None, gives_up: bool = False) -> None:
        self.metrics = Metrics()
        self.release = asyncio.Event()
        self.bodies: list[bytes] = []
        self.began = 0
        self.gives_up = gives_up
        self.admission = Admission(cast(ASGIApp, self._app), config or Config(), self.metrics)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began += 1
        if cast("dict[str, Any]", scope)["method"] == "POST":
            body, more = b"", True
            while more:
                message = cast("dict[str, Any]", await receive())
                body, more = body + message["body"], message["more_body"]
            self.bodies.append(body)
        if not scope["path"].startswith("/healthz"):
            if self.gives_up:
                with place_given_up():
                    await self.release.wait()
            else:
                await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    async def ask(
        self, path: str = "/v1/recommend", *, headers: Headers | None = None, parts: tuple[bytes, ...] = (b"{}",),
        receive: Callable[[], Awaitable[Any]] | None = None,
    ) -> tuple[int, dict[bytes, bytes], Any]:  # fmt: skip
        sent: list[Any] = []
        left = list(parts)

        async def incoming() -> Any:
            part = left.pop(0)
            await asyncio.sleep(0)
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        async def send(message: Any) -> None:
            sent.append(message)

        method = "GET" if path == "/healthz" else "POST"
        scope = {"type": "http", "path": path, "method": method, "headers": headers or []}
        await self.admission(cast(Scope, scope), cast(Receive, receive or incoming), cast(Send, send))
        start, body = sent
        return start["status"], dict(start["headers"]), msgspec.json.decode(body["body"])

    def shed(self, priority: str, reason: str) -> float:
        labels = {"priority": priority, "reason": reason}
        return self.metrics.registry.get_sample_value("headwater_shed_total", labels) or 0.0


def filled(**overload: Any) -> Config:
    """A configuration with room for two at work."""
    return Config(overload=Overload(min_concurrency=1, max_concurrency=2, **overload))


async def let_all_run() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_what_cannot_be_answered_in_time_is_refused_unread() -> None:
    async def run() -> None:
        site = Site(filled(target_ms=1_000.0))

        async def unread() -> Any:
            raise AssertionError("the body of a request that is turned away was read")

        admitted = [asyncio.create_task(site.ask()) for _ in range(1_000)]
        await let_all_run()
        assert site.began == 2
        admitted.append(asyncio.create_task(site.ask()))  # takes the place of the second that was let in
        await let_all_run()
        status, headers, body = await site.ask(receive=unread)
        assert status == 503
        assert headers[b"retry-after"] == b"1"
        assert int(headers[b"content-length"]) > 0
        assert "Retry-After" in body["error"]["reason"]
        assert site.shed("normal", "full") >= 1
        assert (await site.ask("/healthz"))[0] == 200
        site.release.set()
        answers = [await task for task in admitted]
        assert {status for status, _, _ in answers} == {200, 503}
        refused = sum(status == 503 for status, _, _ in answers) + 1
        assert refused == site.shed("normal", "full") + site.shed("normal", "late")
        assert (await site.ask())[0] == 200, "it opens by itself"

    asyncio.run(run())


def test_who_waited_too_long_is_refused() -> None:
    async def run() -> None:
        site = Site(filled(target_ms=10.0))
        admitted = [asyncio.create_task(site.ask()) for _ in range(4)]
        done, _ = await asyncio.wait(admitted, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result()[0] for task in done} == {503}
        site.release.set()
        assert sorted([(await task)[0] for task in admitted]) == [200, 200, 503, 503]
        assert site.shed("normal", "late") == 2

    asyncio.run(run())


def test_low_is_refused_before_normal() -> None:
    async def run() -> None:
        site = Site(filled(target_ms=10_000.0, low_share=0.05))
        low, high = [(b"x-priority", b"Low")], [(b"x-priority", b"high")]
        admitted = [asyncio.create_task(site.ask()) for _ in range(600)]
        await let_all_run()
        assert (await site.ask(headers=low))[0] == 503
        assert site.shed("normal", "full") == 0
        admitted += [asyncio.create_task(site.ask(headers=high)) for _ in range(10)]
        await let_all_run()
        site.release.set()
        assert {(await task)[0] for task in admitted} == {200}

    asyncio.run(run())


def test_writes_do_not_hold_up_answers() -> None:
    async def run() -> None:
        site = Site(filled())
        writes = [asyncio.create_task(site.ask("/v1/events")) for _ in range(10)]
        await let_all_run()
        assert site.began == 2
        answer = asyncio.create_task(site.ask())
        await let_all_run()
        assert site.began == 3
        site.release.set()
        assert {(await task)[0] for task in [*writes, answer]} == {200}

    asyncio.run(run())


def test_a_wait_beside_the_loop_takes_nobodys_place() -> None:
    async def run() -> None:
        site = Site(filled(), gives_up=True)
        tasks = [asyncio.create_task(site.ask()) for _ in range(10)]
        await let_all_run()
        assert site.began == 10
        site.release.set()
        assert {(await task)[0] for task in tasks} == {200}

    asyncio.run(run())


def test_a_request_that_is_cancelled_leaves_its_place() -> None:
    async def run() -> None:
        site = Site(filled(target_ms=1_000.0))
        tasks = [asyncio.create_task(site.ask()) for _ in range(6)]
        await let_all_run()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        site.release.set()
        for _ in range(3):
            assert (await asyncio.wait_for(site.ask(), 60.0))[0] == 200

    asyncio.run(run())


def test_between_two_parts_of_a_request_others_go_first() -> None:
    order: list[str] = []

    class Parts(Site):
        async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
            name = scope["path"].rpartition("/")[2]
            for part in range(3):
                if part:
                    await another_turn()
                order.append(f"{name}{part}")
                if name != "long":
                    break
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    async def run() -> None:
        site = Parts(filled(target_ms=10_000.0))
        names = ["long", "a", "b", "c"]
        tasks = [asyncio.create_task(site.ask(f"/v1/{name}")) for name in names]
        assert {(await task)[0] for task in tasks} == {200}
        assert site.admission._answers.gate.running == 0
        assert (await site.ask("/v1/d"))[0] == 200

    asyncio.run(run())
    assert order[0] == "long0"
    assert sorted(order) == sorted(["long0", "long1", "long2", "a0", "b0", "c0", "d0"])
    assert max(order.index("a0"), order.index("b0"), order.index("c0")) < order.index("long2") < order.index("d0")


def test_time_at_the_gate_is_part_of_the_deadline() -> None:
    waited: list[float] = []

    class Telling(Site):
        async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
            waited.append(waited_ms())
            await super()._app(scope, receive, send)

    async def run() -> None:
        site = Telling(filled(target_ms=10_000.0))
        asked = [asyncio.create_task(site.ask()) for _ in range(3)]
        await let_all_run()
        await asyncio.sleep(0.03)
        site.release.set()
        await asyncio.gather(*asked)

    assert waited_ms() == 0.0
    began = time.perf_counter()
    asyncio.run(run())
    took_ms = 1e3 * (time.perf_counter() - began)
    assert len(waited) == 3
    assert waited[0] < waited[2]
    assert 30.0 <= waited[2] <= took_ms


def test_an_unknown_priority_is_named() -> None:
    async def run() -> None:
        status, _, body = await Site().ask(headers=[(b"x-priority", b"urgent")])
        assert status == 400
        assert body["error"] == {"reason": "Expected one of high, normal, low", "field": "x-priority"}

    asyncio.run(run())


def test_a_body_in_parts_reaches_the_application_whole() -> None:
    async def run() -> None:
        site = Site()
        site.release.set()
        parts = tuple(bytes([65 + n]) * n for n in range(1, 6))
        assert (await site.ask(parts=parts))[0] == 200
        assert site.bodies == [b"".join(parts)]

    asyncio.run(run())


def test_a_body_that_does_not_come_is_refused_and_takes_no_place() -> None:
    async def run() -> None:
        site = Site(Config(overload=Overload(body_timeout="20ms")))

        async def never() -> Any:
            await asyncio.Event().wait()

        status, headers, body = await site.ask(receive=never)
        assert status == 408
        assert headers[b"connection"] == b"close"
        assert body["error"]["field"] == "$"
        assert site.began == 0
        assert site.metrics.registry.get_sample_value("headwater_slow_bodies_total") == 1

    asyncio.run(run())
