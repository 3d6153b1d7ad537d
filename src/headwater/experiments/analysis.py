"""The analysis of an experiment: every metric of every treatment against the control, the split, the guardrails, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from headwater.experiments.decisions import Bounds, Finding, Verdict, Watched, verdicts, watch
from headwater.experiments.definitions import Guardrail
from headwater.experiments.effects import Effect, effect
from headwater.experiments.exposures import Arms
from headwater.experiments.fixed import FixedHorizon, fixed_horizon
from headwater.experiments.metrics import Metric
from headwater.experiments.moments import Moments, moments_by_look
from headwater.experiments.multiplicity import benjamini_hochberg, holm
from headwater.experiments.outcomes import Outcomes
from headwater.experiments.segments import Breakdown, breakdown
from headwater.experiments.sequences import FIRST_LOOK, always_valid_p, look_positions, mixture, sequence
from headwater.experiments.srm import Mismatch, mismatch

Role = Literal["primary", "guardrail", "secondary"]

LOOKS = 50
SPLIT_LOOKS = 200


class Look(Struct, frozen=True, kw_only=True):
    """What a report would have said earlier: after ``users`` of both variants, at ``time_ms``."""

    users: int
    time_ms: int
    relative: float | None
    sequence: Bounds


class Comparison(Struct, frozen=True, kw_only=True):
    """One metric of one treatment against the control. ``users`` (control, treatment) whose window is over.

    ``sequence`` and ``relative_sequence``: confidence sequences at 1 − alpha of the difference and of its share of the control, valid
    at every look; ``p_value`` likewise. ``fixed``: what holds for a single look. ``p_holm``, ``p_bh`` and ``fixed_p_holm``,
    ``fixed_p_bh`` are adjusted for the comparisons of the same ``role``. ``variance_ratio``: the variance that CUPED left (1: none was
    taken away). None: cannot be said yet.
    """

    metric: str
    variant: str
    role: Role
    better: Literal["increase", "decrease"]
    window: str
    users: tuple[int, int]
    control: float | None
    treatment: float | None
    difference: float | None
    sequence: Bounds
    relative: float | None
    relative_sequence: Bounds
    p_value: float
    fixed: FixedHorizon | None
    variance_ratio: float
    path: list[Look]
    p_holm: float = 1.0
    p_bh: float = 1.0
    fixed_p_holm: float | None = None
    fixed_p_bh: float | None = None


class ExperimentReport(Struct, frozen=True, kw_only=True):
    """``alpha``: level of all intervals and decisions; ``planned_users``: where confidence sequences are tightest; ``mixed``: users left
    out because they met several variants. ``verdicts``: of the whole, then of each treatment.
    """

    experiment: str
    variants: list[str]
    until_ms: int
    alpha: float
    planned_users: int
    users: dict[str, int]
    mixed: int
    split: Mismatch
    verdicts: list[Verdict]
    comparisons: list[Comparison]
    guardrails: list[Watched]
    breakdown: Breakdown


def analyse(
    experiment: str, arms: Arms, outcomes: Outcomes, metrics: Sequence[Metric], *, variants: Sequence[str],
    weights: Sequence[float], primary: Sequence[str], guardrails: Sequence[Guardrail] = (), alpha: float = 0.05,
    planned_users: int = 10_000, segment_names: Mapping[int, str] | None = None,
) -> ExperimentReport:  # fmt: skip
    """Analyse an experiment.

    Args:
        arms: the n users; ``outcomes`` has their columns in the same order.
        metrics: definitions of all columns; ``primary`` and ``guardrails`` name some of them.
        variants: names, the control first.
        weights: intended shares of the variants, in any unit.
        planned_users: in control and treatment together, chosen before the start.
        segment_names: texts of the dense segments to break the primary metrics down by.

    Raises:
        ValueError: names of metrics that there are none of, or a level outside (0, 1).
    """
    known = {metric.name for metric in metrics}
    missing = ({*primary} | {g.metric for g in guardrails}) - known
    if missing:
        raise ValueError(f"there is no metric {', '.join(sorted(missing))}; there are {', '.join(sorted(known))}")
    rho2 = mixture(alpha, planned_users)
    guarded = {guardrail.metric for guardrail in guardrails} - {*primary}
    treatments = range(1, len(variants))
    shared = alpha / max(len(guardrails) * len(treatments), 1)
    comparisons: list[Comparison] = []
    watched: list[Watched] = []
    for metric in metrics:
        role: Role = "primary" if metric.name in primary else "guardrail" if metric.name in guarded else "secondary"
        looks = _looks(metric, arms, outcomes, len(variants))
        for number in treatments:
            comparisons.append(_compare(metric, role, variants[number], looks, number, alpha, rho2))
            for guardrail in guardrails:
                if guardrail.metric == metric.name:
                    found = effect(looks.moments[:, 0], looks.moments[:, number])
                    low, high = _sequence(_early(found, looks, number), rho2, shared, relative=True)
                    last = _number(float(found.relative[-1]))
                    watched.append(watch(guardrail, variants[number], last, _bounds(low[-1], high[-1])))
    comparisons = _adjusted(comparisons)
    split = mismatch(_counts(arms, len(variants)), weights)
    findings = [_finding(one, alpha) for one in comparisons if one.role == "primary"]
    counts = np.bincount(arms.variant, minlength=len(variants))
    return ExperimentReport(
        experiment=experiment, variants=list(variants), until_ms=outcomes.until_ms, alpha=alpha, planned_users=planned_users,
        users=dict(zip(variants, counts.tolist(), strict=True)), mixed=arms.mixed, split=split,
        verdicts=verdicts(variants[1:], split, findings, watched), comparisons=comparisons, guardrails=watched,
        breakdown=breakdown(
            arms.variant, outcomes, [metric for metric in metrics if metric.name in primary], variants=variants, alpha=alpha,
            names=segment_names or {},
        ),
    )  # fmt: skip


class _Looks(Struct, frozen=True):
    moments: Moments  # leading axes (looks, variants)
    time_ms: npt.NDArray[np.int64]


def _looks(metric: Metric, arms: Arms, outcomes: Outcomes, variants: int) -> _Looks:
    """Users come in by the end of their window, which is the order of their first exposure: every look is at users who are through."""
    rows = np.flatnonzero(outcomes.complete[metric.name])
    rows = rows[np.argsort(arms.first_ms[rows], kind="stable")]
    ends = look_positions(len(rows), LOOKS)
    look = np.searchsorted(ends, np.arange(len(rows)), side="right")
    moments = moments_by_look(outcomes.values[metric.name][rows], arms.variant[rows], look, variants, len(ends))
    through = arms.first_ms[rows] + metric.window_ms
    time_ms = through[ends - 1] if len(rows) else np.full(len(ends), outcomes.until_ms)
    return _Looks(moments, time_ms)


def _early(found: Effect, looks: _Looks, number: int) -> Effect:
    """The same, with nothing said before there are enough users in both variants."""
    users = looks.moments.users
    unknown = np.minimum(users[:, 0], users[:, number]) < FIRST_LOOK
    return Effect(
        found.users, found.control, found.treatment, np.where(unknown, np.nan, found.difference), found.error,
        np.where(unknown, np.nan, found.relative), found.relative_error, found.variance_ratio,
    )  # fmt: skip


def _sequence(
    found: Effect, rho2: float, alpha: float, *, relative: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    estimate, error = (found.relative, found.relative_error) if relative else (found.difference, found.error)
    return sequence(estimate, np.nan_to_num(error), found.users, rho2, alpha)


def _compare(
    metric: Metric, role: Role, variant: str, looks: _Looks, number: int, alpha: float, rho2: float
) -> Comparison:
    control, treatment = looks.moments[:, 0], looks.moments[:, number]
    found = effect(control, treatment)
    said = _early(found, looks, number)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(said.error > 0.0, said.difference / said.error, np.nan)
    low, high = _sequence(said, rho2, alpha, relative=False)
    relative_low, relative_high = _sequence(said, rho2, alpha, relative=True)
    enough = math.isfinite(said.difference[-1]) and said.error[-1] > 0.0
    path = [
        Look(
            users=int(found.users[i]), time_ms=int(looks.time_ms[i]), relative=_number(float(said.relative[i])),
            sequence=_bounds(relative_low[i], relative_high[i]),
        )
        for i in range(len(low))
    ]  # fmt: skip
    return Comparison(
        metric=metric.name, variant=variant, role=role, better=metric.better, window=metric.window,
        users=(int(control.users[-1]), int(treatment.users[-1])),
        control=_number(float(found.control[-1])), treatment=_number(float(found.treatment[-1])),
        difference=_number(float(found.difference[-1])), sequence=_bounds(low[-1], high[-1]),
        relative=_number(float(found.relative[-1])), relative_sequence=_bounds(relative_low[-1], relative_high[-1]),
        p_value=float(always_valid_p(statistic, found.users, rho2)[-1]),
        fixed=fixed_horizon(control[-1], treatment[-1], alpha=alpha) if enough else None,
        variance_ratio=float(np.nan_to_num(found.variance_ratio[-1], nan=1.0)), path=path,
    )  # fmt: skip


def _adjusted(comparisons: list[Comparison]) -> list[Comparison]:
    made = list(comparisons)
    for role in ("primary", "guardrail", "secondary"):
        rows = [i for i, one in enumerate(made) if one.role == role]
        p_values = [made[i].p_value for i in rows]
        for i, by_holm, by_bh in zip(rows, holm(p_values), benjamini_hochberg(p_values), strict=True):
            made[i] = replace(made[i], p_holm=float(by_holm), p_bh=float(by_bh))
        fixed = [(i, f.p_value) for i in rows if (f := made[i].fixed) is not None]
        fixed_p = [p_value for _, p_value in fixed]
        for (i, _), by_holm, by_bh in zip(fixed, holm(fixed_p), benjamini_hochberg(fixed_p), strict=True):
            made[i] = replace(made[i], fixed_p_holm=float(by_holm), fixed_p_bh=float(by_bh))
    return made


def _finding(one: Comparison, alpha: float) -> Finding:
    if one.p_holm > alpha:
        return Finding(metric=one.metric, variant=one.variant, state="open")
    # the side that the evidence stood on: that of the sequence, which never comes back over 0
    low, _ = one.sequence
    increased = low is not None and low > 0.0
    return Finding(
        metric=one.metric, variant=one.variant, state="better" if increased == (one.better == "increase") else "worse"
    )


def _counts(arms: Arms, variants: int) -> npt.NDArray[np.int64]:
    """Users by variant at each look: ``int64[looks, variants]``."""
    order = np.argsort(arms.first_ms, kind="stable")
    ends = look_positions(len(order), SPLIT_LOOKS)
    counts = np.zeros((len(ends), variants), np.int64)
    for number in range(variants):
        so_far = np.concatenate([[0], np.cumsum(arms.variant[order] == number)])
        counts[:, number] = so_far[ends]
    return counts


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bounds(low: float, high: float) -> Bounds:
    return _number(float(low)), _number(float(high))
