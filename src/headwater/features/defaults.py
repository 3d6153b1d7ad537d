"""The default set: what the spine's ranker sees when nobody declares anything."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from headwater.features.aggregations import FOLLOWED, Affinity, Counted, Decayed, LastTime
from headwater.features.declare import affinity, context, count, read, segment
from headwater.features.definitions import Column, Formula, Side, Term, TermOp, popularity_cell
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.segments import JOIN

FOLLOWED_PRIOR = 2.0


def default_affinity(config: Config) -> Affinity:
    """The user's taste by category, weighted by event type: kept for every plan."""
    weighted = [t for t in config.events if t.weight != 0.0]
    return Affinity(
        tuple(t.name for t in weighted), tuple(t.weight for t in weighted), "category",
        parse_duration(config.features.affinity_half_life), config.features.affinity,
    )  # fmt: skip


def _item(cell: Decayed) -> Term:
    return Term(TermOp.DECAYED, Side.ITEM, cell)


def _everybody(cell: Decayed) -> Term:
    return Term(TermOp.DECAYED, Side.EVERYBODY, cell)


def _share(name: str, cell: Decayed, description: str) -> Column:
    return Column(name, Formula.SHARE, (_item(cell), _everybody(cell)), "share", description)


def default_columns(config: Config) -> tuple[Column, ...]:
    """The default set for the configured event types and half-lives."""
    return (*_item_columns(config), *_user_columns(config), *_cross_columns(config), *_context_columns(config))


def _item_columns(config: Config) -> list[Column]:
    names = tuple(t.name for t in config.events)
    liked = tuple(t.name for t in config.events if t.positive)
    exposure = ("impression",) if "impression" in names else names
    features = config.features
    half_lives = [(text, parse_duration(text)) for text in features.item_half_lives]
    ordered = sorted(half_lives, key=lambda pair: pair[1])
    longest_text, longest = ordered[-1]
    columns: list[Column] = []
    add = columns.append
    for text, ms in half_lives:
        for name in names:
            add(
                count(
                    f"item_{_own(name)}_{text}",
                    "item",
                    [name],
                    half_life=text,
                    owner="headwater",
                    description=f"{name} events, half-life {text}",
                )
            )
        cell = popularity_cell(config, ms)
        add(
            Column(
                f"item_positive_{text}", Formula.VALUE, (_item(cell),), "weight", f"positive events, half-life {text}"
            )
        )
        add(_share(f"item_share_{text}", cell, f"share of all positive events, half-life {text}"))
    for (short_text, short), (long_text, long) in pairwise(ordered):
        add(
            Column(
                f"item_trend_{short_text}_{long_text}", Formula.TREND,
                (_item(popularity_cell(config, short)), _item(popularity_cell(config, long))), "ratio",
                f"positive events an hour, half-life {short_text} over {long_text}", (float(short), float(long)),
            )
        )  # fmt: skip
    for name in liked:
        add(
            Column(
                f"item_{name}_rate", Formula.RATE,
                (_item(Decayed("item", (name,), (1.0,), longest)),
                 _item(Decayed("item", exposure, (1.0,) * len(exposure), longest))),
                "rate", f"{name} per exposure, smoothed, half-life {longest_text}",
                (0.05 * features.rate_prior, features.rate_prior),
            )
        )  # fmt: skip
    for text, ms in ordered[:2]:
        followed = Decayed("item", (FOLLOWED,), (1.0,), ms)
        clicked = Decayed("item", liked, (1.0,) * len(liked), ms)
        add(_share(f"item_followed_share_{text}", followed, f"share of all positive events inside a visit, half-life {text}"))  # fmt: skip
        add(
            Column(
                f"item_followed_rate_{text}", Formula.RATE, (_item(followed), _item(clicked)), "rate",
                f"positive events inside a visit over all of them, smoothed, half-life {text}",
                (0.5 * FOLLOWED_PRIOR, FOLLOWED_PRIOR),
            )
        )  # fmt: skip
    add(_ours(read("item_age", "age", description="since it was published, or first seen")))
    add(
        Column(
            "item_since", Formula.VALUE, (Term(TermOp.SINCE, Side.ITEM, LastTime("item", liked)),), "hours",
            "since its latest positive event", default=-1.0,
        )
    )  # fmt: skip
    add(
        Column(
            "item_count", Formula.VALUE, (Term(TermOp.COUNT, Side.ITEM, Counted("item", liked)),), "events",
            "positive events ever", dtype="int32",
        )
    )  # fmt: skip
    add(_ours(read("item_price", "price", description="price as given; 0 when unknown")))
    return columns


def _user_columns(config: Config) -> list[Column]:
    liked = [t.name for t in config.events if t.positive]
    columns = [
        count(f"user_{t.name}_{text}", "user", [t.name], half_life=text, owner="headwater",
              description=f"{t.name} events, half-life {text}")
        for text in config.features.user_half_lives
        for t in config.events
    ]  # fmt: skip
    columns.append(
        Column(
            "user_since", Formula.VALUE, (Term(TermOp.SINCE, Side.USER, LastTime("user", tuple(liked))),), "hours",
            "since the latest positive event", default=-1.0,
        )
    )  # fmt: skip
    columns.append(_ours(count("user_count", "user", liked, description="positive events ever")))
    columns.append(_ours(read("user_length", "recent_length", description="events in the recent sequence")))
    return columns


def _cross_columns(config: Config) -> list[Column]:
    taste = default_affinity(config)
    longest = max(parse_duration(text) for text in config.features.item_half_lives)
    cell = popularity_cell(config, longest)
    columns = [
        affinity("affinity", dict(zip(taste.types, taste.weights, strict=True)), half_life=config.features.affinity_half_life,
                 slots=taste.slots, description="largest share of category affinity among the item's categories"),
        read("same_category", "same_category", description="recent items of the same first category, weighted"),
        read("co_last", "co_last", description="co-visits with the latest item"),
        read("co_sum", "co_sum", description="co-visits with the recent items, recency-weighted"),
        read("co_fast_last", "co_fast_last", description="co-visits with the latest item, fast half-life"),
        read("co_fast_sum", "co_fast_sum", description="co-visits with the recent items, weighted, fast half-life"),
        read("co_count", "co_count", description="recent items that lead here by co-visits"),
        Column("co_lift", Formula.LIFT, (Term(TermOp.CO_SUM), _item(cell), _everybody(cell)), "ratio",
               "co_sum over the item's share of all positive events"),
        read("co_weight", "co_weight", description="co-visits with the recent items, recency-weighted, not normalised"),
        read("content_last", "content_last", description="content similarity to the latest item"),
        read("content_mean", "content_mean", description="content similarity to the recent items, recency-weighted"),
    ]  # fmt: skip
    if config.features.factors.size:
        columns += [
            read("factors", "factors", description="online factors: log lift of the candidate in the whole context"),
            read("factors_recent", "factors_recent", description="online factors: the recent items' part of it"),
            read("factors_segments", "factors_segments", description="online factors: the segments' part of it"),
            read("factors_user", "factors_user", description="online factors: the user's part of it"),
        ]
    for k, key in enumerate(config.segments.keys):
        name = key.replace(JOIN, "_")
        columns.append(segment(f"segment_{name}_share", k, "share", description=f"share inside the request's {key}"))
        columns.append(
            segment(
                f"segment_{name}_lift",
                k,
                "lift",
                description=f"share inside the request's {key} over the share everywhere",
            )
        )
    return [_ours(column) for column in columns]


def _context_columns(_config: Config) -> list[Column]:
    return [
        _ours(context("hour", "hour", description="hour of the day in the user's time zone (UTC when unknown)")),
        _ours(context("weekday", "weekday", description="day of the week there, Monday is 0")),
    ]


def _own(name: str) -> str:
    """An event type may be called like one of the columns over all positive types."""
    return f"{name}_events" if name in ("positive", "share") else name


def _ours(column: Column) -> Column:
    return msgspec.structs.replace(column, owner="headwater")
