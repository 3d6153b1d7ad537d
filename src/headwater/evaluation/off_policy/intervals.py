"""Intervals for means and ratios of logged rows, with users as what was sampled.

Two kinds, both of the same linearised estimator ``θ = Σa / Σb``:

- asymptotic: Student's t times the cluster-robust standard error ``sqrt(G/(G−1) · Σ(a_g − θ b_g)²) / Σb`` over the sums of G users;
- bootstrap: users are drawn with replacement, and quantiles of ``(θ* − θ) / se*`` stand in the place of Student's (bootstrap-t, Hall
  1988), which follows the skewness that a few large weights make. Percentiles of ``θ*`` alone cover less often (docs/off-policy.md).

Where an estimator was chosen by the data to be a little wrong, the standard error of that wrong, ``hidden``, is added in squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Interval = tuple[float, float]

_LEVEL = 0.975  # two-sided 95%
_CELLS = 4_000_000  # counts of a bootstrap that are held at once
_LEAST_DRAWS = 0.9


class Terms(NamedTuple):
    """An estimator as ``Σ numerators / Σ denominators``, float64[n] each. ``hidden`` is a standard error that they do not show."""

    numerators: Float64
    denominators: Float64
    hidden: float = 0.0


class Interval95(NamedTuple):
    """``value`` with its ``error`` (one standard error) and two 95% intervals.

    ``bootstrap`` is None when more than a tenth of the draws had no spread at all (hardly any reward was logged).
    """

    value: float
    error: float
    asymptotic: Interval
    bootstrap: Interval | None


@dataclass(frozen=True, slots=True)
class Clusters:
    """The users of n rows: ``of`` int64[n] numbers them from 0, ``count`` is how many there are."""

    of: Int64
    count: int

    @staticmethod
    def by(users: Int64 | None, n: int) -> Clusters:
        """``users`` int64[n], any numbers that tell users apart; None: each row stands for itself."""
        if users is None:
            return Clusters(np.arange(n), n)
        _, of = np.unique(users, return_inverse=True)
        return Clusters(of.astype(np.int64), int(of.max()) + 1)

    def sums(self, values: Float64) -> Float64:
        """Σ of ``values`` float64[n] over the rows of each user, float64[G]."""
        return np.bincount(self.of, values, self.count).astype(np.float64)


def standard_error(terms: Terms, clusters: Clusters) -> float:
    """Cluster-robust, without ``hidden``; infinite for a single user, of whom nobody knows how they differ."""
    total = float(terms.denominators.sum())
    if clusters.count < 2:
        return float("inf")
    theta = float(terms.numerators.sum()) / total
    residuals = clusters.sums(terms.numerators - theta * terms.denominators)
    return float(np.sqrt(clusters.count / (clusters.count - 1) * np.sum(residuals**2))) / abs(total)


def intervals(
    estimators: Sequence[Terms], clusters: Clusters, *, draws: int = 1_000, seed: int = 0
) -> list[Interval95]:
    """Both intervals of each estimator. All are resampled together, so that they can be compared. ``draws`` 0: no bootstrap."""
    count = clusters.count
    a = np.stack([clusters.sums(terms.numerators) for terms in estimators], axis=1)  # (G, E)
    b = np.stack([clusters.sums(terms.denominators) for terms in estimators], axis=1)
    theta = a.sum(axis=0) / b.sum(axis=0)
    errors = np.array([np.hypot(standard_error(terms, clusters), terms.hidden) for terms in estimators])
    student = float(stdtrit(count - 1, _LEVEL)) if count > 1 else float("inf")
    drawn = _pivots(a, b, theta, draws, seed) if draws and count > 1 else np.zeros((0, len(estimators)))
    found = []
    for e, (value, error) in enumerate(zip(theta.tolist(), errors.tolist(), strict=True)):
        half = student * error if error > 0.0 else 0.0
        pivots = drawn[:, e]
        pivots = pivots[np.isfinite(pivots)]
        bootstrap = None
        if draws and len(pivots) >= _LEAST_DRAWS * draws:
            low, high = np.quantile(
                pivots, (1.0 - _LEVEL, _LEVEL), method="weibull"
            )  # p (draws + 1): no narrower for few draws
            bootstrap = (value - float(high) * error, value - float(low) * error)
        found.append(Interval95(value, error, (value - half, value + half), bootstrap))
    return found


def _pivots(a: Float64, b: Float64, theta: Float64, draws: int, seed: int) -> Float64:
    """``(θ* − θ) / se*`` of each draw, float64[draws, E]; not finite where a draw has no spread."""
    rng = np.random.default_rng(seed)
    count, parts = len(a), []
    step = max(_CELLS // count, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        for first in range(0, draws, step):
            size = min(step, draws - first)
            times = rng.multinomial(count, np.full(count, 1.0 / count), size=size).astype(np.float64)
            total = times @ b
            again = times @ a / total
            spread = times @ (a * a) - 2.0 * again * (times @ (a * b)) + again**2 * (times @ (b * b))
            # what is left of a difference of equal numbers is rounding
            spread[spread <= 1e-12 * (times @ (a * a))] = 0.0
            error = np.sqrt(count / (count - 1) * spread) / np.abs(total)
            parts.append(np.where(error > 0.0, (again - theta) / error, np.nan))
    return np.concatenate(parts)
