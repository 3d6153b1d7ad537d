"""Pages of other origins: which may call from a browser, as the Fetch standard has browsers ask (CORS).

It stands outside of admission and of keys, so that a page can read a refusal, too. Without origins in the
configuration it is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPResponseStartEvent, Message, Receive, Scope, Send

METHODS = b"GET, POST"
HEADERS = b"authorization, content-type, x-priority"
EXPOSED = b"retry-after"
MAX_AGE_S = 7_200  # of a preflight's answer; browsers keep none for longer

_PREFLIGHT: tuple[tuple[bytes, bytes], ...] = (
    (b"access-control-allow-methods", METHODS),
    (b"access-control-allow-headers", HEADERS),
    (b"access-control-max-age", str(MAX_AGE_S).encode()),
    (b"content-length", b"0"),
)
_VARY = (b"vary", b"origin")
_DONE: HTTPResponseBodyEvent = {"type": "http.response.body", "body": b"", "more_body": False}


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """``app``, for pages of ``origins`` too. No cookies are allowed: a page says who it is with a key.

    A preflight of one of them is answered here. Answers to the others stay as they were, so their browsers keep them
    from the page.
    """
    if not origins:
        return app
    allowed = {origin.encode(): (b"access-control-allow-origin", origin.encode()) for origin in origins}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        origin, asked = _asked(scope)
        allow = allowed.get(origin)
        if allow is not None and asked and scope["type"] == ScopeType.HTTP and scope["method"] == "OPTIONS":
            start: HTTPResponseStartEvent = {
                "type": "http.response.start", "status": 204, "headers": [allow, _VARY, *_PREFLIGHT],
            }  # fmt: skip
            await send(start)
            await send(_DONE)
            return
        more = (_VARY,) if allow is None else (allow, _VARY, (b"access-control-expose-headers", EXPOSED))

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await app(scope, receive, noting)

    return answer


def _asked(scope: Scope) -> tuple[bytes, bool]:
    """The origin of the request (empty: none is named), and whether a browser asks before it sends another one."""
    origin, asks = b"", False
    for name, value in scope["headers"]:
        if name == b"origin":
            origin = value
        elif name == b"access-control-request-method":
            asks = True
    return origin, asks
