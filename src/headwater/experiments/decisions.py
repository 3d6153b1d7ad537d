"""What to do with an experiment: guardrails, and the verdict.

Ship when something that was to improve did and no guardrail is at risk; stop when one is violated. That guardrails have to be shown to
hold, not only not shown to fail: Schultzberg, Ankargren & Frånberg, "Risk-aware product decisions in A/B tests with multiple
metrics" (2024). All of it rests on confidence sequences, so it may be asked at any time, as often as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from headwater.experiments.definitions import Guardrail
from headwater.experiments.srm import Mismatch

Decision = Literal["continue", "stop: harm", "stop: invalid", "ship"]
State = Literal["held", "violated", "open"]
Bounds = tuple[float | None, float | None]


class Watched(Struct, frozen=True, kw_only=True):
    """A guardrail as it stands for one variant. ``relative`` change against the control, with its confidence ``sequence`` (None: no
    end on that side yet) at the level that the guardrails share out among themselves. ``held``: the whole sequence is on the safe
    side of the bound, ``violated``: on the other, ``open``: neither is known.
    """

    metric: str
    variant: str
    direction: Literal["decrease", "increase"]
    bound: float
    relative: float | None
    sequence: Bounds
    state: State


class Finding(Struct, frozen=True, kw_only=True):
    """What is known of a metric that decides: ``better`` or ``worse`` than the control beyond doubt, or ``open``."""

    metric: str
    variant: str
    state: Literal["better", "worse", "open"]


class Verdict(Struct, frozen=True, kw_only=True):
    """``decision``, for the variant ``variant`` ("": the experiment as a whole), and why."""

    decision: Decision
    variant: str
    reasons: list[str]


def watch(guardrail: Guardrail, variant: str, relative: float | None, sequence: Bounds) -> Watched:
    """Hold a guardrail against the confidence sequence of the relative change."""
    low, high = sequence
    if guardrail.direction == "increase":  # harm is on the right: turn it round
        low, high = (None if high is None else -high), (None if low is None else -low)
    state: State = "open"
    if high is not None and high < -guardrail.bound:
        state = "violated"
    elif low is not None and low > -guardrail.bound:
        state = "held"
    return Watched(
        metric=guardrail.metric, variant=variant, direction=guardrail.direction, bound=guardrail.bound, relative=relative,
        sequence=sequence, state=state,
    )  # fmt: skip


def verdicts(
    variants: Sequence[str], split: Mismatch, findings: Sequence[Finding], guardrails: Sequence[Watched]
) -> list[Verdict]:
    """The verdict on the experiment as a whole, then on each of the treatments ``variants``.

    A guardrail without a margin (bound 0) can't be shown to hold by something that changes nothing: it holds up shipping only once
    it is violated.
    """
    if split.alarm:
        said = (
            f"the split over the variants is not the intended one (p = {split.p_value:.2g}, counts {split.counts}, "
            f"expected {[round(count) for count in split.expected]}): find out who is lost before anything else is believed"
        )
        return [Verdict(decision="stop: invalid", variant=variant, reasons=[said]) for variant in ("", *variants)]
    each = [_verdict(variant, findings, guardrails) for variant in variants]
    order: tuple[Decision, ...] = ("stop: harm", "ship", "continue")
    overall = next(decision for decision in order if any(verdict.decision == decision for verdict in each))
    reasons = [f"{v.variant}: {reason}" for v in each if v.decision == overall for reason in v.reasons]
    return [Verdict(decision=overall, variant="", reasons=reasons), *each]


def _verdict(variant: str, findings: Sequence[Finding], guardrails: Sequence[Watched]) -> Verdict:
    mine = [finding for finding in findings if finding.variant == variant]
    watched = [guardrail for guardrail in guardrails if guardrail.variant == variant]
    harm = [
        f"guardrail {g.metric} is violated: a {g.direction} of more than {g.bound:.1%}"
        for g in watched
        if g.state == "violated"
    ]
    harm += [f"{finding.metric} is worse" for finding in mine if finding.state == "worse"]
    if harm:
        return Verdict(decision="stop: harm", variant=variant, reasons=harm)
    waiting = [f"guardrail {g.metric} is not known to hold" for g in watched if g.state == "open" and g.bound > 0.0]
    good = [f"{finding.metric} is better" for finding in mine if finding.state == "better"]
    if good and not waiting:
        return Verdict(decision="ship", variant=variant, reasons=good)
    return Verdict(
        decision="continue", variant=variant, reasons=waiting if good else ["nothing is known to be better yet"]
    )
