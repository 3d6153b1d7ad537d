"""Whether a score still means what it meant: the click rate that scores led to in the reference, against what came of them now.

The scores of a ranker that learns an order are no probabilities, so what is expected of a score is read from the first stretch that
the bundle served: the click rate by bin of its scores. Over a later window of lists whose outcomes are in, ``expected`` is the mean over places
of the rate of their bin, ``observed`` the share of places that was clicked. Counts are skewed and vary with their mean, so roots are compared, which are not and do not (M. Bartlett 1936):
``2 |sqrt(observed / expected) - 1|`` is held against the spread of ``observed / expected`` between groups of users on both sides; where the reference spans hours, twice the most that any of them was off beyond chance is added.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.monitoring.bins import Bins
from headwater.monitoring.divergence import level_of_look
from headwater.monitoring.reservoir import GROUPS, Cells, Reservoir, Sampled
from headwater.schema.drift import Drift
from headwater.schema.durations import parse_duration

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LEAST_CLICKS = 50  # of the reference, and expected of a window
PRIOR = 10.0  # places at the mean rate that each bin is given
FACTOR = 1.2  # a ratio between this and its inverse is no matter
_LEAST_HOUR_CLICKS = 5.0  # expected of an hour whose ratio counts
_CHANCE = 2.576  # standard deviations: 99%


class Calibrated(Struct, frozen=True, kw_only=True):
    """A window: its places, the click rate observed and the one expected of its scores, and what chance allows of
    ``2 |sqrt(observed / expected) - 1|``.
    """

    places: int
    observed: float
    expected: float
    chance: float
    off: bool


class CalibrationState(Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything that a :class:`Calibration` knows: places (score, 1 for clicked) of reference and window."""

    key: str
    begun_ms: int = 0
    complete: bool = False
    reference: Sampled = Sampled()
    window: Sampled = Sampled()
    window_ms: int = 0
    looks: int = 0
    latest: Calibrated | None = None


class Calibration:
    """Of one bundle. ``add`` lists whose outcomes are in, in the order of time; ``close`` when the log has reached ``now_ms``. It is one of ``tests``."""

    def __init__(self, state: CalibrationState, settings: Drift, tests: int = 1) -> None:
        self.state, self._tests = state, tests
        self._alpha = settings.alpha / 2.0
        self._least = settings.min_rows
        self._reference_ms, self._window_ms = parse_duration(settings.reference), parse_duration(settings.window)
        self._reference = Reservoir(2, state.reference)
        self._window = Reservoir(2, state.window)
        self._rates: Rates | None = None  # of the reference, once it is whole

    def add(self, cells: Cells) -> None:
        """Take in a list: ``values`` float32[n, 2] are the score of each place and 1 where it was clicked, else 0."""
        state = self.state
        if not state.complete:
            state.begun_ms = state.begun_ms or cells.time_ms
            enough = len(self._reference.rows) and self._reference.rows[:, 1].sum() >= LEAST_CLICKS
            state.complete = bool(enough) and cells.time_ms - state.begun_ms >= self._reference_ms
        if not state.complete:
            self._reference.add(cells)
            return
        state.window_ms = state.window_ms or cells.time_ms
        self._window.add(cells)

    def close(self, now_ms: int, *, whole: bool = True) -> Calibrated | None:
        """Judge the window when it is long enough (which ``whole`` asks for) and has enough places and expected clicks."""
        state, window = self.state, self._window
        if (
            not state.window_ms
            or len(window.rows) < self._least
            or (whole and now_ms < state.window_ms + self._window_ms)
        ):
            return None
        level = level_of_look(self._alpha, state.looks + 1, self._tests)
        self._rates = self._rates or rates_of(self._reference)
        found = calibrated(self._reference, self._rates, window, level)
        if found is None:
            return None
        state.looks += 1
        state.latest, state.window_ms, self._window = found, 0, Reservoir(2)
        return found

    def saved(self) -> CalibrationState:
        """The state as of now."""
        self.state.reference, self.state.window = self._reference.saved(), self._window.saved()
        return self.state


class Rates(NamedTuple):
    """Bins of the score, and the click rate of each; ``inflation``: how many times the variance of a number of clicks is that of independent ones, for they come from people:
    between groups of users, at least 1; ``hourly``: by how much observed over expected was off in that hour of the reference where it was most off, less
    what clicks differ by chance (99%, with that variance).
    """

    bins: Bins
    rate: Float64
    inflation: float
    hourly: float


def calibrated(reference: Reservoir, rates: Rates, window: Reservoir, level: float) -> Calibrated | None:
    """Hold the clicks of a window against those that its scores lead one to expect; None when too few are expected."""
    expected_of, observed_of = _by_group(window, rates)
    places, observed, expected = len(window.rows), float(observed_of.sum()), float(expected_of.sum())
    if expected < LEAST_CLICKS:
        return None
    # a window that was clicked little by chance also varies little: it is held against what the reference says of so many expected clicks
    variance = max(_variance(observed_of - expected_of * (observed / expected)), rates.inflation * expected)
    # what the rates themselves may be off by, for the mix of scores of this window
    bins = rates.bins.count
    mix = np.bincount(rates.bins.place(window.rows[:, 0]), minlength=bins)
    placed, clicked = rates.bins.place(reference.rows[:, 0]), reference.rows[:, 1]
    there = np.bincount(placed, minlength=bins)
    weight = np.divide(mix, there, out=np.zeros(bins), where=there > 0)
    residual = weight[placed] * (clicked - rates.rate[placed])
    variance += _variance(_sums(reference.groups, residual))
    parts = min(len(np.unique(reference.groups)), len(np.unique(window.groups)))
    chance = t_quantile(level, max(parts - 1, 1)) * math.sqrt(variance) / expected + 2.0 * rates.hourly
    ratio = observed / expected
    off = 2.0 * abs(math.sqrt(ratio) - 1.0) > chance and not 1.0 / FACTOR < ratio < FACTOR
    return Calibrated(places=places, observed=observed / places, expected=expected / places, chance=chance, off=off)


def rates_of(reference: Reservoir) -> Rates:
    """What scores led to in the whole ``reference``, each bin with ``PRIOR`` places at the mean."""
    bins = Bins.of("score", None, np.ascontiguousarray(reference.rows[:, 0]))
    placed, clicked = bins.place(reference.rows[:, 0]), reference.rows[:, 1]
    mean = float(clicked.mean())
    places = np.bincount(placed, minlength=bins.count)
    clicks = np.bincount(placed, clicked, minlength=bins.count)
    rates = (clicks + PRIOR * mean) / (places + PRIOR)
    rate = rates[placed]
    inflation = max(_variance(_sums(reference.groups, clicked - rate)) / float(rate.sum()), 1.0)
    return Rates(bins, rates, inflation, _hourly(reference, rate, inflation))


def _by_group(places: Reservoir, rates: Rates) -> tuple[Float64, Float64]:
    """Clicks expected and observed, by group."""
    rate = rates.rate[rates.bins.place(places.rows[:, 0])]
    return _sums(places.groups, rate), _sums(places.groups, places.rows[:, 1])


def _sums(groups: Int64, values: npt.NDArray[np.floating]) -> Float64:
    """The sum of ``values`` in each group."""
    return np.bincount(groups, values, minlength=GROUPS).astype(np.float64)


def _variance(residual: Float64) -> float:
    """The variance of a sum that should be 0, from its parts."""
    parts = int((residual != 0.0).sum())
    return float((residual**2).sum() * (parts / (parts - 1.0))) if parts > 1 else 0.0


def _hourly(reference: Reservoir, rate: Float64, inflation: float) -> float:
    """See :class:`Rates`; ``rate`` is what is expected of each place of the reference."""
    _, hour = np.unique(reference.hours, return_inverse=True)
    expected, observed = np.bincount(hour, rate), np.bincount(hour, reference.rows[:, 1])
    fair = expected >= _LEAST_HOUR_CLICKS
    if fair.sum() < 2:
        return 0.0
    off = np.abs(observed[fair] / expected[fair] - 1.0) - _CHANCE * np.sqrt(inflation / expected[fair])
    return max(float(off.max()), 0.0)


def t_quantile(level: float, degrees: int) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, level / 2.0))
