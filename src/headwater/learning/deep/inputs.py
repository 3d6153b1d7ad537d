"""Columns of any scale as numbers around 0, fitted on the training rows.

A column gives one channel that is bent at the ends, ``KNOTS`` channels that say how far it has come between two quantiles (so that
a linear layer draws any curve over it), one that says that it is missing where it was in training, and, when it
has few different values, one for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

KNOTS = 2
FEW = 16  # values of a column that has few
MOST_SINGLE = 128  # channels for single values in all
MIN_ROWS = 20  # a value that fewer rows have gets no channel
NEVER = 1e30  # a value that no column reaches
_LEAST = 1e-30  # between two knots: what decayed for years differs by less, and its slope would be no float32

_SAMPLE = 200_000
# The bent channel sees the middle best; who is far out at the top tells most of rare labels.
_QUANTILES = (0.02, 0.7, 0.995)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the first layer of a ranker does to ``d`` columns.

    ``unit``, ``mean``, ``scale`` float32[d] of the bent channel ``(x unit / (1 + |x unit|) − mean) / scale``; ``low``, ``slope`` float32[KNOTS, d] of the pieces; ``fill`` float32[d] stands for NaN; ``missing`` int64[m] columns with a channel for NaN; ``single`` int64[s] columns
    and ``values`` float32[s] of the channels for single values.
    """

    fill: Float32
    unit: Float32
    mean: Float32
    scale: Float32
    low: Float32
    slope: Float32
    missing: npt.NDArray[np.int64]
    single: npt.NDArray[np.int64]
    values: Float32

    @property
    def size(self) -> int:
        """Channels in all."""
        return len(self.mean) * (1 + KNOTS) + len(self.missing) + len(self.single)


def fit_inputs(features: Float32) -> Inputs:
    """Fit on ``features`` float32[n, d]; at most 200,000 rows, evenly spread, are looked at."""
    rows = features[:: max(1, len(features) // _SAMPLE)]
    d = rows.shape[1]
    fill = np.zeros(d, np.float32)
    unit, mean, scale = np.ones(d, np.float32), np.zeros(d, np.float32), np.ones(d, np.float32)
    low, slope = np.full((KNOTS, d), NEVER, np.float32), np.ones((KNOTS, d), np.float32)
    missing: list[int] = []
    single: list[int] = []
    values: list[float] = []
    for c in range(d):
        column = rows[:, c]
        there = column[~np.isnan(column)]
        if len(there) < len(column):
            missing.append(c)
        if len(there):
            fill[c] = np.median(there)
        found, counts = np.unique(there, return_counts=True)
        if len(found) < 2:  # a constant says nothing
            continue
        sizes = np.abs(there[there != 0.0].astype(np.float64))
        unit[c] = 1.0 / max(float(np.median(sizes)), 1e-30)
        bent = there * float(unit[c]) / (1.0 + np.abs(there) * float(unit[c]))
        mean[c], scale[c] = bent.mean(), max(float(bent.std()), 1e-2)
        knots = np.quantile(there.astype(np.float64), _QUANTILES).astype(np.float32).astype(np.float64)
        knots = knots[np.diff(knots, prepend=-np.inf) > _LEAST]
        pieces = len(knots) - 1
        low[:pieces, c] = knots[:-1]
        slope[:pieces, c] = 1.0 / np.diff(knots)
        if len(found) <= FEW:
            kept = found[counts >= MIN_ROWS]
            if len(single) + len(kept) <= MOST_SINGLE:
                single += [c] * len(kept)
                values += kept.tolist()
    return Inputs(
        fill, unit, mean, scale, low, slope, np.array(missing, np.int64), np.array(single, np.int64),
        np.array(values, np.float32),
    )  # fmt: skip
