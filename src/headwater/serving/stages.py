"""The request path as data: its stages in order, what each needs, and what a list is without it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from headwater.schema.config import Config

Outcome = Literal["ok", "shortened", "skipped", "failed"]

TIER_FULL, TIER_LIGHT, TIER_RETRIEVAL, TIER_LAST, TIER_POPULAR = range(5)


class Stage(NamedTuple):
    """A stage. ``until``: the share of the deadline by which it must be over; what comes later is cut or skipped.

    ``skipped``: what becomes of the answer without the stage.
    """

    name: str
    does: str
    needs: tuple[str, ...]
    until: float
    skipped: str


class Tier(NamedTuple):
    """A rung of the ladder."""

    number: int
    name: str
    serves: str


STAGES = (
    Stage("hydrate", "the user row, where the user is, what must not be shown", ("state store",), 0.2, "tier 3 or 4: nobody knows the user"),
    Stage("fetch", "offers of every source of the surface", ("user row", "item columns", "bundle"), 0.5, "the sources that are left are not asked; with none, tier 3 or 4"),
    Stage("eligibility", "what may be shown of the offers, merged and cut to the width", ("item columns",), 0.55, "never skipped: no list without it"),
    Stage("assemble", "the feature rows of the candidates", ("user row", "item columns", "plan"), 0.6, "tier 2"),
    Stage("light_rank", "the light ranker orders all candidates; the best go on", ("bundle",), 0.65, "every candidate goes on; in place of the deep ranker: tier 2"),
    Stage("deep_rank", "the ranker of the bundle scores what is left", ("bundle", "ranker thread"), 0.8, "tier 1 with a light ranker or fewer candidates, else tier 2"),
    Stage("value", "scores become an order; equal ones by item number", (), 0.85, "the merged order of the sources"),
    Stage("policy", "the list is cut from the order, by rules, fatigue and diversity of the surface, with places for new items that are promised some, and drawn by lot where it explores", ("configuration",), 0.9, "never skipped"),
    Stage("respond", "sources, reasons and causes of each item; the address", (), 1.0, "never skipped"),
    Stage("log", "the served list on its way to the event log", ("writer",), 1.0, "the list is answered and counted as lost"),
)  # fmt: skip

TIERS = (
    Tier(TIER_FULL, "full", "every source, every stage"),
    Tier(TIER_LIGHT, "light", "fewer candidates, by the light ranker, or by the ranker itself where there is none and time suffices"),
    Tier(TIER_RETRIEVAL, "retrieval", "the merged order of the sources"),
    Tier(TIER_LAST, "last", "the last good list of this user, or of strangers in this segment, filtered again"),
    Tier(TIER_POPULAR, "popular", "what is popular, from a snapshot in memory, filtered again"),
)  # fmt: skip

UNTIL = {stage.name: stage.until for stage in STAGES}


def described(config: Config) -> dict[str, Any]:
    """The path of a request under ``config``: stages with the ms by which each must be over, tiers, and how lists are put together."""
    ladder = config.ladder
    return {
        "deadline_ms": ladder.deadline_ms,
        "walk": ladder.walk,
        "stages": [{**stage._asdict(), "until_ms": round(stage.until * ladder.deadline_ms, 3)} for stage in STAGES],
        "tiers": [tier._asdict() for tier in TIERS],
        "surfaces": msgspec.to_builtins(config.surfaces),
        "fatigue": msgspec.to_builtins(config.fatigue),
        "new_items": msgspec.to_builtins(config.new_items),
    }
