"""Sums over the last while, in steps: what is older than the window falls out a step at a time. Memory is groups × steps."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Counts = tuple[Int64, Int64]
"""Items, ascending, and how often each."""
STEPS = 12

K = TypeVar("K", bound=Hashable)

NOTHING: Counts = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class Steps:
    """Which step of a window of ``window_ms`` a moment lies in."""

    def __init__(self, window_ms: int) -> None:
        self.step_ms = max(1, window_ms // STEPS)

    def of(self, at_ms: int) -> int:
        """The number of the step."""
        return at_ms // self.step_ms

    def first(self, now_ms: int) -> int:
        """The oldest step that is still inside at ``now_ms``."""
        return self.of(now_ms) - STEPS + 1


class SlidingSums(Generic[K]):
    """Vectors of ``columns`` numbers, added up by key over a window."""

    def __init__(self, columns: int, window_ms: int) -> None:
        self._columns, self._steps = columns, Steps(window_ms)
        self._sums: dict[int, dict[K, Float64]] = {}

    def add(self, key: K, at_ms: int, values: Float64) -> None:
        """Add ``values`` float64[columns] of the moment ``at_ms``."""
        step = self._sums.setdefault(self._steps.of(at_ms), {})
        found = step.get(key)
        if found is None:
            step[key] = values.copy()
        else:
            found += values

    def read(self, now_ms: int) -> dict[K, Float64]:
        """The sums of the window that ends at ``now_ms``; what is older is let go of."""
        first = self._steps.first(now_ms)
        total: dict[K, Float64] = {}
        for step in sorted(self._sums):
            if step < first:
                del self._sums[step]
                continue
            for key, values in self._sums[step].items():
                total[key] = total[key] + values if key in total else values
        return total


class SlidingCounts(Generic[K]):
    """How often each item came up, by key over a window. Items that did not are not held."""

    def __init__(self, window_ms: int) -> None:
        self._steps = Steps(window_ms)
        self._counts: dict[tuple[int, K], Counts] = {}

    def add(self, key: K, at_ms: int, items: Int64) -> None:
        """Count ``items`` int64[n], each as often as it is there, for the moment ``at_ms``."""
        place = self._steps.of(at_ms), key
        self._counts[place] = merged([self._counts.get(place, NOTHING), (items, np.ones(len(items), np.int64))])

    def read(self, now_ms: int) -> dict[K, Counts]:
        """The counts of the window that ends at ``now_ms``; what is older is let go of."""
        first = self._steps.first(now_ms)
        inside: dict[K, list[Counts]] = {}
        for step, key in sorted(self._counts, key=lambda place: place[0]):
            if step < first:
                del self._counts[step, key]
            else:
                inside.setdefault(key, []).append(self._counts[step, key])
        return {key: merged(parts) for key, parts in inside.items()}


def merged(parts: list[Counts]) -> Counts:
    """The counts of all ``parts`` together."""
    items, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    counts = np.zeros(len(items), np.int64)
    np.add.at(counts, place, np.concatenate([part[1] for part in parts]))
    return items, counts
