"""Diversity over content vectors: maximal marginal relevance, or a determinantal point process."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

Method = Literal["mmr", "dpp"]

LEAST_WINDOW = 100
OWN = 0.01  # the part of every item that is like no other, so that a second one of the same content is not impossible


def window(n: int, k: int) -> int:
    """How many of the best of ``n`` ranked candidates a list of ``k`` chooses from: what ranks lower is not looked at."""
    return min(n, max(4 * k, LEAST_WINDOW))


def relevance(ranked: Float64) -> Float64:
    """Scores (``float64[n]``, best first) from 1 for the best to 0 for the last; all 0 where they are equal."""
    span = ranked[0] - ranked[-1] if len(ranked) else 0.0
    return (ranked - ranked[-1]) / span if span > 0.0 else np.zeros(len(ranked))


def diversified(order: Int64, scores: Float64, vectors: Float32, k: int, weight: float, method: Method) -> Int64:
    """``order`` (``int64[n]``, best first) with the first ``k`` chosen anew, one by one; the others follow as they were.

    Each is the candidate of the :func:`window` with the most of

    - "mmr": ``(1 - weight) * relevance - weight * similarity``, similarity the cosine to the nearest item chosen before it, at
      least 0 (Carbonell and Goldstein 1998);
    - "dpp": ``(1 - weight) * relevance + weight * log d²``, d² the part of the item that those chosen before it do not span: the
      greedy maximum of ``(1 - weight) * Σ relevance + weight * log det S`` (Chen, Zhang and Zhou 2018), where ``S`` is
      ``(1 - OWN) * cosine``, and 1 on the diagonal. ``O(k² n)``.

    Relevance is that of ``scores`` (float64[n]) in the window; cosines are of ``vectors`` (float32[window, d], in that order, unit
    length, zeros: nothing known).
    """
    size = len(vectors)
    counted = relevance(scores[order[:size]])
    most, taken, chosen = min(k, size), np.zeros(size, np.uint8), np.empty(size, np.int64)
    if method == "dpp":
        _choose_apart(counted, vectors, most, weight, np.ones(size), np.empty((most, size)), taken, chosen)
    else:
        _choose(counted, vectors @ vectors.T, most, weight, np.zeros(size), taken, chosen)
    return np.concatenate([order[:size][chosen], order[size:]])


@kernel
def _choose(
    relevant: Float64, similarity: Float32, k: int, weight: float, nearest: Float64, taken: UInt8, chosen: Int64
) -> None:  # fmt: skip
    n = len(relevant)
    for place in range(k):
        best, most = -1, -np.inf
        for r in range(n):
            value = (1.0 - weight) * relevant[r] - weight * nearest[r]
            if not taken[r] and value > most:
                best, most = r, value
        chosen[place] = best
        taken[best] = 1
        for r in range(n):
            nearest[r] = max(nearest[r], similarity[best, r])
    _rest_follows(k, taken, chosen)


@kernel
def _choose_apart(
    relevant: Float64, vectors: Float32, k: int, weight: float, apart: Float64, factor: Float64, taken: UInt8, chosen: Int64
) -> None:  # fmt: skip
    """``apart`` is d² of each, at first 1; ``factor`` float64[k, n] the rows of the Cholesky factor of those chosen."""
    n, size = vectors.shape
    for place in range(k):
        best, most = -1, -np.inf
        for r in range(n):
            if not taken[r]:
                value = (1.0 - weight) * relevant[r] + weight * np.log(apart[r])
                if value > most:
                    best, most = r, value
        chosen[place] = best
        taken[best] = 1
        if place == k - 1:
            break
        length = np.sqrt(apart[best])
        for r in range(n):
            if not taken[r]:
                cosine = 0.0
                for d in range(size):
                    cosine += np.float64(vectors[best, d]) * np.float64(vectors[r, d])
                shared = (1.0 - OWN) * cosine
                for before in range(place):
                    shared -= factor[before, best] * factor[before, r]
                factor[place, r] = shared / length
                # OWN is its own: only rounding could take more
                apart[r] = max(apart[r] - factor[place, r] ** 2, OWN / 2.0)
    _rest_follows(k, taken, chosen)


@kernel
def _rest_follows(place: int, taken: UInt8, chosen: Int64) -> None:
    """Behind the ``place`` chosen ones stand the others, in their order."""
    for r in range(len(taken)):
        if not taken[r]:
            chosen[place] = r
            place += 1
