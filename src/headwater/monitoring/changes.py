"""ADWIN over what lists come to, by surface: whether they were taken up, converted, were as long as asked for, and of the full path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import structlog

from headwater.monitoring.adwin import Adwin
from headwater.monitoring.outcomes import Waiting

log = structlog.get_logger()

DELTA = 0.002  # of all streams together
OF = ("click", "conversion", "length", "full_path")
CHANGED_MS = 3_600_000  # for so long a change is told


class Change(NamedTuple):
    """A stream: the mean since it last changed, and whether that was within the last hour."""

    surface: str
    of: str
    mean: float
    changed: bool


class Changes:
    """The streams of ``surfaces``; each has its share of ``DELTA``, so that however many there are, a check of all of them cuts one that has not
    changed with at most that chance. ``add`` lists whose outcomes are in.
    """

    def __init__(self, surfaces: Sequence[str]) -> None:
        delta = DELTA / (len(OF) * max(len(surfaces), 1) + 1)  # and that of all lists
        self._all = Adwin(delta)
        self._streams = {(surface, of): Adwin(delta) for surface in surfaces for of in OF}
        self._changed_ms: dict[tuple[str, str], int] = {}

    def add(self, waiting: Waiting, conversion: int, *, steered: bool) -> None:
        """Take in a list. ``conversion`` is the dense type of conversions; ``steered``: it is of the full path and of the policy."""
        surface = waiting.surface
        if steered:
            self._update(self._all, ("", "click"), bool(waiting.clicked), waiting.time_ms)
            self._take(surface, "click", bool(waiting.clicked), waiting.time_ms)
            self._take(surface, "conversion", conversion in waiting.clicked, waiting.time_ms)
        if not waiting.walked:  # by lot, which is no change
            self._take(surface, "full_path", waiting.tier == 0, waiting.time_ms)
            if waiting.asked:
                self._take(surface, "length", min(len(waiting.items) / waiting.asked, 1.0), waiting.time_ms)

    def read(self, now_ms: int) -> Iterator[Change]:
        """How each stands that has had a list; the one of all lists has no surface."""
        for at, adwin in ((("", "click"), self._all), *self._streams.items()):
            if adwin.width:
                changed_ms = self._changed_ms.get(at)
                yield Change(*at, adwin.mean, changed_ms is not None and now_ms - changed_ms < CHANGED_MS)

    def _take(self, surface: str, of: str, value: float, time_ms: int) -> None:
        if (adwin := self._streams.get((surface, of))) is not None:
            self._update(adwin, (surface, of), value, time_ms)

    def _update(self, adwin: Adwin, at: tuple[str, str], value: float, time_ms: int) -> None:
        if adwin.update(float(value)):
            self._changed_ms[at] = time_ms
            log.info("online_metric_changed", surface=at[0], of=at[1], mean=adwin.mean, lists=adwin.width)
