"""Many questions at once: p-values that account for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control

Float64 = npt.NDArray[np.float64]


def holm(p_values: npt.ArrayLike) -> Float64:
    """Adjusted p-values that bound the chance of even one false finding; holds for any dependence.

    Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics, 1979): the i-th smallest of m
    becomes ``max over j ≤ i of (m − j + 1) p₍ⱼ₎``, at most 1. Always-valid p-values stay always valid.
    """
    given = np.asarray(p_values, np.float64)
    order = np.argsort(given, kind="stable")
    steps = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def benjamini_hochberg(p_values: npt.ArrayLike) -> Float64:
    """Adjusted p-values that bound the expected share of false findings among the findings.

    Benjamini & Hochberg, "Controlling the false discovery rate" (Journal of the Royal Statistical Society B, 1995); by SciPy.
    """
    given = np.asarray(p_values, np.float64)
    adjusted: Float64 = false_discovery_control(given) if len(given) else given
    return adjusted
