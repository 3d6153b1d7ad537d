"""Why a list is as it is: the request asked again at its place in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect

from headwater.console.desk import Call, Desk, Entry
from headwater.console.forms import asked, id_behind, number
from headwater.console.guard import ROOT
from headwater.registry.registry import Registry
from headwater.schema.errors import HeadwaterError, WaitError
from headwater.schema.explanation import ExplainedItem, Explanation

PATH = f"{ROOT}/why"
ENTRIES: tuple[Entry, ...] = (Entry(PATH, "Why", "See"),)
NEWEST = 20
BUNDLES = 30

_STAGES = (
    ("offered", "Offered by sources"), ("eligibility", "May be shown"), ("merge", "Within the widths"),
    ("light_rank", "Past the light rank"), ("rank", "Ranked into the list"), ("policy", "Listed"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the funnel: how many items came so far, how many of those before it did not, and as what share of all it is drawn."""

    name: str
    left: int
    lost: int
    width: float
    before: float


def routes(desk: Desk) -> list[HTTPRouteHandler]:
    """The page of a request, the list of the newest ones, and what is worked out."""

    @get(PATH)
    async def why(request: Call) -> Response[str] | Redirect:
        if wanted := asked(request, "id"):
            return Redirect(f"{PATH}/{quote(wanted, safe='')}")
        surfaces = [surface.name for surface in desk.config.surfaces]
        return desk.page(request, "why.html", surfaces=surfaces, recorded=desk.config.serving.log_served)

    @get(f"{PATH}-newest")
    async def newest(request: Call) -> Response[str]:
        surface, user = asked(request, "surface"), number(asked(request, "number"), -1)
        try:
            found, problem = await desk.live.past.newest(NEWEST, surface, user), ""
        except HeadwaterError as error:
            found, problem = [], str(error)
        return desk.page(request, "why_newest.html", lists=found, problem=problem, now_ms=desk.clock())

    @get(PATH + "/{request_id:path}")
    async def one(request: Call) -> Response[str]:
        request_id = id_behind(request, f"{PATH}/")
        return desk.page(
            request, "why_one.html", request_id=request_id, quoted=quote(request_id, safe=""), asked=_question(request),
            bundles=await _bundles(desk),
        )  # fmt: skip

    @get(PATH + "-explained/{request_id:path}")
    async def explained(request: Call) -> Response[str]:
        request_id, question = id_behind(request, f"{PATH}-explained/"), _question(request)
        values: dict[str, Any] = {"quoted": quote(request_id, safe=""), "asked": question}
        try:
            found = await desk.live.past.explain(
                request_id, question["item"], question["bundle"], number(question["after"], -1)
            )
        except WaitError as error:
            return desk.page(request, "why_wait.html", reason=str(error), **values)
        except HeadwaterError as error:
            return desk.page(request, "why_problem.html", reason=str(error), **values)
        cards = desk.live.play.cards(_mentioned(found))
        return desk.page(
            request,
            "why_explained.html",
            why=found,
            cards=cards,
            steps=funnel(found),
            top=_top(found),
            now_ms=desk.clock(),
            **values,
        )

    return [why, newest, one, explained]


def funnel(why: Explanation) -> list[Step]:
    """How many items came how far. An item counts where it was lost, and once however many sources offered it."""
    lost = {name: sum(each.items for each in why.filters if each.stage == name) for name, _ in _STAGES}
    left = everything = len(why.items) + sum(lost.values())
    steps, before = [], 1.0
    for name, title in _STAGES:
        left -= lost[name]
        width = left / everything if everything else 0.0
        steps.append(Step(title, left, lost[name], width, before))
        before = width
    return steps


def _question(request: Call) -> dict[str, str]:
    return {name: asked(request, name) for name in ("item", "bundle", "after")}


async def _bundles(desk: Desk) -> list[str]:
    listed = await desk.apart.run(Registry(desk.data / "models").list)
    return [one.version for one in listed if one.problem is None][:BUNDLES]


def _mentioned(why: Explanation) -> list[str]:
    found = [item.item for item in why.items] + [placed.item for placed in why.served]
    found += [candidate.item for source in why.sources for candidate in source.candidates]
    found += [example for each in why.filters for example in each.examples] + why.request.about
    if why.item:
        found.append(why.item.of.item)
    if why.other:
        found += [placed.item for placed in why.other.items]
    found += [placed.item for shadow in why.shadows for placed in shadow.items]
    return list(dict.fromkeys(found))


def _top(why: Explanation) -> float:
    """The largest effect of a feature: bars are drawn in proportion to it."""
    items: Sequence[ExplainedItem] = [*why.items, *([why.item.of] if why.item else [])]
    return max((abs(value.effect or 0.0) for item in items for value in item.features), default=0.0)
