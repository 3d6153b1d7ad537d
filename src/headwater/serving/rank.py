"""Tiers 0 to 2: assemble → light rank → deep rank → value, and the merged order where ranking can't."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from headwater.features.assemble import Context
from headwater.ranking.ranker import Features, Ranker, RankerError, Scores, UnreachableError
from headwater.retrieval.fitted import Attended, SourceError
from headwater.retrieval.index import places
from headwater.retrieval.merge import Candidates
from headwater.retrieval.sources import Asked
from headwater.schema.config import Config
from headwater.serving.assembly import Assembly
from headwater.serving.model import Model
from headwater.serving.pace import LIGHT_SHARE, Pace
from headwater.serving.run import Run
from headwater.serving.scorer import RestingError, Scorer, StalledError
from headwater.serving.stages import TIER_FULL, TIER_LIGHT, TIER_RETRIEVAL
from headwater.serving.view import View

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

NO_ROWS = np.zeros((0, 0), np.float32)


class Moment(NamedTuple):
    """What a request is ranked with. ``k``: how many items are wanted."""

    asked: Asked
    view: View
    model: Model | None
    context: Context
    now_ms: int
    k: int


class Order(NamedTuple):
    """Positions of candidates, best first, and their scores. ``features`` and ``modelled`` are rows by position (of the
    first candidates, or of none): what the ranker was given.
    """

    positions: Int64
    scores: Float32
    features: Float32
    modelled: Float32

    def first(self, which: Int64) -> Order:
        """These of the positions, in this order."""
        return Order(self.positions[which], self.scores[which], self.features, self.modelled)

    def behind(self, left_out: Int64) -> Order:
        """The same with positions that it lacks behind the last, where rows were assembled of them if they were of any; their score is
        that of the last.
        """
        more = left_out[left_out < len(self.features)] if len(self.features) else left_out
        last = self.scores[-1:] if len(self.scores) else np.zeros(1, np.float32)
        return Order(
            np.concatenate([self.positions, more]), np.concatenate([self.scores, np.repeat(last, len(more))]), self.features,
            self.modelled,
        )  # fmt: skip


LEAST_ASK_MS = 5.0
"""With less time a ranker is not asked: a call that is given up counts against it, so one request with a deadline of a millisecond
would keep it away from everybody."""


class _Rows(NamedTuple):
    features: Features
    wide: Features
    modelled: Features


class TooLateError(RankerError):
    """There was no time to ask the ranker."""


class RankStage:
    """Orders the candidates of a request as well as deadline, bundle and ranker allow.

    ``keep``: so many candidates come through to the deep ranker (0: all), chosen by the light one or by the merged order.
    """

    def __init__(self, config: Config, assembly: Assembly, scorer: Scorer, pace: Pace) -> None:
        self.ranks = config.ranker.kind != "none"
        self.keep = config.ranker.light_keep
        self._by_merged = config.ranker.keep_by == "merged"
        self._narrow = max(round(LIGHT_SHARE * config.ranker.candidates), 1)
        self._assembly, self._scorer, self._pace = assembly, scorer, pace

    def rank(self, moment: Moment, candidates: Candidates, run: Run) -> Order:
        """The order of ``candidates``; steps down to the merged order when ranking can't, and says why."""
        if not self.ranks or not len(candidates):  # the merged order is what was asked for: nothing is missing
            return merged_order(candidates)
        model = moment.model
        if model is None or model.ranker is None:
            run.degrade(TIER_RETRIEVAL, "no ranker in service")
            return _unranked(candidates, None, run)
        if self.keep and self._by_merged:
            candidates = candidates.first(run.width(max(self.keep, moment.k), moment.k))
        rows: _Rows | None = None
        tried = False
        if run.tier == TIER_FULL and run.deadline.left_ms() < self._pace.rank_ms:
            run.degrade(TIER_LIGHT, "deadline: full ranking skipped")
        try:
            if run.tier == TIER_FULL:
                tried = True
                rows = self._rows(moment, model, candidates.items, run)
                return self._full(moment, model, model.ranker, candidates, rows, run)
        except (RankerError, SourceError) as error:
            self._failed("deep_rank", error, TIER_LIGHT, run)
        try:
            if run.tier == TIER_LIGHT:
                return self._light(moment, model, candidates, rows, tried, run)
        except (RankerError, SourceError) as error:
            self._failed("deep_rank" if model.light is None else "light_rank", error, TIER_RETRIEVAL, run)
        return _unranked(candidates, rows, run)

    # -- tiers -----------------------------------------------------------------------------------------

    def _full(
        self, moment: Moment, model: Model, ranker: Ranker, candidates: Candidates, rows: _Rows, run: Run
    ) -> Order:
        kept = np.arange(len(candidates))
        wide = rows.wide
        keep = run.width(max(self.keep, moment.k), moment.k)
        if self.keep and not self._by_merged and model.light is not None and keep < len(candidates):
            light = self._ask(model.light, wide, None, run.deadline.left_for_ms("light_rank"))
            kept = np.sort(places(candidates.items, light)[:keep])
            wide = wide[kept]
            run.lap("light_rank", len(kept))
        attention = _attention(moment, model, candidates.items[kept]) if ranker.attends else None
        scores = self._ask(ranker, wide, attention, run.deadline.left_for_ms("deep_rank"))
        run.mark("shortened" if run.quality < 1.0 else "ok")
        run.lap("deep_rank", len(kept))
        self._pace.ranked(sum(run.trace[s].ms for s in ("assemble", "light_rank", "deep_rank") if s in run.trace))
        return _ordered(kept, scores, candidates, rows, run)

    def _light(
        self, moment: Moment, model: Model, candidates: Candidates, rows: _Rows | None, tried: bool, run: Run
    ) -> Order:
        """Fewer candidates by the light ranker; by the ranker itself where there is none and it was not asked in vain."""
        ranker = model.light if model.light is not None else model.ranker
        if model.light is None and tried:
            run.degrade(TIER_RETRIEVAL, "no light ranker in the bundle")
            return _unranked(candidates, rows, run)
        if ranker is None or run.deadline.left_ms() < LIGHT_SHARE * self._pace.rank_ms:
            run.degrade(TIER_RETRIEVAL, "deadline: ranking skipped")
            return _unranked(candidates, rows, run)
        n = min(max(self._narrow, moment.k), len(candidates))
        narrow = np.arange(n)
        if rows is None:
            rows = self._rows(moment, model, candidates.items[:n], run)
        attention = _attention(moment, model, candidates.items[:n]) if ranker.attends else None
        scores = self._ask(ranker, rows.wide[:n], attention, run.deadline.left_for_ms("value"))
        run.mark("shortened")
        run.lap("light_rank" if model.light is not None else "deep_rank", n)
        return _ordered(narrow, scores, candidates, rows, run)

    # -- parts -----------------------------------------------------------------------------------------

    def _rows(self, moment: Moment, model: Model, items: Int64, run: Run) -> _Rows:
        features = self._assembly.features(
            moment.asked.user, moment.view, items, moment.context, moment.now_ms
        )  # fmt: skip
        rows = _Rows(features, *self._assembly.widened(moment.asked, model, moment.view, items, features))
        run.lap("assemble", len(items))
        return rows

    def _ask(self, ranker: Ranker, rows: Features, attention: Attended | None, limit_ms: float) -> Scores:
        if limit_ms < LEAST_ASK_MS:
            raise TooLateError("deadline: no time to ask the ranker")
        try:
            scores = np.ascontiguousarray(self._scorer.score(ranker, rows, attention, limit_ms), np.float32)
        except StalledError:
            self._assembly.replace()  # the thread may read these rows for as long as it hangs
            raise
        if not np.isfinite(scores).all():
            raise RankerError("a score that is not finite")
        return scores

    def _failed(self, stage: str, error: RankerError | SourceError, tier: int, run: Run) -> None:
        run.mark("failed")
        run.lap(stage)
        if isinstance(
            error, StalledError | RestingError | UnreachableError | TooLateError
        ):  # what is to be logged, the scorer does
            run.degrade(tier, str(error))
        else:
            log.error("ranker_failed", error=str(error), stage=stage)
            run.degrade(tier, f"ranker failed: {error}")


def _attention(moment: Moment, model: Model, items: Int64) -> Attended:
    if model.attended is None:
        raise RankerError("the ranker attends to the recent sequence, its bundle has no source with vectors")
    return model.attended.attend(moment.asked, moment.view.index, items)


def _ordered(positions: Int64, scores: Scores, candidates: Candidates, rows: _Rows, run: Run) -> Order:
    """Best first, equal scores by item number."""
    order = places(candidates.items[positions], scores)
    run.lap("value", len(order))
    return Order(positions[order], scores[order], rows.features, rows.modelled)


def merged_order(candidates: Candidates, rows: _Rows | None = None) -> Order:
    """The candidates as they came, with the rows that were assembled of them, if there are any of all."""
    if rows is None or len(rows.features) < len(candidates):
        return Order(np.arange(len(candidates)), candidates.scores, NO_ROWS, NO_ROWS)
    return Order(np.arange(len(candidates)), candidates.scores, rows.features, rows.modelled)


def _unranked(candidates: Candidates, rows: _Rows | None, run: Run) -> Order:
    if "deep_rank" not in run.trace:
        run.skip("deep_rank")
    run.lap("value", len(candidates))
    return merged_order(candidates, rows)
