"""How old the numbers of a row are: when the events came in that last changed what a column reads."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.aggregations import Affinity, Attribute, LastTime, LastValue, TableValue
from headwater.features.definitions import Column, Side, Term, TermOp
from headwater.features.layout import I_CLOCK, I_CO_CLOCK, MAX_ITEMS, U_CLOCK, U_RECENT_LENGTH
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.rowset import Rows

_BY_RECENT = {
    TermOp.LENGTH, TermOp.RECENT_ITEM, TermOp.RECENT_TYPE, TermOp.RECENT_AGE, TermOp.SAME_CATEGORY, TermOp.CONTENT_LAST,
    TermOp.CONTENT_MEAN,
}  # fmt: skip
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
        if term.op in _BY_RECENT:
            return self._recent(user)
        if term.op in _BY_CO_VISITS:
            moved = items.i8[self._recent_items(user), I_CO_CLOCK].max(initial=0)
            return _row(max(int(moved), self._recent(user).ms))
        if term.op in _BY_SEGMENT:
            everybody = 0 if term.op is TermOp.SEGMENT_WEIGHT else int(items.i8[0, I_CLOCK])
            return _row(max(int(items.i8[item, I_CLOCK]), everybody))
        if cell is None or isinstance(cell, Attribute):
            return NEVER
        if isinstance(cell, Affinity):
            return self._affinity(term, cell, user, items, item)
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

    def _recent(self, user: User) -> Changed:
        """The latest event of the sequence: it moved all others."""
        length, first = int(user.u4[U_RECENT_LENGTH]), self._layout.recent_times
        return _event(1000 * int(user.u4[first + length - 1])) if length else NEVER

    def _recent_items(self, user: User) -> npt.NDArray[np.int64]:
        length, first = int(user.u4[U_RECENT_LENGTH]), self._layout.recent_keys
        return (user.u4[first : first + length] & np.uint32(MAX_ITEMS)).astype(np.int64)

    def _affinity(self, term: Term, cell: Affinity, user: User, items: Rows, item: int) -> Changed:
        """The latest event with one of the candidate's keys; of a share, which is 0 without them, with any key of the user."""
        program, group = self._plan.affinities, self._affinities[cell]
        size, at = int(program.size[group]), int(program.u4[group])
        first = int(program.key[group])
        keys = items.u4[item, first : first + int(program.keys[group])]
        own = user.u4[at : at + size]
        shared = np.isin(own, keys[keys != 0]) & (own != 0)
        if term.op is TermOp.AFFINITY_SHARE and shared.any():
            shared = own != 0
        return _event(1000 * int(user.u4[at + size : at + 2 * size][shared].max(initial=0)))


def _event(ms: int) -> Changed:
    return Changed(ms, "event") if ms > 0 else NEVER


def _row(ms: int) -> Changed:
    return Changed(ms, "row") if ms > 0 else NEVER
