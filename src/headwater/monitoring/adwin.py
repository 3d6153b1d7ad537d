"""ADWIN: a window over a stream of figures that is as long as its mean has not changed.

A. Bifet, R. Gavaldà, "Learning from Time-Changing Data with Adaptive Windowing", SDM 2007 (ADWIN2). The window is kept as buckets of
1, 2, 4, ... values, at most five of a size, so memory and time grow with the logarithm of its length. It is cut between an older and a
newer part whose means differ by more than chance allows.
"""

from __future__ import annotations

import math

import numpy as np

EACH = 5  # buckets of one size
CHECK_EVERY = 32  # values between two checks
LEAST_PART = 32  # values that either part of a cut has at least


class Adwin:
    """The window. Values are in [0, 1]; ``delta`` bounds the chance that a check cuts a stream whose mean has not changed; ``floor``: what is less than so large a
    part of the mean is no change.
    """

    def __init__(self, delta: float = 0.002, floor: float = 0.0) -> None:
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta is a probability, got {delta}")
        self._delta, self._floor = delta, floor
        self._counts: list[int] = []  # oldest first
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._unchecked = 0
        self.changes = 0

    @property
    def width(self) -> int:
        """Values in the window."""
        return sum(self._counts)

    @property
    def mean(self) -> float:
        """Their mean; NaN when there are none."""
        return sum(self._sums) / self.width if self._counts else math.nan

    def update(self, value: float, inflation: float = 1.0) -> bool:
        """Take in a value; true when the mean has changed, and what came before the change was forgotten.

        ``inflation``: how many times the variance of a mean of values is what it would be if they were independent (the design effect, L. Kish 1965).
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"ADWIN takes values in [0, 1], got {value}")
        self._counts.append(1)
        self._sums.append(value)
        self._squares.append(value * value)
        self._compress()
        self._unchecked += 1
        if self._unchecked < CHECK_EVERY:
            return False
        self._unchecked = 0
        changed = False
        while self._cut(inflation):
            changed = True
        self.changes += changed
        return changed

    def _compress(self) -> None:
        size, end = 1, len(self._counts)
        while True:
            start = end
            while start and self._counts[start - 1] == size:
                start -= 1
            if end - start <= EACH:
                return
            for kept in (self._sums, self._squares):
                kept[start] += kept.pop(start + 1)
            self._counts[start] *= 2
            del self._counts[start + 1]
            size, end = 2 * size, start + 1

    def _cut(self, inflation: float) -> bool:
        """Drop the oldest bucket when some cut tells two parts apart."""
        counts, sums = np.array(self._counts, np.float64), np.array(self._sums)
        n, total = counts.sum(), sums.sum()
        if n < 2 * LEAST_PART:
            return False
        mean = total / n
        variance = max(sum(self._squares) / n - mean * mean, 0.0)
        older, left = counts.cumsum()[:-1], sums.cumsum()[:-1]
        newer = n - older
        fair = (older >= LEAST_PART) & (newer >= LEAST_PART)
        if not fair.any():
            return False
        older, newer, left = older[fair], newer[fair], left[fair]
        limits = np.maximum(cut_threshold(older, newer, variance * inflation, self._delta), self._floor * mean)
        if not (np.abs(left / older - (total - left) / newer) > limits).any():
            return False
        for kept in (self._sums, self._squares):
            del kept[0]
        del self._counts[0]
        return True


def cut_threshold(
    older: np.ndarray[tuple[int], np.dtype[np.float64]], newer: np.ndarray[tuple[int], np.dtype[np.float64]], variance: float,
    delta: float,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:  # fmt: skip
    """``sqrt(2 / m * variance * ln(2 / d)) + 2 / (3 m) * ln(2 / d)``, ``1 / m = 1 / older + 1 / newer``, ``d = delta / ln(n)``."""
    inverse = 1.0 / older + 1.0 / newer
    log = np.log(2.0 * np.log(older + newer) / delta)
    return np.sqrt(2.0 * inverse * variance * log) + 2.0 / 3.0 * inverse * log
