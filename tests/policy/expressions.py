"""Fields, worlds and generated expressions for the tests of rules."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

from headwater.policy.expression import Against, Among, Both, Compare, Either, Has, Node, Not, Truth, Value
from headwater.policy.fields import Field, Fields, Kind
from headwater.testing.policy_oracle import Facts

TEXTS = ("a", "b", "c")
NUMBERS = (1.0, 2.0, 3.0)

CATEGORY = Field("category", Kind.TEXT, True, many=True, space="category")
BRAND = Field("brand", Kind.TEXT, True, space="hash")
PRICE = Field("price", Kind.NUMBER, True, optional=False, low=0.0)
SCORE = Field("score", Kind.NUMBER, True)
AGE = Field("age", Kind.DURATION, True, low=0.0)
SURFACE = Field("context.surface", Kind.TEXT, False, optional=False, choices=("home", "cart"))
BUDGET = Field("user.budget", Kind.NUMBER, False)
COUNTRY = Field("context.country", Kind.TEXT, False)
ALL = (CATEGORY, BRAND, PRICE, SCORE, AGE, SURFACE, BUDGET, COUNTRY)
ID = Field("id", Kind.TEXT, True, optional=False, space="id")
FIELDS = Fields((ID, *ALL), {"tags": "the state keeps none", "user.": 'declare "{name}"'})

POSSIBLE: dict[str, tuple[Value | tuple[str, ...] | None, ...]] = {
    "category": (None, ("a",), ("b",), ("a", "b"), ("c",), ("z",), ("a", "b", "c")),
    "brand": (None, "a", "b", "c", "z"),
    "price": (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 9.0),
    "score": (None, -1.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 9.0),
    "age": (None, 0, 1, 2, 3, 4, 9),
    "context.surface": ("home", "cart"),
    "user.budget": (None, 0.0, 1.0, 1.5, 2.0, 3.0, 9.0),
    "context.country": (None, "a", "b", "z"),
}


def worlds(*names: str) -> list[Facts]:
    """Every combination of what the named fields can be; the others are at their first one."""
    rest = {name: values[0] for name, values in POSSIBLE.items()}
    return [{**rest, **dict(zip(names, values, strict=True))} for values in product(*(POSSIBLE[n] for n in names))]


@st.composite
def atoms(draw: st.DrawFn, fields: tuple[Field, ...] = ALL) -> Node:
    field = draw(st.sampled_from(fields))
    what = draw(st.integers(0, 9))
    if what == 0:
        return Truth(draw(st.booleans()))
    if what == 1 and field.optional:
        return Has(field)
    if field.kind is Kind.TEXT:
        texts = field.choices or TEXTS
        return Among(field, tuple(draw(st.lists(st.sampled_from(texts), min_size=1, max_size=2, unique=True))))
    if what == 2 and field.kind is Kind.NUMBER:
        others = [f for f in fields if f.kind is Kind.NUMBER]
        return Against(field, draw(st.sampled_from(["<", "<=", ">", ">=", "=="])), draw(st.sampled_from(others)))
    values: Any = NUMBERS if field.kind is Kind.NUMBER else (1, 2, 3)
    if what < 5:
        return Among(field, tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True))))
    return Compare(field, draw(st.sampled_from(["<", "<=", ">", ">="])), draw(st.sampled_from(values)))


def nodes(fields: tuple[Field, ...] = ALL) -> st.SearchStrategy[Node]:
    return st.recursive(
        atoms(fields),
        lambda inner: st.one_of(
            inner.map(Not),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: Both(tuple(parts))),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: Either(tuple(parts))),
        ),
        max_leaves=6,
    )


CODES = {"a": 11, "b": 12, "c": 13}  # "z" is a text that no rule names


@dataclass
class TableScope:
    """Items and a request as arrays, as the rows of state hold them."""

    items: list[Facts]
    request: Facts

    def values(self, field: Field) -> tuple[Any, Any]:
        if not field.per_item:
            value: Any = self.request[field.name]
            if field.kind is Kind.NUMBER:
                return np.float32(np.nan if value is None else value), value is not None
            return value or "", value is not None
        said = [item[field.name] for item in self.items]
        present = np.array([value is not None for value in said], np.bool_)
        if field.many:
            codes = np.zeros((len(said), 4), np.uint32)
            for row, texts in zip(codes, said, strict=True):
                assert texts is None or isinstance(texts, tuple)
                row[: len(texts or ())] = [CODES.get(text, 99) for text in texts or ()]
            return codes, present
        if field.kind is Kind.TEXT:
            return np.array([0 if v is None else CODES.get(str(v), 99) for v in said], np.uint32), present
        if field.kind is Kind.NUMBER:
            return np.array([np.nan if v is None else v for v in said], np.float32), present
        return np.array([0 if v is None else v for v in said], np.int64), present

    def code(self, field: Field, text: str) -> int | str:
        return CODES.get(text, 0) if field.space else text
