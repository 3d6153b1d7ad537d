"""Functions that declare features: what a team writes in its own feature module.

A module is a Python file named by ``features.module`` in ``headwater.toml``; its list ``features`` holds columns, and
lists of columns::

    from headwater.features.declare import mean, rate

    features = [
        mean("item_watch_1d", "item", ["play"], half_life="1d", unit="s", description="watch time a play", owner="video"),
        rate("user_like_rate", "user", ["like"], ["click"], prior=0.05, strength=10, description="likes a click"),
    ]

``entity`` is whose history is read: "user", "item" (the candidate) or "everybody". ``types`` are event types of the
configuration. Every function takes ``unit``, ``description``, ``owner`` and ``default`` (where there is nothing to read).
Durations are text: "15m", "6h", "30d".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from headwater.features.aggregations import (
    Affinity,
    Aggregation,
    Attribute,
    Counted,
    Decayed,
    Distinct,
    Extreme,
    LastTime,
    LastValue,
    Of,
    TableValue,
    Windowed,
)
from headwater.features.definitions import Column, Formula, Side, Term, TermOp
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError

Who = Literal["user", "item", "everybody"]

MAX_SLOTS = 64  # keys of an affinity: each event looks through all of them
MAX_BUCKETS = 1 << 24  # a float32 tells so many codes apart


class About(TypedDict, total=False):
    """What every feature may say of itself."""

    unit: str
    description: str
    owner: str
    default: float


_SIDES: dict[str, Side] = {"user": Side.USER, "item": Side.ITEM, "everybody": Side.EVERYBODY}
_OPS: dict[type, TermOp] = {
    Decayed: TermOp.DECAYED,
    Counted: TermOp.COUNT,
    LastTime: TermOp.SINCE,
    Windowed: TermOp.WINDOW,
    Extreme: TermOp.EXTREME,
    LastValue: TermOp.LAST,
    Distinct: TermOp.DISTINCT,
}


def count(
    name: str, entity: Who, types: Sequence[str], *, half_life: str | None = None, window: str | None = None,
    tiles: int = 12, **about: Unpack[About],
) -> Column:  # fmt: skip
    """Events of ``types``: ever (exact), fading with ``half_life``, or in the last ``window`` (in ``tiles`` tiles)."""
    cell = _summed(name, entity, types, "one", half_life, window, tiles, exact=True)
    return _column(name, Formula.VALUE, [_term(entity, cell)], about, unit="events")


def total(
    name: str, entity: Who, types: Sequence[str], *, half_life: str | None = None, window: str | None = None,
    tiles: int = 12, **about: Unpack[About],
) -> Column:  # fmt: skip
    """Sum of the events' ``value``: ever, fading with ``half_life``, or in the last ``window``."""
    return _column(
        name, Formula.VALUE, [_term(entity, _summed(name, entity, types, "value", half_life, window, tiles))], about
    )


def mean(
    name: str, entity: Who, types: Sequence[str], *, half_life: str | None = None, window: str | None = None,
    tiles: int = 12, **about: Unpack[About],
) -> Column:  # fmt: skip
    """Mean ``value`` of the events that have one."""
    cells = [_summed(name, entity, types, of, half_life, window, tiles) for of in ("value", "given")]
    return _column(name, Formula.RATE, [_term(entity, cell) for cell in cells], about)


def smallest(name: str, entity: Who, types: Sequence[str], **about: Unpack[About]) -> Column:
    """Smallest ``value`` ever."""
    return _column(name, Formula.VALUE, [_term(entity, Extreme(_entity(entity), _types(name, types), False))], about)


def largest(name: str, entity: Who, types: Sequence[str], **about: Unpack[About]) -> Column:
    """Largest ``value`` ever."""
    return _column(name, Formula.VALUE, [_term(entity, Extreme(_entity(entity), _types(name, types), True))], about)


def last(name: str, entity: Who, types: Sequence[str], **about: Unpack[About]) -> Column:
    """``value`` of the latest event that has one."""
    return _column(name, Formula.VALUE, [_term(entity, LastValue(_entity(entity), _types(name, types)))], about)


def since(name: str, entity: Who, types: Sequence[str], **about: Unpack[About]) -> Column:
    """Hours since the latest event of ``types``; -1 (``default``) when there was none."""
    term = _term(entity, LastTime(_entity(entity), _types(name, types)))
    return _column(name, Formula.VALUE, [term], about, unit="hours", default=-1.0)


def rate(
    name: str, entity: Who, successes: Sequence[str], trials: Sequence[str], *, prior: float = 0.05,
    strength: float = 20.0, half_life: str | None = None, window: str | None = None, tiles: int = 12,
    **about: Unpack[About],
) -> Column:  # fmt: skip
    """``(successes + prior * strength) / (trials + strength)``: with few trials it stays near ``prior``."""
    cells = [_summed(name, entity, types, "one", half_life, window, tiles) for types in (successes, trials)]
    return _column(
        name, Formula.RATE, [_term(entity, cell) for cell in cells], about, unit="rate",
        parameters=(prior * strength, strength),
    )  # fmt: skip


def distinct(
    name: str, entity: Who, types: Sequence[str], of: Literal["user", "item", "category"], *, precision: int = 6,
    **about: Unpack[About],
) -> Column:  # fmt: skip
    """About how many different users, items or categories; standard error ``1.04 / sqrt(2^precision)``."""
    if not 4 <= precision <= 12:
        raise ConfigurationError(f"feature {name}: precision must lie between 4 and 12, got {precision}")
    if of not in ("user", "item", "category"):
        raise ConfigurationError(f'feature {name}: distinct of "{of}": it is one of user, item, category')
    term = _term(entity, Distinct(_entity(entity), _types(name, types), of, precision))
    return _column(name, Formula.VALUE, [term], about, unit=f"{of}s")


def affinity(
    name: str, weights: dict[str, float], *, key: str = "category", half_life: str = "14d", slots: int = 12,
    read: Literal["share", "weight", "since"] = "share", **about: Unpack[About],
) -> Column:  # fmt: skip
    """User × key: the decayed weight that the user's events gave to the candidate's key.

    ``weights`` by event type. ``key``: "category", or the name of an item attribute (author, brand…). ``read``: its
    share of all the user's keys, the weight itself, or the hours since the latest event with that key.
    """
    ops = {"share": TermOp.AFFINITY_SHARE, "weight": TermOp.AFFINITY_WEIGHT, "since": TermOp.AFFINITY_SINCE}
    if not 1 <= slots <= MAX_SLOTS:
        raise ConfigurationError(f"feature {name}: slots must lie between 1 and {MAX_SLOTS}, got {slots}")
    cell = Affinity(_types(name, list(weights)), tuple(weights.values()), key, parse_duration(half_life), slots)
    units = {"share": "share", "weight": "weight", "since": "hours"}
    return _column(
        name, Formula.VALUE, [Term(ops[read], Side.ITEM, cell)], about, unit=units[read],
        default=-1.0 if read == "since" else 0.0,
    )  # fmt: skip


def attribute(
    name: str, entity: Literal["user", "item"], key: str, *, kind: Literal["number", "category"] = "number",
    buckets: int = 1 << 16, **about: Unpack[About],
) -> Column:  # fmt: skip
    """An attribute of the item or of the user's profile: a number, or the bucket of a text's hash (1 … ``buckets``)."""
    if not 1 <= buckets <= MAX_BUCKETS:
        raise ConfigurationError(f"feature {name}: buckets must lie between 1 and {MAX_BUCKETS}, got {buckets}")
    cell = Attribute(_one(name, entity), key, kind)
    if kind == "number":
        return _column(name, Formula.VALUE, [Term(TermOp.NUMBER, _SIDES[entity], cell)], about)
    term = Term(TermOp.CODE, _SIDES[entity], cell, (float(buckets),))
    return _column(name, Formula.VALUE, [term], about, unit="code", dtype="category")


def table(
    name: str, entity: Literal["user", "item"], source: str, column: str, *, max_age: str | None = None,
    **about: Unpack[About],
) -> Column:  # fmt: skip
    """A column of one of your ``[[tables]]``; ``default`` when nothing is loaded or it is older than ``max_age``."""
    age = 0.0 if max_age is None else float(parse_duration(max_age))
    cell = TableValue(_one(name, entity), source, column)
    term = Term(TermOp.TABLE, _SIDES[entity], cell, (age,))
    return _column(name, Formula.VALUE, [term], about)


def segment(name: str, key: int, read: Literal["weight", "share", "lift"] = "share", **about: Unpack[About]) -> Column:
    """Candidate × segment: the item's weight, share or lift among the positive events of the request's segment.

    ``key`` is the position in ``segments.keys``.
    """
    ops = {"weight": TermOp.SEGMENT_WEIGHT, "share": TermOp.SEGMENT_SHARE, "lift": TermOp.SEGMENT_LIFT}
    units = {"weight": "weight", "share": "share", "lift": "ratio"}
    return _column(name, Formula.VALUE, [Term(ops[read], parameters=(float(key),))], about, unit=units[read])


def embedding(name: str, size: int, **about: Unpack[About]) -> list[Column]:
    """The first ``size`` entries of the item's content vector, one column each: ``name_0`` …"""
    return [
        _column(f"{name}_{k}", Formula.VALUE, [Term(TermOp.EMBEDDING, parameters=(float(k),))], about)
        for k in range(size)
    ]


def recent(
    name: str, length: int, read: Literal["item", "type", "age"] = "item", **about: Unpack[About]
) -> list[Column]:
    """The user's latest events, latest first, one column each: dense items, type slots, or ages in hours."""
    ops = {"item": TermOp.RECENT_ITEM, "type": TermOp.RECENT_TYPE, "age": TermOp.RECENT_AGE}
    dtype: Literal["float32", "category"] = "float32" if read == "age" else "category"
    default = -1.0 if read == "age" else 0.0
    return [
        _column(f"{name}_{k}", Formula.VALUE, [Term(ops[read], Side.USER, None, (float(k),))], about,
                unit="hours" if read == "age" else "code", dtype=dtype, default=default)
        for k in range(length)
    ]  # fmt: skip


_CONTEXT = {"hour": (TermOp.HOUR, "hours"), "weekday": (TermOp.WEEKDAY, "days")}


def context(name: str, what: str, *, key: int = 0, **about: Unpack[About]) -> Column:
    """A fact of the request: "hour" or "weekday" in the user's time zone, or a code: of the "surface", or of the "segment" of key ``key`` (country,
    device: what ``segments.keys`` names).
    """
    if what == "segment":
        term = Term(TermOp.SEGMENT_CODE, Side.USER, None, (float(key),))
        return _column(name, Formula.VALUE, [term], about, unit="code", dtype="category")
    if what == "surface":
        return _column(
            name, Formula.VALUE, [Term(TermOp.SURFACE_CODE, Side.USER)], about, unit="code", dtype="category"
        )
    if what not in _CONTEXT:
        raise ConfigurationError(
            f'feature {name}: there is no context "{what}": it is one of hour, weekday, segment, surface'
        )
    op, unit = _CONTEXT[what]
    return _column(name, Formula.VALUE, [Term(op, Side.USER)], about, unit=unit, dtype="int32")


_SIMPLE = {
    "price": (TermOp.PRICE, "price"), "age": (TermOp.AGE, "hours"), "recent_length": (TermOp.LENGTH, "events"),
    "same_category": (TermOp.SAME_CATEGORY, "weight"), "co_last": (TermOp.CO_LAST, "probability"),
    "co_sum": (TermOp.CO_SUM, "probability"), "co_count": (TermOp.CO_COUNT, "items"),
    "co_weight": (TermOp.CO_WEIGHT, "weight"), "co_fast_last": (TermOp.CO_FAST_LAST, "probability"),
    "co_fast_sum": (TermOp.CO_FAST_SUM, "probability"), "content_last": (TermOp.CONTENT_LAST, "cosine"),
    "content_mean": (TermOp.CONTENT_MEAN, "cosine"),
    "factors": (TermOp.FACTORS, "log lift"), "factors_recent": (TermOp.FACTORS_RECENT, "log lift"),
    "factors_segments": (TermOp.FACTORS_SEGMENTS, "log lift"), "factors_user": (TermOp.FACTORS_USER, "log lift"),
}  # fmt: skip


def read(name: str, what: str, **about: Unpack[About]) -> Column:
    """Something that Headwater keeps anyway: ``price``, ``age``, ``recent_length``, the similarities of the user's
    recent items to the candidate (``content_last``, ``content_mean``, ``same_category``) and its co-visits with them
    (``co_last``, ``co_sum``, ``co_count``, ``co_weight``, ``co_fast_last``, ``co_fast_sum``), and, where ``features.factors.size`` is not 0, online
    factors (``factors``, ``factors_recent``, ``factors_segments``, ``factors_user``).
    """
    if what not in _SIMPLE:
        raise ConfigurationError(f'feature {name}: there is no "{what}": it is one of {", ".join(_SIMPLE)}')
    op, unit = _SIMPLE[what]
    return _column(name, Formula.VALUE, [Term(op, Side.USER if op == TermOp.LENGTH else Side.ITEM)], about, unit=unit)


def ratio(name: str, a: Column, b: Column, **about: Unpack[About]) -> Column:
    """``a / b`` of two single-term features, 0 where ``b`` is 0: crosses of user, item and everybody."""
    return _column(name, Formula.SHARE, [_single(name, a), _single(name, b)], about, unit="ratio")


def difference(name: str, a: Column, b: Column, **about: Unpack[About]) -> Column:
    """``a - b`` of two single-term features."""
    return _column(name, Formula.DIFFERENCE, [_single(name, a), _single(name, b)], about)


def product(name: str, a: Column, b: Column, **about: Unpack[About]) -> Column:
    """``a * b`` of two single-term features."""
    return _column(name, Formula.PRODUCT, [_single(name, a), _single(name, b)], about)


def log1p(name: str, a: Column, **about: Unpack[About]) -> Column:
    """``log(1 + a)`` of a single-term feature."""
    return _column(name, Formula.LOG, [_single(name, a)], about)


def _single(name: str, column: Column) -> Term:
    if column.formula is not Formula.VALUE:
        raise ConfigurationError(
            f"feature {name}: {column.name} is a formula of its own; a cross is made of counts, sums and other single reads"
        )
    return column.terms[0]


def _entity(who: Who) -> Literal["user", "item"]:
    if who not in _SIDES:
        raise ConfigurationError(f'entity "{who}": it is one of user, item, everybody')
    return "user" if who == "user" else "item"


def _one(name: str, who: str) -> Literal["user", "item"]:
    """Attributes and tables say something of one user or one item."""
    if who not in ("user", "item"):
        raise ConfigurationError(f'feature {name}: entity "{who}": it is one of user, item')
    return "user" if who == "user" else "item"


def _types(name: str, types: Sequence[str]) -> tuple[str, ...]:
    if isinstance(types, str) or not types:
        raise ConfigurationError(f"feature {name}: event types are a list of names, such as ['click']")
    return tuple(types)


def _term(who: Who, cell: Aggregation) -> Term:
    return Term(_OPS[type(cell)], _SIDES[who], cell)


def _summed(
    name: str, who: Who, types: Sequence[str], of: Of, half_life: str | None, window: str | None, tiles: int,
    *, exact: bool = False,
) -> Aggregation:  # fmt: skip
    entity, names = _entity(who), _types(name, types)
    if half_life is not None and window is not None:
        raise ConfigurationError(f"feature {name}: give a half_life or a window, not both")
    ones = (1.0,) * len(names)
    if window is not None:
        window_ms = parse_duration(window)
        if not 1 <= tiles <= 366 or window_ms % tiles:
            raise ConfigurationError(
                f"feature {name}: a window of {window} does not fall into {tiles} equal tiles of whole milliseconds (1 to 366 tiles)"
            )
        return Windowed(entity, names, ones, window_ms, tiles, of)
    if half_life is not None:
        return Decayed(entity, names, ones, parse_duration(half_life), of)
    return Counted(entity, names) if exact else Decayed(entity, names, ones, 0, of)


def _column(
    name: str, formula: Formula, terms: list[Term], about: About, *, unit: str = "value", default: float = 0.0,
    parameters: tuple[float, ...] = (), dtype: Literal["float32", "int32", "category"] = "float32",
) -> Column:  # fmt: skip
    fields: dict[str, Any] = {"unit": unit, "description": "", "default": default, **about}
    made = Column(
        name=name, formula=formula, terms=tuple(terms), parameters=parameters, dtype=dtype,
        owner=fields.pop("owner", "yours"), **fields,
    )  # fmt: skip
    return msgspec.structs.replace(made, default=float(made.default))
