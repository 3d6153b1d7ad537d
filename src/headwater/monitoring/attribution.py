"""Which list an event is due to: the newest one before it that showed its user the item, if that is not too long ago."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.schema.config import Config

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class Group(NamedTuple):
    """What figures are told apart by: lists of a ``surface``, all of them or those of one ``group`` (a variant, a bundle, a segment)."""

    surface: str
    by: str
    group: str


class Types(NamedTuple):
    """What an event of each type says, by its dense number (bool or float64[256])."""

    clicks: npt.NDArray[np.bool_]
    converts: npt.NDArray[np.bool_]
    dwells: npt.NDArray[np.bool_]
    weight: Float64

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Those that say anything."""
        return np.asarray(self.clicks | self.converts | self.dwells | (self.weight != 0.0), np.bool_)


def types_of(config: Config, click: str, conversion: str, dwell: str, index: Callable[[str], int]) -> Types:
    """The event types of ``config``; ``index`` gives the dense number of a name, 0 while there is none."""
    found = Types(np.zeros(256, np.bool_), np.zeros(256, np.bool_), np.zeros(256, np.bool_), np.zeros(256))
    for kind in config.events:
        number = index(kind.name)
        found.weight[number] = kind.weight
        for flags, name in ((found.clicks, click), (found.converts, conversion), (found.dwells, dwell)):
            flags[number] = kind.name == name
    for column in found:
        column[0] = 0  # no type at all
    return found


class OpenList:
    """A list that was given to ``user`` (0: a stranger) at ``at_ms``, and what they have done with it so far. ``clicked`` has a bit for each
    place. ``drawn`` is the number by which it is among those that are looked at.
    """

    __slots__ = (
        "at_ms",
        "clicked",
        "conversions",
        "drawn",
        "dwell",
        "dwelt",
        "groups",
        "items",
        "request_id",
        "user",
        "value",
        "weight",
    )

    def __init__(
        self, request_id: str, user: int, at_ms: int, items: Sequence[int], groups: tuple[Group, ...], drawn: int
    ) -> None:  # fmt: skip
        self.request_id, self.user, self.at_ms, self.groups, self.drawn = request_id, user, at_ms, groups, drawn
        self.items = array("I", items)
        self.clicked = self.conversions = self.dwelt = 0
        self.value = self.weight = self.dwell = 0.0

    def figures(self) -> Float64:
        """What it comes to, in the order of ``COLUMNS``."""
        return np.array(
            [
                1.0,
                len(self.items),
                self.clicked.bit_count(),
                self.conversions > 0,
                self.value,
                self.weight,
                self.dwell,
                self.dwelt,
            ]
        )


COLUMNS = ("lists", "places", "clicked", "converted", "value", "weight", "dwell", "dwelt")


class OpenLists:
    """Lists whose attribution is not over. They close in the order in which they came."""

    def __init__(self, attribution_ms: int) -> None:
        self.attribution_ms = attribution_ms
        self._order: deque[OpenList] = deque()
        self._of_user: dict[int, list[OpenList]] = {}
        self._requests: dict[str, OpenList] = {}

    def __len__(self) -> int:
        return len(self._order)

    def users(self) -> Int64:
        """Who has open lists, ascending."""
        return np.sort(np.fromiter(self._of_user, np.int64, len(self._of_user)))

    def open(self, one: OpenList) -> None:
        """Take up a list. One that was recorded twice, because an acknowledgement was lost, counts once."""
        if one.request_id in self._requests:
            return
        self._requests[one.request_id] = one
        self._order.append(one)
        if one.user:  # strangers have nothing in common but that nobody knows them
            self._of_user.setdefault(one.user, []).append(one)

    def named(self, request_id: str) -> OpenList | None:
        """The open list of a request."""
        return self._requests.get(request_id)

    def newest(self, user: int, at_ms: int) -> OpenList | None:
        """The newest list that ``user`` was given before ``at_ms``, if that is open."""
        before = [one for one in self._of_user.get(user, ()) if one.at_ms <= at_ms]
        return max(before, key=lambda one: one.at_ms, default=None)

    def credit(self, event: npt.NDArray[np.void], types: Types, named: OpenList | None = None) -> None:
        """Put an event (one record) down to its list, if it has one; one that takes another back counts against it. ``named`` is the list that
        the event itself names: of a stranger's it is known by nothing else.
        """
        at_ms, item = int(event["time_ms"]), int(event["item"])
        lists = self._of_user.get(int(event["user"]), ()) if named is None or named.user else (named,)
        found: OpenList | None = None
        for one in lists:
            due = 0 <= at_ms - one.at_ms < self.attribution_ms and item in one.items
            if due and (found is None or one.at_ms >= found.at_ms):
                found = one
        if found is None:
            return
        kind, sign = int(event["type"]), -1 if event["flags"] & 1 else 1
        value = float(event["value"])
        value = 0.0 if np.isnan(value) else value
        if types.clicks[kind]:
            place = 1 << found.items.index(item)
            found.clicked = found.clicked | place if sign > 0 else found.clicked & ~place
        if types.converts[kind]:
            found.conversions += sign
            found.value += sign * value
        if types.dwells[kind] and value:
            found.dwell += sign * value
            found.dwelt += sign
        found.weight += sign * float(types.weight[kind])

    def close(self, until_ms: int) -> list[OpenList]:
        """The lists whose attribution was over at ``until_ms``; they are let go of."""
        closed = []
        while self._order and self._order[0].at_ms + self.attribution_ms <= until_ms:
            closed.append(self._order.popleft())
        self._forget(closed)
        return closed

    def keep(self, wanted: Callable[[int], bool]) -> None:
        """Let go of the lists whose ``drawn`` is not ``wanted``."""
        gone = [one for one in self._order if not wanted(one.drawn)]
        self._order = deque(one for one in self._order if wanted(one.drawn))
        self._forget(gone)

    def _forget(self, gone: Iterable[OpenList]) -> None:
        for one in gone:
            del self._requests[one.request_id]
            if not one.user:
                continue
            theirs = self._of_user[one.user]
            theirs.remove(one)
            if not theirs:
                del self._of_user[one.user]
