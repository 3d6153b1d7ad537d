"""Estimators of the value of a policy from the log of another, one action a row.

With weights ``w = π_e(a|x) / π_b(a|x)`` and the predictions q̂, v̂ of a reward model the value is the mean (SNIPS: ratio) of

    IPS        w r                                    Horvitz and Thompson 1952
    SNIPS      Σ w r / Σ w                            Swaminathan and Joachims 2015
    DM         v̂
    DR         v̂ + w (r − q̂)                          Dudík, Langford and Li 2011
    Switch-DR  v̂ + w 1[w ≤ λ] (r − q̂)                 Wang, Agarwal and Dudík 2017
    DRos       v̂ + λw / (w² + λ) (r − q̂)              Su, Dimakopoulou, Krishnamurthy and Dudík 2020

IPS, SNIPS and DR are right whatever the model says. DM is as right as its model: ``model_bias`` estimates by how much it is not.
λ is chosen to make variance plus squared bias least, both estimated (:func:`_shrunk`); what the choice may hide counts in the interval.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from headwater.evaluation.off_policy.feedback import Feedback, Overlap, check_overlap, effective_sample_size
from headwater.evaluation.off_policy.intervals import Clusters, Interval, Interval95, Terms, intervals, standard_error
from headwater.evaluation.off_policy.reward_model import RewardModel

Float64 = npt.NDArray[np.float64]

NAMES = ("IPS", "SNIPS", "DM", "DR", "Switch-DR", "DRos")

_SWITCHES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # quantiles of the weights that λ is chosen from
_NO_LIMIT = float("inf")
_ROUNDING = 1e-9


class Estimate(Struct, frozen=True, kw_only=True):
    """A value with its standard error, an asymptotic and a bootstrap 95% interval (None: the log has too few rewards for one).

    ``ess`` is the effective sample size of the weights that were used and ``max_weight`` the largest of them (DM uses none: None);
    ``clipped`` is the share of rows whose weight was lowered, ``mass_lost`` the share of all weight that went with it; ``threshold``
    is what decided about that (λ, or the clipping limit).
    """

    value: float
    error: float
    ci95: Interval
    bootstrap95: Interval | None
    ess: float | None = None
    max_weight: float | None = None
    clipped: float = 0.0
    mass_lost: float = 0.0
    threshold: float | None = None


class Judgement(Struct, frozen=True, kw_only=True):
    """Estimates by estimator. ``logging`` is the value of the logging policy, ``difference`` that of each estimator less it, on the same rows.

    ``ess``, ``max_weight``, ``mean_weight`` are of the plain weights. ``model_bias`` is DM less DR: an interval without 0 says that the reward model is
    wrong for this policy, and ``trusted`` leaves DM out.
    """

    rows: int
    users: int
    ess: float
    max_weight: float
    mean_weight: float
    logging: Estimate
    estimates: dict[str, Estimate]
    difference: dict[str, Estimate]
    model_bias: Estimate | None
    trusted: tuple[str, ...]


def judge(
    feedback: Feedback, model: RewardModel | None = None, *, overlap: Overlap | None = None, clip: float = _NO_LIMIT,
    draws: int = 1_000, seed: int = 0,
) -> Judgement:  # fmt: skip
    """Estimate the value of the evaluated policy; without a ``model`` by IPS and SNIPS alone.

    ``clip`` lowers the weights of IPS, SNIPS and DR to this at most: less variance, and a bias that no interval shows.

    Raises:
        HeadwaterError: rows that no policy can have logged.
        OverlapError: the log does not cover the evaluated policy.
    """
    feedback.check()
    weights = feedback.weights
    check_overlap(weights, feedback.uncovered, overlap or Overlap())
    clusters = Clusters.by(feedback.users, len(weights))
    terms, used, limits = estimators(feedback.rewards, weights, model, clusters, clip=clip)
    ones, rewards = np.ones(len(weights)), feedback.rewards
    logging = Terms(rewards, ones)
    over = {name: less_logging(each, rewards) for name, each in terms.items()}
    asked = [logging, *terms.values(), *over.values()]
    if model is not None:
        asked.append(bias_of_model(rewards, weights, model))
    logged, *found = intervals(asked, clusters, draws=draws, seed=seed)
    own, between = found[: len(terms)], found[len(terms) : 2 * len(terms)]
    bias = described(found[-1]) if model is not None else None
    wrong = bias is not None and not bias.ci95[0] <= 0.0 <= bias.ci95[1]
    return Judgement(
        rows=len(weights), users=clusters.count, ess=effective_sample_size(weights), max_weight=float(weights.max()),
        mean_weight=float(weights.mean()), logging=described(logged),
        estimates={
            name: described(each, weights, used[name], limits.get(name)) for name, each in zip(terms, own, strict=True)
        },
        difference={name: described(each) for name, each in zip(terms, between, strict=True)}, model_bias=bias, trusted=tuple(name for name in terms if name != "DM" or not wrong),
    )  # fmt: skip


def estimators(
    rewards: Float64, weights: Float64, model: RewardModel | None, clusters: Clusters, *, clip: float = _NO_LIMIT
) -> tuple[dict[str, Terms], dict[str, Float64 | None], dict[str, float]]:
    """All estimators as :class:`Terms`; the residual weights that each used, and what limited them."""
    ones, clipped = np.ones(len(weights)), np.minimum(weights, clip)
    terms = {"IPS": Terms(clipped * rewards, ones), "SNIPS": Terms(clipped * rewards, clipped)}
    used: dict[str, Float64 | None] = {"IPS": clipped, "SNIPS": clipped}
    limits = {name: clip for name in ("IPS", "SNIPS", "DR") if np.isfinite(clip)}
    if model is None:
        return terms, used, limits
    residuals = rewards - model.logged
    terms["DM"], used["DM"] = _centred(model.expected, model.expected + model.implied(0.0 * ones) * residuals), None
    terms["DR"], used["DR"] = Terms(model.expected + clipped * residuals, ones), clipped
    quantiles = np.unique(np.quantile(weights, _SWITCHES))
    for name, thresholds, shrink in (
        ("Switch-DR", quantiles, lambda w, at: np.where(w <= at, w, 0.0)),
        ("DRos", np.append(quantiles, [4.0 * quantiles[-1], 30.0 * quantiles[-1]]) ** 2, optimistic),
    ):
        terms[name], used[name], limits[name] = _shrunk(weights, residuals, model, clusters, thresholds, shrink)
    return terms, used, limits


def optimistic(weights: Float64, threshold: float) -> Float64:
    """``λw / (w² + λ)``: the shrinkage of DRos; at λ = 0 nothing is left."""
    return np.zeros(len(weights)) if threshold <= 0.0 else threshold * weights / (weights**2 + threshold)


def less_logging(terms: Terms, rewards: Float64) -> Terms:
    """The same estimator less the mean of ``rewards`` float64[n], linearised, so that both are resampled on the same rows."""
    value = terms.numerators.sum() / terms.denominators.sum()
    moves = (terms.numerators - value * terms.denominators) / terms.denominators.mean()
    return Terms(value + moves - rewards, np.ones(len(rewards)), terms.hidden)


def described(
    found: Interval95, weights: Float64 | None = None, used: Float64 | None = None, threshold: float | None = None
) -> Estimate:
    """``found`` with what is to be said of the weights float64[n] that it ``used``, of all ``weights`` float64[n] that there are."""
    about = Estimate(value=found.value, error=found.error, ci95=found.asymptotic, bootstrap95=found.bootstrap)
    if weights is None or used is None:
        return about
    total = float(weights.sum())
    return replace(
        about, ess=effective_sample_size(used), max_weight=float(used.max()),
        clipped=float(np.mean(used < weights * (1.0 - _ROUNDING))),
        mass_lost=1.0 - float(used.sum()) / total if total > 0.0 else 0.0, threshold=threshold,
    )  # fmt: skip


def bias_of_model(rewards: Float64, weights: Float64, model: RewardModel) -> Terms:
    """DM less DR, with ``rewards`` and ``weights`` float64[n]: an interval of it without 0 says that ``model`` is wrong for the evaluated policy."""
    residuals = rewards - model.logged
    implied = model.implied(np.zeros(len(weights)))
    return _centred(-weights * residuals, (implied - weights) * residuals)


def _centred(values: Float64, moves: Float64) -> Terms:
    """The mean of ``values``, which varies as the mean of ``moves`` does (float64[n] each)."""
    return Terms(moves - moves.mean() + values.mean(), np.ones(len(values)))


def _shrunk(
    weights: Float64, residuals: Float64, model: RewardModel, clusters: Clusters, thresholds: Float64,
    shrink: Callable[[Float64, float], Float64],
) -> tuple[Terms, Float64, float]:  # fmt: skip
    """DR with shrunk weights, for the threshold with the least ``se² + bias² + se(bias)²``.

    The bias is that of leaving weight out, ``mean((u − w)(r − q̂))``, which the log itself estimates; how well is ``se(bias)``. Without that last term
    luck in the estimate of a bias would be taken for its absence (the intervals then cover 88% to 92% instead of 95%).
    """
    best: tuple[float, Terms, Float64, float] | None = None
    full = model.implied(weights)
    for threshold in thresholds.tolist():
        used = shrink(weights, threshold)
        moves = used + model.implied(used)
        terms = _centred(model.expected + used * residuals, model.expected + moves * residuals)
        bias = _centred((used - weights) * residuals, (moves - weights - full) * residuals)
        hidden = standard_error(bias, clusters)
        cost = standard_error(terms, clusters) ** 2 + float(bias.numerators.mean()) ** 2 + hidden**2
        if best is None or cost < best[0]:
            best = (cost, terms._replace(hidden=hidden), used, threshold)
    assert best is not None  # noqa: S101  (there is a largest weight)
    return best[1], best[2], best[3]
