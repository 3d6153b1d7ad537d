"""The difference between two variants: means and ratio metrics by the delta method, with CUPED.

Delta method: Deng, Knoblich & Lu, "Applying the delta method in metric analytics" (KDD 2018). CUPED: Deng, Xu, Kohavi & Walker,
"Improving the sensitivity of online controlled experiments by utilizing pre-experiment data" (WSDM 2013).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.experiments.moments import Float64, Moments, pooled

_NUMERATOR, _DENOMINATOR, _NUMERATOR_BEFORE, _DENOMINATOR_BEFORE = range(4)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a treatment does, at each leading position (look, simulation …); every field is ``float64[...]``.

    ``control``, ``treatment``: the metric in each variant, after CUPED. ``difference`` = treatment − control with standard error
    ``error``; ``relative`` = treatment / control − 1 with ``relative_error`` (NaN where control is 0). ``users`` of both variants
    together. ``variance_ratio``: error² over what it would be without CUPED (1 when there is no covariate).
    """

    users: Float64
    control: Float64
    treatment: Float64
    difference: Float64
    error: Float64
    relative: Float64
    relative_error: Float64
    variance_ratio: Float64


def effect(control: Moments, treatment: Moments, *, cuped: bool = True) -> Effect:
    """Compare two variants.

    The metric of a variant is R = ȳ / d̄; a user's influence on it is ``(y − R d) / d̄``. With the same ratio before exposure, X,
    CUPED takes ``R − θ (X − X of both)``, θ = cov(influences on R, on X) / var(influences on X) over both variants together: it is
    the same in both, so the difference stays unbiased. Variances are those of the influences within each variant, over n.
    Where a mean denominator is 0 everything is NaN: there is nothing to measure yet.
    """
    both = pooled(control, treatment)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariate_of_both, now, before = _gradients(both)
        spread = _form(before, both.cov, before)
        slope = np.where(spread > 0.0, _form(now, both.cov, before) / np.where(spread > 0.0, spread, 1.0), 0.0)
        slope = slope if cuped else np.zeros_like(slope)
        means, variances, plain = [], [], []
        for variant in (control, treatment):
            covariate, on_metric, on_covariate = _gradients(variant)
            some = variant.mean[..., _DENOMINATOR] != 0.0
            value = np.where(some, variant.mean[..., _NUMERATOR] / variant.mean[..., _DENOMINATOR], np.nan)
            shift = np.where(slope != 0.0, slope * (covariate - covariate_of_both), 0.0)
            used = np.where(slope[..., None] != 0.0, on_metric - slope[..., None] * on_covariate, on_metric)
            means.append(value - shift)
            variances.append(np.maximum(_form(used, variant.cov, used), 0.0) / variant.users)
            plain.append(np.maximum(_form(on_metric, variant.cov, on_metric), 0.0) / variant.users)
        error = np.sqrt(variances[0] + variances[1])
        lift = means[1] / means[0]
        some = means[0] != 0.0
        relative_error = np.sqrt(variances[1] + lift**2 * variances[0]) / np.abs(means[0])
        ratio = np.where(plain[0] + plain[1] > 0.0, error**2 / (plain[0] + plain[1]), 1.0)
    return Effect(
        both.users, means[0], means[1], means[1] - means[0], error, np.where(some, lift - 1.0, np.nan),
        np.where(some, relative_error, np.nan), ratio,
    )  # fmt: skip


def _gradients(moments: Moments) -> tuple[Float64, Float64, Float64]:
    """The covariate's ratio, and the gradients of the metric and of the covariate: ``float64[..., 4]``."""
    mean = moments.mean
    now, before = np.zeros_like(mean), np.zeros_like(mean)
    now[..., _NUMERATOR] = 1.0 / mean[..., _DENOMINATOR]
    now[..., _DENOMINATOR] = -mean[..., _NUMERATOR] / mean[..., _DENOMINATOR] ** 2
    some = mean[..., _DENOMINATOR_BEFORE] != 0.0  # nobody has a past: no covariate
    denominator = np.where(some, mean[..., _DENOMINATOR_BEFORE], 1.0)
    covariate = np.where(some, mean[..., _NUMERATOR_BEFORE] / denominator, 0.0)
    before[..., _NUMERATOR_BEFORE] = np.where(some, 1.0 / denominator, 0.0)
    before[..., _DENOMINATOR_BEFORE] = np.where(some, -covariate / denominator, 0.0)
    return covariate, now, before


def _form(left: Float64, matrix: Float64, right: Float64) -> Float64:
    made: Float64 = np.einsum("...i,...ij,...j->...", left, matrix, right)
    return made


def winsorised(values: Float64, quantile: float) -> Float64:
    """``values`` cut at their own ``quantile`` (0.99: the largest hundredth counts as the value there; 1: nothing is cut)."""
    if quantile >= 1.0 or not len(values):
        return values
    cut: Float64 = np.minimum(values, np.quantile(values, quantile, method="higher"))
    return cut
