"""The API keys: who may do what, until when; made here, shown once, revoked."""

from __future__ import annotations

import asyncio

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.console.changes import RefusedError, done, form_of, refusing
from headwater.console.desk import Call, Desk, Entry, NotFoundError, changer_of
from headwater.console.guard import ROOT, set_cookie
from headwater.registry.audit import record
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import ApiKey, Scope

KEYS = f"{ROOT}/keys"
ENTRIES: tuple[Entry, ...] = (Entry(KEYS, "Keys", "Manage"),)
SHOWN = 200
SCOPES: tuple[tuple[Scope, str], ...] = (
    (Scope.INGEST, "send events, items and users"),
    (Scope.RECOMMEND, "ask for lists"),
    (Scope.READ, "read items, explanations, metrics, and look at the console"),
    (Scope.ADMIN, "change things in the console, and erase users"),
)
_CONSOLE = frozenset({Scope.READ, Scope.ADMIN})


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The list, making one, and ending one."""
    ring = desk.planes.keys

    @get(KEYS)
    async def keys(request: Call) -> Response[str]:
        problem, found = "", list[ApiKey]()
        try:
            found = sorted(await asyncio.to_thread(ring.keys), key=lambda key: -key.created_ms)
        except ConfigurationError as error:
            problem = str(error)
        now_ms = desk.wall()
        return desk.page(
            request, "admin/keys.html", keys=found[:SHOWN], total=len(found), problem=problem, open=not desk.keys.needed(),
            states={key.id: key.why_invalid(now_ms).removeprefix("was ").removeprefix("has ") or "good" for key in found},
            now_ms=now_ms, scopes=SCOPES,
        )  # fmt: skip

    @post(KEYS, status_code=200)
    async def add(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by, was_open = form.reason, changer_of(request), not desk.keys.needed()
        name, expires, public = form.get("name"), form.get("expires"), bool(form.get("public"))
        try:
            scopes = [Scope(scope) for scope in form.all("scope")]
        except ValueError as error:
            raise RefusedError(f"There is no such scope: {error}") from error
        if was_open and (public or not {*scopes} >= _CONSOLE):
            raise RefusedError(
                "This is the first key, and it closes the console to everybody without one: give it the scopes read and admin and let it "
                "not be public, or make it with `headwater keys add`"
            )

        def made() -> tuple[str, ApiKey]:
            expires_ms = desk.wall() + parse_duration(expires) if expires else None
            record(
                desk.data, time_ms=desk.wall(), by=by, action="key.add", reason=reason,
                subject=f"{name} ({', '.join(scopes)}{', public' if public else ''})"[:500],
            )  # fmt: skip
            return ring.add(name, scopes, expires_ms=expires_ms, public=public)

        with refusing():
            text, key = await asyncio.to_thread(made)
        body = desk.text(request, "admin/key_made.html", text=text, key=key, first=was_open)
        headers = {}
        if was_open:  # whoever made it stays in: from now on they are this key
            headers["set-cookie"] = set_cookie(desk.sessions.open(key), request.headers.get("host", ""))
        return done(f"The key {key.name} is made: copy it now", body, headers=headers)

    @post(KEYS + "/revoke", status_code=200)
    async def revoke(request: Call) -> Response[str]:
        form = await form_of(request)
        reason, by, number = form.reason, changer_of(request), form.get("id")
        now_ms = desk.wall()

        def revoked() -> ApiKey:
            keys = ring.keys()
            good = [key for key in keys if not key.why_invalid(now_ms)]
            gone = next((key for key in keys if key.id == number), None)
            if gone is None:
                raise NotFoundError(f"There is no key {number}")
            left = [key for key in good if key.id != number and not key.public]
            if not any(Scope.ADMIN in key.scopes and Scope.READ in key.scopes for key in left):
                raise RefusedError(
                    "It is the last one that may change things here: make another with read and admin first, or revoke it with `headwater keys revoke`"
                )
            record(
                desk.data, time_ms=now_ms, by=by, action="key.revoke", subject=f"{gone.name} ({gone.id})", reason=reason
            )
            return ring.revoke(number)

        with refusing():
            gone = await asyncio.to_thread(revoked)
        return done(f"The key {gone.name} opens nothing any more")

    return [keys, add, revoke]
