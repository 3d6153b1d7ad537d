"""Items: the catalogue searched and sorted; one item with what it says, what the state holds of it, what became of it; changes to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import numpy as np
import numpy.typing as npt
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import HTML, Call, Desk, Entry, NotFoundError, changer_of
from headwater.console.forms import asked, form_of, id_behind, number
from headwater.console.guard import ROOT
from headwater.console.tail import ItemPast, counted, item_past
from headwater.log.protocol import RefusedError
from headwater.registry.audit import record
from headwater.schema.errors import HeadwaterError, UnavailableError
from headwater.schema.items import Item
from headwater.schema.looks import ItemQuery, ItemState, Status

ITEMS, PARTS, CHARTS = f"{ROOT}/items", f"{ROOT}/parts/items", f"{ROOT}/charts/items"
ENTRIES: tuple[Entry, ...] = (Entry(ITEMS, "Items", "Look into"),)

COUNT = 50
NEAR = 8
BARS = 40
STATUS: tuple[Status, ...] = ("shown", "hidden", "unpublished", "expired")
ACTIONS: Mapping[str, str] = {"show": "shown again", "hide": "hidden", "delete": "deleted"}

_UNKNOWN = "There is no item of that id: no upsert and no event ever named it"
_QUERY: Mapping[str, str] = {"text": "", "category": "", "status": "", "sort": "age", "order": "falling"}


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The pages and their parts."""

    @get(ITEMS)
    async def items(request: Call) -> Response[str]:
        said = {name: asked(request, name, default) for name, default in _QUERY.items()}
        start = number(asked(request, "start"), 0)
        known = desk.looks.items
        query = ItemQuery(
            text=said["text"],
            category=said["category"],
            status=next((status for status in STATUS if status == said["status"]), ""),
            sort=said["sort"] if said["sort"] in ("id", *known.sorts) else "age",
            ascending=said["order"] == "rising",
            start=start,
            count=COUNT,
        )
        page, problem = None, ""
        try:
            page = await known.page(query, desk.clock())
        except HeadwaterError as error:
            problem = str(error)

        def link(start: int) -> str:
            return f"{ITEMS}?{urlencode({**said, 'start': start})}"

        return desk.page(
            request, "items.html", said=said, query=query, page=page, problem=problem, statuses=STATUS, sorts=known.sorts,
            categories=known.categories(), link=link, now_ms=desk.clock(), count=COUNT,
        )  # fmt: skip

    @get(ITEMS + "/{item:path}")
    async def item(request: Call) -> Response[str]:
        name = id_behind(request, f"{ITEMS}/")
        return _item(desk, request, name, "item.html")

    @get(f"{PARTS}/past")
    async def past(request: Call) -> Response[str]:
        name = asked(request, "item")
        found = await desk.apart.run(item_past, desk.looks.log, _number(desk, name))
        return desk.page(request, "item_past.html", item=name, past=found, sums=_sums(desk, found), now_ms=desk.clock())

    @get(f"{CHARTS}/past")
    async def chart(request: Call) -> Response[bytes]:
        found = await desk.apart.run(item_past, desk.looks.log, _number(desk, asked(request, "item")))
        return Response(msgspec.json.encode(_over_time(found)), media_type="application/json")

    @get(f"{PARTS}/neighbours")
    async def neighbours(request: Call) -> Response[str]:
        found, problem = [], ""
        try:
            found = await desk.looks.items.neighbours(_number(desk, asked(request, "item")), desk.clock(), NEAR)
        except HeadwaterError as error:
            problem = str(error)
        return desk.page(request, "item_neighbours.html", neighbours=found, problem=problem)

    @post(f"{PARTS}/change", status_code=200)
    async def change(request: Call) -> Response[str]:
        form = await form_of(request)
        name, action, reason = (form.get(field, "") for field in ("item", "action", "reason"))
        _number(desk, name)
        if action not in ACTIONS or not reason:
            why = "Say why: the audit log asks for it" if action in ACTIONS else f"There is no action {action!r}"
            return Response(why, status_code=400, media_type="text/plain")
        await asyncio.to_thread(
            record, desk.data, time_ms=desk.wall(), by=changer_of(request), action=f"item.{action}", subject=name, reason=reason
        )  # fmt: skip
        try:
            if action == "delete":
                await desk.looks.items.delete(name)
            else:
                await desk.looks.items.set_available(name, action == "show")
        except KeyError:
            return Response("The catalogue says nothing of it any more", status_code=409, media_type="text/plain")
        except (UnavailableError, RefusedError) as error:
            return Response(str(error), status_code=503, media_type="text/plain")
        shown = _item(desk, request, name, "item_head.html")
        said = json.dumps({"headwater:done": f"{name} is {ACTIONS[action]}"})
        return Response(shown.content, media_type=HTML, headers={"hx-trigger": said})

    return [items, item, past, chart, neighbours, change]


def _item(desk: Desk, request: Call, name: str, template: str) -> Response[str]:
    """The page of an item, or its head alone."""
    state: ItemState | None = None
    problem = ""
    try:
        state = desk.looks.items.item(name, desk.clock())
    except HeadwaterError as error:
        problem = str(error)
    if state is None and not problem:
        raise NotFoundError(_UNKNOWN)
    return desk.page(
        request, template, item=name, state=state, problem=problem, fields=_fields(state), now_ms=desk.clock(),
        query=urlencode({"item": name}, quote_via=quote),
    )  # fmt: skip


def _number(desk: Desk, name: str) -> int:
    if (found := desk.looks.items.number(name)) == 0:
        raise NotFoundError(_UNKNOWN)
    return found


def _fields(state: ItemState | None) -> dict[str, Any]:
    """What the catalogue says of an item, field by field, without what the page shows elsewhere."""
    if state is None or state.record is None:
        return {}
    told: dict[str, Any] = msgspec.to_builtins(state.record)
    for name in ("id", "title", "available"):
        told.pop(name, None)
    if "vector" in told:
        told["vector"] = f"{len(told['vector'])} numbers"
    attributes: dict[str, Any] = told.pop("attributes", {})
    known = Item.__struct_fields__  # an attribute may be called as a field is, and be of another type
    return {**told, **{f"attributes.{name}" if name in known else name: attributes[name] for name in attributes}}


def _sums(desk: Desk, past: ItemPast) -> dict[str, Any]:
    """Impressions, positive events, and of those since the first of these lists the events for each place."""
    positive = [kind.name for kind in desk.config.events if kind.positive]
    times = [time_ms for name in positive for time_ms in past.events_ms.get(name, ())]
    first_ms = min(past.shown_ms, default=0)
    return {
        "place": float(np.mean(past.places)) if past.places else None,
        "liked": len(times),
        "rate": sum(time_ms >= first_ms for time_ms in times) / past.shown if past.shown else None,
        "positive": positive,
    }


def _over_time(past: ItemPast) -> dict[str, Any]:
    """ECharts: places of served lists, and events by type, in :data:`BARS` intervals of what was looked at."""
    if not past.shown and not past.events_ms:
        return {"empty": "Nothing in the part of the log that was looked at"}
    edges: npt.NDArray[np.int64] = np.linspace(past.looked.since_ms, past.until_ms + 1, BARS + 1).astype(np.int64)
    middles = ((edges[:-1] + edges[1:]) // 2).tolist()

    def line(name: str, times_ms: list[int], kind: str) -> dict[str, Any]:
        data = [list(pair) for pair in zip(middles, counted(times_ms, edges), strict=True)]
        return {"name": name, "type": kind, "data": data, "showSymbol": False, "barMaxWidth": 14}

    most = sorted(past.events_ms, key=lambda name: -len(past.events_ms[name]))[:6]
    series = [
        line("in served lists", past.shown_ms, "bar"),
        *(line(name, past.events_ms[name], "line") for name in most),
    ]
    return {
        "grid": {"left": 44, "right": 12, "top": 36, "bottom": 28},
        "legend": {"type": "scroll", "top": 0},
        "xAxis": {"type": "time"},
        "yAxis": {"type": "value", "minInterval": 1},
        "series": series,
    }
