"""How the three planes are, at a glance."""

from __future__ import annotations

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import Call, Desk, Entry
from headwater.console.guard import ROOT

ENTRIES: tuple[Entry, ...] = (Entry(ROOT, "Overview", "See"),)


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page and its parts."""

    @get(ROOT)
    async def overview(request: Call) -> Response[str]:
        return desk.page(request, "overview.html", health=desk.live.health(), reasons=await desk.live.why_not_ready())

    return [overview]
