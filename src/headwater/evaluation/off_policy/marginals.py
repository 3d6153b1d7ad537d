"""How likely an item stands at a place of a list that is drawn by Plackett–Luce, whatever stands above it.

Draws with weights w are a race: item j arrives at a time with the exponential distribution of rate w_j, and the order of arrival is the list. So

    P(i at place l) = ∫₀^∞ w_i e^{−w_i t} · P(exactly l − 1 of the others arrive before t) dt

and how many of the others have arrived by t is a sum of independent coins with ``1 − e^{−w_j t}``. With nodes in ``log t`` the integral is a plain sum that is
exact to 1e-9 for weights that differ by any factor; the sum of coins is built up coin by coin. Nothing is drawn. Caps, pins and quotas are not known here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_STEP = 0.2  # of log t: the integrand is smooth there, so the sum is exact long before this
_BEFORE, _BEHIND = 1e-12, 60.0  # what can happen outside of these times, in units of the rates, is nothing


def place_probabilities(weights: Float64, items: Int64) -> Float64:
    """The probability of item ``items[l]`` at place l + 1, float64[k], for k places and ``weights`` float64[m] > 0 of all that are drawn from.

    ``items`` int64[k] are positions in ``weights``; -1 (not among them) has probability 0.
    """
    k, found = len(items), np.zeros(len(items))
    scaled = weights / weights.max()
    log_t = np.arange(np.log(_BEFORE), np.log(_BEHIND / scaled.min()), _STEP)
    t = np.exp(log_t)
    late = np.exp(-np.outer(scaled, t))  # (m, nodes): still on its way
    places = np.flatnonzero(items >= 0)
    if not len(places):
        return found
    # before[p, n, c]: c of the others have arrived at node n, for the item of places[p]; more than k - 1 are not asked about
    before = np.zeros((len(places), len(t), k))
    before[:, :, 0] = 1.0
    own = items[places]
    for j in range(len(weights)):
        itself = np.flatnonzero(own == j)
        kept = before[itself]
        arrives = (1.0 - late[j])[None, :, None]
        before[:, :, 1:] += (before[:, :, :-1] - before[:, :, 1:]) * arrives
        before[:, :, :1] *= 1.0 - arrives
        before[itself] = kept
    at_place = before[np.arange(len(places)), :, places]  # (p, nodes)
    density = scaled[own][:, None] * t * late[own]
    found[places] = _STEP * np.sum(density * at_place, axis=1)
    return np.minimum(found, 1.0)
