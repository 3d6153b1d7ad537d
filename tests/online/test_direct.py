"""A request for a list that goes past the framework is answered as the framework would have answered it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import structlog

from headwater.online.access import Access
from headwater.online.app import create_app
from headwater.online.direct import Direct
from headwater.online.errors import RefusalError
from headwater.online.metrics import Metrics
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.limits import Limits


class Answering:
    """Answers with what it is given, or raises it; notes the bodies."""

    def __init__(self, answer: bytes | Exception, limits: Limits) -> None:
        self.config, self.metrics, self.retiring = Config(), Metrics(), False
        self.access = Access(Path("no-such-folder"), limits, self.metrics, clock=wall_ms, timer=time.monotonic)
        self.writer, self.role = SimpleNamespace(), Role.ALL
        self.bodies: list[bytes] = []
        self._answer = answer

    async def recommend(self, body: bytes) -> bytes:
        self.bodies.append(body)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def asked(
    answer: bytes | Exception, *requests: dict[str, Any], limits: Limits | None = None
) -> tuple[list[httpx.Response], Answering]:
    service = Answering(answer, limits or Limits())

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(cast(Service, service)), raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return [await http.request(**{"method": "POST", "url": "/v1/recommend", **request}) for request in requests]

    return asyncio.run(run()), service


async def pieces() -> AsyncIterator[bytes]:
    yield b'{"user":'
    yield b'"u"}'


def test_a_plain_body_and_one_in_pieces_have_the_same_answer() -> None:
    whole, split, slash = asked(
        b'{"items":[]}',
        {"content": b'{"user":"u"}'},
        {"content": pieces()},
        {"url": "/v1/recommend/", "content": b'{"user":"u"}'},
    )[0]
    for response in (whole, split, slash):
        assert response.status_code == 200
        assert response.json() == {"items": []}
        assert response.headers["content-type"] == "application/json"
        assert response.headers["content-length"] == "12"


def test_the_body_reaches_the_service_as_sent() -> None:
    _, service = asked(b"{}", {"content": b'{"user":"u"}'}, {"content": pieces()})
    assert service.bodies == [b'{"user":"u"}'] * 2


@pytest.mark.parametrize("messages", [[b"{}"], [b"{}", b""]])
def test_what_the_server_hands_over_goes_past_the_framework(messages: list[bytes]) -> None:
    """In one message, or in two of which the second one is empty and ends it: servers do either."""
    service = Answering(b"{}", Limits())
    sent: list[Any] = []

    async def framework(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the framework was asked")

    async def run() -> None:
        left = [
            {"type": "http.request", "body": body, "more_body": number < len(messages) - 1}
            for number, body in enumerate(messages)
        ]

        async def receive() -> Any:
            return left.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope: Any = {"type": "http", "path": "/v1/recommend", "method": "POST", "headers": []}
        await Direct(framework, cast(Service, service))(scope, receive, send)

    asyncio.run(run())
    assert service.bodies == [b"{}"]
    assert [sent[0]["status"], sent[1]["body"]] == [200, b"{}"]


def test_a_refusal_keeps_its_status_reason_and_headers() -> None:
    refusal = RefusalError(503, "Not now", "k", retry_after_s=7, headers={"x-why": "test"})
    (response,), _ = asked(refusal, {"content": b"{}"})
    assert response.status_code == 503
    assert response.json() == {"error": {"reason": "Not now", "field": "k"}}
    assert (response.headers["retry-after"], response.headers["x-why"]) == ("7", "test")


def test_a_fault_of_ours_is_500_and_in_the_log() -> None:
    with structlog.testing.capture_logs() as lines:
        (response,), _ = asked(ZeroDivisionError("division"), {"content": b"{}"})
    assert response.status_code == 500
    assert response.json() == {"error": {"reason": "Internal error; it is in the log"}}
    assert [line["route"] for line in lines if line["event"] == "request_failed"] == ["/v1/recommend"]


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        ({"method": "GET"}, 405),
        ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 415),
        ({"content": b"[" + b"0," * 2_000_000 + b"0]"}, 413),
        ({"content": b" " * (8 * 1024 * 1024 + 1)}, 413),
    ],
)
def test_what_is_unusual_is_refused_as_ever(request_of: dict[str, Any], status: int) -> None:
    (response,), service = asked(b"{}", request_of)
    assert response.status_code == status
    assert response.json()["error"]["reason"]
    assert not service.bodies


def test_the_rate_of_a_caller_counts() -> None:
    responses, service = asked(b"{}", *[{"content": b"{}"}] * 3, limits=Limits(requests_per_s=0.001, burst=2))
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert len(service.bodies) == 2
