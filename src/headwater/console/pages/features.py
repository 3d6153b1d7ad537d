"""Features: the plan column by column, and how the values of the moment are spread."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from headwater.console.desk import Call, Desk, Entry, NotFoundError
from headwater.console.drifts import Drifts, PsiSeries, read_drifts, read_psi
from headwater.console.forms import asked
from headwater.console.guard import ROOT
from headwater.console.tail import active_users
from headwater.schema.errors import HeadwaterError
from headwater.schema.looks import Distribution, FeatureColumn, FeatureSample

FEATURES, PARTS, CHARTS = f"{ROOT}/features", f"{ROOT}/parts/features", f"{ROOT}/charts/features"
ENTRIES: tuple[Entry, ...] = (Entry(FEATURES, "Features", "Look into"),)

KEPT_S = 20.0
SAMPLE_USERS = 256
WEEK_MS = 7 * 86_400_000
_UNKNOWN = "The plan has no feature of that name"


class _Sampled:
    """The sample of the last moments: a page and its charts look at the same."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._made: tuple[float, FeatureSample] | None = None
        self._one = asyncio.Lock()

    async def now(self) -> FeatureSample:
        async with self._one:
            if self._made is None or time.monotonic() - self._made[0] > KEPT_S:
                looks = self._desk.looks
                _, users, _ = await self._desk.apart.run(active_users, looks.log, SAMPLE_USERS)
                self._made = time.monotonic(), await looks.features.sample(users, self._desk.clock())
            return self._made[1]


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The pages, their parts and charts."""
    sampled = _Sampled(desk)

    def column_of(name: str) -> FeatureColumn:
        for column in desk.looks.features.columns:
            if column.name == name:
                return column
        raise NotFoundError(_UNKNOWN)

    @get(FEATURES)
    async def features(request: Call) -> Response[str]:
        return desk.page(
            request, "features.html", columns=desk.looks.features.columns, plan=desk.looks.features.plan,
            text=asked(request, "text").lower(),
        )  # fmt: skip

    @get(f"{PARTS}/spread")
    async def spread(request: Call) -> Response[str]:
        text = asked(request, "text").lower()
        sample, problem = await _sample(sampled)
        drifts = await desk.apart.run(read_drifts, desk.data)
        return desk.page(
            request, "features_spread.html", sample=sample, problem=problem, drifts=drifts, now_ms=desk.clock(),
            columns=[each for each in desk.looks.features.columns if _fits(each, text)],
        )  # fmt: skip

    @get(FEATURES + "/{name:str}")
    async def feature(request: Call) -> Response[str]:
        name = request.path_params["name"]
        column = column_of(name)
        sample, problem = await _sample(sampled)
        drifts: Drifts = await desk.apart.run(read_drifts, desk.data)
        spread = None if sample is None else sample.columns.get(name)
        return desk.page(
            request, "feature.html", column=column, sample=sample, spread=spread, problem=problem, drifts=drifts,
            now_ms=desk.clock(),
        )  # fmt: skip

    @get(CHARTS + "/{name:str}")
    async def chart(request: Call) -> Response[bytes]:
        name = request.path_params["name"]
        column = column_of(name)
        sample, problem = await _sample(sampled)
        if sample is None or name not in sample.columns:
            return _options({"empty": problem or "There are no items yet"})
        return _options(histogram(sample.columns[name], column.unit))

    @get(f"{ROOT}/charts/feature-psi/" + "{name:str}")
    async def psi(request: Call) -> Response[bytes]:
        name = request.path_params["name"]
        column_of(name)
        now_ms = desk.wall()
        found = await desk.apart.run(read_psi, desk.data, name, now_ms - WEEK_MS, now_ms)
        return _options(over_time(found))

    return [features, spread, feature, chart, psi]


async def _sample(sampled: _Sampled) -> tuple[FeatureSample | None, str]:
    try:
        return await sampled.now(), ""
    except HeadwaterError as error:
        return None, str(error)


def _fits(column: FeatureColumn, text: str) -> bool:
    return not text or any(
        text in each.lower() for each in (column.name, column.description, column.entity, column.kind)
    )


def _options(options: dict[str, Any]) -> Response[bytes]:
    return Response(msgspec.json.encode(options), media_type="application/json")


def histogram(spread: Distribution, unit: str) -> dict[str, Any]:
    """ECharts: the counts between the edges."""
    labels = [f"{low:.3g} … {high:.3g}" for low, high in zip(spread.edges, spread.edges[1:], strict=False)]
    return {
        "grid": {"left": 52, "right": 12, "top": 16, "bottom": 46},
        "xAxis": {"type": "category", "data": labels, "name": unit, "nameLocation": "middle", "nameGap": 28},
        "yAxis": {"type": "value", "minInterval": 1},
        "series": [{"name": "rows", "type": "bar", "data": spread.counts, "barCategoryGap": "4%"}],
    }


def over_time(found: PsiSeries) -> dict[str, Any]:
    """ECharts: PSI, and what chance alone exceeds seldom."""
    if found.psi is None:
        return {"empty": "The monitor has not compared this feature yet"}
    lines = [("PSI", found.psi, "solid")] + ([("chance", found.null, "dashed")] if found.null is not None else [])
    return {
        "grid": {"left": 52, "right": 12, "top": 36, "bottom": 28},
        "legend": {"top": 0},
        "xAxis": {"type": "time"},
        "yAxis": {"type": "value", "scale": False},
        "series": [
            {
                "name": name, "type": "line", "showSymbol": False, "lineStyle": {"type": style},
                "data": [list(pair) for pair in zip(series.times_ms, series.values, strict=True)],
            }
            for name, series, style in lines
        ],
    }  # fmt: skip
