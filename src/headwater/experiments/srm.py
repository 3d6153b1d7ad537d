"""Sample-ratio mismatch: are the users split over the variants as they were meant to be?

A split that is off means that some users are lost or counted double in one variant, so no other figure of the experiment may be
believed. It is watched all the time, so the test has to be valid at every look: the Bayes factor of Lindon & Malek, "Anytime-valid
inference for multinomial count data" (NeurIPS 2022), with a Dirichlet prior around the intended shares.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.special import gammaln

Float64 = npt.NDArray[np.float64]

ALARM = 0.0005  # level of the alarm: at most so many sound experiments ever raise it, whatever the number of looks
CONCENTRATION = 100.0  # of the prior: shares off by some 5 points are what it expects; more data, smaller mismatches


class Mismatch(Struct, frozen=True, kw_only=True):
    """``counts`` and ``expected`` users by variant; ``p_value`` is valid at every look; ``alarm``: it is at most ``level``.

    ``look``: the first of the looks with an alarm, None when there was none.
    """

    counts: list[int]
    expected: list[float]
    p_value: float
    level: float
    alarm: bool
    look: int | None


def log_bayes_factor(
    counts: npt.NDArray[np.integer], shares: Float64, concentration: float = CONCENTRATION
) -> Float64:  # fmt: skip
    """Natural logarithm of how much better "another split" explains the counts than the intended one.

    With θ the intended shares, α = ``concentration`` · θ, n = Σ counts:
    ``ln BF = ln[B(α + counts) / B(α)] − Σ counts · ln θ``, B the multivariate beta function. Under θ, BF is a martingale that
    starts at 1, so P(ever BF ≥ 1/a) ≤ a (Ville).

    Args:
        counts: ``int[..., v]`` users by variant; leading axes are looks, simulations or the like.
        shares: ``float64[v]``, positive, sum 1.

    Returns:
        ``float64[...]``.
    """
    prior = concentration * shares
    total = counts.sum(axis=-1)
    mixture = (gammaln(prior + counts) - gammaln(prior)).sum(axis=-1)
    mixture += math.lgamma(concentration) - gammaln(concentration + total)
    factor: Float64 = mixture - counts @ np.log(shares)
    return factor


def always_valid_p(log_factors: Float64) -> Float64:
    """p-values over looks along the last axis: ``min(1, min over looks so far of 1/BF)``; never rises from look to look."""
    smallest: Float64 = np.exp(-np.maximum(np.maximum.accumulate(log_factors, axis=-1), 0.0))
    return smallest


def check_shares(shares: npt.ArrayLike) -> Float64:
    """The shares as ``float64[v]`` with sum 1.

    Raises:
        ValueError: fewer than two, or one that is not positive.
    """
    given = np.asarray(shares, np.float64)
    if given.ndim != 1 or len(given) < 2 or not np.all(np.isfinite(given)) or given.min() <= 0.0:
        raise ValueError(f"Expected the positive shares of at least two variants, got {given.tolist()}")
    shared: Float64 = given / given.sum()
    return shared


def mismatch(counts: npt.NDArray[np.integer], shares: npt.ArrayLike, *, level: float = ALARM) -> Mismatch:
    """Test the split over looks.

    Args:
        counts: ``int[looks, v]``, users by variant at each look, never falling.
        shares: ``float[v]``, the intended weights, in any unit.
        level: of the alarm.

    Raises:
        ValueError: wrong shares, or counts of another number of variants.
    """
    intended = check_shares(shares)
    if counts.ndim != 2 or counts.shape[1] != len(intended) or len(counts) == 0:
        raise ValueError(f"Expected counts of {len(intended)} variants by look, got shape {counts.shape}")
    p_values = always_valid_p(log_bayes_factor(counts, intended))
    alarms = np.flatnonzero(p_values <= level)
    last = counts[-1]
    return Mismatch(
        counts=last.tolist(), expected=(intended * last.sum()).tolist(), p_value=float(p_values[-1]), level=level,
        alarm=len(alarms) > 0, look=int(alarms[0]) if len(alarms) else None,
    )  # fmt: skip
