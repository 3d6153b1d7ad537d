"""The reward model of the direct method: linear, cross-fitted by user, and honest about its own uncertainty.

For features φ(x, a) it holds ``q̂(x, a) = φ(x, a)ᵀβ`` with β from ridge regression. The rows of a user are predicted with a β that never saw
that user. Being linear, it says exactly how the estimate of β moves an estimator that weighs residuals with ``u``:

    mean(v̂ + u · (r − q̂))  moves like  mean(h · (r − q̂)),  h(x, a) = (mean(φ_e) − mean(u φ))ᵀ (ΦᵀΦ/n)⁻¹ φ(x, a)

with ``φ_e(x) = Σ_a π_e(a|x) φ(x, a)``. With u = 0 that is the direct method, whose implied weights h are (Chattopadhyay and Zubizarreta, Biometrika
110, 2023); with u = w it vanishes, which is what makes DR robust.

What somebody likes is a matter of context and action together, so φ holds the product of each column of the one with each of the other, where there are rows
enough for so many columns (:func:`reward_columns`). A ridge that is chosen to predict well does not do in their place: what it shrinks is bias of the direct method
(docs/off-policy.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from headwater.evaluation.off_policy.intervals import Clusters
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ROWS_A_COLUMN = 5
"""With fewer rows for each column, products of context and action are left out: what they vary is more than what they know."""


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


class RewardColumns(NamedTuple):
    """``logged`` float64[n, d] are the columns of the logged action, ``expected`` float64[n, d] what is expected of them under the evaluated policy."""

    logged: Float64
    expected: Float64


def reward_columns(contexts: Float64, actions: Float64, taken: Int64, evaluated: Float64) -> RewardColumns:
    """What the reward model is linear in: the columns of the context, those of the action, and the product of each with each where there are
    :data:`ROWS_A_COLUMN` rows for every column.

    ``contexts`` float64[n, p] of each row, ``actions`` float64[A, q] of each action (one column for each, if there are few), ``taken`` int64[n] the logged one,
    ``evaluated`` float64[n, A] the evaluated policy. d = p + q, or p + q + p q.
    """
    n, p = contexts.shape
    crossed = n >= ROWS_A_COLUMN * (p + actions.shape[1] + p * actions.shape[1])

    def joined(action: Float64) -> Float64:
        parts = [contexts, action]
        if crossed:
            parts.append((contexts[:, :, None] * action[:, None, :]).reshape(n, -1))
        return np.concatenate(parts, axis=1)

    # a product is linear in the columns of the action, so its expectation is that of theirs
    return RewardColumns(joined(actions[taken]), joined(evaluated @ actions))


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
