"""Items that are new, and what may be known of them: impressions, what came of these, and what is usual in the catalogue.

The rate of an item is positive events an impression; ``liked`` of them among ``shown`` are Poisson with mean ``rate · shown``. Over the
catalogue rates are Gamma distributed, fitted to the items that were shown (empirical Bayes), so that of an item
of which little is known we know what most items are like: its rate is ``Gamma(shape + liked, strength + shown)`` a posteriori.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.outcomes import OutcomeCells
from headwater.jit import kernel
from headwater.retrieval.index import ItemIndex, showable

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
Float64 = npt.NDArray[np.float64]

USUAL_RATE = 0.05  # what is expected of a catalogue of which nothing is known
LEAST_SHAPE, MOST_SHAPE = 0.5, 10.0
"""The prior is no sharper at 0 than Jeffreys' is, and no surer than ten positive events would make it: one item may be unlike all others."""
SECOND_MS = 1_000

_MOST_WEIGHT = 100.0  # an item that is shown to everybody does not stand for all others


class Prior(NamedTuple):
    """Rates of the catalogue: Gamma with ``shape``, and ``strength`` in impressions."""

    shape: float
    strength: float

    @property
    def mean(self) -> float:
        """The rate of an item of which nothing else is known."""
        return self.shape / self.strength


class Young(NamedTuple):
    """The items that are new, in order of their numbers: ``items`` and ``born_ms`` int64[n], ``shown`` and ``liked`` float64[n]."""

    items: Int64
    born_ms: Int64
    shown: Float64
    liked: Float64
    prior: Prior

    def draw(self, seed: int) -> Float64:
        """A rate of each item, drawn from what is known of it (Thompson sampling): float64[n], the same for the same seed."""
        drawn = np.random.default_rng(seed).standard_gamma(self.prior.shape + self.liked)
        return np.asarray(drawn / (self.prior.strength + self.shown))


class YoungItems:
    """The items of an index that are younger than ``max_age_ms``. Not thread-safe: it keeps what it found last.

    What is found is a function of the item rows at ``item_offset`` and of the second of ``now_ms``, so that a replay finds the same.
    """

    def __init__(self, cells: OutcomeCells, max_age_ms: int, usual_strength: float) -> None:
        self._cells, self._max_age_ms, self._usual_strength = cells, max_age_ms, usual_strength
        self._found: Int64 = np.zeros(1024, np.int64)
        self._sums = np.zeros(_SUMS, np.float64)
        self._index: ItemIndex | None = None
        self._when = (-1, -1)
        self._kept: Young | None = None

    def at(self, index: ItemIndex, item_offset: int, now_ms: int) -> Young:
        """The young items of ``index``, which stands at ``item_offset``."""
        when = (item_offset, now_ms // SECOND_MS)
        if self._kept is not None and self._index is index and self._when == when:
            return self._kept
        table, columns = index.table, index.columns
        if len(self._found) < table.count:
            self._found = np.zeros(2 * table.count, np.int64)
        until_ms = (when[1] + 1) * SECOND_MS - 1  # whoever shows an item asks whether it is published by now
        shown, liked = (columns.counts(table.rows, cell) for cell in (self._cells.shown, self._cells.liked))
        self._sums[:] = 0.0
        known = min(table.count, len(columns.born))
        count = _scan(
            shown, liked, columns.flags, columns.published, columns.expires, columns.born, known, self._max_age_ms, until_ms,
            self._found, self._sums,
        )  # fmt: skip
        items = self._found[:count].copy()
        prior = fitted_prior(self._sums, self._usual_strength)
        self._kept = Young(
            items, columns.born[items], shown[items].astype(np.float64), liked[items].astype(np.float64), prior
        )
        self._index, self._when = index, when
        return self._kept


_SUMS = 8
_ITEMS, _W, _WP, _WPP, _W_N, _WW_N, _WW = range(7)


@kernel
def add_rate(shown: float, liked: float, sums: Float64) -> None:
    """Add the rate of an item that was shown to ``sums`` float64[8], for :func:`fitted_prior`."""
    w, p = min(shown, _MOST_WEIGHT), liked / shown
    sums[_ITEMS] += 1.0
    sums[_W] += w
    sums[_WP] += w * p
    sums[_WPP] += w * p * p
    sums[_W_N] += w / shown
    sums[_WW_N] += w * w / shown
    sums[_WW] += w * w


def fitted_prior(sums: Float64, usual_strength: float) -> Prior:
    """The Gamma distribution whose mean and variance are those of the rates in ``sums``, less what chance alone adds.

    With weights ``w = min(shown, 100)``: of ``S = Σ w (p - m)²`` the Poisson counts alone are expected to make
    ``m Σ (w / shown) (1 - w / Σ w)``; the rest, over ``Σ w (1 - w / Σ w)``, is the variance of rates (the method of moments, Kleinman 1973).
    The mean is drawn a little towards 0.05, by ``usual_strength`` impressions; that is also the strength where there is nothing to tell it by.
    """
    w = float(sums[_W])
    mean = (float(sums[_WP]) + USUAL_RATE * usual_strength) / (w + usual_strength)
    strength = usual_strength
    freedom = w - float(sums[_WW]) / w if w > 0.0 else 0.0
    if sums[_ITEMS] > 1.0 and freedom > 0.0:
        raw = float(sums[_WP]) / w
        spread = float(sums[_WPP]) - w * raw * raw
        by_chance = raw * (float(sums[_W_N]) - float(sums[_WW_N]) / w)
        variance = max(spread - by_chance, 0.0) / freedom
        strength = mean / max(variance, mean * mean / MOST_SHAPE)
    shape = min(max(mean * strength, LEAST_SHAPE), MOST_SHAPE)
    return Prior(shape, shape / mean)


@kernel
def _scan(
    shown: UInt32, liked: UInt32, flags: UInt32, published: Int64, expires: Int64, born: Int64, count: int, max_age_ms: int,
    now_ms: int, found: Int64, sums: Float64,
) -> int:  # fmt: skip
    young = 0
    for i in range(1, count):
        if 0 < born[i] <= now_ms and now_ms - born[i] < max_age_ms and showable(flags, published, expires, i, now_ms):
            found[young] = i
            young += 1
        if shown[i] > 0:
            add_rate(float(shown[i]), float(liked[i]), sums)
    return young
