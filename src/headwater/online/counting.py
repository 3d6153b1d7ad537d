"""What is counted of each answer.

It costs 4 µs, and 38 µs where the ranker has just had the processor's caches (measured on two busy cores). So answers wait, and are
counted many at a time. What waits is what is counted and nothing else: whole answers
would keep the feature rows of 64 lists, about half a megabyte, alive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.online.metrics import Metrics
from headwater.online.recommender import Asked
from headwater.schema.requests import Explored, Promised
from headwater.serving.request import NO_ITEMS, Answer
from headwater.serving.run import Lap
from headwater.serving.scorer import ThreadScorer
from headwater.serving.stages import Outcome

BATCH = 64  # answers that wait to be counted, at most


class _Counted(NamedTuple):
    """What of an answer is counted. ``items`` are there when they were drawn by lot."""

    surface: str
    tier: int
    trace: dict[str, Lap]
    widths: dict[str, int]
    missed: dict[str, Outcome]
    rules: dict[str, int]
    walked: int
    items: npt.NDArray[np.int64]
    explored: Explored | None
    promised: Promised | None


class AnswerCounts:
    """Carries what answers say of themselves into ``metrics``, which bring over what waits here whenever they are flushed."""

    def __init__(self, metrics: Metrics, scorer: ThreadScorer) -> None:
        self._metrics, self._scorer = metrics, scorer
        self._stalls = 0
        self._answers: list[_Counted] = []
        self._logged_s: list[float] = []
        metrics.gather_first(self)

    def count(self, asked: Asked, answer: Answer) -> None:
        """Count ``answer``, soon."""
        items = NO_ITEMS if answer.explored is None else answer.items
        self._answers.append(
            _Counted(
                asked.query.surface, answer.tier, answer.trace, answer.widths, answer.missed, answer.rules, answer.walked,
                items, answer.explored, answer.promised,
            )
        )  # fmt: skip
        if len(self._answers) >= BATCH:
            self.flush()

    def log(self, seconds: float) -> None:
        """Count what it took to hand the list to the log, soon."""
        self._logged_s.append(seconds)

    def flush(self) -> None:
        """Count what waits."""
        answers, logged_s, self._answers, self._logged_s = self._answers, self._logged_s, [], []
        for answer in answers:
            self._count(answer)
        for seconds in logged_s:
            self._metrics.stages["log"].observe(seconds)
        if (stalls := self._scorer.stalls) > self._stalls:
            self._metrics.stalls.inc(stalls - self._stalls)
            self._stalls = stalls

    def _count(self, answer: _Counted) -> None:
        metrics, surface, took_ms = self._metrics, answer.surface, 0.0
        tier = _TIERS[answer.tier]
        stages, items = metrics.stages, metrics.stage_items
        for stage, (ms, width, outcome) in answer.trace.items():
            took_ms += ms
            if outcome != "skipped":
                stages[stage].observe(ms * 1e-3)
            if outcome != "ok":
                metrics.stage_outcomes[stage, outcome] += 1.0
            if width:
                items[stage] += width
        metrics.tiers[tier, surface] += 1.0
        metrics.answer_seconds[tier].observe(took_ms * 1e-3)
        for source, width in answer.widths.items():
            if width:
                metrics.candidates[source] += width
            else:
                metrics.source_outcomes[source, answer.missed.get(source, "empty")] += 1.0
        for rule, count in answer.rules.items():
            metrics.rules[rule] += count
        if answer.walked:
            metrics.walked[str(answer.walked)] += 1.0
        if answer.explored is not None:
            metrics.explored[surface] += 1.0
            metrics.explored_places[surface] += explored_places(answer.items, answer.explored, answer.promised)
        if answer.promised is not None:
            metrics.new_item_places[surface] += sum(answer.promised.kept)


def explored_places(items: npt.NDArray[np.int64], explored: Explored, promised: Promised | None) -> int:
    """What an explored list of ``items`` int64[k] spends: its places whose item was drawn and is none of the best, which would have stood there without the lot.

    Places that went to a promised new item are spent by the promise.
    """
    best, drawn = explored.candidates[: len(items)], np.isin(items, explored.candidates)
    if promised is not None:
        drawn[[place for place, kept in zip(promised.places, promised.kept, strict=True) if kept]] = False
    return int(np.count_nonzero(drawn & ~np.isin(items, best)))


_TIERS = [str(tier) for tier in range(5)]
