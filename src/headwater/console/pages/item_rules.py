"""Rules about one item: what is in force, and boosting, burying, pinning or hiding it for a while."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import HTML, Call, Desk, Entry, changer_of
from headwater.console.forms import asked, form_of, number
from headwater.console.guard import ROOT
from headwater.schema.errors import HeadwaterError
from headwater.schema.rule_changes import ItemAction

PARTS = f"{ROOT}/parts/item-rules"
ENTRIES: tuple[Entry, ...] = ()

HOUR_MS = 3_600_000
MOST_HOURS = 24 * 366
MOST_PLACE = 100
_ACTIONS: dict[str, ItemAction] = {"boost": "boost", "bury": "bury", "pin": "pin", "hide": "hide"}
_DONE = {"boost": "boosted", "bury": "buried", "pin": "pinned", "hide": "hidden by a rule"}


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The part of an item's page, and its changes."""

    @get(PARTS)
    async def rules(request: Call) -> Response[str]:
        return await _part(desk, request, asked(request, "item"))

    @post(PARTS, status_code=200)
    async def add(request: Call) -> Response[str]:
        form = await form_of(request)
        item, surface = form.get("item", ""), form.get("surface", "")
        try:
            action, factor, until_ms = _wish(form, desk.clock())
        except ValueError as error:
            return _refused(str(error))
        try:
            await asyncio.to_thread(
                desk.planes.rules.act_on_item, item, action, by=changer_of(request), reason=form.get("reason", ""), until_ms=until_ms,
                factor=factor, position=number(form.get("position", ""), 1), surfaces=(surface,) if surface else (),
            )  # fmt: skip
        except HeadwaterError as error:
            return _refused(str(error))
        return _said(await _part(desk, request, item), f"{item} is {_DONE[action]}")

    @post(f"{PARTS}/withdraw", status_code=200)
    async def withdraw(request: Call) -> Response[str]:
        form = await form_of(request)
        name, reason = form.get("rule", ""), form.get("reason", "")
        if not reason:
            return _refused("Say why: the audit log asks for it")
        try:
            await asyncio.to_thread(desk.planes.rules.withdraw, name, by=changer_of(request), reason=reason)
        except HeadwaterError as error:
            return _refused(str(error))
        return _said(await _part(desk, request, form.get("item", "")), f"The rule {name} is withdrawn")

    return [rules, add, withdraw]


def _wish(form: dict[str, str], now_ms: int) -> tuple[ItemAction, float | None, int | None]:
    """What a form asks for: the action, its factor, and until when. Raises ``ValueError`` that says what is wrong."""
    action = _ACTIONS.get(form.get("action", ""))
    if action is None:
        raise ValueError(f"Choose one of {', '.join(_ACTIONS)}")
    if not form.get("reason"):
        raise ValueError("Say why: the audit log asks for it")
    factor: float | None = None
    if action in ("boost", "bury"):
        try:
            factor = float(form.get("factor", ""))
        except ValueError:
            factor = math.nan
        if not (1.0 < factor <= 100.0 if action == "boost" else 0.0 < factor < 1.0):
            raise ValueError("The factor is above 1 (to 100) to boost, between 0 and 1 to bury")
    elif action == "pin" and not 1 <= number(form.get("position", ""), 0) <= MOST_PLACE:
        raise ValueError(f"The place is a whole number from 1 to {MOST_PLACE}")
    hours = number(form.get("hours", ""), 0)
    if hours > MOST_HOURS:
        raise ValueError(f"At most {MOST_HOURS} hours; leave it empty for no end")
    return action, factor, now_ms + HOUR_MS * hours if hours else None


async def _part(desk: Desk, request: Call, item: str) -> Response[str]:
    found: list[Any] = []
    locked = problem = ""
    try:
        found = await asyncio.to_thread(desk.planes.rules.rules_about, item)
        locked = (await asyncio.to_thread(desk.planes.rules.text)).locked
    except HeadwaterError as error:
        problem = str(error)
    return desk.page(
        request, "item_rules.html", item=item, rules=found, locked=locked, problem=problem, actions=list(_ACTIONS),
        surfaces=[surface.name for surface in desk.config.surfaces],
    )  # fmt: skip


def _refused(reason: str) -> Response[str]:
    return Response(reason, status_code=400, media_type="text/plain")


def _said(part: Response[str], done: str) -> Response[str]:
    return Response(part.content, media_type=HTML, headers={"hx-trigger": json.dumps({"headwater:done": done})})
