"""Generated feature definitions: what a team could write in its module, over everything that ``declare`` offers.

``definitions`` draws a set of columns for a configuration; together with ``events.scripts`` they show that the kernels
compute what the definitions say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from headwater.features.aggregations import FOLLOWED, Decayed
from headwater.features.declare import (
    affinity,
    attribute,
    context,
    count,
    difference,
    distinct,
    embedding,
    largest,
    last,
    log1p,
    mean,
    product,
    rate,
    ratio,
    read,
    recent,
    segment,
    since,
    smallest,
    table,
    total,
)
from headwater.features.definitions import Column, Formula, Side, Term, TermOp
from headwater.schema.config import Config
from headwater.testing.events import TABLES

Draw = Callable[[st.SearchStrategy[Any]], Any]

HALF_LIVES = ("1s", "1500ms", "7m", "30m", "6h", "3d", "400d", "3660d")
WINDOWS = (("1s", 1), ("10s", 10), ("15m", 3), ("1h", 12), ("6h", 5), ("1d", 24), ("7d", 7), ("400d", 4))
WHO = ("user", "item", "everybody")
READS = (
    "price", "age", "recent_length", "same_category", "co_last", "co_sum", "co_count", "co_weight", "co_fast_last",
    "co_fast_sum", "content_last", "content_mean",
)  # fmt: skip


@st.composite
def definitions(draw: Draw, config: Config, *, max_size: int = 10) -> tuple[Column, ...]:
    """One to ``max_size`` features (a few make several columns), all of which ``config`` can have."""
    made: list[Column] = []
    for number in range(draw(st.integers(1, max_size))):
        kind = draw(st.sampled_from(sorted(_KINDS)))
        found = _KINDS[kind](draw, f"{kind}_{number}", config)
        made.extend([found] if isinstance(found, Column) else found)
    return tuple(made)


def event_types(config: Config) -> st.SearchStrategy[list[str]]:
    """Some of the types that aggregations may count."""
    names = [*(event.name for event in config.events), FOLLOWED]
    return st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)


def _one_of(draw: Draw, choices: Sequence[Any]) -> Any:
    return draw(st.sampled_from(choices))


def _about(draw: Draw) -> dict[str, Any]:
    if draw(st.booleans()):
        return {}
    return {"default": draw(st.sampled_from([0.0, -1.0, 0.5, 1e6])), "owner": "team", "description": "generated"}


def _span(draw: Draw) -> dict[str, Any]:
    """Ever, fading, or a window."""
    kind = _one_of(draw, ("ever", "half_life", "window"))
    if kind == "ever":
        return {}
    if kind == "half_life":
        return {"half_life": _one_of(draw, HALF_LIVES)}
    window, tiles = _one_of(draw, WINDOWS)
    return {"window": window, "tiles": tiles}


def _aggregate(declare: Callable[..., Column], *, spans: bool) -> Callable[[Draw, str, Config], Column]:
    def make(draw: Draw, name: str, config: Config) -> Column:
        span = _span(draw) if spans else {}
        return declare(name, _one_of(draw, WHO), draw(event_types(config)), **span, **_about(draw))

    return make


def _rate(draw: Draw, name: str, config: Config) -> Column:
    types = event_types(config)
    return rate(name, _one_of(draw, WHO), draw(types), draw(types), prior=_one_of(draw, (0.0, 0.05)),
                strength=_one_of(draw, (0.0, 20.0)), **_span(draw), **_about(draw))  # fmt: skip


def _distinct(draw: Draw, name: str, config: Config) -> Column:
    of = _one_of(draw, ("user", "item", "category"))
    return distinct(name, _one_of(draw, WHO), draw(event_types(config)), of, precision=draw(st.integers(4, 8)))


def _affinity(draw: Draw, name: str, config: Config) -> Column:
    names = [event.name for event in config.events]
    weights = draw(st.dictionaries(st.sampled_from(names), st.sampled_from([1.0, 0.3, -2.0, 4.0, 0.0]), min_size=1))
    return affinity(name, weights, key=_one_of(draw, ("category", "author", "length")), slots=draw(st.integers(1, 4)),
                    half_life=_one_of(draw, HALF_LIVES), read=_one_of(draw, ("share", "weight", "since")),
                    **_about(draw))  # fmt: skip


def _attribute(draw: Draw, name: str, _config: Config) -> Column:
    entity, key = _one_of(draw, (("item", "author"), ("item", "length"), ("user", "plan"), ("user", "birth_year")))
    return attribute(name, entity, key, kind=_one_of(draw, ("number", "category")),
                     buckets=_one_of(draw, (1, 7, 1 << 16)), **_about(draw))  # fmt: skip


def _table(draw: Draw, name: str, _config: Config) -> Column:
    source = _one_of(draw, sorted(TABLES))
    return table(name, _one_of(draw, ("user", "item")), source, _one_of(draw, TABLES[source]),
                 max_age=_one_of(draw, (None, "1s", "1h", "30d")), **_about(draw))  # fmt: skip


def _segment(draw: Draw, name: str, config: Config) -> Column:
    keys = len(config.segments.keys)
    if keys == 0:
        return read(name, "age")
    return segment(name, draw(st.integers(0, keys - 1)), _one_of(draw, ("weight", "share", "lift")))


def _context(draw: Draw, name: str, config: Config) -> Column:
    key = draw(st.integers(0, max(len(config.segments.keys) - 1, 0)))
    return context(name, _one_of(draw, ("hour", "weekday", "segment", "surface")), key=key)


def _embedding(draw: Draw, name: str, config: Config) -> list[Column]:
    return embedding(name, draw(st.integers(1, min(config.features.content_size, 3))))


def _recent(draw: Draw, name: str, config: Config) -> list[Column]:
    length = draw(st.integers(1, min(config.features.recent, 3)))
    return recent(name, length, _one_of(draw, ("item", "type", "age")))


def _single(draw: Draw, name: str, config: Config) -> Column:
    """A feature of one term, as crosses are made of."""
    made = _KINDS[_one_of(draw, ("count", "total", "last", "largest", "since", "read", "table", "affinity"))]
    column = made(draw, name, config)
    assert isinstance(column, Column)
    return column


def _cross(draw: Draw, name: str, config: Config) -> Column:
    declare: Callable[..., Column] = _one_of(draw, (ratio, difference, product))
    return declare(name, _single(draw, f"{name}_a", config), _single(draw, f"{name}_b", config), **_about(draw))


def _log(draw: Draw, name: str, config: Config) -> Column:
    return log1p(name, _single(draw, f"{name}_a", config), **_about(draw))


def _raw(draw: Draw, name: str, config: Config) -> Column:
    """What only definitions can say: weights, lifts and trends over any terms."""
    types = tuple(draw(event_types(config)))
    weights = tuple(draw(st.sampled_from([1.0, 0.5, -1.5, 3.0])) for _ in types)
    cell = Decayed("item", types, weights, _one_of(draw, (1_000, 90_000, 3_600_000, 0)))
    own = Term(TermOp.DECAYED, Side.ITEM, cell)
    a, b = (_single(draw, name, config).terms[0] for _ in range(2))
    if draw(st.booleans()):
        return Column(name, Formula.LIFT, (a, own, b), "ratio", "generated")
    return Column(name, Formula.TREND, (own, a), "ratio", "generated", (60_000.0, 3_600_000.0))


_KINDS: dict[str, Callable[[Draw, str, Config], Column | list[Column]]] = {
    "count": _aggregate(count, spans=True),
    "total": _aggregate(total, spans=True),
    "mean": _aggregate(mean, spans=True),
    "smallest": _aggregate(smallest, spans=False),
    "largest": _aggregate(largest, spans=False),
    "last": _aggregate(last, spans=False),
    "since": _aggregate(since, spans=False),
    "rate": _rate,
    "distinct": _distinct,
    "affinity": _affinity,
    "attribute": _attribute,
    "table": _table,
    "segment": _segment,
    "context": _context,
    "embedding": _embedding,
    "recent": _recent,
    "read": lambda draw, name, _config: read(name, _one_of(draw, READS)),
    "cross": _cross,
    "log": _log,
    "raw": _raw,
}
