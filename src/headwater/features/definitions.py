"""What a feature is: an aggregation over events, or a read of several.

**Aggregations** own state. They form an algebra: ``empty`` is zero, ``update`` adds one event,
``read(now)`` gives the value at a moment. Decayed ones are lazily scaled: a row has one clock, and all
its decayed cells are worth their value at that clock. **Columns** are the numbers that a model sees;
each names the aggregations that it reads. ``plan.compile_plan`` lays both out.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from headwater.schema.config import Config
from headwater.schema.durations import parse_duration

Entity = Literal["user", "item"]

# A type of its own for aggregations: a positive event that follows another one of the same visit, that is,
# the same user had a positive event on another item within ``co_visits.window`` before it.
FOLLOWED = "@followed"


class Decayed(Struct, frozen=True):
    """Sum of ``weight * 2^(-age / half_life)`` over events of ``types`` (weights in the same order)."""

    entity: Entity
    types: tuple[str, ...]
    weights: tuple[float, ...]
    half_life_ms: int


class Counted(Struct, frozen=True):
    """Exact number of events of ``types`` (a retraction takes one off)."""

    entity: Entity
    types: tuple[str, ...]


class LastTime(Struct, frozen=True):
    """Time of the latest event of ``types``, in ms; 0 when there was none."""

    entity: Entity
    types: tuple[str, ...]


FOLLOWED_PRIOR = 2.0

Aggregation = Decayed | Counted | LastTime


class Op(IntEnum):
    """How a column is read; the assemble kernel has one loop for each."""

    DECAYED_USER = 0
    DECAYED_ITEM = 1
    SHARE_ITEM = 2  # decayed cell over the same cell of all items together
    RATE_ITEM = 3  # (numerator + prior) / (denominator + strength)
    TREND_ITEM = 4  # short decay per hour over long decay per hour
    COUNT_USER = 5
    COUNT_ITEM = 6
    SINCE_USER = 7
    SINCE_ITEM = 8
    AGE_ITEM = 9
    LENGTH_USER = 10  # events in the recent sequence
    AFFINITY = 11  # largest share of the user's category affinity among the item's categories
    CO_LAST = 12  # P(item | latest item) by co-visits
    CO_SUM = 13  # recency-weighted sum of P(item | recent item)
    CO_COUNT = 14  # recent items that lead to this one
    CO_LIFT = 15  # CO_SUM over the item's share of all events
    CONTENT_LAST = 16  # content similarity to the latest item
    CONTENT_MEAN = 17  # content similarity to the recency-weighted recent items
    SEGMENT_SHARE = 18  # the item's share inside the request's segment
    SEGMENT_LIFT = 19  # that share over the item's share everywhere
    HOUR = 20
    WEEKDAY = 21
    PRICE = 22
    SAME_CATEGORY = 23  # recent items that share the item's first category, recency-weighted
    CO_WEIGHT = 24  # recency-weighted sum of co-visit weights, not divided by anything
    CO_FAST_LAST = 25  # CO_LAST at the fast half-life
    CO_FAST_SUM = 26


class Column(Struct, frozen=True):
    """One number of a model's input row.

    ``reads`` are the aggregations it is computed from, ``parameters`` numbers of its op.
    """

    name: str
    op: Op
    unit: str
    description: str
    reads: tuple[Aggregation, ...] = ()
    parameters: tuple[float, ...] = ()
    default: float = 0.0


def default_columns(config: Config) -> tuple[Column, ...]:
    """The default set for the configured event types and half-lives."""
    names = tuple(t.name for t in config.events)
    positive = tuple(t for t in config.events if t.positive)
    liked = tuple(t.name for t in positive)
    exposure = ("impression",) if "impression" in names else names
    features = config.features
    item_half_lives = [(text, parse_duration(text)) for text in features.item_half_lives]
    user_half_lives = [(text, parse_duration(text)) for text in features.user_half_lives]
    longest_text, longest = max(item_half_lives, key=lambda pair: pair[1])
    columns: list[Column] = []
    add = columns.append

    for text, ms in item_half_lives:
        for name in names:
            cell = Decayed("item", (name,), (1.0,), ms)
            add(Column(f"item_{name}_{text}", Op.DECAYED_ITEM, "events", f"{name} events, half-life {text}", (cell,)))
        cell = popularity_cell(config, ms)
        add(Column(f"item_positive_{text}", Op.DECAYED_ITEM, "weight", f"positive events, half-life {text}", (cell,)))
        add(
            Column(
                f"item_share_{text}", Op.SHARE_ITEM, "share", f"share of all positive events, half-life {text}", (cell,)
            )
        )
    ordered = sorted(item_half_lives, key=lambda pair: pair[1])
    for (short_text, short), (long_text, long) in pairwise(ordered):
        add(
            Column(
                f"item_trend_{short_text}_{long_text}",
                Op.TREND_ITEM,
                "ratio",
                f"positive events an hour, half-life {short_text} over {long_text}",
                (popularity_cell(config, short), popularity_cell(config, long)),
                (float(short), float(long)),
            )
        )
    for name in liked:
        add(
            Column(
                f"item_{name}_rate",
                Op.RATE_ITEM,
                "rate",
                f"{name} per exposure, smoothed, half-life {longest_text}",
                (Decayed("item", (name,), (1.0,), longest), Decayed("item", exposure, (1.0,) * len(exposure), longest)),
                (0.05 * features.rate_prior, features.rate_prior),
            )
        )
    for text, ms in ordered[:2]:
        followed = Decayed("item", (FOLLOWED,), (1.0,), ms)
        clicked = Decayed("item", liked, (1.0,) * len(liked), ms)
        add(
            Column(
                f"item_followed_share_{text}",
                Op.SHARE_ITEM,
                "share",
                f"share of all positive events inside a visit, half-life {text}",
                (followed,),
            )
        )
        add(
            Column(
                f"item_followed_rate_{text}",
                Op.RATE_ITEM,
                "rate",
                f"positive events inside a visit over all of them, smoothed, half-life {text}",
                (followed, clicked),
                (0.5 * FOLLOWED_PRIOR, FOLLOWED_PRIOR),
            )
        )
    add(Column("item_age", Op.AGE_ITEM, "hours", "since it was published, or first seen"))
    add(
        Column(
            "item_since",
            Op.SINCE_ITEM,
            "hours",
            "since its latest positive event",
            (LastTime("item", liked),),
            default=-1.0,
        )
    )
    add(Column("item_count", Op.COUNT_ITEM, "events", "positive events ever", (Counted("item", liked),)))
    add(Column("item_price", Op.PRICE, "price", "price as given; 0 when unknown"))

    for text, ms in user_half_lives:
        for name in names:
            cell = Decayed("user", (name,), (1.0,), ms)
            add(Column(f"user_{name}_{text}", Op.DECAYED_USER, "events", f"{name} events, half-life {text}", (cell,)))
    add(
        Column(
            "user_since",
            Op.SINCE_USER,
            "hours",
            "since the latest positive event",
            (LastTime("user", liked),),
            default=-1.0,
        )
    )
    add(Column("user_count", Op.COUNT_USER, "events", "positive events ever", (Counted("user", liked),)))
    add(Column("user_length", Op.LENGTH_USER, "events", "events in the recent sequence"))

    add(Column("affinity", Op.AFFINITY, "share", "largest share of category affinity among the item's categories"))
    add(Column("same_category", Op.SAME_CATEGORY, "weight", "recent items of the same first category, weighted"))
    add(Column("co_last", Op.CO_LAST, "probability", "co-visits with the latest item"))
    add(Column("co_sum", Op.CO_SUM, "probability", "co-visits with the recent items, recency-weighted"))
    add(Column("co_fast_last", Op.CO_FAST_LAST, "probability", "co-visits with the latest item, fast half-life"))
    add(
        Column(
            "co_fast_sum", Op.CO_FAST_SUM, "probability", "co-visits with the recent items, weighted, fast half-life"
        )
    )
    add(Column("co_count", Op.CO_COUNT, "items", "recent items that lead here by co-visits"))
    add(
        Column(
            "co_lift",
            Op.CO_LIFT,
            "ratio",
            "co_sum over the item's share of all positive events",
            (popularity_cell(config, longest),),
        )
    )
    add(
        Column("co_weight", Op.CO_WEIGHT, "weight", "co-visits with the recent items, recency-weighted, not normalised")
    )
    add(Column("content_last", Op.CONTENT_LAST, "cosine", "content similarity to the latest item"))
    add(Column("content_mean", Op.CONTENT_MEAN, "cosine", "content similarity to the recent items, recency-weighted"))
    for k, key in enumerate(config.segments.keys):
        add(
            Column(
                f"segment_{key}_share", Op.SEGMENT_SHARE, "share", f"share inside the request's {key}", (), (float(k),)
            )
        )
        add(
            Column(
                f"segment_{key}_lift",
                Op.SEGMENT_LIFT,
                "ratio",
                f"share inside the request's {key} over the share everywhere",
                (),
                (float(k),),
            )
        )
    add(Column("hour", Op.HOUR, "hours", "hour of the day, UTC"))
    add(Column("weekday", Op.WEEKDAY, "days", "day of the week, Monday is 0"))
    return tuple(columns)


def popularity_cell(config: Config, half_life_ms: int) -> Decayed:
    """The decayed weight of all positive events: what "popular" means everywhere in Headwater."""
    positive = [t for t in config.events if t.positive]
    return Decayed("item", tuple(t.name for t in positive), tuple(t.weight for t in positive), half_life_ms)
