"""One feature of each kind that ``declare`` offers, for the default configuration."""

from __future__ import annotations

from headwater.features import declare as d
from headwater.features.aggregations import FOLLOWED, Decayed
from headwater.features.definitions import Column, Formula, Side, Term, TermOp
from headwater.features.plan import compile_plan
from headwater.schema.config import Config

WHO: tuple[d.Who, ...] = ("user", "item", "everybody")
LIKES = ["click", "like"]


def _of(who: d.Who) -> list[Column]:
    return [
        d.count(f"{who}_count", who, ["view"]),
        d.count(f"{who}_count_1h", who, LIKES, half_life="1h"),
        d.count(f"{who}_count_last_hour", who, LIKES, window="1h"),
        d.count(f"{who}_followed", who, [FOLLOWED, "view"], half_life="10m"),
        d.total(f"{who}_total", who, ["click"]),
        d.total(f"{who}_total_5m", who, ["click"], half_life="5m"),
        d.total(f"{who}_total_last_day", who, ["click", "view"], window="1d", tiles=24),
        d.mean(f"{who}_mean", who, LIKES),
        d.mean(f"{who}_mean_1d", who, LIKES, half_life="1d"),
        d.mean(f"{who}_mean_last_week", who, LIKES, window="7d", tiles=7),
        d.smallest(f"{who}_smallest", who, ["view"]),
        d.largest(f"{who}_largest", who, ["view", "click"]),
        d.last(f"{who}_last", who, ["view", "hide"]),
        d.since(f"{who}_since", who, ["hide"]),
        d.rate(f"{who}_rate", who, ["click"], ["impression", "click"], half_life="6h"),
        d.distinct(f"{who}_items", who, ["view", "click"], "item"),
        d.distinct(f"{who}_users", who, ["view"], "user", precision=4),
        d.distinct(f"{who}_categories", who, ["click"], "category", precision=8),
    ]


_FADING = Term(TermOp.DECAYED, Side.ITEM, Decayed("item", ("click", "hide"), (1.0, -0.5), 600_000))
_EVERYBODY = Term(TermOp.DECAYED, Side.EVERYBODY, Decayed("item", ("click", "hide"), (1.0, -0.5), 600_000))

EVERYTHING: tuple[Column, ...] = (
    *(column for who in WHO for column in _of(who)),
    *(d.affinity(f"category_{how}", {"click": 1.0, "hide": -2.0}, slots=3, half_life="1d", read=how)
      for how in ("share", "weight", "since")),
    *(d.affinity(f"author_{how}", {"click": 1.0, "view": 0.2}, key="author", slots=2, half_life="2h", read=how)
      for how in ("share", "weight", "since")),
    d.attribute("length", "item", "length"),
    d.attribute("author", "item", "author", kind="category", buckets=1000),
    d.attribute("birth_year", "user", "birth_year"),
    d.attribute("tier", "user", "plan", kind="category"),
    d.table("left", "item", "stock", "left"),
    d.table("item_score", "item", "stock", "score", max_age="1d", default=-5.0),
    d.table("user_score", "user", "credit", "score"),
    *(d.segment(f"segment_{how}", 0, how) for how in ("weight", "share", "lift")),
    *d.embedding("content", 2),
    *d.recent("latest_item", 2),
    *d.recent("latest_type", 2, "type"),
    *d.recent("latest_age", 2, "age"),
    d.context("hour", "hour"),
    d.context("weekday", "weekday"),
    d.context("country", "segment"),
    d.context("surface", "surface"),
    *(d.read(f"read_{what}", what) for what in (
        "price", "age", "recent_length", "same_category", "co_last", "co_sum", "co_count", "co_weight",
        "co_fast_last", "co_fast_sum", "content_last", "content_mean")),
    d.ratio("share", d.count("a", "item", LIKES), d.count("b", "everybody", LIKES)),
    d.difference("gap", d.last("a", "user", ["view"]), d.last("b", "item", ["view"])),
    d.product("cross", d.total("a", "user", ["click"]), d.count("b", "item", ["click"], half_life="1h")),
    d.log1p("log", d.count("a", "item", ["view"])),
    Column("trend", Formula.TREND, (_FADING, _EVERYBODY), "ratio", "trend", (600_000.0, 3_600_000.0)),
    Column("lift", Formula.LIFT, (Term(TermOp.CO_SUM), _FADING, _EVERYBODY), "ratio", "lift"),
)  # fmt: skip

EVERYTHING_PLAN = compile_plan(Config(), EVERYTHING)
