"""Ranking metrics with 95% intervals.

A *question* has one relevant item; its *rank* is that item's place in the list, from 1, and 0 when the list
does not hold it. Questions of one user are not independent, so every interval takes users, not questions,
as what was sampled.

Why analytic and not bootstrapped: HR, NDCG and MRR are ratios of two sums over users, for which the
linearised (cluster-robust) standard error is what the bootstrap approximates, at one pass over the data, without
a seed and without noise of its own; the tests hold the two against each other. Levels use Wilson's form
of the interval, with the number of independent answers that the standard error implies (Korn & Graubard,
Survey Methodology 24, 1998): it stays inside [0, 1] and does not collapse when every question was missed. Simulated hit rates of 0.1 and 0.3 with 120 to 200 very
uneven users lie inside 94 to 95 times of 100; a rate of 0.02 with 120 such users only 88 times (bootstrap: 85).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field
from scipy.special import stdtrit

Ranks = npt.NDArray[np.integer]
Values = npt.NDArray[np.float64]
Interval = tuple[float, float]

K = 10
_LEVEL = 0.975  # two-sided 95%


class ModelMetrics(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate`` prints for a model. ``ci95`` has an interval [low, high] for every metric.

    ``coverage`` is the share of the eligible items that stood in anybody's first ten; ``train_s`` (seconds)
    and ``peak_mb`` (MiB of the process at its peak) are given by the caller.
    """

    hr_at_10: float = field(name="hr@10")
    ndcg_at_10: float = field(name="ndcg@10")
    mrr: float
    coverage: float
    ci95: dict[str, Interval]
    train_s: float
    peak_mb: float
    questions: int
    users: int


class Difference(Struct, frozen=True, kw_only=True):
    """How much better one model is than another on the same questions.

    ``difference`` is the difference of the means, ``relative`` that over the baseline's mean (0.1: 10% better;
    ``None`` when the baseline's mean is 0), each with its 95% interval. One user alone gives no interval of the ratio.
    """

    metric: str
    difference: float
    difference_ci95: Interval
    relative: float | None
    relative_ci95: Interval | None


def ranks_in(lists: npt.NDArray[np.integer], relevant: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Rank of the relevant item of each question: ``int64[n]``, 0 when it is not in the list.

    Args:
        lists: ``int[n, k]`` dense item indexes, best first, filled up with 0.
        relevant: ``int[n]``, each at least 1.
    """
    if not lists.shape[1]:
        return np.zeros(len(lists), np.int64)
    found = lists == relevant[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0).astype(np.int64)


def hits(ranks: Ranks, k: int = K) -> Values:
    """HR@k of each question: 1 when ``1 <= rank <= k``, else 0. ``float64[n]``."""
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def gains(ranks: Ranks, k: int = K) -> Values:
    """NDCG@k of each question: ``1 / log2(rank + 1)`` when ``1 <= rank <= k``, else 0. ``float64[n]``.

    With one relevant item the ideal DCG is 1, so no further division is needed.
    """
    return np.where((ranks > 0) & (ranks <= k), 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


def reciprocals(ranks: Ranks) -> Values:
    """Reciprocal rank of each question over its whole list, 0 when absent. ``float64[n]``."""
    return np.where(ranks > 0, 1.0 / np.maximum(ranks, 1), 0.0)


METRICS = {"hr@10": hits, "ndcg@10": gains, "mrr": reciprocals}


def mean_interval(values: Values, users: npt.NDArray[np.integer]) -> tuple[float, Interval]:
    """Mean over questions, with a 95% interval for users as clusters.

    With G users, their sums s and counts n, N = Σn and mean θ, the standard error is
    ``sqrt(G/(G−1) · Σ(s − θn)²) / N``; the interval is Wilson's for ``θ(1−θ)/se²`` independent answers (G of them when
    all values are 0 or all are 1), with Student's t on G − 1 degrees of freedom.

    Args:
        values: ``float64[n]`` in [0, 1].
        users: ``int[n]``, any numbers that tell users apart.

    Raises:
        ValueError: no values, or values outside [0, 1].
    """
    _check(values, users)
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError("values outside [0, 1]")
    sums, counts = _by_user(users, values)
    mean = float(sums.sum() / counts.sum())
    if len(counts) < 2:
        return mean, (0.0, 1.0)  # one user says nothing about how users differ
    error = _standard_error(sums - mean * counts, counts.sum())
    spread = mean * (1.0 - mean)
    if error == 0.0 and spread > 0.0:
        return mean, (mean, mean)
    answers = spread / error**2 if error > 0.0 else float(len(counts))
    z2 = _student(len(counts)) ** 2
    centre = (mean + z2 / (2.0 * answers)) / (1.0 + z2 / answers)
    half = np.sqrt(z2 * (spread / answers + z2 / (4.0 * answers**2))) / (1.0 + z2 / answers)
    return mean, (max(0.0, min(mean, float(centre - half))), min(1.0, max(mean, float(centre + half))))


def ratio_interval(parts: Values, wholes: Values) -> tuple[float, Interval]:
    """``Σparts / Σwholes``, with a 95% interval for one entry of each a cluster, ``float64[G]``.

    The linearised standard error of :func:`compare`, with Student's t on G − 1 degrees of freedom. Clusters whose whole is 0
    were not there and do not count. Fewer than two clusters give an interval from minus to plus infinity.

    Raises:
        ValueError: there is nothing to divide by.
    """
    there = wholes != 0.0
    parts, wholes = parts[there], wholes[there]
    if not len(parts):
        raise ValueError("there is nothing to divide by")
    whole = float(wholes.sum())
    value = float(parts.sum()) / whole
    if len(parts) < 2:
        return value, (-np.inf, np.inf)
    half = _student(len(parts)) * _standard_error(parts - value * wholes, whole)
    return value, (value - half, value + half)


def ratio_difference(
    parts: Values, wholes: Values, other_parts: Values, other_wholes: Values
) -> tuple[float, Interval]:  # fmt: skip
    """``Σparts / Σwholes − Σother_parts / Σother_wholes`` over the same clusters, in the same order, with a 95% interval.

    Paired: what is common to a cluster in both cancels. As :func:`ratio_interval`, for clusters that are there in one or the other.
    """
    there = (wholes != 0.0) | (other_wholes != 0.0)
    a, m, b, n = (values[there] for values in (parts, wholes, other_parts, other_wholes))
    first, second = (float(values.sum()) for values in (m, n))
    if not first or not second:
        raise ValueError("there is nothing to divide by")
    ours, theirs = float(a.sum()) / first, float(b.sum()) / second
    if len(a) < 2:
        return ours - theirs, (-np.inf, np.inf)
    half = _student(len(a)) * _standard_error((a - ours * m) / first - (b - theirs * n) / second, 1.0)
    return ours - theirs, (ours - theirs - half, ours - theirs + half)


def coverage(
    lists: npt.NDArray[np.integer], users: npt.NDArray[np.integer], eligible: int, k: int = K
) -> tuple[float, Interval]:
    """Share of the eligible items that stand in anybody's first ``k``, with a 95% interval.

    The interval is the jackknife's over users: leaving user g out loses the u_g items that only g was shown,
    so the variance is ``(G−1)/G · Σ(u_g − ū)²`` over ``eligible²``. It is about this number of questions: more of them
    would cover more.

    Args:
        lists: ``int[n, >=1]`` dense item indexes, best first, filled up with 0.
        users: ``int[n]``, any numbers that tell users apart.
        eligible: number of items that could have been shown while these lists were made.

    Raises:
        ValueError: no lists, or fewer eligible items than were shown.
    """
    _check(lists, users)
    _, user_of = np.unique(users, return_inverse=True)
    shown = lists[:, :k]
    owner = np.broadcast_to(user_of.reshape(-1, 1), shown.shape)[shown > 0]
    items, item_of = np.unique(shown[shown > 0], return_inverse=True)
    if eligible < max(1, len(items)):
        raise ValueError(f"{len(items)} items were shown, but only {eligible} are said to be eligible")
    share = len(items) / eligible
    clusters = int(user_of.max()) + 1
    if clusters < 2:
        return share, (0.0, 1.0)
    pairs = np.unique(item_of.astype(np.int64) * clusters + owner)
    item, user = np.divmod(pairs, clusters)
    alone = np.bincount(item, minlength=len(items))[item] == 1
    lost = np.bincount(user[alone], minlength=clusters).astype(np.float64)
    error = float(np.sqrt((clusters - 1) / clusters * np.sum((lost - lost.mean()) ** 2))) / eligible
    half = _student(clusters) * error
    return share, (max(0.0, share - half), min(1.0, share + half))


def judge(
    ranks: Ranks,
    users: npt.NDArray[np.integer],
    lists: npt.NDArray[np.integer],
    *,
    eligible: int,
    train_s: float,
    peak_mb: float,
) -> ModelMetrics:
    """All metrics of one model over its questions. Arguments as in :func:`mean_interval` and :func:`coverage`.

    Raises:
        ValueError: there are no questions, or the arguments do not fit together.
    """
    if len(lists) != len(ranks):
        raise ValueError(f"{len(ranks)} ranks but {len(lists)} lists")
    means, intervals = {}, {}
    for name, metric in METRICS.items():
        means[name], intervals[name] = mean_interval(metric(ranks), users)
    covered, intervals["coverage"] = coverage(lists, users, eligible)
    return ModelMetrics(
        hr_at_10=means["hr@10"],
        ndcg_at_10=means["ndcg@10"],
        mrr=means["mrr"],
        coverage=covered,
        ci95=intervals,
        train_s=train_s,
        peak_mb=peak_mb,
        questions=len(ranks),
        users=len(np.unique(users)),
    )


def compare(metric: str, ranks: Ranks, baseline: Ranks, users: npt.NDArray[np.integer]) -> Difference:
    """Paired difference of two models on the same questions, in the same order.

    Both standard errors are cluster-robust by user: for the difference the one of :func:`mean_interval`, for the
    ratio r = Σa/Σb the linearised ``sqrt(G/(G−1) · Σ(a − rb)²) / Σb``, with a and b summed by user.

    Args:
        metric: a key of ``METRICS``.
        ranks, baseline: ``int[n]``.
        users: ``int[n]``.

    Raises:
        ValueError: no questions, or arrays of unequal length.
    """
    ours, theirs = METRICS[metric](ranks), METRICS[metric](baseline)
    _check(ours, users)
    _check(theirs, users)
    (a, counts), (b, _) = _by_user(users, ours), _by_user(users, theirs)
    questions, base = float(counts.sum()), float(b.sum())
    difference = float(a.sum() - base) / questions
    relative = float(a.sum()) / base - 1.0 if base > 0.0 else None
    if len(counts) < 2:
        return Difference(
            metric=metric,
            difference=difference,
            difference_ci95=(-1.0, 1.0),
            relative=relative,
            relative_ci95=None,
        )
    t = _student(len(counts))
    half = t * _standard_error(a - b - difference * counts, questions)
    relative_ci95 = None
    if relative is not None:
        wide = t * _standard_error(a - (1.0 + relative) * b, base)
        relative_ci95 = (max(-1.0, relative - wide), relative + wide)
    return Difference(
        metric=metric,
        difference=difference,
        difference_ci95=(max(-1.0, difference - half), min(1.0, difference + half)),
        relative=relative,
        relative_ci95=relative_ci95,
    )


def weighted_difference(
    values: Values, weights: Values, ours: npt.NDArray[np.bool_], users: npt.NDArray[np.integer]
) -> tuple[float, Interval]:
    """Weighted mean of ``values`` float64[n] where ``ours`` bool[n] holds less that where it does not, with a 95% interval for ``users`` int[n] as
    clusters: from the linearised ``±w (y - mean) / Σw`` of each answer, summed by user. One user: no interval (infinite).

    Raises:
        ValueError: one of the two has no weight, or arrays of unequal length.
    """
    _check(values, users)
    totals = [float(weights[which].sum()) for which in (ours, ~ours)]
    if min(totals) <= 0.0:
        raise ValueError("one of the two has no weight")
    means = [float((weights * values)[which].sum()) / total for which, total in zip((ours, ~ours), totals, strict=True)]
    pull = np.where(ours, (values - means[0]) / totals[0], (means[1] - values) / totals[1]) * weights
    sums, _ = _by_user(users, pull)
    difference = means[0] - means[1]
    if len(sums) < 2:
        return difference, (-np.inf, np.inf)
    half = _student(len(sums)) * _standard_error(sums, 1.0)
    return difference, (difference - half, difference + half)


def _check(values: npt.NDArray[np.generic], users: npt.NDArray[np.integer]) -> None:
    if not len(values):
        raise ValueError("there are no questions")
    if len(values) != len(users):
        raise ValueError(f"{len(values)} questions but {len(users)} users")


def _by_user(users: npt.NDArray[np.integer], values: Values) -> tuple[Values, Values]:
    """Sum and number of the values of each user."""
    _, user_of = np.unique(users, return_inverse=True)
    return np.bincount(user_of, values).astype(np.float64), np.bincount(user_of).astype(np.float64)


def _standard_error(residuals: Values, total: float) -> float:
    """Cluster-robust standard error from one linearised residual a user; rounding noise counts as none."""
    clusters = len(residuals)
    error = float(np.sqrt(clusters / (clusters - 1) * np.sum(residuals**2)) / total)
    return error if error > 1e-12 else 0.0


def _student(clusters: int) -> float:
    return float(stdtrit(clusters - 1, _LEVEL))
