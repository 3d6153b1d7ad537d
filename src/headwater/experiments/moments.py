"""Moments of users' outcomes by look and variant: all that means, ratios, CUPED and confidence sequences need.

An outcome has four columns: numerator and denominator of the metric within the window, and the same two before exposure (the
covariate of CUPED). A mean over users is a ratio whose denominator is 1 for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
COLUMNS = 4  # numerator, denominator, numerator before, denominator before


@dataclass(frozen=True, slots=True)
class Moments:
    """``users`` float64[...], ``mean`` float64[..., 4], ``cov`` float64[..., 4, 4] (divisor n − 1; 0 below two users)."""

    users: Float64
    mean: Float64
    cov: Float64

    def __getitem__(self, key: Any) -> Moments:
        """Moments at some of the leading positions."""
        return Moments(self.users[key], self.mean[key], self.cov[key])


def moments_by_look(
    outcomes: Float64, variant: npt.NDArray[np.integer], look: npt.NDArray[np.integer], variants: int, looks: int
) -> Moments:
    """Moments of all users up to and with each look, one pass: leading axes (looks, variants).

    Args:
        outcomes: ``float64[n, 4]``.
        variant: ``int[n]`` from 0.
        look: ``int[n]`` from 0, the first look at which a user counts.

    Raises:
        ValueError: outcomes that are not finite.
    """
    if not np.isfinite(outcomes).all():
        raise ValueError("an outcome is not a finite number")
    centre = outcomes.mean(axis=0) if len(outcomes) else np.zeros(COLUMNS)  # sums of products stay exact far from 0
    values = outcomes - centre
    cell = look.astype(np.int64) * variants + variant
    size = looks * variants

    def sums(weights: Float64 | None) -> Float64:
        added = np.bincount(cell, weights, size).reshape(looks, variants)
        return np.cumsum(added, axis=0, dtype=np.float64)

    total = np.stack([sums(values[:, i]) for i in range(COLUMNS)], axis=-1)
    products = np.zeros((looks, variants, COLUMNS, COLUMNS))
    for i in range(COLUMNS):
        for j in range(i, COLUMNS):
            products[..., i, j] = products[..., j, i] = sums(values[:, i] * values[:, j])
    return from_sums(sums(None), total, products, centre)


def from_sums(users: Float64, total: Float64, products: Float64, centre: Float64) -> Moments:
    """Moments from sums ``total`` float64[..., 4] and products float64[..., 4, 4] of values less ``centre`` float64[4]."""
    safe = np.maximum(users, 1.0)
    mean = total / safe[..., None]
    spread = products - users[..., None, None] * mean[..., :, None] * mean[..., None, :]
    cov = np.where(users[..., None, None] > 1.0, spread / np.maximum(users - 1.0, 1.0)[..., None, None], 0.0)
    return Moments(users, mean + np.where(users[..., None] > 0.0, centre, 0.0), cov)


def pooled(first: Moments, second: Moments) -> Moments:
    """Moments of two groups of users taken together (Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979).
    """
    users = first.users + second.users
    safe = np.maximum(users, 1.0)
    share = (second.users / safe)[..., None]
    gap = second.mean - first.mean
    mean = first.mean + share * gap
    scatter = first.cov * np.maximum(first.users - 1.0, 0.0)[..., None, None]
    scatter = scatter + second.cov * np.maximum(second.users - 1.0, 0.0)[..., None, None]
    between = (first.users * second.users / safe)[..., None, None] * gap[..., :, None] * gap[..., None, :]
    cov = (scatter + between) / np.maximum(users - 1.0, 1.0)[..., None, None]
    return Moments(users, mean, cov)
