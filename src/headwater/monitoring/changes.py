"""ADWIN over what lists come to, by surface: whether they were taken up, converted, were as long as asked for, and of the full path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import structlog

from headwater.monitoring.adwin import Adwin
from headwater.monitoring.outcomes import Waiting
from headwater.monitoring.rates import Rate, RateState

log = structlog.get_logger()

DELTA = 0.002  # of all streams together
RATES = ("click", "conversion")
OF = (*RATES, "length", "full_path")
CHANGED_MS = 3_600_000  # for so long a change is told


class Change(NamedTuple):
    """A stream: the mean since it last changed, and whether that was within the last hour."""

    surface: str
    of: str
    mean: float
    changed: bool


class Changes:
    """The streams of ``surfaces``; each has its share of ``DELTA``, so that however many there are, a check of all of them cuts one that has not
    changed with at most that chance. ``add`` lists whose outcomes are in. ``kept`` are the states of rates, by surface and what they are of.
    """

    def __init__(self, surfaces: Sequence[str], kept: Mapping[str, RateState] | None = None) -> None:
        delta = DELTA / (len(OF) * max(len(surfaces), 1) + 1)  # and that of all lists
        rates = [("", "click"), *((surface, of) for surface in surfaces for of in RATES)]
        self._rates = {at: Rate((kept or {}).get("/".join(at)) or RateState(), delta) for at in rates}
        self._means = {(surface, of): Adwin(delta) for surface in surfaces for of in OF if of not in RATES}
        self._changed_ms: dict[tuple[str, str], int] = {}

    def add(self, waiting: Waiting, conversion: int, *, steered: bool) -> None:
        """Take in a list. ``conversion`` is the dense type of conversions; ``steered``: it is of the full path and of the policy."""
        surface, time_ms = waiting.surface, waiting.time_ms
        if steered:
            for at, taken in (
                (("", "click"), bool(waiting.clicked)), ((surface, "click"), bool(waiting.clicked)),
                ((surface, "conversion"), conversion in waiting.clicked),
            ):  # fmt: skip
                if (rate := self._rates.get(at)) is not None and rate.update(taken, waiting.group, time_ms):
                    self._changed(at, rate, time_ms)
        if not waiting.walked:  # by lot, which is no change
            self._take((surface, "full_path"), float(waiting.tier == 0), time_ms)
            if waiting.asked:
                self._take((surface, "length"), min(len(waiting.items) / waiting.asked, 1.0), time_ms)

    def read(self, now_ms: int) -> Iterator[Change]:
        """How each stands that has had a list; the one of all lists has no surface."""
        streams: dict[tuple[str, str], Rate | Adwin] = {**self._rates, **self._means}
        for at, stream in streams.items():
            if stream.width:
                changed_ms = self._changed_ms.get(at)
                yield Change(*at, stream.mean, changed_ms is not None and now_ms - changed_ms < CHANGED_MS)

    def saved(self) -> dict[str, RateState]:
        """What is known of rates."""
        return {"/".join(at): rate.state for at, rate in self._rates.items()}

    def _take(self, at: tuple[str, str], value: float, time_ms: int) -> None:
        if (adwin := self._means.get(at)) is not None and adwin.update(value):
            self._changed(at, adwin, time_ms)

    def _changed(self, at: tuple[str, str], stream: Rate | Adwin, time_ms: int) -> None:
        self._changed_ms[at] = time_ms
        log.info("online_metric_changed", surface=at[0], of=at[1], mean=stream.mean, lists=stream.width)
