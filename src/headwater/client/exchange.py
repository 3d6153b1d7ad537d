"""Calls as data: what to send, how to read the answer, and when to try again.

Everything here is pure, so the blocking and the asyncio client share it: a :class:`Call` describes the
request, :func:`attempts` is a generator that a client drives. It yields what to do next (send the
request, or sleep) and is sent what came of it; it knows no socket, no clock and no event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from headwater.client.errors import (
    ClientError,
    NotFoundError,
    OverloadedError,
    RejectedError,
    ServerError,
    TransportError,
    UnauthorizedError,
)
from headwater.schema.events import Event, IngestReply
from headwater.schema.explanation import Explanation
from headwater.schema.items import Item
from headwater.schema.requests import RecommendRequest, RecommendResponse
from headwater.schema.users import Joined, UserProfile

T = TypeVar("T")

EXPLAIN_S = 35.0  # a server gives an explanation half a minute

_MOST_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request: ``path`` holds the query too, ``body`` is JSON, ``read`` turns a 2xx body into the result. ``timeout_s`` for an
    attempt, where the client's own is too short.

    Every call of this API may be repeated: reads change nothing, items and users replace whole, and events
    carry an ``event_id`` that the server remembers.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    read: Callable[[bytes], T]
    body: bytes | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status is 0 and ``body`` the reason when no answer came."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait ``seconds`` before the next attempt."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Retries:
    """At most ``attempts`` tries; the k-th wait is drawn from [0.5, 1] · ``first_s`` · 2^k, and at most ``most_s``."""

    attempts: int = 4
    first_s: float = 0.05
    most_s: float = 2.0

    def wait_s(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after the failed ``attempt`` (from 0); ``jitter`` is uniform in [0, 1)."""
        return float(min(self.most_s, self.first_s * 2**attempt)) * (0.5 + 0.5 * jitter)


def attempts(call: Call[T], retries: Retries, jitter: Callable[[], float]) -> Generator[Sleep | None, Reply, T]:
    """Drive ``call`` to its result: yields ``None`` (send the request, and send me the :class:`Reply`) or a ``Sleep``.

    Raises:
        ClientError: the server refused, or failed until the attempts were used up.
        TransportError: no answer came in any attempt.
    """
    for attempt in range(max(1, retries.attempts)):
        reply = yield None
        error = error_of(reply)
        if error is None:
            try:
                return call.read(reply.body)
            except (msgspec.DecodeError, UnicodeDecodeError) as broken:
                raise ServerError(
                    f"{call.method} {call.path}: cannot read the answer: {broken}", reply.status
                ) from broken
        if not isinstance(error, OverloadedError | ServerError | TransportError) or attempt + 1 >= retries.attempts:
            raise error
        wait = retries.wait_s(attempt, jitter())
        if isinstance(error, OverloadedError) and error.retry_after_s is not None:
            wait = min(max(wait, error.retry_after_s), _MOST_WAIT_S)
        yield Sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def error_of(reply: Reply) -> ClientError | TransportError | None:
    """The error that a reply stands for; ``None`` for 2xx."""
    if reply.status == 0:
        return TransportError(f"No answer: {reply.body.decode(errors='replace')}")
    if 200 <= reply.status < 300:
        return None
    message, field = _explanation(reply)
    if reply.status in (401, 403):
        return UnauthorizedError(message, reply.status)
    if reply.status == 404:
        return NotFoundError(message, reply.status)
    if reply.status in (429, 503):
        return OverloadedError(message, reply.status, _seconds(reply.retry_after))
    if reply.status >= 500:
        return ServerError(message, reply.status)
    return RejectedError(message, reply.status, field)


def _explanation(reply: Reply) -> tuple[str, str | None]:
    """(message, field at fault) of an error answer, whatever shape its body has."""
    try:
        body = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    if not isinstance(body, dict):
        return f"HTTP {reply.status}: {reply.body[:200].decode(errors='replace')}".rstrip(": "), None
    if isinstance(body.get("error"), dict):
        body = {**body, **body["error"]}
    rejected = body.get("rejected")
    if isinstance(rejected, list) and rejected and isinstance(rejected[0], dict):
        body = rejected[0]
    field = body.get("field")
    reason = next(
        (str(body[key]) for key in ("reason", "detail", "error", "message") if body.get(key)), "no reason given"
    )
    named = field if isinstance(field, str) and field else None
    return f"HTTP {reply.status}: {named + ': ' if named else ''}{reason}", named


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # an HTTP date: the backoff's own wait is as good a guess
        return None


def send_events(events: Sequence[Event], new_id: Callable[[], str]) -> Call[IngestReply]:
    """``POST /v1/events``; an event without an ``event_id`` gets one, so that a retry changes nothing."""
    named = [e if e.event_id is not None else msgspec.structs.replace(e, event_id=new_id()) for e in events]
    return Call("POST", "/v1/events", _reader(IngestReply), msgspec.json.encode(named))


def put_items(items: Sequence[Item]) -> Call[IngestReply]:
    """``POST /v1/items``: each replaces the item of that id whole."""
    return Call("POST", "/v1/items", _reader(IngestReply), msgspec.json.encode(list(items)))


def delete_item(item_id: str) -> Call[IngestReply]:
    """``DELETE /v1/items/{id}``."""
    return Call("DELETE", f"/v1/items/{quote(item_id, safe='')}", _reader(IngestReply))


def get_item(item_id: str) -> Call[Item]:
    """``GET /v1/items/{id}``."""
    return Call("GET", f"/v1/items/{quote(item_id, safe='')}", _reader(Item))


def put_users(users: Sequence[UserProfile]) -> Call[IngestReply]:
    """``POST /v1/users``: each replaces the profile of that user whole."""
    return Call("POST", "/v1/users", _reader(IngestReply), msgspec.json.encode(list(users)))


def login(anonymous: str, user: str) -> Call[IngestReply]:
    """``POST /v1/logins``."""
    body = msgspec.json.encode(Joined(anonymous=anonymous, user=user))
    return Call("POST", "/v1/logins", _reader(IngestReply), body)


def recommend(request: RecommendRequest) -> Call[RecommendResponse]:
    """``POST /v1/recommend``."""
    return Call("POST", "/v1/recommend", _reader(RecommendResponse), msgspec.json.encode(request))


def recommend_many(requests: Sequence[RecommendRequest]) -> Call[list[RecommendResponse]]:
    """``POST /v1/recommend/batch``."""
    return Call("POST", "/v1/recommend/batch", _reader(list[RecommendResponse]), msgspec.json.encode(list(requests)))


def similar(item_id: str, k: int | None, user: str | None) -> Call[RecommendResponse]:
    """``GET /v1/similar/{item_id}``."""
    given = {name: value for name, value in (("k", k), ("user", user)) if value is not None}
    query = urlencode(given, quote_via=quote)
    path = f"/v1/similar/{quote(item_id, safe='')}"
    return Call("GET", f"{path}?{query}" if query else path, _reader(RecommendResponse))


def explain(
    request_id: str,
    item: str | None,
    bundle: str | None,
    after: int | None,
    candidates: int | None,
    features: int | None,
) -> Call[Explanation]:
    """``GET /v1/explain/{request_id}``."""
    given = {"item": item, "bundle": bundle, "after": after, "candidates": candidates, "features": features}
    query = urlencode({name: value for name, value in given.items() if value is not None}, quote_via=quote)
    path = f"/v1/explain/{quote(request_id, safe='')}"
    return Call("GET", f"{path}?{query}" if query else path, _reader(Explanation), timeout_s=EXPLAIN_S)


def probe(path: Literal["/healthz", "/readyz"]) -> Call[bool]:
    """``GET`` a health path; the result is True for 2xx."""
    return Call("GET", path, lambda _: True)


def headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    out = {"content-type": "application/json", "accept": "application/json"}
    if api_key is not None:
        out["authorization"] = f"Bearer {api_key}"
    return out


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return msgspec.json.Decoder(kind).decode
