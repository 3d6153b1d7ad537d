"""Whether an expression can hold at all, whatever the catalogue holds.

The expression becomes alternatives, each a set of comparisons that hold together; an alternative contradicts itself when a field has no
value left. What is said is certain; not everything that contradicts itself is found: how two fields compare is looked at only
word for word, and an expression of more than :data:`MOST` alternatives is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from headwater.policy.expression import (
    INVERSE,
    Against,
    Among,
    Atom,
    Both,
    Compare,
    Either,
    Has,
    Node,
    Not,
    Truth,
    Value,
)
from headwater.policy.fields import Field, Kind

MOST = 2_048

Literal = tuple[Atom, bool]  # an atom, and whether it holds
Alternative = tuple[Literal, ...]


class _TooManyError(Exception):
    """The expression has too many alternatives."""


def never_holds(*nodes: Node) -> bool:
    """Whether it is certain that ``nodes`` never hold together."""
    found = alternatives(Both(nodes))
    return found is not None and not found


def always_holds(node: Node) -> bool:
    """Whether it is certain that ``node`` holds for every item of every request."""
    return never_holds(Not(node))


def alternatives(node: Node) -> list[Alternative] | None:
    """The alternatives of ``node`` that do not contradict themselves; None when there are too many."""
    try:
        return [found for found in _alternatives(node, True) if not _contradicts_itself(found)]
    except _TooManyError:
        return None


def values_implied(node: Node, field: Field) -> set[Value] | None:
    """Texts of ``field`` one of which an item has wherever ``node`` holds; None: nothing like that is certain."""
    found = alternatives(node)
    if not found:
        return None
    implied: set[Value] = set()
    for literals in found:
        said = [atom.values for atom, sign in literals if sign and isinstance(atom, Among) and atom.field == field]
        if not said:
            return None
        fewest: tuple[Value, ...] = min(said, key=len)
        implied.update(fewest)
    return implied


def _alternatives(node: Node, sign: bool) -> list[Alternative]:
    match node:
        case Not(part):
            return _alternatives(part, not sign)
        case Both(parts) | Either(parts):
            branches = [_alternatives(part, sign) for part in parts]
            if isinstance(node, Either) == sign:
                joined = [found for branch in branches for found in branch]
            else:
                joined = [()]
                for branch in branches:
                    if len(joined) * len(branch) > MOST:
                        raise _TooManyError
                    joined = [(*one, *other) for one in joined for other in branch]
            if len(joined) > MOST:
                raise _TooManyError
            return joined
        case Truth(value):
            return [()] if value == sign else []
        case Compare(field, order, value) if not sign:
            turned: Alternative = ((Compare(field, INVERSE[order], value), True),)
            return [turned, ((Has(field), False),)] if field.optional else [turned]
        case _:
            return [((node, sign),)]


@dataclass(slots=True)
class _Left:
    """What a field can still be."""

    field: Field
    present: bool = False
    missing: bool = False
    low: float = -math.inf
    low_open: bool = False
    high: float = math.inf
    high_open: bool = False
    wanted: list[set[Value]] = dataclass_field(default_factory=list)
    excluded: set[Value] = dataclass_field(default_factory=set)

    def impossible(self) -> bool:
        if not self.present and (self.missing or self.field.optional):
            return False  # it may just be missing, as all that was asked of it was that it is not something
        if self.missing:
            return True
        if self.field.many:  # each wanted set is met by a value of its own
            return any(not wanted - self.excluded for wanted in self.wanted)
        if self.wanted:
            left = set.intersection(*self.wanted) - self.excluded
            return not any(self._inside(value) for value in left)
        if self.field.choices and not set(self.field.choices) - self.excluded:
            return True
        if self.low == self.high and not (self.low_open or self.high_open):
            return self.low in self.excluded
        return self.low >= self.high

    def _inside(self, value: Value) -> bool:
        if isinstance(value, str):
            return True
        above = value > self.low or (value == self.low and not self.low_open)
        return above and (value < self.high or (value == self.high and not self.high_open))

    def limit(self, order: str, value: float) -> None:
        """Take over a comparison; times and durations are whole ms, so that their bounds can be closed ones."""
        if self.field.kind is not Kind.NUMBER and order in "<>":
            order, value = (f"{order}=", value - 1) if order == "<" else (f"{order}=", value + 1)
        if order in ("<", "<=") and (value, order == "<=") < (self.high, not self.high_open):
            self.high, self.high_open = value, order == "<"
        if order in (">", ">=") and (value, order == ">") > (self.low, self.low_open):
            self.low, self.low_open = value, order == ">"


def _contradicts_itself(literals: Alternative) -> bool:
    left: dict[str, _Left] = {}
    compared: dict[Against, bool] = {}
    for atom, sign in literals:
        if isinstance(atom, Against):
            if compared.setdefault(atom, sign) != sign:
                return True
            if sign:
                for each in (atom.left, atom.right):
                    _of(left, each).present = True
            continue
        if isinstance(atom, Truth):
            continue
        state = _of(left, atom.field)
        if sign:
            state.present = True
        match atom:
            case Has():
                state.missing |= not sign
            case Among(_, values):
                if sign:
                    state.wanted.append(set(values))
                else:
                    state.excluded |= set(values)
            case Compare(_, order, value):
                state.limit(order, value)
    return any(state.impossible() for state in left.values())


def _of(left: dict[str, _Left], field: Field) -> _Left:
    state = left.get(field.name)
    if state is None:
        state = left[field.name] = _Left(field)
        if field.low is not None:
            state.limit(">=", field.low)
        if field.high is not None:
            state.limit("<=", field.high)
    return state
