"""The fixed-horizon result: what holds when the data are looked at once, at the end that was planned. By tea-tasting.

It is here for the comparison with what people know; decisions follow the confidence sequences.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from msgspec import Struct

from headwater.experiments.moments import COLUMNS, Moments

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

Interval = tuple[float, float]

_NAMES = ("numerator", "denominator", "numerator_before", "denominator_before")


class FixedHorizon(Struct, frozen=True, kw_only=True):
    """Welch's t-test on the ratio of means. Intervals are at 1 − alpha."""

    difference: float
    interval: Interval
    relative: float
    relative_interval: Interval
    p_value: float


def fixed_horizon(control: Moments, treatment: Moments, *, alpha: float, cuped: bool = True) -> FixedHorizon:
    """Compare two variants once; each holds the moments of one variant (no leading axes).

    CUPED where ``cuped`` and users differ in what they did before.
    """
    from tea_tasting import RatioOfMeans  # heavy: it brings ibis

    differ = float(control.cov[2, 2] + treatment.cov[2, 2]) > 0.0
    before = ("numerator_before", "denominator_before") if cuped and differ else (None, None)
    metric = RatioOfMeans("numerator", "denominator", *before, confidence_level=1.0 - alpha)
    found = metric.analyze_aggregates(aggregates(control), aggregates(treatment))
    return FixedHorizon(
        difference=float(found.effect_size), interval=(float(found.effect_size_ci_lower), float(found.effect_size_ci_upper)),
        relative=float(found.rel_effect_size),
        relative_interval=(float(found.rel_effect_size_ci_lower), float(found.rel_effect_size_ci_upper)),
        p_value=float(found.pvalue),
    )  # fmt: skip


def aggregates(moments: Moments) -> Aggregates:
    """The same moments in tea-tasting's form."""
    from tea_tasting.aggr import Aggregates

    pairs = itertools.combinations(range(COLUMNS), 2)
    return Aggregates(
        count_=int(moments.users), mean_={_NAMES[i]: float(moments.mean[i]) for i in range(COLUMNS)},
        var_={_NAMES[i]: float(moments.cov[i, i]) for i in range(COLUMNS)},
        cov_={(_NAMES[i], _NAMES[j]): float(moments.cov[i, j]) for i, j in pairs},
    )  # fmt: skip
