"""Expressions of rules: a typed tree, and what it says of many candidates at once.

A comparison with something that is missing does not hold, and ``not`` turns that round: ``price < 5`` and ``not price >= 5`` differ
for an item without a price. ``a != b`` is ``not a == b``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headwater.policy.fields import Field, Kind

Bools = npt.NDArray[np.bool_]
Value = float | int | str

ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
INVERSE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}


@dataclass(frozen=True, slots=True)
class Truth:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True, slots=True)
class Has:
    """The field is there."""

    field: Field


@dataclass(frozen=True, slots=True)
class Among:
    """The field equals one of ``values``."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """The field stands in ``order`` to a number, a time or a duration."""

    field: Field
    order: str
    value: float | int


@dataclass(frozen=True, slots=True)
class Against:
    """Two fields of one kind stand in ``order`` ("==" too)."""

    left: Field
    order: str
    right: Field


@dataclass(frozen=True, slots=True)
class Both:
    """Every part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Some part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Node


Atom = Truth | Has | Among | Compare | Against
Node = Atom | Both | Either | Not


class Scope(Protocol):
    """The candidates and the request that an expression is asked about."""

    def values(self, field: Field) -> tuple[Any, Any]:
        """What ``field`` is, and whether it is there: arrays ``(n,)``, of ``many`` texts ``(n, m)`` and ``(n,)``; scalars for a
        fact of the request. Texts are codes or themselves. What is not there may have any value.
        """
        ...

    def code(self, field: Field, text: str) -> int | str:
        """What ``values`` holds for ``text``; 0 or "" when nothing can hold it."""
        ...


def fields_of(node: Node) -> Iterator[Field]:
    """The fields that an expression asks about, with repeats."""
    match node:
        case Both(parts) | Either(parts):
            for part in parts:
                yield from fields_of(part)
        case Not(part):
            yield from fields_of(part)
        case Against(left, _, right):
            yield from (left, right)
        case Has(field) | Among(field, _) | Compare(field, _, _):
            yield field
        case Truth():
            pass


def holds(node: Node, scope: Scope, count: int) -> Bools:
    """For which of ``count`` candidates ``node`` holds, ``bool[count]``."""
    found: Bools = np.broadcast_to(np.asarray(_holds(node, scope), np.bool_), (count,))
    return found


def holds_for_request(node: Node, scope: Scope) -> bool:
    """Whether an expression over facts of the request holds."""
    return bool(_holds(node, scope))


def _holds(node: Node, scope: Scope) -> Any:
    """An array or a scalar of truth values."""
    match node:
        case Truth(value):
            return np.bool_(value)
        case Both(parts):
            found = _holds(parts[0], scope)
            for part in parts[1:]:
                found = np.logical_and(found, _holds(part, scope))
            return found
        case Either(parts):
            found = _holds(parts[0], scope)
            for part in parts[1:]:
                found = np.logical_or(found, _holds(part, scope))
            return found
        case Not(part):
            return np.logical_not(_holds(part, scope))
        case Has(field):
            return scope.values(field)[1]
        case Compare(field, order, value):
            values, present = scope.values(field)
            limit = np.float32(value) if field.kind is Kind.NUMBER else value
            return np.logical_and(ORDERS[order](values, limit), present)
        case Among(field, _):
            return _among(node, field, scope)
        case Against(left, order, right):
            a, has_a = scope.values(left)
            b, has_b = scope.values(right)
            equal_or_ordered = operator.eq(a, b) if order == "==" else ORDERS[order](a, b)
            return np.logical_and(equal_or_ordered, np.logical_and(has_a, has_b))


def _among(node: Among, field: Field, scope: Scope) -> Any:
    values, present = scope.values(field)
    if field.kind is Kind.TEXT:
        wanted: list[Any] = [code for code in (scope.code(field, str(text)) for text in node.values) if code]
    else:
        wanted = [np.float32(v) if field.kind is Kind.NUMBER else v for v in node.values]
    if not wanted:
        return np.logical_and(present, np.bool_(False))
    if not isinstance(values, np.ndarray):
        return np.logical_and(any(values == value for value in wanted), present)
    found = values == wanted[0]
    for value in wanted[1:]:
        found |= values == value
    if field.many:
        found = found.any(axis=1)
    return np.logical_and(found, present)
