"""Confidence sequences: intervals that hold at all looks together, so that anyone may look at any time and stop.

Normal mixture: Robbins, "Statistical methods related to the law of the iterated logarithm" (1970); Johari, Koomen, Pekelis & Walsh,
"Peeking at A/B tests" (KDD 2017). That estimated variances and non-normal outcomes will do for large n: Waudby-Smith, Arbour, Sinha,
Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences" (Annals of Statistics, 2024), Theorem 2.2.
They are asymptotic: no statement is made below :data:`FIRST_LOOK` users a variant.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

FIRST_LOOK = 100  # users a variant before the first look


def mixture(alpha: float, best_at: float) -> float:
    """ρ² of the mixture that makes the interval tightest at ``best_at`` users: ``(−2 ln α + ln(−2 ln α + 1)) / best_at``.

    It must be chosen before the data are seen: take the planned number of users.
    """
    if not 0.0 < alpha < 1.0 or best_at <= 0.0:
        raise ValueError(f"Expected a level in (0, 1) and a positive number of users, got {alpha} and {best_at}")
    odds = -2.0 * math.log(alpha)
    return (odds + math.log(odds + 1.0)) / best_at


def width_in_errors(users: npt.ArrayLike, rho2: float, alpha: npt.ArrayLike) -> Float64:
    """Half the width of the interval over the standard error: with u = nρ², ``sqrt(2 (u + 1)/u · ln(sqrt(u + 1)/α))``."""
    known = np.asarray(users, np.float64) * rho2
    with np.errstate(divide="ignore"):
        width: Float64 = np.sqrt(2.0 * (known + 1.0) / known * (0.5 * np.log1p(known) - np.log(alpha)))
    return width


def log_evidence(statistic: Float64, users: npt.ArrayLike, rho2: float) -> Float64:
    """Logarithm of the mixture's likelihood ratio against "no effect": ``u z² / (2 (u + 1)) − ln(u + 1) / 2``, u = nρ².

    ``statistic`` z = difference / standard error; NaN (nothing to say yet) counts as 0 evidence for or against.
    """
    known = np.asarray(users, np.float64) * rho2
    evidence: Float64 = 0.5 * known / (known + 1.0) * statistic**2 - 0.5 * np.log1p(known)
    return np.where(np.isnan(evidence), 0.0, evidence)


def always_valid_p(statistic: Float64, users: npt.ArrayLike, rho2: float) -> Float64:
    """p-values along the last axis (looks): ``min(1, min over looks so far of exp(−evidence))``.

    P(ever ≤ a) ≤ a when there is no effect, whatever the number of looks.
    """
    evidence = np.maximum.accumulate(log_evidence(statistic, users, rho2), axis=-1)
    return np.exp(-np.maximum(evidence, 0.0))


def sequence(
    estimate: Float64, error: Float64, users: npt.ArrayLike, rho2: float, alpha: float
) -> tuple[Float64, Float64]:  # fmt: skip
    """The running intersection of the intervals over looks (last axis): (low, high), each ``float64[..., looks]``.

    Looks without an estimate (NaN, or an error of 0: nobody differs yet) leave it as it was; before the first it is (−∞, ∞).
    """
    known = np.isfinite(estimate) & (error > 0.0)
    half = np.where(known, width_in_errors(users, rho2, alpha) * np.where(known, error, 1.0), np.inf)
    middle = np.where(known, estimate, 0.0)
    low: Float64 = np.maximum.accumulate(np.where(known, middle - half, -np.inf), axis=-1)
    high: Float64 = np.minimum.accumulate(np.where(known, middle + half, np.inf), axis=-1)
    return low, high


def look_positions(users: int, looks: int) -> npt.NDArray[np.int64]:
    """After how many users to look, when ``looks`` are spread evenly over ``users``: ``int64[at most looks]``, rising, the last is
    ``users``.
    """
    return np.unique(np.ceil(np.linspace(0.0, users, looks + 1)[1:]).astype(np.int64))
