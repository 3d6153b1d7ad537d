"""The HTTP application of one worker: routes, one shape for errors, one place that measures."""

from __future__ import annotations

import time
from typing import Any, cast

from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from headwater.online.access import SCOPES
from headwater.online.admission import Admission
from headwater.online.answers import answer_routes
from headwater.online.bodies import MAX_BODY
from headwater.online.browser import browser_routes
from headwater.online.cors import with_cors
from headwater.online.direct import Direct
from headwater.online.errors import RefusalError, internal
from headwater.online.health import health_routes
from headwater.online.ingest import JSON, ingest_routes
from headwater.online.intake import Intake
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.online.traces import Traces

_ROUTES = {path for _, path in SCOPES}
_PREFIXES = {path[: path.index("{")]: path[path.index("{") :] for path in _ROUTES if "{" in path}


CONSOLE = "/console"


def create_app(service: Intake, console: ASGIApp | None = None, traces: Traces | None = None) -> ASGIApp:
    """The ASGI application that serves ``service``: of the routes those of its role, and those that tell how it is.

    ``console`` answers below ``/console``, and looks after its own visitors. ``traces`` is told of all others.
    """
    api = unmeasured_app(service)
    if traces is not None:
        api = traces.around(api, route_of)
    return _measured(api if console is None else _beside(api, console), service)


def unmeasured_app(service: Intake) -> ASGIApp:
    """The same without a console, and nobody notes how long an answer took."""
    routes = [*health_routes(service), *browser_routes()]
    if service.role is not Role.RECOMMEND:
        routes += ingest_routes(service)
    if service.role is not Role.INGEST:
        routes += answer_routes(cast(Service, service))
    app = Litestar(
        route_handlers=routes,
        before_request=service.access.check,
        exception_handlers={RefusalError: _refuse, HTTPException: _refuse_http, Exception: _fail},
        request_max_body_size=MAX_BODY,
        openapi_config=None,  # the document at /schema comes from the same msgspec types that check the bodies
        logging_config=None,
    )
    served: ASGIApp = app if service.role is Role.INGEST else Direct(app, cast(Service, service))
    admitted = Admission(served, service.config, service.metrics)
    return with_cors(admitted, service.config.cors.origins)


def route_of(path: str) -> str:
    """The route's template, for labels: ids never become labels, and unknown paths share one."""
    if path in _ROUTES:
        return path
    if _is_console(path):
        return CONSOLE
    for prefix, parameter in _PREFIXES.items():
        if path.startswith(prefix):
            return prefix + parameter
    return "other"


def _is_console(path: str) -> bool:
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def _beside(api: ASGIApp, console: ASGIApp) -> ASGIApp:
    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await (console if _is_console(scope["path"]) else api)(scope, receive, send)

    return either


def _measured(app: ASGIApp, service: Intake) -> ASGIApp:
    requests = service.metrics.requests

    async def measured(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if service.retiring:  # the client's next request is for the worker that took over
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await app(scope, receive, noting)
        finally:
            requests[route_of(scope["path"]), str(status)].observe(time.perf_counter() - began)

    return measured


def _refuse(_: Request[Any, Any, Any], refusal: RefusalError) -> Response[bytes]:
    return Response(refusal.body(), status_code=refusal.status, headers=refusal.headers, media_type=JSON)


def _refuse_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What the framework refuses: unknown paths, wrong methods, oversized bodies."""
    if error.status_code >= 500:
        return _fail(request, error)
    other = "; this server has another role" if route_of(request.scope["path"]) in _ROUTES else ""
    reasons = {
        404: f"There is no such path{other}",
        413: f"The body is larger than {MAX_BODY} bytes; send smaller batches",
    }
    reason = reasons.get(error.status_code, error.detail)
    body = RefusalError(error.status_code, reason, "$" if error.status_code == 413 else "").body()
    headers = {k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    return Response(body, status_code=error.status_code, headers=headers, media_type=JSON)


def _fail(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    refusal = internal(route_of(request.scope["path"]), error)
    return Response(refusal.body(), status_code=refusal.status, media_type=JSON)
