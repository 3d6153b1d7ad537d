"""Definitions in words and formulas: what `headwater features show` and docs/features.md say of a column."""

from __future__ import annotations

from headwater.features.aggregations import (
    FOLLOWED,
    Affinity,
    Aggregation,
    Attribute,
    Decayed,
    Distinct,
    Extreme,
    LastTime,
    LastValue,
    TableValue,
    Windowed,
)
from headwater.features.definitions import Column, Formula, Term, TermOp
from headwater.schema.durations import format_duration

TERMS: dict[TermOp, str] = {
    TermOp.DECAYED: "a decayed sum, at `now`",
    TermOp.COUNT: "an exact count",
    TermOp.SINCE: "hours from a latest time to `now`; missing when there was none",
    TermOp.WINDOW: "the sum over a window, at `now`",
    TermOp.EXTREME: "a smallest or largest value; missing when there was none",
    TermOp.LAST: "a latest value; missing when there was none",
    TermOp.DISTINCT: "about how many different keys (improved raw estimator, Ertl 2017)",
    TermOp.NUMBER: "a number attribute; missing when it is not said, or is no number",
    TermOp.CODE: "a category attribute: its hash modulo the buckets, plus 1; missing when it is not said",
    TermOp.TABLE: "a value of a table; missing when none is valid yet, or it is older than `max_age`",
    TermOp.PRICE: "the item's price; 0 when it is unknown",
    TermOp.EMBEDDING: "entry k of the item's content vector; 0 when there is none",
    TermOp.AGE: "hours since the item was published, else first seen; missing when neither is known",
    TermOp.LENGTH: "events in the recent sequence",
    TermOp.RECENT_ITEM: "dense number of the k-th latest event's item; missing behind the end",
    TermOp.RECENT_TYPE: "type slot of the k-th latest event (1 is the first of `[[events]]`); missing behind the end",
    TermOp.RECENT_AGE: "hours since the k-th latest event; missing behind the end",
    TermOp.AFFINITY_SHARE: "the weight of the candidate's heaviest key over the sum of all the user's keys; 0 when that is not positive",
    TermOp.AFFINITY_WEIGHT: "the weights of the candidate's keys, summed, at `now`",
    TermOp.AFFINITY_SINCE: "hours since the latest event with one of the candidate's keys; missing when there was none",
    TermOp.SAME_CATEGORY: "`sum w_k` over the recent items that share the candidate's first category",
    TermOp.CO_LAST: "`P(candidate | latest item)`: their co-visit weight over the sum of that item's co-visit weights",
    TermOp.CO_SUM: "`sum w_k P(candidate | k-th recent item)`",
    TermOp.CO_COUNT: "recent items that have the candidate among their co-visits",
    TermOp.CO_WEIGHT: "`sum w_k` times the co-visit weight itself, at `now`",
    TermOp.CO_FAST_LAST: "as `CO_LAST`, at the fast half-life",
    TermOp.CO_FAST_SUM: "as `CO_SUM`, at the fast half-life",
    TermOp.CONTENT_LAST: "cosine of the content vectors of the candidate and the latest item; 0 without one",
    TermOp.CONTENT_MEAN: "cosine of the candidate's content vector and the `w_k`-weighted mean of the recent items'",
    TermOp.SEGMENT_WEIGHT: "the candidate's decayed positive weight in the request's segment",
    TermOp.SEGMENT_SHARE: "that over the weight of all items in the segment; 0 when that is 0",
    TermOp.SEGMENT_LIFT: "that share over the item's share everywhere, at most 10⁶; 0 when nothing is known",
    TermOp.SEGMENT_CODE: "dense number of the request's segment; 0 when it is unknown",
    TermOp.HOUR: "hour of the day in the user's time zone",
    TermOp.WEEKDAY: "day of the week there, Monday is 0",
    TermOp.CONSTANT: "nothing: the column's default",
    TermOp.SURFACE_CODE: "a code of the request's surface, 1 to 65,535; 0 when it is unknown",
    TermOp.FACTORS_RECENT: "online factors: the recent items' vectors with the candidate's; 0 when nothing was learnt",
    TermOp.FACTORS_SEGMENTS: "online factors: the vectors of the request's segments with the candidate's",
    TermOp.FACTORS_USER: "online factors: the user's vector with the candidate's",
    TermOp.FACTORS: "online factors: the sum of these three, with what a hidden layer adds, about `log(P(candidate | context) / P(candidate))`",
}

FORMULAS: dict[Formula, str] = {
    Formula.VALUE: "`a`",
    Formula.RATE: "`(a + p) / (b + q)`; missing when the divisor is 0",
    Formula.SHARE: "`a / b`; 0 when `b` is 0",
    Formula.TREND: "`(a / p) / (b / q)`, at most 10⁶; 0 when `b` is not positive",
    Formula.LIFT: "`a c / b`, at most 10⁶; 0 when `b` is not positive",
    Formula.DIFFERENCE: "`a - b`",
    Formula.PRODUCT: "`a b`",
    Formula.LOG: "`log(1 + a)`; missing when `a <= -1`",
}

# What terms of one kind have in common is how they are computed, and so what they cost.
KINDS: dict[str, tuple[TermOp, ...]] = {
    "decayed sums": (TermOp.DECAYED,),
    "counts and times": (TermOp.COUNT, TermOp.SINCE, TermOp.AGE),
    "windows": (TermOp.WINDOW,),
    "values": (TermOp.EXTREME, TermOp.LAST),
    "distinct": (TermOp.DISTINCT,),
    "attributes and tables": (TermOp.NUMBER, TermOp.CODE, TermOp.TABLE, TermOp.PRICE, TermOp.EMBEDDING),
    "recent sequence": (TermOp.LENGTH, TermOp.RECENT_ITEM, TermOp.RECENT_TYPE, TermOp.RECENT_AGE),
    "affinities": (TermOp.AFFINITY_SHARE, TermOp.AFFINITY_WEIGHT, TermOp.AFFINITY_SINCE),
    "same category": (TermOp.SAME_CATEGORY,),
    "co-visits": (TermOp.CO_LAST, TermOp.CO_SUM, TermOp.CO_COUNT, TermOp.CO_WEIGHT, TermOp.CO_FAST_LAST, TermOp.CO_FAST_SUM),
    "content": (TermOp.CONTENT_LAST, TermOp.CONTENT_MEAN),
    "segments": (TermOp.SEGMENT_WEIGHT, TermOp.SEGMENT_SHARE, TermOp.SEGMENT_LIFT),
    "online factors": (TermOp.FACTORS_RECENT, TermOp.FACTORS_SEGMENTS, TermOp.FACTORS_USER, TermOp.FACTORS),
    "context": (TermOp.SEGMENT_CODE, TermOp.SURFACE_CODE, TermOp.HOUR, TermOp.WEEKDAY, TermOp.CONSTANT),
}  # fmt: skip

_KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops}
_DAY_MS = 86_400_000
_CROSSES = {"affinities", "same category", "co-visits", "content", "segments", "online factors"}
_OF_REQUEST = {TermOp.HOUR, TermOp.WEEKDAY, TermOp.SEGMENT_CODE, TermOp.SURFACE_CODE, TermOp.CONSTANT}


def kind_of(column: Column) -> str:
    """The kind of a column's first term: a key of ``KINDS``."""
    return _KIND_OF[column.terms[0].op]


def entity_of(column: Column) -> str:
    """Whom the column is about: user, item, everybody, request, or several of them: "user × item"."""
    found = {part for term in column.terms for part in _parties(term)}
    return " × ".join(name for name in ("user", "item", "everybody", "request") if name in found)


def _parties(term: Term) -> tuple[str, ...]:
    if term.op in _OF_REQUEST:
        return ("request",)
    kind = _KIND_OF[term.op]
    if term.op is TermOp.FACTORS:
        return ("user", "item", "request")
    if kind == "segments" or term.op is TermOp.FACTORS_SEGMENTS:
        return ("item", "request")
    if kind in _CROSSES:
        return ("user", "item")
    return (("user", "item", "everybody")[term.side],)


def column_in_words(column: Column) -> str:
    """The formula with its terms in it, such as ``click of the item, half-life 6h / click of everybody, half-life 6h``."""
    a, b, c = ([term_in_words(term) for term in column.terms] + ["", ""])[:3]
    p, q = (*column.parameters, 0.0, 0.0)[:2]
    match column.formula:
        case Formula.VALUE:
            return a
        case Formula.RATE:
            return f"({a} + {p:g}) / ({b} + {q:g})" if p or q else f"({a}) / ({b})"
        case Formula.SHARE:
            return f"({a}) / ({b})"
        case Formula.TREND:
            return f"({a}) / {span_in_words(round(p))} / (({b}) / {span_in_words(round(q))})"
        case Formula.LIFT:
            return f"({a}) * ({c}) / ({b})"
        case Formula.DIFFERENCE:
            return f"({a}) - ({b})"
        case Formula.PRODUCT:
            return f"({a}) * ({b})"
        case Formula.LOG:
            return f"log(1 + {a})"


def term_in_words(term: Term) -> str:
    """One term: its aggregation and whose it is, or the kind of read with its parameter."""
    if term.reads is None or isinstance(term.reads, Affinity):
        name = term.op.name.lower()
        given = ", ".join(f"{number:g}" for number in term.parameters)
        read = f"{name}({given})" if given else name
        return f"{read} of {aggregation_in_words(term.reads)}" if term.reads is not None else read
    whose = ("of the user", "of the item", "of everybody")[term.side]
    what = aggregation_in_words(term.reads, whose)
    return f"hours since {what}" if term.op is TermOp.SINCE else what


def aggregation_in_words(cell: Aggregation, whose: str = "") -> str:
    """What is kept: ``click + 2 like of the user, half-life 1d``."""
    owner = f" {whose}" if whose else ""
    if isinstance(cell, Attribute):
        return f"attribute {cell.name}{owner}"
    if isinstance(cell, TableValue):
        return f"{cell.table}.{cell.column}{owner}"
    types = " + ".join(
        name if weight == 1.0 else f"{weight:g} {name}"
        for name, weight in zip(_names(cell.types), getattr(cell, "weights", (1.0,) * len(cell.types)), strict=True)
    )
    if isinstance(cell, Decayed | Windowed):
        what = {"one": types, "value": f"value of {types}", "given": f"{types} with a value"}[cell.of]
        if isinstance(cell, Windowed):
            return f"{what}{owner}, last {span_in_words(cell.window_ms)} in {cell.tiles} tiles"
        return f"{what}{owner}, " + (f"half-life {span_in_words(cell.half_life_ms)}" if cell.half_life_ms else "ever")
    if isinstance(cell, Affinity):
        return f"{types} by {cell.key}, half-life {span_in_words(cell.half_life_ms)}, {cell.slots} keys"
    if isinstance(cell, LastTime):
        return f"latest {types}{owner}"
    if isinstance(cell, LastValue):
        return f"latest value of {types}{owner}"
    if isinstance(cell, Extreme):
        return f"{'largest' if cell.largest else 'smallest'} value of {types}{owner}"
    if isinstance(cell, Distinct):
        return f"distinct {cell.of} of {types}{owner}, {1 << cell.precision} registers"
    return f"number of {types}{owner}"


def _names(types: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("followed" if name == FOLLOWED else name for name in types)


def span_in_words(millis: int) -> str:
    """A duration as a configuration would say it: whole days as days."""
    return f"{millis // _DAY_MS}d" if millis % _DAY_MS == 0 else format_duration(millis)
