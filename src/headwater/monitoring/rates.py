"""A click rate as a stream for ADWIN: the hour of the day and the people behind it taken out, so that neither counts as a change.

An evening has another click rate than a morning, every day. So each list counts for what it came to over what its hour of the day is to a whole day, and that is learnt from the
days before, each weighing ``KEPT`` of the next. What few lists say of an hour is drawn towards 1, as if ``n`` lists had shown no season, where these know as much as the guess that hours
differ by ``SEASON`` (a normal prior of that standard deviation). On the first day no hour is known.

Lists are not independent either: a visit is several of one person in one mood. How much more a mean varies for that is measured between random groups of people, day by day (``inflation``).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from headwater.monitoring.adwin import Adwin
from headwater.monitoring.reservoir import GROUPS, HOUR_MS

FLOOR = 0.1  # of the mean: less is no matter
SEASON = 0.15
KEPT = 0.8
MOST = 1.5  # times the mean, or its inverse, that an hour of the day is
_DAY = 24


def _hours() -> list[float]:
    return [0.0] * _DAY


class RateState(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is known of a stream, by hour of the day (UTC): lists, and what came of them over the mean of their day, both faded; lists and what came of them the last time;
    and two sums whose ratio is the inflation. ``begun``: the hour since which.
    """

    lists: list[float] = field(default_factory=_hours)
    taken: list[float] = field(default_factory=_hours)
    last_lists: list[float] = field(default_factory=_hours)
    last_taken: list[float] = field(default_factory=_hours)
    between: float = 0.0
    within: float = 0.0
    begun: int = 0


class Rate:
    """The share of lists that were taken up, in the order of time."""

    def __init__(self, state: RateState, delta: float) -> None:
        self.state, self._adwin = state, Adwin(delta, FLOOR)
        self._hour = self._lists = self._taken = 0
        self._season, self._inflation = 1.0, 1.0
        self._begin_day()

    @property
    def width(self) -> int:
        """Lists since the last change."""
        return self._adwin.width

    @property
    def mean(self) -> float:
        """The share of them, the hours of the day weighed out; NaN when there are none."""
        return self._adwin.mean * MOST

    def update(self, taken: bool, group: int, time_ms: int) -> bool:
        """Take in a list of somebody of ``group``; true when the rate has changed."""
        if (hour := time_ms // HOUR_MS) != self._hour:
            self._turn(hour)
        self._lists += 1
        self._taken += taken
        value = taken / (self._season * MOST)
        if self._adwin.width:
            off = value - self._adwin.mean
            self._of_group[group] += off
            self._in_group[group] += 1
            self._squares += off * off
        return self._adwin.update(value, self._inflation)

    def _begin_day(self) -> None:
        self._of_group, self._in_group, self._squares = [0.0] * GROUPS, [0] * GROUPS, 0.0

    def _turn(self, hour: int) -> None:
        """An hour is over: what it says of its hour of the day, and of people."""
        state, at = self.state, self._hour % _DAY
        if self._lists:
            state.begun = state.begun or self._hour
            state.last_lists[at], state.last_taken[at] = float(self._lists), float(self._taken)
            if self._hour >= state.begun + _DAY - 1:
                self._learn(range(_DAY) if not any(state.lists) else (at,))
        between, within = self._spread()
        known = state.within + within
        self._inflation = max((state.between + between) / known, 1.0) if known else 1.0
        if hour // _DAY != self._hour // _DAY:
            state.between, state.within = KEPT * state.between + between, KEPT * state.within + within
            self._begin_day()
        self._season = self._expected(hour % _DAY)
        self._hour, self._lists, self._taken = hour, 0, 0

    def _learn(self, hours: Iterable[int]) -> None:
        """Hold hours of the last day against the whole of it."""
        state = self.state
        mean = sum(state.last_taken) / sum(state.last_lists)
        for at in hours if mean > 0.0 else ():
            state.lists[at] = KEPT * state.lists[at] + state.last_lists[at]
            state.taken[at] = KEPT * state.taken[at] + state.last_taken[at] / mean

    def _expected(self, at: int) -> float:
        """What an hour of the day is to the mean."""
        lists, mean = self.state.lists[at], self.mean
        if not lists or not 0.0 < mean < 1.0:
            return 1.0
        prior = self._inflation * (1.0 - mean) / (mean * SEASON**2)
        return min(max((self.state.taken[at] + prior) / (lists + prior), 1.0 / MOST), MOST)

    def _spread(self) -> tuple[float, float]:
        """Squares of what groups of people were off by, their common part left out, and of what lists were."""
        lists = sum(self._in_group)
        common = sum(self._of_group) / lists if lists else 0.0
        return sum(
            (off - common * n) ** 2 for off, n in zip(self._of_group, self._in_group, strict=True)
        ), self._squares
