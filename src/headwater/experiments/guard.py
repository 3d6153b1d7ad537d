"""Automatic rollback: experiments that do harm are stopped without anybody looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from headwater.experiments.decisions import Decision
from headwater.experiments.definitions import Experiment
from headwater.experiments.judge import NobodyExposedError, judge
from headwater.experiments.metrics import Metric
from headwater.log.protocol import EventLog
from headwater.schema.errors import HeadwaterError


class Guarded(Struct, frozen=True, kw_only=True):
    """What a look at an experiment came to. ``problem``: why it could not be judged; then it goes on, unguarded."""

    experiment: str
    decision: Decision
    reasons: list[str]
    users: int
    stopped: bool
    problem: str = ""


def guard(
    event_log: EventLog, experiments: Sequence[Experiment], metrics: Sequence[Metric], *,
    stop: Callable[[str, int, str], object], before_ms: int, alpha: float = 0.05, planned_users: int = 10_000,
) -> list[Guarded]:  # fmt: skip
    """Judge each of ``experiments`` and call ``stop(name, now_ms, why)`` for those whose verdict says so.

    It may be called as often as one likes: verdicts hold at all looks together. One that cannot be judged keeps no other from it.
    """
    seen = []
    for experiment in experiments:
        if experiment.interleave:
            seen.append(_nothing(experiment, "", "interleaved: all users get the same, so there is nothing to guard"))
            continue
        if experiment.shadow:
            seen.append(_nothing(experiment, "", "a shadow: nobody gets its lists, so there is nothing to guard"))
            continue
        try:
            report = judge(
                event_log, experiment, metrics, before_ms=before_ms, alpha=alpha, planned_users=planned_users
            )
        except NobodyExposedError:
            seen.append(_nothing(experiment, ""))
            continue
        except HeadwaterError as error:
            seen.append(_nothing(experiment, str(error)))
            continue
        verdict = report.verdicts[0]
        harmful = verdict.decision.startswith("stop")
        if harmful:
            stop(experiment.name, report.until_ms, f"{verdict.decision}: {'; '.join(verdict.reasons)}")
        seen.append(
            Guarded(
                experiment=experiment.name, decision=verdict.decision, reasons=verdict.reasons,
                users=sum(report.users.values()), stopped=harmful,
            )
        )  # fmt: skip
    return seen


def _nothing(experiment: Experiment, problem: str, reason: str = "nobody was exposed yet") -> Guarded:
    return Guarded(
        experiment=experiment.name, decision="continue", reasons=[] if problem else [reason], users=0,
        stopped=False, problem=problem,
    )  # fmt: skip
