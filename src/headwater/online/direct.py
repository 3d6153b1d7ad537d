"""The most frequent request without the framework in between.

``POST /v1/recommend`` in its usual shape, one plain body in one piece, goes straight to the service: routing, request and
response objects took a tenth of a millisecond, a tenth of what a full list costs. Whatever else there is about a request,
and all other routes, are the framework's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from headwater.online.bodies import MAX_BODY
from headwater.online.body_size import check_size
from headwater.online.errors import RefusalError, internal
from headwater.online.service import Service

ROUTE = "/v1/recommend"
_JSON = (b"content-type", b"application/json")


class Direct:
    """``app``, but for plain requests for a list."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != ScopeType.HTTP or scope["path"] != ROUTE or scope["method"] != "POST"
            or _encoded(scope["headers"])
        ):  # fmt: skip
            await self._app(scope, receive, send)
            return
        body, messages = await _in_one_piece(receive)
        if body is None:
            await self._app(scope, _after(messages, receive), send)
            return
        try:
            access = self._service.access
            bucket = access.allowed("POST", ROUTE, scope["headers"])
            if bucket is not None:
                access.spend(bucket, 1)
            check_size(body)
            status, body, more = 200, await self._service.recommend(body), []
        except RefusalError as refusal:
            status, body, more = refusal.status, refusal.body(), _headers_of(refusal)
        except Exception as error:  # noqa: BLE001  (whatever it is, the client gets an answer and the log the reason)
            fault = internal(ROUTE, error)
            status, body, more = fault.status, fault.body(), []
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *more]})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _encoded(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-encoding" for name, _ in headers)


def _headers_of(refusal: RefusalError) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in refusal.headers.items()]


async def _in_one_piece(receive: Receive) -> tuple[bytes | None, list[ReceiveMessage]]:
    """The body, None unless it came in one piece; and the messages that were read. Some servers say in a second, empty one that
    there is no more.
    """
    messages: list[ReceiveMessage] = []
    body: bytes | None = None
    for _ in range(2):
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or len(message["body"]) > MAX_BODY:
            return None, messages
        if body is None:
            body = message["body"]
        elif message["body"]:
            return None, messages
        if not message.get("more_body"):
            return body, messages
    return None, messages


def _after(messages: Iterable[ReceiveMessage], receive: Receive) -> Receive:
    """``receive`` with ``messages`` still to come."""
    waiting = deque(messages)

    async def again() -> ReceiveMessage:
        return waiting.popleft() if waiting else await receive()

    return again
