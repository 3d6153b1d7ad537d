"""Estimators of the value of a policy from lists that another one drew place by place (Plackett–Luce).

The value is the expected sum of the rewards of a list. With ``ρ_l = π_e(a_l | a_1 … a_{l−1}, x) / π_b(a_l | a_1 … a_{l−1}, x)`` a list
counts ``Σ_l w_l r_l``, and what a user does at place l may depend

    SIPS     w_l = ρ_1 … ρ_k       on the whole list                   Precup, Sutton and Singh 2000
    RIPS     w_l = ρ_1 … ρ_l       on it and what stands above         McInerney, Brost, Chandar, Mehrotra and Carterette 2020
    IIPS     w_l = π_e(a_l at l | x) / π_b(a_l at l | x)    on it alone      Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen 2018

The more is assumed, the smaller the variance; IIPS is wrong where what stands above matters. SNRIPS divides every place of RIPS by its mean weight:
steadier, and as right in the long run. With a reward model q̂ of an item at a place, RIPS becomes doubly robust, right whatever the model says:

    CDR      Σ_l w_l (r_l − q̂_l) + w_{l−1} E[q̂_l | a_1 … a_{l−1}]  under π_e, w_l of RIPS      Kiyohara et al. 2022
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.evaluation.off_policy.estimators import Judgement, described, less_logging
from headwater.evaluation.off_policy.feedback import (
    Overlap,
    OverlapError,
    check_covered,
    check_weights,
    effective_sample_size,
)
from headwater.evaluation.off_policy.intervals import Clusters, Terms, intervals
from headwater.evaluation.off_policy.reward_model import cross_fit
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

NAMES = ("SIPS", "RIPS", "SNRIPS", "IIPS", "CDR")
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class ListFeedback:
    """n lists of at most k places; what lies behind the end of a list is 0 in every array.

    ``rewards`` float64[n, k]; ``logged`` and ``evaluated`` float64[n, k] are the natural logarithms of the probability of each item for its place, given
    those above it, under both policies (-inf: could not have come about). ``marginal`` float64[n, k] is
    ``π_e(a_l at l) / π_b(a_l at l)``, 1 behind the end (None: IIPS is left out). ``users`` int64[n]. ``uncovered`` float64[n] is what the evaluated
    policy would put where the log never goes, and ``evaluated`` leaves out. ``features`` float64[n, k, d] of each item at its place, and ``expected``
    float64[n, k, d], what the evaluated policy makes of them in the mean, given the items above, are what q̂ is linear in (None: CDR is left out).
    """

    rewards: Float64
    logged: Float64
    evaluated: Float64
    users: Int64 | None = None
    uncovered: Float64 | None = None
    marginal: Float64 | None = None
    features: Float64 | None = None
    expected: Float64 | None = None

    def check(self) -> None:
        """Raises HeadwaterError: the arrays do not fit together, or hold no probabilities."""
        if not len(self.rewards):
            raise HeadwaterError("there is no logged list to judge a policy by")
        for name in ("logged", "evaluated", "marginal"):
            array = getattr(self, name)
            if array is not None and array.shape != self.rewards.shape:
                raise HeadwaterError(f"rewards have the shape {self.rewards.shape}, {name} has {array.shape}")
        if (self.features is None) != (self.expected is None):
            raise HeadwaterError("features of the shown items and those that are expected go together")
        for name in ("users", "uncovered", "features", "expected"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.rewards):
                raise HeadwaterError(f"{len(self.rewards)} lists, but {len(column)} {name}")
        if not (np.isfinite(self.rewards).all() and np.isfinite(self.logged).all() and (self.logged <= 0.0).all()):
            raise HeadwaterError("rewards have to be finite, and logged log-propensities finite and at most 0")
        if not (self.evaluated <= 1e-9).all():
            raise HeadwaterError("log-probabilities of the evaluated policy have to be at most 0")


def list_weights(feedback: ListFeedback) -> dict[str, Float64]:
    """The weight of every place by estimator, float64[n, k] each."""
    down = np.exp(np.cumsum(feedback.evaluated - feedback.logged, axis=1))
    found = {"SIPS": np.repeat(down[:, -1:], down.shape[1], axis=1), "RIPS": down}
    mean = down.mean(axis=0)
    found["SNRIPS"] = np.divide(down, mean, out=np.zeros_like(down), where=mean > 0.0)
    if feedback.marginal is not None:
        found["IIPS"] = feedback.marginal
    return found


def list_estimators(
    feedback: ListFeedback, clusters: Clusters, *, seed: int = 0
) -> tuple[dict[str, Terms], dict[str, Float64]]:
    """All estimators as :class:`Terms`, and the weight of each place that each used, float64[n, k]. ``seed`` deals users into the folds of CDR, for which
    there have to be five of them.
    """
    weights, ones = list_weights(feedback), np.ones(len(feedback.rewards))
    terms = {name: Terms(np.sum(w * feedback.rewards, axis=1), ones) for name, w in weights.items()}
    # a place of SNRIPS is Σ w r / Σ w: with the mean weight 1 it moves as w (r − θ) does
    normal = weights["SNRIPS"]
    places = np.mean(normal * feedback.rewards, axis=0)
    terms["SNRIPS"] = Terms(np.sum(normal * (feedback.rewards - places), axis=1) + places.sum(), ones)
    if feedback.features is not None and feedback.expected is not None and clusters.count >= _FOLDS:
        terms["CDR"], weights["CDR"] = _doubly_robust(feedback, weights["RIPS"], clusters, seed), weights["RIPS"]
    return terms, weights


def judge_lists(
    feedback: ListFeedback, *, overlap: Overlap | None = None, draws: int = 1_000, seed: int = 0
) -> tuple[Judgement, dict[str, str]]:
    """Estimate the value of the evaluated policy, by each estimator whose weights can carry one; and why the others cannot.

    ``ess``, ``max_weight`` and ``mean_weight`` of the judgement are those of whole lists (SIPS); an estimate has those of the place where its
    effective sample size is least.

    Raises:
        HeadwaterError: the arrays do not fit together.
        OverlapError: no estimator is left; says why.
    """
    feedback.check()
    overlap = overlap or Overlap()
    check_covered(feedback.uncovered, overlap)
    clusters = Clusters.by(feedback.users, len(feedback.rewards))
    terms, weights = list_estimators(feedback, clusters, seed=seed)
    refused: dict[str, str] = {}
    for name in list(terms):
        try:
            # SNRIPS has the mean 1 by its making: whether it should is to be seen in RIPS
            check_weights(_worst(weights["RIPS" if name == "SNRIPS" else name]), overlap, what="lists")
        except OverlapError as error:
            refused[name] = str(error)
            del terms[name]
    if not terms:
        raise OverlapError(refused["RIPS"])
    rewards = feedback.rewards.sum(axis=1)
    asked = [
        Terms(rewards, np.ones(len(rewards))),
        *terms.values(),
        *(less_logging(one, rewards) for one in terms.values()),
    ]
    logged, *found = intervals(asked, clusters, draws=draws, seed=seed)
    own, between = found[: len(terms)], found[len(terms) :]
    whole = weights["SIPS"][:, -1]
    judgement = Judgement(
        rows=len(rewards), users=clusters.count, ess=effective_sample_size(whole), max_weight=float(whole.max()),
        mean_weight=float(whole.mean()), logging=described(logged),
        estimates={
            name: described(each, _worst(weights[name]), _worst(weights[name])) for name, each in zip(terms, own, strict=True)
        },
        difference={name: described(each) for name, each in zip(terms, between, strict=True)},
        model_bias=None, trusted=tuple(terms),
    )  # fmt: skip
    return judgement, refused


def _doubly_robust(feedback: ListFeedback, down: Float64, clusters: Clusters, seed: int) -> Terms:
    """CDR, with ``down`` the weights of RIPS: places are the rows of one model, cross-fitted by user."""
    assert feedback.features is not None  # noqa: S101  (the caller has looked)
    assert feedback.expected is not None  # noqa: S101
    n, k, size = feedback.features.shape
    places = Clusters(np.repeat(clusters.of, k), clusters.count)
    model = cross_fit(
        feedback.features.reshape(n * k, size), feedback.expected.reshape(n * k, size), feedback.rewards.reshape(n * k), places,
        folds=_FOLDS, seed=seed,
    )  # fmt: skip
    above = np.concatenate([np.ones((n, 1)), down[:, :-1]], axis=1)
    residuals = feedback.rewards - model.logged.reshape(n, k)
    return Terms(np.sum(down * residuals + above * model.expected.reshape(n, k), axis=1), np.ones(n))


def _worst(weights: Float64) -> Float64:
    """The weights float64[n] of the place that has the least effective sample size, of float64[n, k]."""
    return weights[:, int(np.argmin([effective_sample_size(place) for place in weights.T]))]
