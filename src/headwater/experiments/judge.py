"""From the log to the report: exposures, outcomes, analysis. And what a metric looks like before there is an experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.experiments.analysis import ExperimentReport, analyse
from headwater.experiments.definitions import Experiment
from headwater.experiments.effects import effect
from headwater.experiments.exposures import first_exposures, read_exposures
from headwater.experiments.metrics import Metric
from headwater.experiments.moments import moments_by_look
from headwater.experiments.outcomes import read_outcomes
from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.log.record import Kind, Namespace, of_people
from headwater.log.seek import last_before
from headwater.schema.errors import HeadwaterError

DEFAULT_PRIMARY = ("clicks_per_user",)
DAY_MS = 86_400_000
RECORDED_WITHIN_MS = 5_000  # a list and its exposure are recorded a moment after it was given, in either order


class NobodyExposedError(HeadwaterError):
    """An experiment that nobody has met yet."""


def judge(
    event_log: EventLog, experiment: Experiment, metrics: Sequence[Metric], *, before_ms: int = 14 * DAY_MS,
    alpha: float = 0.05, planned_users: int = 10_000, until_ms: int | None = None,
) -> ExperimentReport:  # fmt: skip
    """Analyse ``experiment`` from the log, as it stood at ``until_ms`` (None: now).

    Its ``metrics`` decide (``clicks_per_user`` when it names none), its guardrails stop it, all others of ``metrics`` are looked at.

    Raises:
        HeadwaterError: it names a metric that is not among ``metrics``, or is interleaved (:mod:`headwater.experiments.credits` judges those).
        NobodyExposedError: nobody was exposed to its variants as they are.
    """
    if experiment.interleave:
        raise HeadwaterError(
            f'experiment "{experiment.name}" is interleaved: there is no split to judge; `headwater experiments report` says whose items are clicked'
        )
    names = experiment.variant_names
    primary = experiment.metrics or DEFAULT_PRIMARY
    known = [metric.name for metric in metrics]
    missing = sorted(({*primary} | {guardrail.metric for guardrail in experiment.guardrails}) - {*known})
    if missing:
        raise HeadwaterError(
            f'experiment "{experiment.name}": there is no metric {", ".join(missing)}; define it in a file (--metrics) or take one of '
            f"{', '.join(known)}"
        )
    found = read_exposures(
        event_log, experiment.name, names, version=experiment.version, since_ms=experiment.started_ms, until_ms=until_ms
    )
    if not len(found):
        raise NobodyExposedError(
            f'experiment "{experiment.name}": nobody was exposed to its variants as they are now; start it, serve lists, then ask again'
        )
    arms = first_exposures(found)
    outcomes = read_outcomes(
        event_log, metrics, user=arms.user, first_ms=arms.first_ms - RECORDED_WITHIN_MS, before_ms=before_ms, until_ms=until_ms
    )  # fmt: skip
    texts = event_log.vocabulary().texts(Namespace.SEGMENT)
    return analyse(
        experiment.name, arms, outcomes, metrics, variants=names, weights=[variant.weight for variant in experiment.variants],
        primary=primary, guardrails=experiment.guardrails, alpha=alpha, planned_users=planned_users,
        segment_names={number: text for number, text in enumerate(texts) if number},
    )  # fmt: skip


class Baseline(Struct, frozen=True, kw_only=True):
    """A metric without an experiment: ``mean``, ``variance`` between users, ``variance_ratio`` that CUPED leaves, of ``users`` who came
    by in a window's time, ``users_per_day`` of it.
    """

    metric: str
    mean: float
    variance: float
    variance_ratio: float
    users: int
    users_per_day: float


def baseline(event_log: EventLog, metric: Metric, *, before_ms: int = 14 * DAY_MS) -> Baseline:
    """What an experiment would have measured in the control, had it begun two windows ago.

    Users count from their first event in the window before the last one.

    Raises:
        HeadwaterError: fewer than two users, or a metric that is nothing for all of them.
    """
    last_ms = event_log.last_received_ms
    user, first_ms = first_visits(event_log, last_ms - 2 * metric.window_ms, last_ms - metric.window_ms)
    outcomes = read_outcomes(event_log, [metric], user=user, first_ms=first_ms, before_ms=before_ms)
    nobody = np.zeros(len(user), np.int64)
    found = moments_by_look(outcomes.values[metric.name], nobody, nobody, 1, 1)[0, 0]
    same = effect(found, found)
    plain = effect(found, found, cuped=False)
    if len(user) < 2 or not np.isfinite(plain.control) or not plain.error > 0.0:
        raise HeadwaterError(
            f"{metric.name} cannot be measured on this log: {len(user)} users came by from {2 * metric.window_ms} to {metric.window_ms} ms "
            "before its end. Give --mean and --sd, or a shorter --window"
        )
    return Baseline(
        metric=metric.name, mean=float(plain.control), variance=float(plain.error) ** 2 * len(user) / 2,
        variance_ratio=min(float(same.variance_ratio), 1.0), users=len(user), users_per_day=len(user) * DAY_MS / metric.window_ms,
    )  # fmt: skip


def first_visits(
    event_log: EventLog, since_ms: int, until_ms: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # fmt: skip
    """Users with an event in ``[since_ms, until_ms)`` and the time of their first one there: (int64[n] ascending, int64[n])."""
    never = np.iinfo(np.int64).max
    first = np.full(1, never, np.int64)
    at = last_before(event_log, since_ms)[0]
    while at < event_log.last_offset and (block := event_log.read(at, READ_LIMIT)) is not None:
        records, at = block.records, block.last_offset
        if int(records["received_ms"][0]) >= until_ms + DAY_MS:  # later ones may be late, but not by that much
            break
        chosen = records[
            of_people(records, Kind.EVENT) & (records["time_ms"] >= since_ms) & (records["time_ms"] < until_ms)
        ]
        if len(chosen):
            most = int(chosen["user"].max())
            if most >= len(first):
                first = np.concatenate([first, np.full(max(most + 1, 2 * len(first)) - len(first), never, np.int64)])
            np.minimum.at(first, chosen["user"].astype(np.int64), chosen["time_ms"])
    user = np.flatnonzero(first < never)
    return user, first[user]
