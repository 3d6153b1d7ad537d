"""How tastes move: a slow random walk, and now and then a jump to something else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.simulator.catalogue import TOPICS
from headwater.simulator.words import CATEGORIES, TOPICS_PER_CATEGORY

Floats = npt.NDArray[np.float64]

_WALK = 0.25  # standard deviation of the logarithm of a taste, after a day
_JUMPS = 0.04  # a day and person
_JUMP = 0.5  # of the taste goes to the new category
_FLOOR = 0.02 / TOPICS  # so that no taste is gone for good


def drifted(rng: np.random.Generator, tastes: Floats, days: float) -> Floats:
    """Each taste (n, TOPICS) times a log-normal number, then scaled to sum to 1 again."""
    moved = tastes * np.exp(rng.normal(0.0, _WALK * np.sqrt(days), tastes.shape)) + _FLOOR * days
    return np.asarray(moved / moved.sum(axis=1, keepdims=True))


def jumped(rng: np.random.Generator, tastes: Floats, days: float) -> Floats:
    """Some people give half of their taste to another category."""
    jumps = rng.random(len(tastes)) < -np.expm1(-_JUMPS * days)
    to = rng.integers(0, len(CATEGORIES), len(tastes))
    return turned_to(rng, tastes, np.flatnonzero(jumps), to[jumps], _JUMP)


def turned_to(
    rng: np.random.Generator, tastes: Floats, users: npt.NDArray[np.int64], category: npt.NDArray[np.int64], strength: float
) -> Floats:  # fmt: skip
    """``users`` int64[n] give the part ``strength`` of their taste to topics of ``category`` int64[n]."""
    out = tastes.copy()
    out[users] *= 1.0 - strength
    inside = rng.dirichlet([0.7] * TOPICS_PER_CATEGORY, len(users))
    for place in range(TOPICS_PER_CATEGORY):
        out[users, category * TOPICS_PER_CATEGORY + place] += strength * inside[:, place]
    return out
