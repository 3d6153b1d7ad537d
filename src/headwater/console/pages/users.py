"""Users: who somebody is, what they did, what the state holds of them, what they were shown; and erasing them.

Ids as clients send them are stored nowhere in clear, so a user's page stands under the number that history calls them by.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import structlog
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import HTML, Call, Desk, Entry, NotFoundError, changer_of
from headwater.console.forms import asked, form_of, number
from headwater.console.guard import ROOT
from headwater.console.tail import active_users, user_past, user_profile
from headwater.log.identity import UserKey
from headwater.registry.audit import record
from headwater.schema.errors import HeadwaterError
from headwater.schema.looks import UserState
from headwater.schema.seen import Card
from headwater.schema.users import UserProfile

USERS, PARTS = f"{ROOT}/users", f"{ROOT}/parts/users"
ENTRIES: tuple[Entry, ...] = (Entry(USERS, "Users", "Look into"),)

_UNKNOWN = "Nobody is known by that id: they were never seen, or erased"
_GONE = "Nobody is known by that number: it was never given, or the user was erased"

log = structlog.get_logger()
_profile = msgspec.msgpack.Decoder(UserProfile).decode


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The pages and their parts."""

    @get(USERS)
    async def users(request: Call) -> Response[str]:
        return desk.page(request, "users.html")

    @post(USERS, status_code=200)
    async def find(request: Call) -> Response[str]:
        wanted = (await form_of(request)).get("id", "")
        found = desk.looks.users.find(wanted) if wanted else None
        if found is None:
            return desk.page(request, "trouble.html", reason=_UNKNOWN)
        return Response("", headers={"hx-redirect": f"{USERS}/{found.surrogate:016x}"})

    @get(f"{PARTS}/active")
    async def active(request: Call) -> Response[str]:
        found, _, looked = await desk.apart.run(active_users, desk.looks.log)
        return desk.page(request, "users_active.html", users=found, looked=looked, now_ms=desk.clock())

    @get(USERS + "/{surrogate:str}")
    async def user(request: Call) -> Response[str]:
        surrogate = request.path_params["surrogate"]
        key, now_ms = _key_of(desk, surrogate), desk.clock()
        state, problem = _state(desk, key, now_ms)
        return desk.page(
            request, "user.html", key=key, surrogate=f"{key.surrogate:016x}", state=state, problem=problem, now_ms=now_ms,
            cards=_cards(desk, [] if state is None else [event.item for event in state.recent]),
        )  # fmt: skip

    @get(PARTS + "/{surrogate:str}/past")
    async def past(request: Call) -> Response[str]:
        surrogate = request.path_params["surrogate"]
        key = _key_of(desk, surrogate)
        before = number(asked(request, "before"), 0) or None
        found = await desk.apart.run(user_past, desk.looks.log, key.user, before)
        return desk.page(
            request, "user_past.html", surrogate=f"{key.surrogate:016x}", past=found, before=before, now_ms=desk.clock(),
            cards=_cards(desk, [event.item for event in found.events]),
        )  # fmt: skip

    @get(PARTS + "/{surrogate:str}/profile")
    async def profile(request: Call) -> Response[str]:
        surrogate = request.path_params["surrogate"]
        key = _key_of(desk, surrogate)
        before = number(asked(request, "before"), 0) or None
        found = await desk.apart.run(user_profile, desk.looks.log, key.user, before)
        return desk.page(
            request, "user_profile.html", surrogate=f"{key.surrogate:016x}", found=found, now_ms=desk.clock(),
            profile=_opened(desk, key, found.profile),
        )  # fmt: skip

    @post(USERS + "/{surrogate:str}/erase", status_code=200)
    async def erase(request: Call) -> Response[str]:
        surrogate = request.path_params["surrogate"]
        key, form = _key_of(desk, surrogate), await form_of(request)
        typed, reason = form.get("id", ""), form.get("reason", "")
        if (problem := _why_not(desk, key, typed, reason)) is not None:
            return Response(problem, status_code=400, media_type="text/plain")
        # who it was is not said: the audit log is kept
        await asyncio.to_thread(
            record, desk.data, time_ms=desk.wall(), by=changer_of(request), action="user.erase", subject="a user", reason=reason
        )  # fmt: skip
        try:
            certificate = await desk.looks.erase(typed)
        except HeadwaterError as error:
            log.error("console_erase_failed", error=type(error).__name__)
            return Response(str(error), status_code=503, media_type="text/plain")
        done = "The user is erased" if not certificate["recoverable"] else "The user is erased, but something was found"
        shown = desk.text(request, "user_erased.html", certificate=certificate)
        return Response(shown, media_type=HTML, headers={"hx-trigger": json.dumps({"headwater:done": done})})

    return [users, find, active, user, past, profile, erase]


def _key_of(desk: Desk, surrogate: str) -> UserKey:
    try:
        found = desk.looks.users.with_surrogate(int(surrogate, 16)) if len(surrogate) == 16 else None
    except ValueError:
        found = None
    if found is None:
        raise NotFoundError(_GONE)
    return found


def _state(desk: Desk, key: UserKey, now_ms: int) -> tuple[UserState | None, str]:
    """The row of state, or why there is none to be seen."""
    try:
        return desk.looks.users.state(key.user, now_ms), ""
    except HeadwaterError as error:
        return None, str(error)


def _cards(desk: Desk, items: list[str]) -> dict[str, Card]:
    """How people see ``items``; by their ids alone where the state is away."""
    try:
        return desk.looks.items.cards(items)
    except HeadwaterError:  # the page says so where it shows the row
        return {item: Card(item, item, []) for item in items}


def _opened(desk: Desk, key: UserKey, sealed: bytes | None) -> dict[str, Any] | None:
    """The profile that was found, field by field; None: none was."""
    plain = None if sealed is None else desk.looks.users.unseal(key.user, sealed)
    if plain is None:
        return None
    told: dict[str, Any] = msgspec.to_builtins(_profile(plain))
    attributes = told.pop("attributes", {})
    return {**told, **attributes}


def _why_not(desk: Desk, key: UserKey, typed: str, reason: str) -> str | None:
    """What is wrong with a wish to erase; None: nothing."""
    if not typed or desk.looks.users.find(typed) != key:
        return "That is not the id of this user: type it as your systems send it"
    if not reason:
        return "Say why: a request number, for example"
    if typed in reason:
        return "Leave the user's id out of the reason: the audit log is kept when they are gone"
    return None
