"""The application below ``/console``: pages, the login, and the files they load from the package."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs

import structlog
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from headwater.console.covers import PATH as COVERS
from headwater.console.covers import drawn
from headwater.console.desk import Call, Desk, Live
from headwater.console.guard import LOGIN, LOGOUT, ROOT, STATIC, Guard, next_page, page_or_root, set_cookie
from headwater.console.pages import PAGES
from headwater.console.planes import Planes
from headwater.console.sessions import Keys, Sessions, console_secret
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.keys import Scope

log = structlog.get_logger()

MAX_BODY = 1 << 20
STATIC_AGE_S, COVER_AGE_S = 3_600, 86_400
LONGEST_TITLE = 512
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


def console_app(
    config: Config,
    data: Path,
    keys: Keys,
    live: Live,
    planes: Planes,
    *,
    clock: Callable[[], int],
    wall: Callable[[], int],
) -> ASGIApp:
    """The console of a server. ``clock`` is the log's, in Unix ms, ``wall`` that by which sessions end.

    Raises:
        ConfigurationError: the secret of the data directory cannot be read.
    """
    sessions = Sessions(console_secret(data), keys, wall)
    entries = tuple(entry for page in PAGES for entry in page.ENTRIES)
    desk = Desk(data, config, clock, wall, keys, sessions, live, planes, entries)
    routes = [route for page in PAGES for route in page.routes(desk)]
    app = Litestar(
        route_handlers=[*routes, *_door(desk), _down(desk), _static(), _covers()],
        exception_handlers={HTTPException: _refused(desk), HeadwaterError: _unreadable(desk), Exception: _failed(desk)},
        request_max_body_size=MAX_BODY,
        openapi_config=None,
        logging_config=None,
    )
    return Guard(app, sessions, keys, config.serving.allowed_hosts)


def _door(desk: Desk) -> list[HTTPRouteHandler]:
    """Logging in and out."""

    @get(LOGIN)
    async def login_page(request: Call) -> Response[str]:
        return desk.page(request, "login.html", problem="", next=next_page(request.scope["query_string"]))

    @post(LOGIN, status_code=303)
    async def login(request: Call) -> Response[str]:
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        there = page_or_root(form.get("next", [ROOT])[0])
        key = desk.keys.by_text(form.get("key", [""])[0].strip())
        if key is None:
            problem = "There is no such key, or it has expired or was revoked"
            return desk.page(request, "login.html", status=401, problem=problem, next=there)
        if Scope.READ not in key.scopes:
            has = ", ".join(sorted(key.scopes))
            problem = f'This key lacks the scope "read", without which there is nothing to see here; it has {has}'
            return desk.page(request, "login.html", status=403, problem=problem, next=there)
        cookie = set_cookie(desk.sessions.open(key), request.headers.get("host", ""))
        log.info("console_login", key=key.id)
        return Response("", status_code=303, headers={"location": there, "set-cookie": cookie})

    @post(LOGOUT, status_code=200)
    async def logout(request: Call) -> Response[str]:
        gone = set_cookie("", request.headers.get("host", ""), lasts_s=0)
        return Response("", headers={"hx-redirect": LOGIN, "set-cookie": gone})

    return [login_page, login, logout]


def _down(desk: Desk) -> HTTPRouteHandler:
    """What every page says at its top while a part of the system is away."""

    @get(f"{ROOT}/parts/down")
    async def down(request: Call) -> Response[str]:
        return desk.page(request, "down.html", reasons=await desk.live.why_not_ready())

    return down


def _static() -> HTTPRouteHandler:
    """The files of the package, read once; a browser asks again after an hour and is told when nothing changed."""
    folder = resources.files("headwater.console") / "static"
    files = {
        f"{prefix}{found.name}": found.read_bytes()
        for prefix, room in (("", folder), ("vendor/", folder / "vendor"))
        for found in room.iterdir()
        if found.is_file()
    }
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in files.items()}

    @get(STATIC + "{name:path}")
    async def static(request: Call) -> Response[bytes]:
        name = request.scope["path"].removeprefix(STATIC)
        if name not in files:
            raise HTTPException("There is no such file", status_code=404)
        headers = {"etag": tags[name], "cache-control": f"public, max-age={STATIC_AGE_S}"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(b"", status_code=304, headers=headers)
        kind = _TYPES[Path(name).suffix]
        return Response(files[name], headers=headers, media_type=kind)

    return static


def _covers() -> HTTPRouteHandler:
    @get(COVERS)
    async def covers(request: Call) -> Response[str]:
        said = request.query_params
        picture = drawn(said.get("id", ""), said.get("title", "")[:LONGEST_TITLE], said.get("of", ""))
        return Response(
            picture, media_type="image/svg+xml", headers={"cache-control": f"private, max-age={COVER_AGE_S}"}
        )

    return covers


def _refused(desk: Desk) -> Callable[[Call, HTTPException], Response[str]]:
    def refused(request: Call, error: HTTPException) -> Response[str]:
        if error.status_code >= 500:
            return _failed(desk)(request, error)
        reason = "There is no such page" if error.detail == "Not Found" else error.detail
        return _told(desk, request, error.status_code, reason)

    return refused


def _unreadable(desk: Desk) -> Callable[[Call, HeadwaterError], Response[str]]:
    """What a page needs and cannot have, such as a damaged file; whoever asked is told what to do."""

    def unreadable(request: Call, error: HeadwaterError) -> Response[str]:
        log.warning("console_refused", path=request.scope["path_template"], reason=str(error))
        return _told(desk, request, 503, str(error))

    return unreadable


def _failed(desk: Desk) -> Callable[[Request, Exception], Response[str]]:  # type: ignore[type-arg]
    def failed(request: Call, error: Exception) -> Response[str]:
        # the trace without the values of its variables: those may name a user
        trace = "".join(traceback.format_exception(error))
        log.error("console_failed", path=request.scope["path_template"], error=type(error).__name__, trace=trace)
        return _told(desk, request, 500, "This page failed; the reason is in the server's log")

    return failed


def _told(desk: Desk, request: Call, status: int, reason: str) -> Response[str]:
    """``reason`` in the place of a page; of a part of one, as text."""
    if "hx-request" in request.headers:
        return Response(reason, status_code=status, media_type="text/plain")
    return desk.page(request, "problem.html", status=status, reason=reason)
