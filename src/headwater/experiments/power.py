"""How many users an experiment needs, and for how long."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from msgspec import Struct

from headwater.experiments.sequences import mixture, width_in_errors
from headwater.schema.errors import HeadwaterError

_PATHS, _STEPS, _UNTIL = 4_000, 800, 8.0  # of the simulation; time in units of the fixed-horizon number of users
_SEED = 20_240_601


class SampleSize(Struct, frozen=True, kw_only=True):
    """Users in control and treatment together. ``fixed``: looked at once, at the end. ``sequential``: looked at all the time, as many
    as bring the same power; half of the experiments with such an effect are decided after ``sequential_median``. ``days`` are
    their durations (None: the traffic was not given), at least the metric's window longer in practice.
    """

    mean: float
    variance: float
    effect: float
    alpha: float
    power: float
    metrics: int
    share: float
    variance_ratio: float
    fixed: int
    sequential: int
    sequential_median: int
    days: dict[str, float] | None


def sample_size(
    mean: float, variance: float, effect: float, *, alpha: float = 0.05, power: float = 0.8, share: float = 0.5,
    variance_ratio: float = 1.0, metrics: int = 1, users_per_day: float | None = None,
) -> SampleSize:  # fmt: skip
    """Users that are needed to find a relative ``effect``.

    Args:
        mean: of the metric in the control; not 0.
        variance: between users; of a ratio metric, of its influences (delta method).
        effect: relative, 0.02 for +2%.
        share: part of the users that gets the treatment.
        variance_ratio: what CUPED leaves of the variance: 1 − r², r the correlation with the covariate.
        metrics: primary metrics × treatments; the level of each is ``alpha / metrics`` (what Holm needs at worst).
        users_per_day: first exposures a day, both variants.

    Raises:
        HeadwaterError: a number out of its range.
    """
    for name, value, good in (
        ("the mean", mean, mean != 0.0 and math.isfinite(mean)), ("the variance", variance, 0.0 < variance < math.inf),
        ("the effect", effect, effect != 0.0 and math.isfinite(effect)), ("alpha", alpha, 0.0 < alpha < 1.0),
        ("the power", power, alpha < power < 1.0), ("the treatment's share", share, 0.0 < share < 1.0),
        ("what CUPED leaves", variance_ratio, 0.0 < variance_ratio <= 1.0), ("the number of metrics", metrics, metrics >= 1),
        ("users a day", users_per_day, users_per_day is None or users_per_day > 0.0),
    ):  # fmt: skip
        if not good:
            raise HeadwaterError(f"{name} of {value} cannot be planned with; give a sensible number")
    from tea_tasting import Mean
    from tea_tasting.aggr import Aggregates

    level = alpha / metrics
    metric = Mean("value", alpha=level, power=power, ratio=share / (1.0 - share), rel_effect_size=effect, use_t=False)
    known = Aggregates(count_=1_000, mean_={"value": mean}, var_={"value": variance * variance_ratio}, cov_={})
    fixed = math.ceil(metric.solve_power_from_aggregates(known, "n_obs")[0].n_obs)
    needed, median = sequential_factors(level, power)
    counts = {"fixed": fixed, "sequential": math.ceil(needed * fixed), "sequential_median": math.ceil(median * fixed)}
    return SampleSize(
        mean=mean, variance=variance, effect=effect, alpha=alpha, power=power, metrics=metrics, share=share,
        variance_ratio=variance_ratio, **counts,
        days=None if users_per_day is None else {name: count / users_per_day for name, count in counts.items()},
    )  # fmt: skip


@lru_cache(maxsize=64)
def sequential_factors(alpha: float, power: float) -> tuple[float, float]:
    """(users by which a share ``power`` of the experiments is decided, median of when), over the fixed-horizon number.

    The scaled z-process is a Brownian motion with the drift that gives the fixed test its power; 4,000 paths of 800 steps with the
    sequence tuned to the fixed number, seeded. Larger than needed by what is missed between steps.
    """
    from scipy.special import ndtri

    drift = ndtri(1.0 - alpha / 2.0) + ndtri(power)
    times = np.arange(1, _STEPS + 1) * (_UNTIL / _STEPS)
    rng = np.random.default_rng(_SEED)
    paths = np.cumsum(rng.standard_normal((_PATHS, _STEPS)) * math.sqrt(_UNTIL / _STEPS), axis=1)
    statistic = np.abs(paths + drift * times) / np.sqrt(times)
    crossed = statistic > width_in_errors(times, mixture(alpha, 1.0), alpha)
    when = np.where(crossed.any(axis=1), times[crossed.argmax(axis=1)], np.inf)
    return float(np.quantile(when, power, method="higher")), float(np.quantile(when, 0.5, method="higher"))
