"""The client against a scripted transport: bodies, retries, errors; both clients go through every case."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from headwater.client import (
    AsyncClient,
    Client,
    NotFoundError,
    OverloadedError,
    RejectedError,
    Retries,
    ServerError,
    TransportError,
    UnauthorizedError,
)
from headwater.schema.events import Event, IngestReply
from headwater.schema.items import Item
from headwater.schema.requests import Address, RecommendedItem, RecommendRequest, RecommendResponse
from headwater.schema.users import UserProfile

INGESTED = IngestReply(accepted=1, duplicates=0, rejected=[], token="42")  # noqa: S106  (a position in the log)
RECOMMENDED = RecommendResponse(
    request_id="r1",
    items=[RecommendedItem(id="a/b", score=0.5, source="popular", reason="Popular now")],
    tier=0,
    reasons=[],
    model="m1",
    address=Address(user_offset=42, item_offset=41, now_ms=1, plan="p", bundle="b"),
)

Handler = Callable[[httpx.Request], httpx.Response]


class Script:
    """Answers requests one by one, and keeps them."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = itertools.chain(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ok(value: object) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(value))


def run_sync(script: Handler, method: str, *args: object) -> Any:
    ids = itertools.count()
    with Client(
        "http://server",
        "secret-key",
        transport=httpx.MockTransport(script),
        new_id=lambda: f"id-{next(ids)}",
        sleep=lambda _: None,
    ) as client:
        return getattr(client, method)(*args)


def run_async(script: Handler, method: str, *args: object) -> Any:
    async def call() -> Any:
        ids = itertools.count()
        async with AsyncClient(
            "http://server",
            "secret-key",
            transport=httpx.MockTransport(script),
            new_id=lambda: f"id-{next(ids)}",
            retries=Retries(first_s=0.0),
        ) as client:
            return await getattr(client, method)(*args)

    return asyncio.run(call())


Runner = Callable[..., Any]
both = pytest.mark.parametrize("run", [run_sync, run_async])


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if not name.startswith("_") and callable(method)
        }

    assert public(Client) == public(AsyncClient)


@both
def test_events_get_an_id_that_retries_keep(run: Runner) -> None:
    script = Script(httpx.ConnectError("refused"), httpx.Response(500), ok(INGESTED))
    events = [Event(user="u", item="i", type="click"), Event(user="u", item="i", type="view", event_id="mine")]
    assert run(script, "send_events", events) == INGESTED
    bodies = {request.content for request in script.requests}
    assert len(script.requests) == 3
    assert len(bodies) == 1
    assert [e["event_id"] for e in msgspec.json.decode(bodies.pop())] == ["id-0", "mine"]
    assert script.requests[0].headers["authorization"] == "Bearer secret-key"
    assert script.requests[0].url.path == "/v1/events"


@both
def test_calls_and_their_answers(run: Runner) -> None:
    script = Script(ok(RECOMMENDED))
    assert run(script, "recommend", RecommendRequest(user="u", k=3, token="42")) == RECOMMENDED  # noqa: S106
    assert msgspec.json.decode(script.requests[0].content) == {"user": "u", "k": 3, "token": "42"}

    script = Script(ok(RECOMMENDED))
    assert run(script, "similar", "a/b c", 5) == RECOMMENDED
    assert script.requests[0].url.raw_path == b"/v1/similar/a%2Fb%20c?k=5"

    script = Script(ok(RECOMMENDED), ok(RECOMMENDED), ok(RECOMMENDED))
    run(script, "similar", "i")
    run(script, "similar", "i", None, "ünd & co")
    run(script, "similar", "i", 5, "ada")
    assert [r.url.raw_path for r in script.requests] == [
        b"/v1/similar/i", b"/v1/similar/i?user=%C3%BCnd%20%26%20co", b"/v1/similar/i?k=5&user=ada",
    ]  # fmt: skip

    item = Item(id="a/b", title="A title", price=2.5)
    script = Script(ok(item))
    assert run(script, "get_item", "a/b") == item
    assert (script.requests[0].method, script.requests[0].url.raw_path) == ("GET", b"/v1/items/a%2Fb")

    script = Script(ok(INGESTED))
    assert run(script, "delete_item", "a/b") == INGESTED
    assert (script.requests[0].method, script.requests[0].url.raw_path) == ("DELETE", b"/v1/items/a%2Fb")

    script = Script(ok(INGESTED), ok(INGESTED))
    run(script, "put_items", [Item(id="i", title="A title")])
    run(script, "put_users", [UserProfile(id="u", country="DE")])
    assert [r.url.path for r in script.requests] == ["/v1/items", "/v1/users"]


@both
def test_a_login_and_many_requests_at_once(run: Runner) -> None:
    script = Script(ok(INGESTED), ok([RECOMMENDED, RECOMMENDED]))
    assert run(script, "login", "visit-93", "ada") == INGESTED
    assert run(script, "recommend_many", [RecommendRequest(k=3), RecommendRequest(user="ada")]) == [RECOMMENDED] * 2
    assert [r.url.path for r in script.requests] == ["/v1/logins", "/v1/recommend/batch"]
    assert msgspec.json.decode(script.requests[0].content) == {"anonymous": "visit-93", "user": "ada"}
    assert msgspec.json.decode(script.requests[1].content) == [{"k": 3}, {"user": "ada"}]


@both
def test_health_never_raises(run: Runner) -> None:
    assert run(Script(httpx.Response(200)), "ready") is True
    assert run(Script(httpx.Response(503)), "ready") is False
    assert run(Script(httpx.ConnectError("refused")), "healthy") is False


@both
@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (400, {"error": {"field": "k", "reason": "Expected `int` <= 200"}}, RejectedError, "k: Expected"),
        (
            400,
            {"accepted": 0, "rejected": [{"index": 0, "field": "user", "reason": "empty"}]},
            RejectedError,
            "user: empty",
        ),
        (422, {"detail": "bad"}, RejectedError, "bad"),
        (401, {"detail": "no key"}, UnauthorizedError, "no key"),
        (404, {"detail": "no item"}, NotFoundError, "no item"),
    ],
)
def test_errors_that_stay_are_not_retried(
    run: Runner, status: int, body: object, error: type[Exception], text: str
) -> None:
    script = Script(httpx.Response(status, content=msgspec.json.encode(body)))
    with pytest.raises(error, match=text):
        run(script, "recommend", RecommendRequest(user="u"))
    assert len(script.requests) == 1


@both
def test_errors_that_pass_are_retried_within_bounds(run: Runner) -> None:
    script = Script(*[httpx.Response(500, content=b"boom") for _ in range(9)])
    with pytest.raises(ServerError, match="boom"):
        run(script, "similar", "i")
    assert len(script.requests) == Retries().attempts

    script = Script(*[httpx.ReadTimeout("slow") for _ in range(9)])
    with pytest.raises(TransportError, match="ReadTimeout"):
        run(script, "similar", "i")
    assert len(script.requests) == Retries().attempts


@both
def test_an_answer_that_is_not_the_api_is_an_error(run: Runner) -> None:
    with pytest.raises(ServerError, match="cannot read the answer"):
        run(Script(httpx.Response(200, content=b"<html>")), "recommend", RecommendRequest())


def test_waits_grow_are_bounded_and_follow_retry_after() -> None:
    waits: list[float] = []
    script = Script(
        httpx.Response(503, headers={"retry-after": "1.5"}),
        httpx.Response(503, headers={"retry-after": "900"}),
        httpx.Response(503, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        httpx.Response(429),
    )
    client = Client("http://server", transport=httpx.MockTransport(script), sleep=waits.append, jitter=lambda: 0.0)
    with client, pytest.raises(OverloadedError) as caught:
        client.similar("i")
    assert waits == [1.5, 5.0, 0.1]
    assert caught.value.status == 429
    retries = Retries(first_s=0.1, most_s=1.0)
    assert [retries.wait_s(n, 1.0) for n in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
