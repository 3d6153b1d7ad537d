"""How old the numbers of a row are: when the events came in that last changed what a column reads."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from headwater.features.aggregations import Affinity, Attribute, LastTime, LastValue, TableValue
from headwater.features.definitions import Column, Side, Term, TermOp
from headwater.features.layout import I_CLOCK, I_CO_CLOCK, MAX_ITEMS, U_CLOCK, U_RECENT_LENGTH
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.rowset import Rows

_RECENT = {TermOp.RECENT_ITEM, TermOp.RECENT_TYPE, TermOp.RECENT_AGE}
_BY_RECENT = {TermOp.LENGTH, TermOp.SAME_CATEGORY, TermOp.CONTENT_LAST, TermOp.CONTENT_MEAN}
_BY_CO_VISITS = {
    TermOp.CO_LAST, TermOp.CO_SUM, TermOp.CO_COUNT, TermOp.CO_WEIGHT, TermOp.CO_FAST_LAST, TermOp.CO_FAST_SUM,
}  # fmt: skip
_BY_SEGMENT = {TermOp.SEGMENT_WEIGHT, TermOp.SEGMENT_SHARE, TermOp.SEGMENT_LIFT}


class Changed(NamedTuple):
    """When, in Unix ms, what a column reads last changed. ``by`` "event": by the event of that time; "row": that is the latest
    event of the row that it lies in, the number itself may be older; "": no event changes it, or none did.
    """

    ms: int
    by: Literal["", "event", "row"]


NEVER = Changed(0, "")


class Ages:
    """Reads times out of rows. A row keeps the times that its plan reads, and the time of its latest event."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._layout = plan.layout
        self._latest = [
            (cell.entity, frozenset(cell.types), at) for cell, (at, _) in plan.positions.items() if isinstance(cell, LastTime)
        ]  # fmt: skip
        groups = [cell for cell in plan.positions if isinstance(cell, Affinity)]
        self._affinities = {group: number for number, group in enumerate(groups)}

    def of(self, column: Column, user: User, items: Rows, item: int) -> Changed:
        """When what ``column`` reads of ``user`` and ``item`` last changed: the latest of its terms."""
        found = [self._of_term(term, user, items, item) for term in column.terms]
        return max(found, key=lambda changed: (changed.ms, changed.by == "row"), default=NEVER)

    def _of_term(self, term: Term, user: User, items: Rows, item: int) -> Changed:
        cell = term.reads
        if term.op in _RECENT:
            return self._recent(user, int(term.parameters[0]))
        if term.op in _BY_RECENT:
            return self._recent(user, 0)
        if term.op in _BY_CO_VISITS:
            latest = self._latest_item(user)
            moved = int(items.i8[latest, I_CO_CLOCK]) if latest else 0
            return _row(max(moved, self._recent(user, 0).ms))
        if term.op in _BY_SEGMENT:
            return _row(int(items.i8[item, I_CLOCK]))
        if cell is None or isinstance(cell, Attribute):
            return NEVER
        if isinstance(cell, Affinity):
            return self._affinity(cell, user, items, item)
        i8 = user.i8 if term.side is Side.USER else items.i8[item if term.side is Side.ITEM else 0]
        if isinstance(cell, LastTime):
            return _event(int(i8[self._plan.positions[cell][0]]))
        if isinstance(cell, LastValue | TableValue):
            return _event(int(i8[self._plan.positions[cell][1]]))
        if term.side is not Side.EVERYBODY and (known := self._times(cell.entity, frozenset(cell.types))):
            return _event(max(int(i8[at]) for at in known))
        return _row(int(i8[U_CLOCK if term.side is Side.USER else I_CLOCK]))

    def _times(self, entity: str, types: frozenset[str]) -> list[int]:
        """Where the latest times of ``types`` lie; empty unless the plan keeps one for each of them."""
        parts = [(own, at) for of, own, at in self._latest if of == entity and own <= types]
        return [at for _, at in parts] if frozenset().union(*(own for own, _ in parts)) == types else []

    def _recent(self, user: User, back: int) -> Changed:
        place = int(user.u4[U_RECENT_LENGTH]) - 1 - back
        return _event(1000 * int(user.u4[self._layout.recent_times + place])) if place >= 0 else NEVER

    def _latest_item(self, user: User) -> int:
        length = int(user.u4[U_RECENT_LENGTH])
        return int(user.u4[self._layout.recent_keys + length - 1]) & MAX_ITEMS if length else 0

    def _affinity(self, cell: Affinity, user: User, items: Rows, item: int) -> Changed:
        """The latest event with one of the candidate's keys; with none of them the share is 0 whatever else happened."""
        program, group = self._plan.affinities, self._affinities[cell]
        size, at = int(program.size[group]), int(program.u4[group])
        first = int(program.key[group])
        keys = items.u4[item, first : first + int(program.keys[group])]
        own = user.u4[at : at + size]
        shared = np.isin(own, keys[keys != 0]) & (own != 0)
        return _event(1000 * int(user.u4[at + size : at + 2 * size][shared].max(initial=0)))


def _event(ms: int) -> Changed:
    return Changed(ms, "event") if ms > 0 else NEVER


def _row(ms: int) -> Changed:
    return Changed(ms, "row") if ms > 0 else NEVER
