"""How the three planes are, at a glance: fresh, fast and good, or what is wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import Call, Desk, Entry, NotFoundError
from headwater.console.diagram import HEIGHT, WIDTH, diagram
from headwater.console.forms import asked, id_behind
from headwater.console.guard import ROOT
from headwater.console.past_figures import CHARTS, SPANS, chart, latest_ctr
from headwater.console.verdicts import verdicts
from headwater.console.watching import Watching, watching
from headwater.monitoring.history import HISTORY_FILE
from headwater.monitoring.standing import read_standing
from headwater.registry.audit import AuditEntry, read_audit
from headwater.registry.registry import Registry
from headwater.schema.durations import parse_duration
from headwater.schema.errors import HeadwaterError
from headwater.schema.seen import PastList

ENTRIES: tuple[Entry, ...] = (Entry(ROOT, "Overview", "See"),)
EVERY_MS = 2_000
ASIDE_MS = 5_000
NEWEST_LISTS, NEWEST_CHANGES = 5, 8


@dataclass(frozen=True, slots=True)
class Aside:
    """What files say: looked up every few seconds, however many pages refresh."""

    bundles: int
    ctr: float | None
    changes: list[AuditEntry]
    watching: Watching


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page, its living part and its charts."""

    @get(ROOT)
    async def overview(request: Call) -> Response[str]:
        return desk.page(
            request,
            "overview.html",
            charts=CHARTS,
            spans=SPANS,
            span=_span(request),
            remembered=(desk.data / HISTORY_FILE).exists(),
            **await _values(),
            **await _news(),
        )

    @get(f"{ROOT}/pulse")
    async def pulse(request: Call) -> Response[str]:
        return desk.page(request, "overview_pulse.html", **await _values())

    @get(f"{ROOT}/news")
    async def news(request: Call) -> Response[str]:
        return desk.page(request, "overview_news.html", **await _news())

    @get(ROOT + "/figures/{name:str}")
    async def figures(request: Call) -> dict[str, Any]:
        name = id_behind(request, f"{ROOT}/figures/")
        if name not in CHARTS:
            raise NotFoundError(f"There is no chart {name}; there are {', '.join(CHARTS)}")
        now_ms = desk.wall()  # the monitor writes by the wall's clock
        return await desk.apart.run(chart, desk.data, name, now_ms - SPANS[_span(request)], now_ms)

    kept: list[tuple[int, Aside]] = []

    async def _aside() -> Aside:
        now_ms = desk.wall()
        if not kept or now_ms - kept[0][0] >= ASIDE_MS:
            kept[:] = [(now_ms, await desk.apart.run(_look, desk))]
        return kept[0][1]

    async def _values() -> dict[str, Any]:
        reasons, aside = await asyncio.gather(desk.live.why_not_ready(), _aside())  # a writer that hangs takes a while
        health = desk.live.health()
        try:
            beat = await desk.live.pulses.pulse()
        except HeadwaterError as error:
            return {
                "reasons": [*reasons, str(error)],
                "health": health,
                "drawn": None,
                "verdicts": [],
                "every_ms": EVERY_MS,
                "pulse": None,
            }
        away = " ".join(reasons)
        drawn = diagram(
            beat, wall_ms=desk.wall(), writer_away="writer" in away, fold_away="fold" in away, bundles=aside.bundles,
            watching=aside.watching,
        )  # fmt: skip
        return {
            "reasons": reasons, "health": health, "drawn": drawn, "size": (WIDTH, HEIGHT), "verdicts": verdicts(beat, aside.ctr, reasons),
            "every_ms": EVERY_MS, "pulse": beat,
        }  # fmt: skip

    async def _news() -> dict[str, Any]:
        aside = await _aside()
        try:
            lists: list[PastList] = await desk.live.past.newest(NEWEST_LISTS, "", -1)
        except HeadwaterError:
            lists = []  # the page says elsewhere that the log is away
        return {
            "watching": aside.watching,
            "changes": aside.changes,
            "lists": lists,
            "now_ms": desk.clock(),
            "wall_ms": desk.wall(),
        }

    return [overview, pulse, news, figures]


def _look(desk: Desk) -> Aside:
    bundles = sum(one.problem is None for one in Registry(desk.data / "models").list())
    looked = watching(desk.data, read_standing(desk.data), parse_duration(desk.config.monitoring.every), desk.wall())
    return Aside(bundles, latest_ctr(desk.data), read_audit(desk.data, NEWEST_CHANGES), looked)


def _span(request: Call) -> str:
    said = asked(request, "span")
    return said if said in SPANS else "1 h"
