"""The catalogue as a map: item vectors in two dimensions, coloured by category; a click leads to the item."""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import Call, Desk, Entry
from headwater.console.forms import asked
from headwater.console.guard import ROOT
from headwater.schema.errors import HeadwaterError
from headwater.schema.looks import CatalogueMap

MAP, CHART = f"{ROOT}/map", f"{ROOT}/charts/map"
ENTRIES: tuple[Entry, ...] = (Entry(MAP, "Map of the catalogue", "Look into"),)

COLOURS = 12  # categories with a colour of their own; the rest share one
_REST = "other"
_PALETTE = (
    "#3b7dd8", "#e07b39", "#2e9e6b", "#c2418f", "#8a63d2", "#c9a227", "#1fa3b8", "#d1495b", "#6a8f2f", "#a0623a", "#5566aa", "#d98cb3",
)  # fmt: skip
_GREY = "#8b98a3"


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page and its chart."""

    @get(MAP)
    async def page(request: Call) -> Response[str]:
        kinds = desk.looks.map.kinds()
        kind = asked(request, "of")
        kind = kind if kind in kinds else kinds[0]
        drawn, problem = None, ""
        try:
            drawn = await desk.looks.map.draw(kind)
        except HeadwaterError as error:
            problem = str(error)
        query = urlencode({"of": kind})
        return desk.page(
            request, "map.html", kinds=kinds, kind=kind, drawn=drawn, problem=problem, query=query, colours=COLOURS
        )  # fmt: skip

    @get(CHART)
    async def chart(request: Call) -> Response[bytes]:
        kinds = desk.looks.map.kinds()
        kind = asked(request, "of")
        drawn = await desk.looks.map.draw(kind if kind in kinds else kinds[0])
        return Response(msgspec.json.encode(scatter(drawn)), media_type="application/json")

    return [page, chart]


def scatter(drawn: CatalogueMap) -> dict[str, Any]:
    """ECharts: a series for each of the largest categories, and one for the rest."""
    if not drawn.points:
        return {"empty": "No item has a vector yet"}
    sizes = Counter(point.category or _REST for point in drawn.points)
    sizes.pop(_REST, None)
    own = [name for name, _ in sizes.most_common(COLOURS)]
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in (*own, _REST)}
    for point in drawn.points:
        groups[point.category if point.category in groups else _REST].append(
            {
                "value": [point.x, point.y],
                "name": point.title or point.item,
                "href": f"{ROOT}/items/{quote(point.item)}",
            }
        )
    hidden = {
        "type": "value",
        "scale": True,
        "axisLabel": {"show": False},
        "axisTick": {"show": False},
        "axisLine": {"show": False},
    }
    return {
        "grid": {"left": 10, "right": 10, "top": 64, "bottom": 10},
        "legend": {"type": "scroll", "top": 0},
        "tooltip": {"trigger": "item", "formatter": "{b}\n{a}"},
        "xAxis": {**hidden, "splitLine": {"show": False}},
        "yAxis": {**hidden, "splitLine": {"show": False}},
        "dataZoom": [{"type": "inside", "xAxisIndex": 0}, {"type": "inside", "yAxisIndex": 0}],
        "series": [
            {
                "name": name,
                "type": "scatter",
                "symbolSize": 6,
                "data": points,
                "itemStyle": {"opacity": 0.75, "color": colour},
            }
            for (name, points), colour in zip(groups.items(), [*_PALETTE[: len(own)], _GREY], strict=True)
            if points
        ],
    }
