"""The gate: what a new bundle has to show before it is promoted.

The verdict is a pure function of what was measured (:mod:`headwater.evaluation.heldout`), so that a report can be read,
and judged again, later.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headwater.evaluation.heldout import Trial
from headwater.registry.card import (
    CANDIDATE,
    IN_SERVICE,
    NDCG,
    RECENT_POPULARITY,
    SHOWN_NDCG,
    HeldLists,
    HeldOut,
    Measured,
)
from headwater.registry.listing import GateReport
from headwater.schema.models import Gate

MIN_QUESTIONS = 50  # fewer say nothing
FLOOR_MS = 0.25  # a difference below this is the clock's
MIN_VOCABULARY = 0.5
UNALIKE = (
    "one of the two bundles learnt from questions about clicks, which the gate asks, the other from lists as they were shown, and lists could not "
    "judge: their NDCG@10 was not compared, the candidate was held against recent popularity alone"
)


def verdict(
    gate: Gate, trial: Trial | None, *, version: str, against: str | None, judged_ms: int, problems: tuple[str, ...] = (),
    notes: tuple[str, ...] = (), alike: bool = True,
) -> GateReport:  # fmt: skip
    """Judge a candidate by its trial (``None``: it could not be tried, ``problems`` say why).

    Quality, where the trial has lists (one of the two learnt from them): NDCG of the shown items may not be lower by more than ``gate.margin``, with an effective
    sample size of ``gate.lists``; with less the upper end of the paired 95% interval may not be. Else on questions: with as many questions as ``gate.questions`` names, NDCG@10 may not be lower by more than ``gate.margin`` (a
    share of that of the bundle in service); with fewer, the upper end of the paired 95% interval may not be.
    Where lists cannot judge and the two are not ``alike`` (one learnt from questions, as the gate asks them, the other from lists as they were shown) questions favour
    one of them whatever people would say, and all that NDCG@10 can tell is whether the candidate is worse than recent popularity.
    Speed: neither 300 rows nor a whole list may take ``gate.slower`` times as long, beyond 0.25 ms.
    """
    reasons, said = list(problems), list(notes)
    held = None if trial is None else trial.held_out
    lists = None if held is None else held.lists
    if trial is not None:
        reasons += _sanity(trial)
    if against is None:
        said.append("no bundle of this plan is in service: it was compared with none, and passes for being sane")
    elif trial is not None:
        reasons += _comparison(gate, held, alike=alike)
        if not alike and lists is None:
            said.append(UNALIKE)
    if held is not None and held.no_lists:
        said.append(f"questions decide, not lists: {held.no_lists}")
    if held is not None:
        said += _beside_popularity(held.systems)
    elif trial is not None and against is None:
        said.append("no positive event was held out: no list of it was looked at")
    return GateReport(
        version=version, against=against, passed=not reasons, reasons=tuple(reasons), notes=tuple(said),
        margin=gate.margin, slower=gate.slower, questions=gate.questions, held_out=held, judged_ms=judged_ms,
        metric=NDCG if lists is None else SHOWN_NDCG, lists=gate.lists,
    )  # fmt: skip


def forced(report: GateReport) -> GateReport:
    """The report of a bundle that is promoted whatever it says."""
    return msgspec.structs.replace(report, forced=not report.passed)


def _sanity(trial: Trial) -> list[str]:
    found = []
    asked = 0 if trial.held_out is None else trial.held_out.questions
    if trial.unranked:
        found.append(f"{trial.unranked} of {asked} lists were not ranked: {trial.problem}")
    if trial.failed:
        found.append(f"a trained source failed in {trial.failed} of {asked} requests: {trial.problem}")
    coverage = {} if trial.held_out is None else trial.held_out.coverage
    found += [
        f'the source "{name}" had no offer in {asked} requests' for name, share in coverage.items() if share == 0.0
    ]
    found += [
        f'the vocabulary of the source "{name}" holds {share:.0%} of the items that were asked for (at least '
        f"{MIN_VOCABULARY:.0%} are needed): it was trained on another stretch of the log, or on another log"
        for name, share in trial.vocabulary.items()
        if share < MIN_VOCABULARY
    ]
    return found


def _comparison(gate: Gate, held: HeldOut | None, *, alike: bool) -> list[str]:
    asked = 0 if held is None else held.questions
    if held is None or (asked < MIN_QUESTIONS and held.lists is None):
        why = (
            f"only {asked} positive events lie behind what both bundles were trained on (at least {MIN_QUESTIONS} are "
            "needed): wait for more events or make gate.holdout longer"
        )
        return [why]
    candidate, other = held.systems[CANDIDATE], held.systems[IN_SERVICE]
    if held.lists is not None:
        worse = _on_lists(gate, held.lists)
    else:
        worse = _quality(gate, asked, other) if alike else _worse_than_popularity(held.systems[RECENT_POPULARITY])
    return worse + _speed(gate, candidate, other)


def _on_lists(gate: Gate, lists: HeldLists) -> list[str]:
    other = lists.systems[IN_SERVICE]
    over = other.relative_over
    if over is None:  # one user alone
        worse = other.ndcg_over is not None and other.ndcg_over.value < -gate.margin
        return [f"{SHOWN_NDCG} is lower, and how much cannot be said from one user"] if worse else []
    lower = over.value if lists.ess >= gate.lists else over.high
    if lower >= -gate.margin:
        return []
    why = (
        f"{SHOWN_NDCG} is lower by {-over.value:.1%} [{-over.high:.1%}, {-over.low:.1%}] than that of {other.version} on {lists.lists} lists as they "
        f"were shown (effective sample size {lists.ess:.0f}); gate.margin allows {gate.margin:.1%}"
    )
    return [why]


def _worse_than_popularity(popular: Measured) -> list[str]:
    over = popular.ndcg_over
    if over is None or over.high >= 0.0:
        return []
    return [f"recent popularity alone has a higher NDCG@10, by {-over.value:.4f} [{-over.high:.4f}, {-over.low:.4f}]"]


def _quality(gate: Gate, asked: int, other: Measured) -> list[str]:
    over = other.relative_over
    if over is None:  # the bundle in service found nothing at all, or one user alone asked
        worse = other.ndcg_over is not None and other.ndcg_over.value < -gate.margin
        return ["NDCG@10 is lower, and how much cannot be said from one user"] if worse else []
    lower = over.value if asked >= gate.questions else over.high
    if lower >= -gate.margin:
        return []
    why = (
        f"NDCG@10 is lower by {-over.value:.1%} [{-over.high:.1%}, {-over.low:.1%}] than that of {other.version} on {asked} "
        f"questions; gate.margin allows {gate.margin:.1%}"
    )
    return [why]


def _speed(gate: Gate, candidate: Measured, other: Measured) -> list[str]:
    pairs = [("a list", candidate.list_ms, other.list_ms)]
    if candidate.score_ms is not None and other.score_ms is not None:
        pairs.append(("ranking 300 rows", candidate.score_ms, other.score_ms))
    return [
        f"{what} takes {ours:.2f} ms and {theirs:.2f} ms with {other.version}; gate.slower allows {gate.slower:g} times"
        for what, ours, theirs in pairs
        if ours > gate.slower * theirs and ours - theirs > FLOOR_MS
    ]


def _beside_popularity(systems: Mapping[str, Measured]) -> list[str]:
    over = systems[RECENT_POPULARITY].ndcg_over if RECENT_POPULARITY in systems else None
    if over is None or over.value >= 0.0:
        return []
    return [f"recent popularity alone has a higher NDCG@10 (by {-over.value:.4f} [{-over.high:.4f}, {-over.low:.4f}])"]
