"""The reward model of the direct method: linear, cross-fitted by user, and honest about its own uncertainty.

For features φ(x, a) it holds ``q̂(x, a) = φ(x, a)ᵀβ`` with β from ridge regression. The rows of a user are predicted with a β that never saw
that user. Being linear, it says exactly how the estimate of β moves an estimator that weighs residuals with ``u``:

    mean(v̂ + u · (r − q̂))  moves like  mean(h · (r − q̂)),  h(x, a) = (mean(φ_e) − mean(u φ))ᵀ (ΦᵀΦ/n)⁻¹ φ(x, a)

with ``φ_e(x) = Σ_a π_e(a|x) φ(x, a)``. With u = 0 that is the direct method, whose implied weights h are (Chattopadhyay and Zubizarreta, Biometrika
110, 2023); with u = w it vanishes, which is what makes DR robust.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headwater.evaluation.off_policy.intervals import Clusters
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]


class RewardModel(Protocol):
    """Predictions for n logged rows: ``logged`` q̂(x, a) of the logged action, ``expected`` v̂(x) = Σ_a π_e(a|x) q̂(x, a), float64[n] each."""

    @property
    def logged(self) -> Float64: ...

    @property
    def expected(self) -> Float64: ...

    def implied(self, weights: Float64) -> Float64:
        """h above, float64[n], for residual weights float64[n]."""
        ...


@dataclass(frozen=True, slots=True)
class GivenModel:
    """Predictions of a model that was trained on other data: that they are estimates is not seen in this log."""

    logged: Float64
    expected: Float64

    def implied(self, weights: Float64) -> Float64:
        return np.zeros(len(weights))


@dataclass(frozen=True, slots=True)
class CrossFitted:
    """A linear model that was fitted to these rows (:func:`cross_fit`)."""

    logged: Float64
    expected: Float64
    features: Float64
    expected_features: Float64
    inverse: Float64

    def implied(self, weights: Float64) -> Float64:
        gap = self.expected_features.mean(axis=0) - weights @ self.features / len(weights)
        return np.asarray(self.features @ (self.inverse @ gap))


def cross_fit(
    features: Float64, expected_features: Float64, rewards: Float64, clusters: Clusters, *, folds: int = 5, ridge: float = 0.001,
    seed: int = 0,
) -> CrossFitted:  # fmt: skip
    """Fit the model of ``rewards`` float64[n] with ``features`` float64[n, d] of the logged action, and ``expected_features`` float64[n, d] under the evaluated policy.

    ``ridge`` is added to the diagonal of ΦᵀΦ, so that it weighs like that many rows; users are dealt into ``folds`` by ``seed``.

    Raises:
        HeadwaterError: fewer users than folds.
    """
    if clusters.count < folds:
        raise HeadwaterError(
            f"{clusters.count} users cannot be dealt into {folds} folds: log more of them, or judge without a reward model"
        )
    n, size = features.shape
    fold = np.random.default_rng(seed).permutation(clusters.count)[clusters.of] % folds
    gram, moment, little = features.T @ features, features.T @ rewards, ridge * np.eye(size)
    logged, expected = np.empty(n), np.empty(n)
    for k in range(folds):
        held = fold == k
        own = features[held]
        beta = np.linalg.solve(gram - own.T @ own + little, moment - own.T @ rewards[held])
        logged[held], expected[held] = own @ beta, expected_features[held] @ beta
    return CrossFitted(logged, expected, features, expected_features, np.linalg.inv((gram + little) / n))
