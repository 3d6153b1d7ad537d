"""What is served, held against what was served at first: a reference, and one window after the other.

The reference is the first stretch that was served under a ``key`` (a bundle, and those that were warm-started from it). It is neither the rows of
training nor another bundle's lists: a training row is a candidate at the moment of a positive event, half of them drawn at random, and another
bundle chooses other items. Both differ from what is served without anything being wrong.

Memory is bounded: of the reference an even sample of rows is kept until its bins are cut; from then on cells are only
counted, by bin, by group of users and, in the reference, by hour.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.monitoring.bins import MISSING, Bins, count_by_group
from headwater.monitoring.divergence import Divergence, diverged, level_of_look
from headwater.monitoring.reservoir import GROUPS, Cells, Reservoir, Sampled
from headwater.schema.drift import Drift
from headwater.schema.durations import parse_duration

Int64 = npt.NDArray[np.int64]

MOST_HOURS = 24 * 14
LONGEST = 24  # windows that a window may wait for enough rows


class Judged(Struct, frozen=True, kw_only=True):
    """A column of a window. ``missing`` and ``out_of_range`` are shares of its cells: NaN or infinite, and outside of what training met."""

    name: str
    psi: float
    js: float
    psi_null: float
    js_null: float
    bins: int
    effective_rows: float
    missing: float
    out_of_range: float
    drifted: bool


class Look(Struct, frozen=True, kw_only=True):
    """A window that was judged."""

    number: int
    start_ms: int
    end_ms: int
    rows: int
    columns: tuple[Judged, ...]


class Kept(Struct, forbid_unknown_fields=True):
    """A column of a complete reference: its bins, and its cells by group and by hour (int64, C order)."""

    bins: Bins
    groups: bytes
    hours: bytes


class State(Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything that a :class:`Compared` knows, to be written down. ``ranges`` are the smallest and largest values of training, where known."""

    key: str
    names: tuple[str, ...]
    defaults: tuple[float | None, ...]
    ranges: tuple[tuple[float, float] | None, ...]
    begun_ms: int = 0
    last_ms: int = 0
    sample: Sampled = Sampled()
    columns: list[Kept] = []
    reference_rows: int = 0
    looks: int = 0
    window_ms: int = 0
    window: list[bytes] = []
    outside: list[int] = []
    latest: Look | None = None


class Compared:
    """The columns of ``state`` under its key. ``add`` what is served, ``close`` when the log has reached ``now_ms``."""

    def __init__(self, state: State, settings: Drift) -> None:
        self.state = state
        self._settings = settings
        self._reference_ms, self._window_ms = parse_duration(settings.reference), parse_duration(settings.window)
        self._alpha = settings.alpha / 2.0  # features and scores have half of it each
        self._sample = None if state.columns else Reservoir(len(state.names), state.sample)
        self._window = [np.frombuffer(counts, np.int64).reshape(GROUPS, -1).copy() for counts in state.window]
        self._outside = np.array(state.outside or [0] * len(state.names), np.int64)
        if state.columns and not state.window:  # it comes back, and begins with no window
            self._clear()
        known = [(-np.inf, np.inf) if each is None else each for each in state.ranges]
        self._low, self._high = np.array(known, np.float32).reshape(-1, 2).T

    @property
    def complete(self) -> bool:
        """Whether there is a reference to compare with."""
        return self._sample is None

    @property
    def filled(self) -> float:
        """How much of the reference is there, from 0 to 1."""
        if self._sample is None:
            return 1.0
        span = (self.state.last_ms - self.state.begun_ms) / self._reference_ms if self._sample.seen else 0.0
        return min(span, self._sample.seen / self._settings.min_rows, 1.0)

    def add(self, cells: Cells) -> None:
        """Take in the rows of a list; times must not decrease."""
        state = self.state
        if self._sample is not None and self.filled >= 1.0:
            self._cut(self._sample)
        if self._sample is not None:
            state.begun_ms = state.begun_ms or cells.time_ms
            state.last_ms = cells.time_ms
            self._sample.add(cells)
            return
        state.window_ms = state.window_ms or cells.time_ms
        for column, counts in enumerate(self._window):
            counts += count_by_group(state.columns[column].bins, cells.values[:, column], cells.groups, GROUPS)
        outside = (cells.values < self._low) | (cells.values > self._high)  # of NaN neither is true
        self._outside += outside.sum(0)

    def close(self, now_ms: int, *, whole: bool = True) -> Look | None:
        """Judge the window when it is over: it is long enough (which ``whole`` asks for), and has enough rows. One that lacks them for too
        long is dropped.
        """
        state = self.state
        if not self.complete or not state.window_ms or (whole and now_ms < state.window_ms + self._window_ms):
            return None
        rows = int(self._window[0].sum())
        if rows < self._settings.min_rows:
            if now_ms >= state.window_ms + LONGEST * self._window_ms:
                self._clear()
            return None
        state.looks += 1
        level = level_of_look(self._alpha, state.looks, len(state.names))
        judged = [
            self._judge(kept, counts, outside / rows, level)
            for kept, counts, outside in zip(state.columns, self._window, self._outside.tolist(), strict=True)
        ]
        state.latest = Look(
            number=state.looks, start_ms=state.window_ms, end_ms=now_ms, rows=rows, columns=tuple(judged)
        )
        self._clear()
        return state.latest

    def saved(self) -> State:
        """The state as of now."""
        self.state.sample = Sampled() if self._sample is None else self._sample.saved()
        self.state.window = [counts.tobytes() for counts in self._window]
        self.state.outside = self._outside.tolist()
        return self.state

    def _cut(self, sample: Reservoir) -> None:
        """Cut the bins, count the rows, let go of them."""
        state = self.state
        hours = np.unique(sample.hours)[-MOST_HOURS:]
        hour = np.clip(np.searchsorted(hours, sample.hours), 0, len(hours) - 1)
        for column, (name, default) in enumerate(zip(state.names, state.defaults, strict=True)):
            cells = np.ascontiguousarray(sample.rows[:, column])
            bins = Bins.of(name, default, cells)
            by_group = count_by_group(bins, cells, sample.groups, GROUPS)
            by_hour = count_by_group(bins, cells, hour, len(hours))
            state.columns.append(Kept(bins, by_group.tobytes(), by_hour.tobytes()))
        state.reference_rows = len(sample.rows)
        self._sample = None
        self._clear()

    def _clear(self) -> None:
        self.state.window_ms = 0
        self._window = [np.zeros((GROUPS, kept.bins.count), np.int64) for kept in self.state.columns]
        self._outside[:] = 0

    def _judge(self, kept: Kept, counts: Int64, outside: float, level: float) -> Judged:
        reference = np.frombuffer(kept.groups, np.int64).reshape(GROUPS, -1)
        hours = np.frombuffer(kept.hours, np.int64).reshape(-1, kept.bins.count)
        seen = diverged(reference, counts, level, hours) or Divergence(0.0, 0.0, 0.0, 0.0, 1, 0.0, 0.0)
        cells, rows = counts.sum(0), int(counts.sum())
        return Judged(
            name=kept.bins.name, psi=seen.psi, js=seen.js, psi_null=seen.psi_null, js_null=seen.js_null, bins=seen.bins,
            effective_rows=seen.effective_rows, missing=float(cells[MISSING] / rows),
            out_of_range=outside, drifted=seen.beyond(self._settings.floor),
        )  # fmt: skip
