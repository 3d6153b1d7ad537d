"""The Open Bandit Dataset (Saito, Aihara, Matsutani and Narita, NeurIPS 2021): the value of one policy from the log of the other, beside what it really earned.

Two policies served the same days: uniformly random, and Bernoulli Thompson sampling (BTS). The mean click of the log of a policy is its value, and the truth here;
with 46 to 69 clicks a log that truth is known to a quarter, which is why it comes with an interval too.

BTS knows no context: what it gave an item at a position is a number that moved with time. Its logged propensities are those of the moment and only of the item that was
shown. For rows of the random log its probability is the share of the position's rows in which BTS showed the item: the mean of what it gave, over the time
of the log (the mean of the logged propensities is not: an item is logged more often while it is likely). Since click rates do not follow
that clock, the policy that gives this mean throughout has the value of BTS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from msgspec import Struct

from headwater.evaluation.metrics import mean_interval
from headwater.evaluation.off_policy.estimators import Judgement, judge
from headwater.evaluation.off_policy.feedback import Feedback, Overlap, OverlapError, check_overlap
from headwater.evaluation.off_policy.intervals import Clusters, Interval
from headwater.evaluation.off_policy.reward_model import cross_fit
from headwater.schema.errors import HeadwaterError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CAMPAIGNS = ("men", "women")
POLICIES = ("random", "bts")
POSITIONS = 3
PUBLISHED = {"DM": 0.157, "IPS": 0.311, "SNIPS": 0.312, "DR": 0.292, "Switch-DR": 0.258, "DRos": 0.160}

_COLUMNS = ("item_id", "position", "click", "propensity_score", *(f"user_feature_{n}" for n in range(4)))
_EVERYTHING = Overlap(least_ess=0.0, most_uncovered=1.0)


class RelativeError(Struct, frozen=True, kw_only=True):
    """``|value − truth| / truth`` of the whole log, its ``mean`` over bootstraps of the log and the 95% ``interval`` of these; ``value`` with its asymptotic
    interval, and the published mean error of the estimator (random to BTS, campaign "All", small sample).
    """

    value: float
    ci95: Interval
    relative_error: float
    mean: float
    interval: Interval
    published: float | None


class Direction(Struct, frozen=True, kw_only=True):
    """The value of policy ``to`` from the log of policy ``of``. ``refused`` is what an evaluation would say instead of a value (``None``: it would give one)."""

    campaign: str
    of: str
    to: str
    rows: int
    clicks: int
    logged: float
    truth: float
    truth_ci95: Interval
    ess: float
    max_weight: float
    mean_weight: float
    refused: str | None
    estimators: dict[str, RelativeError]


class _Log(NamedTuple):
    """n rows: ``item``, ``position`` (from 0) int64[n], ``click``, ``propensity`` float64[n], ``user`` float64[n, u] (what is known of the user, 0 or 1)."""

    item: Int64
    position: Int64
    click: Float64
    propensity: Float64
    user: Float64

    def take(self, rows: Int64) -> _Log:
        """These of the rows."""
        return _Log(
            self.item[rows], self.position[rows], self.click[rows], self.propensity[rows], self.user[rows]
        )  # fmt: skip


def measure_open_bandit(folder: Path, *, bootstraps: int, seed: int) -> list[Direction]:
    """Both directions of both campaigns in ``folder`` (``random_men.parquet``, …).

    Raises:
        HeadwaterError: a file is missing or is not of this data set.
    """
    found = []
    for campaign in CAMPAIGNS:
        logs = dict(zip(POLICIES, _read(folder, campaign), strict=True))
        for of, to in (("random", "bts"), ("bts", "random")):
            found.append(_direction(campaign, of, to, logs[of], logs[to], bootstraps, seed))
    return found


def _read(folder: Path, campaign: str) -> Iterator[_Log]:
    """The logs of :data:`POLICIES`, with the same columns for what is known of the user."""
    frames = []
    for policy in POLICIES:
        path = folder / f"{policy}_{campaign}.parquet"
        if not path.is_file():
            raise HeadwaterError(
                f"{path} is missing: --data names the folder with the four logs of the Open Bandit Dataset"
            )
        frame = pl.read_parquet(path)
        missing = [name for name in _COLUMNS if name not in frame.columns]
        if missing:
            raise HeadwaterError(f"{path} has no column {missing[0]}: it is no log of the Open Bandit Dataset")
        frames.append(frame.select(_COLUMNS))
    both = pl.concat([frame.select(pl.col("^user_feature_.*$")) for frame in frames]).to_dummies()
    start = 0
    for frame in frames:
        yield _Log(
            frame["item_id"].to_numpy().astype(np.int64), frame["position"].to_numpy().astype(np.int64) - 1,
            frame["click"].to_numpy().astype(np.float64), frame["propensity_score"].to_numpy().astype(np.float64),
            both.slice(start, len(frame)).to_numpy().astype(np.float64),
        )  # fmt: skip
        start += len(frame)


def shares(log: _Log, items: int) -> Float64:
    """The share of each item among the rows of each position, float64[POSITIONS, items]."""
    counts = np.zeros((POSITIONS, items))
    np.add.at(counts, (log.position, log.item), 1.0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _direction(campaign: str, of: str, to: str, log: _Log, other: _Log, bootstraps: int, seed: int) -> Direction:
    items = int(max(log.item.max(), other.item.max())) + 1
    policy = np.full((POSITIONS, items), 1.0 / items) if to == "random" else shares(other, items)
    truth, truth_ci95 = mean_interval(other.click, np.arange(len(other.click)))
    whole = _judged(log, policy, seed)
    rng = np.random.default_rng(seed)
    errors: dict[str, list[float]] = {name: [] for name in whole.estimates}
    for _ in range(bootstraps):
        rows = rng.integers(0, len(log.item), len(log.item))
        again = _judged(log.take(rows), policy, seed)
        for name, one in again.estimates.items():
            errors[name].append(abs(one.value - truth) / truth)
    weights = policy[log.position, log.item] / log.propensity
    refused = None
    try:
        check_overlap(weights, None, Overlap())
    except OverlapError as error:
        refused = str(error)
    return Direction(
        campaign=campaign, of=of, to=to, rows=len(log.item), clicks=int(log.click.sum()), logged=float(log.click.mean()),
        truth=truth, truth_ci95=truth_ci95, ess=whole.ess, max_weight=whole.max_weight, mean_weight=whole.mean_weight,
        refused=refused,
        estimators={
            name: RelativeError(
                value=one.value, ci95=one.ci95, relative_error=abs(one.value - truth) / truth, mean=float(np.mean(errors[name])),
                interval=(float(np.quantile(errors[name], 0.025)), float(np.quantile(errors[name], 0.975))),
                published=PUBLISHED.get(name) if of == "random" else None,
            )
            for name, one in whole.estimates.items()
        },
    )  # fmt: skip


def _judged(log: _Log, policy: Float64, seed: int) -> Judgement:
    """A reward model of item, position and user, and every estimator with it; nothing is refused: the figures are there to be looked at."""
    n, items = len(log.item), policy.shape[1]
    place = np.eye(POSITIONS)[log.position]
    features = np.concatenate([place, np.eye(items)[log.item], log.user], axis=1)
    expected = np.concatenate([place, policy[log.position], log.user], axis=1)
    model = cross_fit(features, expected, log.click, Clusters.by(None, n), seed=seed)
    feedback = Feedback(log.click, log.propensity, policy[log.position, log.item])
    return judge(feedback, model, overlap=_EVERYTHING, draws=0)
