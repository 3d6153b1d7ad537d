"""What a feature is: terms read from state and request, and a formula over them.

**Terms** read one number: an aggregation of the user, of the candidate item or of everybody (item row 0), a cross of
user and candidate, or a fact of the request. A term that several features need is read once. **Columns** are the
numbers that a model sees. ``declare`` has a function for each kind that people write; ``plan.compile_plan``
lays out the state.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Literal

import msgspec
from msgspec import Struct

from headwater.features.aggregations import FOLLOWED, Aggregation, Decayed
from headwater.schema.config import Config

__all__ = ["FOLLOWED", "Column", "Formula", "Side", "Term", "TermOp", "popularity_cell", "version_of"]


class Side(IntEnum):
    """Whose state a term reads."""

    USER = 0
    ITEM = 1  # the candidate
    EVERYBODY = 2  # item row 0: all items together


class TermOp(IntEnum):
    """How a term is read; the assemble kernel has one loop for each. NaN is "there is none"."""

    DECAYED = 0
    COUNT = 1
    SINCE = 2  # hours since the latest; none: missing
    WINDOW = 3
    EXTREME = 4
    LAST = 5
    DISTINCT = 6
    NUMBER = 7  # a number attribute
    CODE = 8  # a category attribute: its hash modulo the first parameter, plus 1
    TABLE = 9  # a value of a table, unless it is older than the first parameter (ms; 0: any age)
    PRICE = 10
    EMBEDDING = 11  # entry number ``parameters[0]`` of the content vector
    AGE = 12  # hours since the item was published, or first seen
    LENGTH = 13  # events in the recent sequence
    RECENT_ITEM = 14  # dense number of the k-th latest event's item
    RECENT_TYPE = 15  # its type slot
    RECENT_AGE = 16  # its age in hours
    AFFINITY_SHARE = 17  # largest share of the affinity among the candidate's keys
    AFFINITY_WEIGHT = 18  # sum of the weights of the candidate's keys
    AFFINITY_SINCE = 19  # hours since the latest event of one of the candidate's keys
    SAME_CATEGORY = 20  # recent items that share the candidate's first category, recency-weighted
    CO_LAST = 21  # P(item | latest item) by co-visits
    CO_SUM = 22  # recency-weighted sum of P(item | recent item)
    CO_COUNT = 23  # recent items that lead to this one
    CONTENT_LAST = 24  # content similarity to the latest item
    CONTENT_MEAN = 25  # content similarity to the recency-weighted recent items
    CO_WEIGHT = 26  # recency-weighted sum of co-visit weights, not divided by anything
    CO_FAST_LAST = 27  # CO_LAST at the fast half-life
    CO_FAST_SUM = 28
    SEGMENT_WEIGHT = 29  # decayed weight of the candidate in segment key ``parameters[0]`` of the request
    SEGMENT_SHARE = 30  # that over the weight of all items in the segment
    SEGMENT_LIFT = 31  # that share over the item's share everywhere
    SEGMENT_CODE = 32  # the dense number of the request's segment
    HOUR = 33  # in the user's time zone
    WEEKDAY = 34
    CONSTANT = 35  # nothing: the column's default
    SURFACE_CODE = 36  # a code of the request's surface, 1 … 65,535
    FACTORS_RECENT = 37  # online factors: the recent items of the visit with the candidate
    FACTORS_SEGMENTS = 38  # the request's segments with the candidate
    FACTORS_USER = 39  # the user with the candidate
    FACTORS = 40  # all three together, with what the hidden layer adds


class Formula(IntEnum):
    """How a column is computed from its terms ``a``, ``b``, ``c`` and parameters ``p``, ``q``."""

    VALUE = 0  # a
    RATE = 1  # (a + p) / (b + q): a rate with a prior; without one, missing when b is 0
    SHARE = 2  # a / b; 0 when b is 0
    TREND = 3  # (a / p) / (b / q), at most 1e6; 0 when b is 0
    LIFT = 4  # a * c / b, at most 1e6; 0 when b is 0
    DIFFERENCE = 5  # a - b
    PRODUCT = 6  # a * b
    LOG = 7  # log(1 + a); missing when a <= -1


class Term(Struct, frozen=True):
    """One number that is read: ``op``, whose state, the aggregation where one is read, the op's parameters."""

    op: TermOp
    side: Side = Side.ITEM
    reads: Aggregation | None = None
    parameters: tuple[float, ...] = ()


class Column(Struct, frozen=True):
    """One number of a model's input row.

    ``default`` stands where a term is missing. ``dtype``: "float32"; "int32" for whole numbers below 2^24 and
    "category" for codes without an order (all are assembled as ``float32``; files and trainers may convert them).
    """

    name: str
    formula: Formula
    terms: tuple[Term, ...]
    unit: str
    description: str
    parameters: tuple[float, ...] = ()
    default: float = 0.0
    dtype: Literal["float32", "int32", "category"] = "float32"
    owner: str = "headwater"

    @property
    def reads(self) -> tuple[Aggregation, ...]:
        """The aggregations behind the column."""
        return tuple(term.reads for term in self.terms if term.reads is not None)


def version_of(column: Column) -> str:
    """A hash over everything that changes the column's numbers (its words and its owner do not)."""
    said = msgspec.structs.replace(column, unit="", description="", owner="")
    return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(said), order="deterministic")).hexdigest()[:12]


def popularity_cell(config: Config, half_life_ms: int) -> Decayed:
    """The decayed weight of all positive events: what "popular" means everywhere in Headwater."""
    positive = [t for t in config.events if t.positive]
    return Decayed("item", tuple(t.name for t in positive), tuple(t.weight for t in positive), half_life_ms)
