"""Columns that are dead: one value in every row that a bundle serves, where its training saw lists that differ.

The reference stands in the bundle (:mod:`headwater.registry.reference`), so this is judged from its first window on, before there is any stretch
that it served to be held against. If at most a share ``c`` of lists is wholly of one value (an upper bound, of the hour of the reference where it is
largest), the lists of ``u`` people are all of it with a chance of at most ``c ** u``. Whom the gate asked about has a past, of whom comes to a news site nine in ten may have none:
so the odds ``c / (1 - c)`` are taken ``STRANGE`` times as high. ``u`` counts the people of all windows since the column last differed: what is dead stays so, and a column that is often one value is
judged when enough came. It is dead when the chance is below the level of the look and ``c`` below ``MOST_CONSTANT``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.monitoring.divergence import level_of_look
from headwater.registry.reference import BundleReference
from headwater.schema.drift import Drift
from headwater.schema.durations import parse_duration

Float32 = npt.NDArray[np.float32]

MOST_CONSTANT = 0.9
STRANGE = 10.0  # times the odds of a list of one value, among people who were not asked about
LEAST_USERS = 20  # that lists are of: a few may have something in common
MOST_USERS = 10_000  # told apart: more make nothing clearer
LONGEST = 24  # windows that people are remembered


class DeadState(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of a bundle: how many windows were judged, and the columns that the last one found dead."""

    key: str
    looks: int = 0
    dead: tuple[str, ...] = ()


class Alive:
    """The columns of ``reference`` that can be judged. ``add`` lists of the bundle, ``close`` when the log has reached ``now_ms``."""

    def __init__(self, state: DeadState, reference: BundleReference, settings: Drift) -> None:
        self.state, self.lists = state, reference.lists
        self._alpha, self._least, self._window_ms = settings.alpha, settings.min_rows, parse_duration(settings.window)
        self.names = tuple(column.name for column in reference.columns)
        constant = np.array([column.constant for column in reference.columns], np.float64)
        odds = STRANGE * constant / np.maximum(1.0 - constant, 1e-12)
        self._chance = np.where(constant <= MOST_CONSTANT, np.log(odds / (1.0 + odds)), 0.0)
        self._began_ms = self._rows = self._window = 0
        self._units: dict[int, int] = {}  # the last window in which each came
        self._since = np.zeros(len(self.names), np.int64)  # the window since which a column is one value
        self._missing: npt.NDArray[np.bool_] = np.zeros(len(self.names), np.bool_)
        self._low: Float32 = np.full(len(self.names), np.inf, np.float32)
        self._high: Float32 = np.full(len(self.names), -np.inf, np.float32)

    def add(self, rows: Float32, scores: Float32, unit: int, time_ms: int) -> None:
        """Take in a list: ``float32[n, columns]`` and ``float32[n]``, of a user (or, without one, of a request)."""
        if rows.shape[1] + 1 != len(self.names):
            return
        cells = np.column_stack((rows, scores))
        known = np.isfinite(cells)
        self._began_ms = self._began_ms or time_ms
        self._rows += len(cells)
        if len(self._units) < MOST_USERS or unit in self._units:
            self._units[unit] = self._window
        self._missing |= ~known.all(0)
        np.minimum(self._low, np.where(known, cells, np.inf).min(0), out=self._low)
        np.maximum(self._high, np.where(known, cells, -np.inf).max(0), out=self._high)

    def close(self, now_ms: int, *, whole: bool = True) -> tuple[str, ...]:
        """Judge the window when it is long enough (which ``whole`` asks for) and has enough rows; the columns that are found dead."""
        came = np.fromiter(self._units.values(), np.int64, len(self._units))
        if (
            not self.names
            or self._rows < self._least
            or np.count_nonzero(came == self._window) < LEAST_USERS
            or (whole and now_ms < self._began_ms + self._window_ms)
        ):
            return ()
        self.state.looks += 1
        level = level_of_look(self._alpha, self.state.looks, len(self.names))
        one_value = np.where(self._missing, self._low > self._high, self._low == self._high)
        people = (came[:, None] >= self._since).sum(0)
        dead = one_value & (self._chance * people < math.log(level))
        self.state.dead = tuple(name for name, gone in zip(self.names, dead.tolist(), strict=True) if gone)
        self._next(~one_value)
        return self.state.dead

    def _next(self, differed: npt.NDArray[np.bool_]) -> None:
        """Begin a window; of columns that differed nothing is remembered, of people what is of use."""
        self._window += 1
        self._began_ms = self._rows = 0
        self._since[differed] = self._window
        self._missing[differed] = False
        self._low[differed], self._high[differed] = np.inf, -np.inf
        judged = self._since[self._chance < 0.0]
        oldest = max(int(judged.min()) if len(judged) else self._window, self._window - LONGEST)
        self._units = {unit: window for unit, window in self._units.items() if window >= oldest}
