"""What whoever is on call wants to know first: are recommendations fresh, fast and good?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.console.words import age, percent
from headwater.schema.seen import Pulse

LAG_WARN, LAG_BAD = 500, 10_000
"""Records that the fold is behind; a worker that is further behind than the second is not ready."""
FRESH_WARN_MS, FRESH_BAD_MS = 100.0, 1_000.0
FAST_MS, SLOW_MS = 50.0, 100.0
"""P95 of the time to answer: the deadline, and what the reliability table allows under any fault."""
FULL_GOOD, FULL_BAD = 0.95, 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question, its answer in a word, the figure that it rests on, and a line about that. ``tone``: good, warn, bad, or "": not known."""

    question: str
    answer: str
    figure: str
    note: str
    tone: str


def verdicts(pulse: Pulse, ctr: float | None, reasons: Sequence[str]) -> list[Verdict]:
    """The three of them. ``ctr`` is clicks per item shown (None: not measured), ``reasons`` are those of ``/readyz``."""
    unknown = "no requests" if pulse.window_s else "one moment"
    return [_fresh(pulse, reasons), _fast(pulse, unknown), _good(pulse, ctr, unknown)]


def _fresh(pulse: Pulse, reasons: Sequence[str]) -> Verdict:
    late_ms = pulse.fresh_ms or 0.0
    tone = "good"
    if reasons or pulse.lag > LAG_BAD or late_ms > FRESH_BAD_MS:
        tone = "bad"
    elif pulse.lag > LAG_WARN or late_ms > FRESH_WARN_MS:
        tone = "warn"
    answer = {"good": "yes", "warn": "a little late", "bad": "no"}[tone]
    if pulse.fresh_ms is None:
        note = reasons[0] if reasons else "records that the fold has still to take up"
        return Verdict("Fresh?", answer, f"{pulse.lag:,} behind", note, tone)
    note = reasons[0] if reasons else f"P95 from event to list; the fold is {pulse.lag:,} records behind"
    return Verdict("Fresh?", answer, age(pulse.fresh_ms), note, tone)


def _fast(pulse: Pulse, unknown: str) -> Verdict:
    p50, p95, p99 = pulse.request_ms
    if p50 is None or p95 is None or p99 is None:
        return Verdict("Fast?", unknown, "–", "P95 of the time to answer", "")
    tone = "good" if p95 <= FAST_MS else "warn" if p95 <= SLOW_MS else "bad"
    answer = {"good": "yes", "warn": "slow", "bad": "no"}[tone]
    return Verdict("Fast?", answer, f"{p95:.3g} ms", f"P95; P50 {p50:.3g} ms, P99 {p99:.3g} ms", tone)


def _good(pulse: Pulse, ctr: float | None, unknown: str) -> Verdict:
    if not sum(pulse.tiers):
        return Verdict(
            "Good?",
            unknown,
            percent(ctr),
            "clicks per item shown" if ctr is not None else "answers of the full path",
            "",
        )
    full = pulse.tiers[0]
    tone = "good" if full >= FULL_GOOD else "warn" if full >= FULL_BAD else "bad"
    answer = {"good": "yes", "warn": "partly", "bad": "no"}[tone]
    if ctr is None:
        return Verdict("Good?", answer, percent(full), "answers of the full path", tone)
    return Verdict("Good?", answer, percent(ctr), f"clicks per item shown; {percent(full)} of the full path", tone)
