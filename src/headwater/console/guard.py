"""What every request to the console passes: host, session, scope, token; and the headers that every answer has."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs, quote

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from headwater.console.sessions import SESSION_MS, Keys, Sessions
from headwater.schema.urls import is_known_host, is_local, name_in

ROOT = "/console"
LOGIN, LOGOUT, STATIC = f"{ROOT}/login", f"{ROOT}/logout", f"{ROOT}/static/"
COOKIE = "headwater_session"
LOOKING = {f"{ROOT}/users", f"{ROOT}/playground"}
"""What is posted to look: the id of a user, which may stand in no address, for addresses are logged and remembered."""
VISITOR = "visitor"  # in the state of a request that was let in
CSRF_HEADER = b"x-csrf-token"

_SAFE = {"GET", "HEAD"}
_OF_URLS = "/?&=%:+,;@!$'()*~"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_ONLY_LOOKS = 'This takes a key with the scope "admin"; yours may only look'
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class Guard:
    """Lets requests to ``app`` pass or refuses them. Looking takes the scope ``read``, everything else ``admin``; to
    log out takes nothing.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, keys: Keys, hosts: Sequence[str] = ()) -> None:
        """``hosts``: the names besides those of loopback that may stand in ``Host`` while there are no keys."""
        self._app, self._sessions, self._keys, self._hosts = app, sessions, keys, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP, "the console has no sockets"  # noqa: S101
        path, method, headers = scope["path"], scope["method"], dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        static = path.startswith(STATIC)
        cookie = ""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = any(name.lower() == b"cache-control" for name, _ in message["headers"])
                more = [*_HEADERS, *([] if kept else [(b"cache-control", b"no-store")])]
                if cookie:
                    more.append((b"set-cookie", set_cookie(cookie, host).encode()))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        if static:
            await self._app(scope, receive, dressed)
            return
        if not self._keys.needed() and not is_known_host(host, self._hosts):
            # a page elsewhere may have its own name point at this machine; the browser then takes it for the server's own
            await _refuse(
                dressed, 421, "Without API keys the console answers to localhost only; see serving.allowed_hosts"
            )
            return
        safe = method in _SAFE
        if not safe and _is_foreign(headers, host):
            await _refuse(dressed, 403, "Pages of another origin may not do this")
            return
        visitor = self._sessions.read(_cookie_of(headers))
        if visitor is None and not self._keys.needed():
            cookie = self._sessions.open(None)
            visitor = self._sessions.read(cookie)
        if visitor is not None and not visitor.may_read:  # a key opens the console by being able to look
            visitor = None
        if path != LOGIN and not (path == LOGOUT and visitor is None):
            if visitor is None:
                await _to_login(scope, headers, dressed)
                return
            if not (visitor.may_change or safe or path == LOGOUT or path in LOOKING):
                await _refuse(dressed, 403, _ONLY_LOOKS)
                return
            if not safe and headers.get(CSRF_HEADER, b"").decode("latin-1") != visitor.csrf:
                await _refuse(dressed, 403, "This page is too old: load it again, then repeat what you did")
                return
        scope.setdefault("state", {})[VISITOR] = visitor
        await self._app(scope, receive, dressed)


def set_cookie(value: str, host: str, *, lasts_s: int = SESSION_MS // 1000) -> str:
    """The header that sets the session's cookie; it travels over TLS alone, except on this machine."""
    secure = "" if is_local(name_in(host)) else "; Secure"
    return f"{COOKIE}={value}; Path={ROOT}; Max-Age={lasts_s}; HttpOnly; SameSite=Strict{secure}"


def next_page(query: bytes) -> str:
    """Where to go after the login: a page of the console and nothing else."""
    return page_or_root(parse_qs(query.decode("latin-1")).get("next", [ROOT])[0])


def page_or_root(asked: str) -> str:
    """``asked`` if it is a page of the console, else the first one. What a header may not hold is quoted."""
    return quote(asked, safe=_OF_URLS) if asked == ROOT or asked.startswith((f"{ROOT}/", f"{ROOT}?")) else ROOT


def _is_foreign(headers: dict[bytes, bytes], host: str) -> bool:
    origin = headers.get(b"origin")
    return origin is not None and origin.decode("latin-1").partition("://")[2] != host


def _cookie_of(headers: dict[bytes, bytes]) -> str:
    for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


async def _to_login(scope: Scope, headers: dict[bytes, bytes], send: Send) -> None:
    query = scope["query_string"].decode("latin-1")
    # as it was asked for: a decoded path may hold what is no part of a path any more
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    here = raw.decode("latin-1").partition("?")[0] + (f"?{query}" if query else "")
    there = f"{LOGIN}?next={quote(here)}".encode()
    if b"hx-request" in headers:  # a part of a page: the page goes, not the part
        await _answer(send, 401, b"", [(b"hx-redirect", LOGIN.encode())])
    else:
        await _answer(send, 303, b"", [(b"location", there)])


async def _refuse(send: Send, status: int, reason: str) -> None:
    await _answer(send, status, reason.encode(), [(b"content-type", b"text/plain; charset=utf-8")])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
