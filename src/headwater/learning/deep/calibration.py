"""Fitting of the map from logits to probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.ranking.calibration import Calibration, sigmoid

_RIDGE = 2.0  # pulls towards the identity: matters with few positives only
_STEPS = 50


def fit_calibration(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.floating], weights: npt.NDArray[np.floating] | None = None
) -> Calibration:
    """Beta calibration by penalised maximum likelihood, on rows that training has not seen.

    Rows whose label is NaN are left out. With fewer than two classes it is the identity.

    Args:
        logits: ``float[n]``.
        labels: ``float[n]`` from 0 to 1.
        weights: ``float[n]``, or None for 1.
    """
    known = ~np.isnan(labels)
    z, y = logits[known].astype(np.float64), labels[known].astype(np.float64)
    w = np.ones(len(z)) if weights is None else weights[known].astype(np.float64)
    total = float((w * y).sum())
    if not len(z) or total <= 0.0 or total >= w.sum():
        return Calibration()
    up, down = -np.logaddexp(0.0, -z), np.logaddexp(0.0, z)  # log σ(z) and −log(1 − σ(z))
    basis = np.stack([up, down, np.ones(len(z))], 1)
    beta = _newton(basis, y, w)
    if min(beta[0], beta[1]) < 0.0:  # it would not increase: one slope for both sides
        beta = _newton(np.stack([z, np.ones(len(z))], 1), y, w)
        beta = np.array([max(beta[0], 0.0), max(beta[0], 0.0), beta[1]])
    return Calibration(float(beta[0]), float(beta[1]), float(beta[2]))


def _newton(
    basis: npt.NDArray[np.float64], y: npt.NDArray[np.float64], w: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Minimise the weighted log loss plus a ridge towards slopes of 1 (the shift is free)."""
    start = np.ones(basis.shape[1])
    start[-1] = 0.0
    ridge = np.full(len(start), _RIDGE)
    ridge[-1] = 1e-6
    beta = start.copy()
    for _ in range(_STEPS):
        p = sigmoid(basis @ beta)
        gradient = basis.T @ (w * (p - y)) + ridge * (beta - start)
        curvature = (basis * (w * np.maximum(p * (1.0 - p), 1e-9))[:, None]).T @ basis + np.diag(ridge)
        move = np.linalg.solve(curvature, gradient)
        move *= min(1.0, 2.0 / max(float(np.abs(move).max()), 1e-12))  # no step across the valley
        beta -= move
        if float(np.abs(move).max()) < 1e-9:
            break
    return beta
