"""Whether as much came in as at this hour of other days.

An hour's events of a type are compared with the same hour of the last days: of the same weekday once there are two weeks, else of each
of the last seven days. How much a same hour differs from day to day is measured on the hours before, all hours of the day together, and
a Poisson count adds its own part.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

HOUR_MS = 3_600_000
DAYS, WEEKS = 7, 4
KEPT = 24 * 7 * WEEKS + 24  # hours
LEAST_DAYS = 2  # same hours that an expectation needs
LEAST_RATIOS = 24  # pairs of same hours that the spread is measured on
LIMIT = 5.0  # standard deviations
FACTOR = 2.0  # and at least so many times as much, or as little
LEAST_COUNT = 20.0  # events an hour that are judged


class Expected(NamedTuple):
    """What an hour should bring: the mean of ``same`` earlier hours, and the standard deviation of the logarithm of their ratio."""

    mean: float
    spread: float
    same: int

    def off(self, count: float) -> bool:
        """Whether ``count`` is beyond what days differ by, and by a factor that matters."""
        if self.mean < LEAST_COUNT:
            return False
        ratio = (count + 0.5) / (self.mean + 0.5)
        apart = abs(math.log(ratio)) / math.sqrt((self.spread**2 + 1.0 / self.mean) * (1.0 + 1.0 / self.same))
        return apart > LIMIT and not 1.0 / FACTOR < ratio < FACTOR


class Season:
    """Counts of one type by hour since the epoch, the last four weeks and a day of them."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, hour: int, count: int) -> None:
        """Add ``count`` events of an hour; forgets what is too old."""
        self.counts[hour] = self.counts.get(hour, 0) + count
        if len(self.counts) > KEPT:
            newest = max(self.counts)
            self.counts = {h: c for h, c in self.counts.items() if h > newest - KEPT}

    def expected(self, hour: int) -> Expected | None:
        """What ``hour`` should bring by those before it; None while too little is known."""
        if not self.counts:
            return None
        first = min(self.counts)
        weeks = [hour - 168 * w for w in range(1, WEEKS + 1) if hour - 168 * w > first]
        same = (
            weeks if len(weeks) >= LEAST_DAYS else [hour - 24 * d for d in range(1, DAYS + 1) if hour - 24 * d > first]
        )
        if len(same) < LEAST_DAYS:
            return None
        apart = 168 if same is weeks else 24
        ratios = [
            math.log((self.counts.get(h, 0) + 0.5) / (self.counts.get(h - apart, 0) + 0.5))
            for h in range(max(hour - 168, first + apart + 1), hour)
            if self.counts.get(h, 0) + self.counts.get(h - apart, 0) >= 2 * LEAST_COUNT
        ]
        if len(ratios) < LEAST_RATIOS:
            return None
        mean = sum(self.counts.get(h, 0) for h in same) / len(same)
        # the median absolute deviation of a difference of two: one bad hour does not widen it
        spread = 1.4826 * float(np.median(np.abs(np.array(ratios)))) / math.sqrt(2.0)
        return Expected(mean, spread, len(same))
