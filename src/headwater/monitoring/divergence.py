"""How far two binned samples are apart, and how far they would be by chance alone.

With shares ``p`` of the reference and ``q`` of the window over bins, PSI is ``sum((q - p) ln(q / p))`` (the symmetrised
Kullback-Leibler divergence, S. Kullback, R. Leibler 1951; "population stability index" in credit scoring) and Jensen-Shannon
``KL(p, m) / 2 + KL(q, m) / 2`` with ``m = (p + q) / 2``, in nats (J. Lin 1991). Half a cell is added to each bin.

Where nothing has changed both are sums of squares: ``PSI = sum(d^2 / p)`` and ``JS = PSI / 8`` to first order, with ``d = q - p`` normal
with mean 0 and covariance ``V``. For ``n`` and ``m`` independent rows PSI is then ``(1/n + 1/m)`` times chi-square with ``bins - 1``
degrees of freedom (B. Yurdakul, J. Naranjo, "Statistical properties of the population stability index", 2020). Rows of served lists
are not independent: one list has twenty rows of one user, who asks again. So ``V`` is estimated between random groups of users, on both
sides, and the sum of squares is a scaled F of the same mean and variance (F. Satterthwaite 1946; J. Rao, A. Scott, "On chi-squared tests
for multiway contingency tables", 1984). Where the reference spans hours, its hours say how much one hour differs from the rest for
reasons that are no drift (the time of day), and the wider of the two counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.schema.errors import HeadwaterError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

LEAST_EXPECTED = 10.0  # cells a bin on the smaller side: below that a bin is joined with its neighbour


class Divergence(NamedTuple):
    """How far a window is from its reference, and what chance allows at the level that was asked for.

    ``bins`` are those left after sparse ones were joined; ``degrees`` and ``effective_rows`` say what the null quantile rests on: as many
    independent rows in the window would spread as much.
    """

    psi: float
    js: float
    psi_null: float
    js_null: float
    bins: int
    degrees: float
    effective_rows: float

    def beyond(self, floor: float) -> bool:
        """Whether PSI is above what chance allows and above ``floor``."""
        return self.psi > max(self.psi_null, floor)


class Spread(NamedTuple):
    """A covariance of ``q - p``, and the number of independent parts that it was estimated from."""

    covariance: Float64
    parts: int


def psi(p: Float64, q: Float64) -> float:
    """``sum((q - p) ln(q / p))`` of two shares without zeros."""
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(p: Float64, q: Float64) -> float:
    """The Jensen-Shannon divergence of two shares without zeros, in nats."""
    m = (p + q) / 2.0
    return float((p * np.log(p / m)).sum() / 2.0 + (q * np.log(q / m)).sum() / 2.0)


def smoothed(counts: Float64) -> Float64:
    """Shares of ``counts`` with half a cell added to each bin."""
    return np.asarray((counts + 0.5) / (counts.sum() + 0.5 * len(counts)), np.float64)


def joined(expected: Float64, least: float = LEAST_EXPECTED) -> Int64:
    """The part to which each bin goes, int64[bins], so that each part expects ``least`` cells; neighbours are joined, in order.

    What is left at the end goes to the part before it.
    """
    part, held = np.zeros(len(expected), np.int64), 0.0
    number = 0
    for i, cells in enumerate(expected.tolist()):
        part[i] = number
        held += cells
        if held >= least:
            number, held = number + 1, 0.0
    part[part == number] = max(number - 1, 0)  # the part that was not filled
    return part


def diverged(reference: Int64, window: Int64, level: float, hours: Int64 | None = None) -> Divergence | None:
    """Compare cells by group and bin, ``int64[groups, bins]``; ``level`` is the chance that the null quantile is passed without a change.

    ``hours``, ``int64[hours, bins]``, are the cells of the reference by hour. None when a side has no cells.

    Raises:
        HeadwaterError: the bins are not the same.
    """
    if reference.shape[1] != window.shape[1]:
        raise HeadwaterError(
            f"a reference of {reference.shape[1]} bins and a window of {window.shape[1]} cannot be compared"
        )
    before, now = reference.sum(0), window.sum(0)
    n, m = int(before.sum()), int(now.sum())
    if n == 0 or m == 0:
        return None
    rows = min(independent_rows(reference), independent_rows(window))
    part = joined(rows * (before + now) / (n + m))
    bins = int(part.max()) + 1
    fold = np.zeros((len(part), bins))
    fold[np.arange(len(part)), part] = 1.0
    reference_counts, window_counts = reference @ fold, window @ fold
    p, q = smoothed(reference_counts.sum(0)), smoothed(window_counts.sum(0))
    if bins == 1:
        return Divergence(0.0, 0.0, 0.0, 0.0, 1, 0.0, float(m))
    both = smoothed(reference_counts.sum(0) + window_counts.sum(0))
    ours, theirs = between_groups(window_counts), between_groups(reference_counts)
    spread = Spread(ours.covariance + theirs.covariance, min(ours.parts, theirs.parts))
    limit, degrees = null_quantile(spread, both, level)
    if hours is not None:
        limit += 2.0 * hourly(hours @ fold)
    return Divergence(
        psi(p, q), jensen_shannon(p, q), limit, limit / 8.0, bins, degrees, independent_rows(window_counts)
    )


def independent_rows(counts: Int64 | Float64) -> float:
    """How many independent rows would spread as much as those of ``counts`` ``[groups, bins]``: ``(bins - 1) / sum(V_ii / shares)``.

    Only bins that hold something count.
    """
    counts = np.asarray(counts[:, counts.sum(0) > 0], np.float64)
    if counts.shape[1] < 2:
        return float(counts.sum())
    shares = counts.sum(0) / counts.sum()
    return float((len(shares) - 1) / (np.diag(between_groups(counts).covariance) / shares).sum())


def between_groups(counts: Float64) -> Spread:
    """The covariance of the shares of all cells, from ``counts`` ``[groups, bins]`` of random groups.

    ``g / (g - 1) * sum(r r') / n^2`` with ``r = counts of a group - shares * cells of the group`` (a ratio estimate). It is not let
    fall below that of independent rows, which few groups may suggest by chance.
    """
    counts = counts[counts.sum(1) > 0]
    n, groups = float(counts.sum()), len(counts)
    shares = counts.sum(0) / n
    multinomial = (np.diag(shares) - np.outer(shares, shares)) / n
    if groups < 2:
        return Spread(multinomial, 1)
    residual = counts - shares * counts.sum(1, keepdims=True)
    covariance = residual.T @ residual * (groups / (groups - 1.0) / n**2)
    if np.trace(covariance) < np.trace(multinomial):
        return Spread(multinomial, groups)
    return Spread(covariance, groups)


def hourly(counts: Float64) -> float:
    """How far that hour of the reference is from the whole that is furthest, as PSI, less what its cells differ by chance.

    ``counts`` is ``[hours, bins]``. Chance is the 99% quantile for independent cells, the least that it can be. Hours with less than a fifth of the
    cells of the median one are left out; 0 where there are not two.
    """
    from scipy.special import chdtri

    whole = smoothed(counts.sum(0))
    counts = counts[counts.sum(1) > 0]
    cells = counts.sum(1)
    counts = counts[cells >= 0.2 * np.median(cells)] if len(cells) else counts
    if len(counts) < 2:
        return 0.0
    chance = float(chdtri(len(whole) - 1, 0.01))
    return max(0.0, *(psi(whole, smoothed(hour)) - chance / float(hour.sum()) for hour in counts))


def null_quantile(spread: Spread, shares: Float64, level: float) -> tuple[float, float]:
    """The ``1 - level`` quantile of ``sum(d^2 / shares)`` with ``d`` normal of that covariance, and its degrees of freedom.

    A scaled F of the same mean and variance: with ``A = diag(1 / shares) V``, mean ``tr A``, variance ``2 tr A^2``.
    """
    a = spread.covariance / shares[:, None]
    mean, square = float(np.trace(a)), float((a * a.T).sum())
    if mean <= 0.0 or square <= 0.0:
        return 0.0, 0.0
    degrees = mean * mean / square
    return mean * _f_quantile(round(degrees, 2), max(spread.parts - 1, 1), level), degrees


@lru_cache(maxsize=4096)
def _f_quantile(degrees: float, parts: int, level: float) -> float:
    from scipy.special import betaincinv

    # P(F > x) is the incomplete beta function of (1 / (1 + x * degrees / below)), so tiny levels lose no digits
    below = degrees * parts
    share = float(betaincinv(below / 2.0, degrees / 2.0, level))
    return below * (1.0 - share) / (degrees * share) if share > 0.0 else math.inf


def level_of_look(alpha: float, look: int, tests: int) -> float:
    """The level of one of ``tests`` columns at the ``look``-th look (from 1): ``alpha / (look (look + 1)) / tests``.

    Over all looks and columns these sum to ``alpha``, so the chance of any false alarm in the life of a reference is at most ``alpha``
    however looks and columns depend on one another (Bonferroni).
    """
    return alpha / (look * (look + 1.0)) / max(tests, 1)


def simulated_null(
    shares: Sequence[float], n: int, m: int, level: float, draws: int, rng: np.random.Generator
) -> float:
    """The same quantile for independent rows by drawing ``draws`` pairs of samples: the slow twin of the formula."""
    before, now = rng.multinomial(n, shares, draws), rng.multinomial(m, shares, draws)
    p, q = ((c + 0.5) / (c.sum(1, keepdims=True) + 0.5 * len(shares)) for c in (before, now))
    return float(np.quantile(((q - p) * np.log(q / p)).sum(1), 1.0 - level))
