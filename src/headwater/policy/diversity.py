"""Diversity: maximal marginal relevance (Carbonell and Goldstein 1998) over content vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

LEAST_WINDOW = 100


def window(n: int, k: int) -> int:
    """How many of the best of ``n`` ranked candidates a list of ``k`` chooses from: what ranks lower is not looked at."""
    return min(n, max(4 * k, LEAST_WINDOW))


def diversified(order: Int64, scores: Float64, vectors: Float32, k: int, weight: float) -> Int64:
    """``order`` (``int64[n]``, best first) with the first ``k`` chosen anew, one by one; the others follow as they were.

    Each is the candidate of the :func:`window` with the largest ``(1 - weight) * relevance - weight * similarity``: relevance is the
    score (``scores`` float64[n]), 1 for the best of the window and 0 for the last; similarity the cosine to the nearest item chosen
    before it, of ``vectors`` (float32[window, d], in that order, unit length, zeros: nothing known), at least 0.
    """
    size = len(vectors)
    counted = scores[order[:size]]
    span = counted[0] - counted[-1] if size else 0.0
    relevance = (counted - counted[-1]) / span if span > 0.0 else np.zeros(size)
    similarity = vectors @ vectors.T
    chosen = np.empty(size, np.int64)
    _choose(relevance, similarity, min(k, size), weight, np.zeros(size), np.zeros(size, np.uint8), chosen)
    return np.concatenate([order[:size][chosen], order[size:]])


@kernel
def _choose(
    relevance: Float64, similarity: Float32, k: int, weight: float, nearest: Float64, taken: UInt8, chosen: Int64
) -> None:  # fmt: skip
    n = len(relevance)
    for place in range(k):
        best, most = -1, -np.inf
        for r in range(n):
            value = (1.0 - weight) * relevance[r] - weight * nearest[r]
            if not taken[r] and value > most:
                best, most = r, value
        chosen[place] = best
        taken[best] = 1
        for r in range(n):
            nearest[r] = max(nearest[r], similarity[best, r])
    place = k
    for r in range(n):
        if not taken[r]:
            chosen[place] = r
            place += 1
