"""Simulated experiments whose truth is known: how often the analysis is wrong when there is nothing, and how much it needs to find
what is there. All of them go through the functions that judge real experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, chi2, norm

from headwater.experiments.drafts import team_drafts
from headwater.experiments.effects import effect
from headwater.experiments.moments import COLUMNS, Moments, from_sums
from headwater.experiments.sequences import FIRST_LOOK, always_valid_p, mixture
from headwater.experiments.srm import ALARM, log_bayes_factor
from headwater.experiments.srm import always_valid_p as split_p

Float64 = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Float64]

ALPHA, POWER = 0.05, 0.8
_CHUNK = 500_000  # users that are in memory at a time


def conversion(rng: np.random.Generator, size: tuple[int, ...], lift: float = 0.0) -> Float64:
    """5% convert: ``float64[size, 4]``, without a past."""
    return _columns(rng.random(size) < 0.05 * (1.0 + lift))


def value_per_user(rng: np.random.Generator, size: tuple[int, ...]) -> Float64:
    """5% buy, for log-normal amounts (σ = 1.2), cut at their 99.9% quantile."""
    amounts = np.exp(1.2 * rng.standard_normal(size, np.float32)) * (rng.random(size, np.float32) < 0.05)
    return _columns(np.minimum(amounts, np.exp(1.2 * norm.ppf(1 - 0.001 / 0.05))))


def clicks_per_user(rng: np.random.Generator, size: tuple[int, ...], lift: float = 0.0) -> Float64:
    """Poisson clicks of users with gamma tastes (shape 1, mean 2), and as long a past."""
    taste = rng.standard_exponential(size) * 2.0
    return _columns(rng.poisson(taste * (1.0 + lift)), before=rng.poisson(taste))


def clicks_per_list(rng: np.random.Generator, size: tuple[int, ...]) -> Float64:
    """Clicks on lists: the number of lists differs between users (geometric, mean 5), and so does their taste (Beta(2, 8))."""
    activity, taste = rng.standard_exponential(size) * 4.0, rng.beta(2.0, 8.0, size)
    lists, before = 1 + rng.poisson(activity), rng.poisson(activity)
    return _columns(rng.binomial(lists, taste), lists, rng.binomial(before, taste), before)


METRICS: dict[str, Draw] = {
    "conversion": conversion, "value_per_user": value_per_user, "clicks_per_user": clicks_per_user,
    "clicks_per_list": clicks_per_list,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of ``runs``, as a share with its exact 95% interval (Clopper & Pearson, 1934)."""

    share: float
    count: int
    runs: int
    ci95: tuple[float, float]


def rate(found: npt.NDArray[np.bool_]) -> Rate:
    """The share of True."""
    count, runs = int(found.sum()), len(found)
    low = float(beta.ppf(0.025, count, runs - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, runs - count)) if count < runs else 1.0
    return Rate(count / runs, count, runs, (low, high))


def looked_at(
    outcomes: Draw, *, tests: int, looks: int, each: int, seed: int, treated: Draw | None = None, cuped: bool = True
) -> tuple[dict[str, Rate], float]:  # fmt: skip
    """Simulate ``tests`` experiments with ``looks`` looks, ``each`` new users a look; the users come to the variants by a coin.

    ``treated``: what the treated do (None: the same, an A/A test). Returns how often an effect was found at any look by the
    always-valid p-value, by a t-test at each look ("naive"), and by one t-test at the end ("fixed"), at 5%; and the mean share of
    the variance that CUPED left.
    """
    rng = np.random.default_rng(seed)
    rho2 = mixture(ALPHA, looks * each)
    limit = norm.ppf(1.0 - ALPHA / 2.0)
    hits: dict[str, list[npt.NDArray[np.bool_]]] = {"always_valid": [], "naive": [], "fixed": []}
    left = []
    for count in _parts(tests, looks * each):
        size = (count, looks, each)
        values = outcomes(rng, size)
        variant = rng.random(size, np.float32) < 0.5
        if treated is not None:
            values = np.where(variant[..., None], treated(rng, size), values)
        control, treatment = _running(values, ~variant), _running(values, variant)
        found = effect(control, treatment, cuped=cuped)
        statistic = found.difference / np.where(found.error > 0.0, found.error, np.nan)
        statistic[np.minimum(control.users, treatment.users) < FIRST_LOOK] = np.nan
        p_values = always_valid_p(statistic, found.users, rho2)
        hits["always_valid"].append(p_values[:, -1] <= ALPHA)
        hits["naive"].append((np.nan_to_num(np.abs(statistic)) > limit).any(axis=1))
        hits["fixed"].append(np.nan_to_num(np.abs(statistic[:, -1])) > limit)
        left.append(found.variance_ratio[:, -1])
    rates = {name: rate(np.concatenate(parts)) for name, parts in hits.items()}
    return rates, float(np.concatenate(left).mean())


@dataclass(frozen=True, slots=True)
class Split:
    """How often the alarm of the split was raised, and the median of users when (None: by less than half)."""

    alarms: Rate
    naive: Rate
    users_at_alarm: float | None


def split_alarms(
    intended: npt.ArrayLike, actual: npt.ArrayLike, *, runs: int, looks: int, each: int, seed: int
) -> Split:  # fmt: skip
    """Users come to variants by ``actual`` shares; the split is tested against ``intended`` after every ``each`` users.

    ``naive``: a chi-squared test at the same level at every look.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(intended, np.float64)
    limit = chi2.isf(ALARM, len(shares) - 1)
    alarms, naive, when = [], [], []
    for count in _parts(runs, looks * len(shares) * 8):
        counts = np.cumsum(rng.multinomial(each, np.asarray(actual, np.float64), (count, looks)), axis=1)
        raised = split_p(log_bayes_factor(counts, shares)) <= ALARM
        expected = counts.sum(axis=-1)[..., None] * shares
        alarms.append(raised[:, -1])
        naive.append((((counts - expected) ** 2 / expected).sum(axis=-1) > limit).any(axis=1))
        when.append(np.where(raised[:, -1], (raised.argmax(axis=1) + 1.0) * each, np.inf))
    median = float(np.median(np.concatenate(when)))
    return Split(rate(np.concatenate(alarms)), rate(np.concatenate(naive)), median if np.isfinite(median) else None)


@dataclass(frozen=True, slots=True)
class Saving:
    """Users that find the better of two rankers with 80% power at 5%, by an A/B test on ``clicks_per_user`` and by interleaving.

    ``lift``: true relative gain in clicks. ``factor`` with its 95% interval (delta method on the two effects that it is made of).
    ``power`` of both with as many users as interleaving needs, by resampling.
    """

    lift: float
    ab_users: int
    interleaved_users: int
    factor: float
    factor_ci95: tuple[float, float]
    score: float
    power: dict[str, float]


def interleaving_gain(*, users: int, noise: tuple[float, float], resamples: int, seed: int) -> Saving:
    """Two rankers that see relevance through noise (standard deviations ``noise``), and users that differ in taste and activity.

    A user has a taste and an item a vector of 8 standard normal numbers, relevance is their product over √8. A list ranks 40 items and shows 10. A user
    has 1 + Poisson(4 · exponential) lists and clicks on the item in place j (from 0) with probability
    ``min(1, b · σ(2 relevance − 2) / (1 + 0.3 j))``, b log-normal (σ = 0.7) with mean 1: some click on everything, most on little.
    """
    rng = np.random.default_rng(seed)
    lists = 1 + rng.poisson(rng.standard_exponential(users) * 4.0)
    owner = np.repeat(np.arange(users), lists)
    bias = np.exp(0.7 * rng.standard_normal(users) - 0.7**2 / 2.0)
    taste = rng.standard_normal((users, 8))
    places = 1.0 / (1.0 + 0.3 * np.arange(10))
    expected, clicks = np.zeros((2, users)), np.zeros(users)
    scores = np.zeros(users)
    arm = rng.integers(0, 2, users)
    for part in np.array_split(np.arange(len(owner)), max(len(owner) // 20_000, 1)):
        who = owner[part]
        relevance = np.einsum("nd,ned->ne", taste[who], rng.standard_normal((len(part), 40, 8))) / np.sqrt(8.0)
        rankings = [np.argsort(-(relevance + sd * rng.standard_normal(relevance.shape)), axis=1) + 1 for sd in noise]
        wanted = bias[who][:, None] / (1.0 + np.exp(2.0 - 2.0 * relevance))
        shown = [np.minimum(np.take_along_axis(wanted, ranking[:, :10] - 1, 1) * places, 1.0) for ranking in rankings]
        for one in range(2):
            np.add.at(expected[one], who, shown[one].sum(axis=1))
        got = np.where((arm[who] == 0)[:, None], shown[0], shown[1])
        np.add.at(clicks, who, (rng.random(got.shape) < got).sum(axis=1))
        coins = rng.integers(0, 2, (len(part), 10)).astype(np.bool_)
        items, team = team_drafts(rankings[0], rankings[1], coins, 10)
        chance = np.minimum(np.take_along_axis(wanted, items - 1, 1) * places, 1.0)
        clicked = rng.random(chance.shape) < chance
        won = np.sign((clicked & (team == 2)).sum(axis=1) - (clicked & (team == 1)).sum(axis=1))
        np.add.at(scores, who, won)
    scores /= lists
    gain = expected[1].mean() - expected[0].mean()
    quantiles = norm.ppf(1.0 - ALPHA / 2.0) + norm.ppf(POWER)
    variance = clicks[arm == 0].var(ddof=1) + clicks[arm == 1].var(ddof=1)
    ab_users = 2.0 * variance * (quantiles / gain) ** 2
    needed = scores.var(ddof=1) * (quantiles / scores.mean()) ** 2
    parts = (expected[1] - expected[0], scores)
    off = 2.0 * norm.ppf(0.975) * np.sqrt(sum(one.var(ddof=1) / users / one.mean() ** 2 for one in parts))
    factor = float(ab_users / needed)
    by_ab, by_interleaving = [], []
    limit, count = norm.ppf(1.0 - ALPHA / 2.0), round(needed)
    for _ in range(resamples):
        drawn = rng.integers(0, users, count)
        mine = scores[drawn]
        by_interleaving.append(mine.mean() / (mine.std(ddof=1) / np.sqrt(count)) > limit)
        first, second = clicks[drawn][arm[drawn] == 0], clicks[drawn][arm[drawn] == 1]
        error = np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
        by_ab.append((second.mean() - first.mean()) / error > limit)
    return Saving(
        lift=float(gain / expected[0].mean()), ab_users=round(ab_users), interleaved_users=count, factor=factor,
        factor_ci95=(float(factor * np.exp(-off)), float(factor * np.exp(off))),
        score=float(scores.mean()), power={"ab": float(np.mean(by_ab)), "interleaving": float(np.mean(by_interleaving))},
    )  # fmt: skip


def _columns(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike = 1.0, before: npt.ArrayLike = 0.0, lists_before: npt.ArrayLike = 1.0
) -> Float64:  # fmt: skip
    made = np.empty((*np.shape(numerator), COLUMNS))
    for column, values in enumerate((numerator, denominator, before, lists_before)):
        made[..., column] = values
    return made


def _running(values: Float64, mine: npt.NDArray[np.bool_]) -> Moments:
    """Moments of the chosen users up to each look: leading axes (tests, looks)."""
    weights = mine.astype(np.float64)
    kept = values * weights[..., None]
    products = np.einsum("tlui,tluj->tlij", kept, values, optimize=True)
    return from_sums(
        np.cumsum(weights.sum(axis=2), axis=1), np.cumsum(kept.sum(axis=2), axis=1), np.cumsum(products, axis=1), np.zeros(COLUMNS)
    )  # fmt: skip


def _parts(count: int, each: int) -> Iterator[int]:
    """``count`` in parts of at most so many that _CHUNK users fit."""
    most = max(_CHUNK // each, 1)
    for start in range(0, count, most):
        yield min(most, count - start)
