"""Calibration: from the number that a model gives to the probability that it happens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Logits = npt.NDArray[np.floating]


class Calibration(Struct, frozen=True, array_like=True):
    """A beta calibration: ``p = σ(low · log σ(z) − high · log(1 − σ(z)) + shift)``, increasing in z for ``low, high ≥ 0``.

    With 1, 1, 0 it is ``σ(z)``; with equal slopes it is Platt's. (M. Kull, T. Silva Filho, P. Flach, "Beta calibration",
    AISTATS 2017.)
    """

    low: float = 1.0
    high: float = 1.0
    shift: float = 0.0

    def apply(self, logits: Logits) -> npt.NDArray[np.float32]:
        """Probabilities of ``logits`` (any shape), float32, strictly between 0 and 1 unless they round to it."""
        z = np.asarray(logits, np.float64)
        calibrated = -self.low * np.logaddexp(0.0, -z) + self.high * np.logaddexp(0.0, z) + self.shift
        return sigmoid(calibrated).astype(np.float32)


def sigmoid(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``1 / (1 + e^−z)`` without overflow."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0.0, 1.0 / (1.0 + small), small / (1.0 + small)), np.float64)
