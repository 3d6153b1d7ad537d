"""The last stretch of the log, held out of training, and what systems do on it: the measurements behind the gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.evaluation.held_lists import ScoredLists
from headwater.evaluation.metrics import METRICS, compare, gains, mean_interval, ranks_in
from headwater.evaluation.seen import Seen
from headwater.evaluation.unprompted import Unprompted
from headwater.evaluation.walk import Answers, Before, Pick, Progress, System, walk
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.zones import Zones
from headwater.learning.trainingset import positive_types, positives
from headwater.log.protocol import EventLog
from headwater.log.record import Namespace, RecordBlock
from headwater.log.seek import last_before
from headwater.ranking.ranker import Attention, Features, Multihead, Ranker, Scores
from headwater.registry.card import (
    CANDIDATE,
    IN_SERVICE,
    RECENT_POPULARITY,
    Estimate,
    HeldOut,
    Measured,
    SegmentFigures,
)
from headwater.retrieval.sources import Trending, configured_sources
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.view import FoldView

Int64 = npt.NDArray[np.int64]

LARGEST_SHARE = 10  # at most a tenth of the positive events is held out
MIN_SEGMENT, MOST_SEGMENTS = 30, 12
ROWS = 300  # what a request ranks


@dataclass(frozen=True, slots=True)
class Stretch:
    """Offsets behind ``split`` up to and with ``until``, with ``positives`` positive events."""

    split: int
    until: int
    positives: int


@runtime_checkable
class Knows(Protocol):
    """A fitted source that can tell which items its vocabulary holds."""

    def knows(self, items: Int64) -> npt.NDArray[np.bool_]: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """What the candidate showed. ``held_out`` is ``None`` when there was nothing to ask.

    ``unranked`` and ``failed``: of the questions, those whose list was not ranked, and those in which a trained source
    failed; ``problem`` is what was said then. ``vocabulary``: by source, the share of the items in the questions that were
    there before the split and that it knows. ``seen``: what the candidate's lists looked like.
    """

    held_out: HeldOut | None
    unranked: int = 0
    failed: int = 0
    problem: str = ""
    vocabulary: Mapping[str, float] = field(default_factory=dict)
    seen: Seen | None = None


def held_out_stretch(log: EventLog, config: Config, *, until: int, until_ms: int, start_ms: int = 0) -> Stretch:
    """The last ``gate.holdout`` of the log before ``until``; longer where it has fewer positive events than ``gate.questions``.

    At most a tenth of the positive events received from ``start_ms`` on is held out, however long that is.
    """
    positive = positive_types(log, config)
    after = last_before(log, start_ms)[0] if start_ms else log.first_offset - 1
    split = last_before(log, until_ms - parse_duration(config.gate.holdout))[0]
    blocks: list[tuple[int, int]] = []
    total = behind = 0
    while after < until and (block := log.read(after)) is not None:
        hits = _offsets(block, positive, until)
        total += len(hits)
        behind += int((hits > split).sum())
        blocks.append((after, len(hits)))
        after = block.last_offset
    wanted = min(max(behind, config.gate.questions), total // LARGEST_SHARE)
    if wanted == behind:
        return Stretch(min(split, until), until, behind)
    counted = 0
    for after, hit in reversed(blocks):
        if counted + hit > wanted and (block := log.read(after)) is not None:
            split = int(_offsets(block, positive, until)[hit - (wanted - counted) - 1])
            return Stretch(split, until, wanted)
        counted += hit
    return Stretch(until, until, 0)


def behind(log: EventLog, config: Config, split: int, until: int) -> Stretch:
    """The stretch behind ``split``."""
    positive, after, count = positive_types(log, config), split, 0
    while after < until and (block := log.read(after)) is not None:
        count += len(_offsets(block, positive, until))
        after = block.last_offset
    return Stretch(split, until, count)


def newest(log: EventLog, config: Config, stretch: Stretch, lists: Int64) -> Stretch:
    """The end of ``stretch`` with the last ``gate.questions`` of its positive events, and with the last ``gate.lists`` of the ``lists`` that can judge on it
    (their :func:`~headwater.evaluation.held_lists.addresses`) where there are so many; all of it where it has no more.
    """
    asked = _newest_asked(log, config, stretch)
    if len(lists) < config.gate.lists:  # they cannot judge, however long it is
        return asked
    split = int(lists[-config.gate.lists])
    return asked if asked.split <= split else behind(log, config, split, stretch.until)


def _newest_asked(log: EventLog, config: Config, stretch: Stretch) -> Stretch:
    left, positive = stretch.positives - config.gate.questions, positive_types(log, config)
    after = stretch.split
    while left > 0 and (block := log.read(after)) is not None:
        hits = _offsets(block, positive, stretch.until)
        hits = hits[hits > stretch.split]
        if len(hits) >= left:
            return Stretch(int(hits[left - 1]), stretch.until, config.gate.questions)
        left, after = left - len(hits), block.last_offset
    return stretch


def _offsets(block: RecordBlock, positive: Int64, until: int) -> Int64:
    found = block.records["offset"][positives(block, positive)].astype(np.int64)
    return found[found <= until]


def try_out(
    log: EventLog, plan: Plan, config: Config, candidate: Model, in_service: Model | None, stretch: Stretch, *, seed: int,
    unseal: Unseal | None = None, view: FoldView | None = None, before: Before | None = None,
    on_lists: bool = False, progress: Progress | None = None, timer: Callable[[], float] = time.perf_counter,
) -> Trial:  # fmt: skip
    """Ask the candidate, the bundle in service and recent popularity about the same ``gate.questions`` events of ``stretch``.

    Every positive event may be asked about, those of users without a history too; which ones ``seed`` decides. Nobody is shown what
    the impression that led to it gives away (:mod:`headwater.learning.giveaways`), whatever their ranker learnt from.
    ``view`` and ``before`` as in :func:`headwater.evaluation.walk.walk`. ``on_lists``: on the same walk the bundles also score the lists that were shown
    in ``stretch`` (:mod:`headwater.evaluation.held_lists`).
    """
    region, zones = StoredRegion(log.vocabulary()), Zones(log.vocabulary())
    models = {CANDIDATE: candidate} | ({} if in_service is None else {IN_SERVICE: in_service})
    seen = Seen(plan.columns)
    timed = {
        name: _Tried(model.ranker, plan, config, timer, seen if name == CANDIDATE else None)
        for name, model in models.items() if model.ranker is not None
    }  # fmt: skip
    popular = Pipeline(config, plan, sources=(Trending(config),), stored_region=region, zones=zones, timer=timer)
    systems = {RECENT_POPULARITY: System(popular, None)}
    for name, model in models.items():
        sources = configured_sources(config, plan)
        pipeline = Pipeline(config, plan, sources=sources, stored_region=region, zones=zones, timer=timer)
        systems[name] = System(pipeline, replace(model, ranker=timed.get(name)))
    scored = None
    if on_lists:
        scoring = {name: (systems[name].pipeline, model) for name, model in models.items()}
        scored = before = ScoredLists(
            log, plan, config, scoring, split=stretch.split, until=stretch.until, seed=seed, before=before
        )
    answers = walk(
        log, plan, config, systems, split_offset=stretch.split, until=stretch.until, unseal=unseal, view=view, before=before,
        progress=progress, pick=_drawn(stretch.positives, config.gate.questions, seed, seen),
    )  # fmt: skip
    if not len(answers.users):
        return Trial(None)
    said = answers.replies[CANDIDATE]
    held = _figures(log, answers, models, timed, stretch, seed)
    if scored is not None:
        lists, why_not = scored.figures()
        held = msgspec.structs.replace(held, lists=lists, no_lists=why_not)
    return Trial(
        held, said.unranked, said.failed, said.problem,
        _vocabulary(candidate, answers), seen,
    )  # fmt: skip


def _drawn(positives: int, questions: int, seed: int, seen: Seen) -> Callable[[Fold], Pick]:
    """Exactly ``questions`` of the positive events, or all; ``seen`` is told of each."""
    order = np.random.default_rng(seed).permutation(positives)[:questions]
    chosen, at = set(order.tolist()), -1

    def pick(block: RecordBlock, i: int, fold: Fold) -> bool:  # noqa: ARG001
        nonlocal at
        at += 1
        if at not in chosen:
            return False
        seen.ask(int(block.records["received_ms"][i]), int(block.records["user"][i]))
        return True

    return lambda _: pick


def _figures(
    log: EventLog, answers: Answers, models: Mapping[str, Model], timed: Mapping[str, _Tried], stretch: Stretch, seed: int
) -> HeldOut:  # fmt: skip
    ranks = {name: ranks_in(said.lists, answers.relevant) for name, said in answers.replies.items()}
    measured = {}
    for name in (CANDIDATE, IN_SERVICE, RECENT_POPULARITY):
        if name not in ranks:
            continue
        over = relative = None
        if name != CANDIDATE:
            found = compare("ndcg@10", ranks[CANDIDATE], ranks[name], answers.users)
            over = Estimate(found.difference, *found.difference_ci95)
            if found.relative is not None and found.relative_ci95 is not None:
                relative = Estimate(found.relative, *found.relative_ci95)
        said = answers.replies[name]
        measured[name] = Measured(
            version=models[name].version if name in models else None,
            metrics={key: _estimate(metric(ranks[name]), answers.users) for key, metric in METRICS.items()},
            ndcg_over=over, relative_over=relative, score_ms=timed[name].per_rows() if name in timed else None,
            fetch_ms=float(np.median(said.fetch_ms)), list_ms=float(np.median(said.list_ms)),
        )  # fmt: skip
    count = len(answers.users)
    return HeldOut(
        first_offset=stretch.split + 1, last_offset=stretch.until, first_ms=answers.first_ms, last_ms=answers.last_ms,
        questions=count, users=len(np.unique(answers.users)), seed=seed, systems=measured,
        segments=_segments(log, answers, ranks),
        coverage={name: offers / count for name, offers in answers.replies[CANDIDATE].offers.items()},
    )  # fmt: skip


def _segments(log: EventLog, answers: Answers, ranks: Mapping[str, Int64]) -> tuple[SegmentFigures, ...]:
    """Users and items, new and old; then the segments of the requests with the most questions."""
    parts = {
        "users: new": answers.history == 0,
        "users: known": answers.history > 0,
        "items: new": answers.born,
        "items: old": ~answers.born,
    }
    numbers, counts = np.unique(answers.segments[answers.segments > 0], return_counts=True)
    for number in numbers[np.argsort(-counts, kind="stable")][:MOST_SEGMENTS].tolist():
        parts[log.vocabulary().text(Namespace.SEGMENT, number) or f"segment {number}"] = (
            answers.segments == number
        ).any(axis=1)
    found = []
    for name, part in parts.items():
        if part.sum() < MIN_SEGMENT:
            continue
        users, over = answers.users[part], None
        if IN_SERVICE in ranks:
            gain = compare("ndcg@10", ranks[CANDIDATE][part], ranks[IN_SERVICE][part], users)
            over = Estimate(gain.difference, *gain.difference_ci95)
        ndcg = _estimate(gains(ranks[CANDIDATE][part]), users)
        found.append(SegmentFigures(segment=name, questions=int(part.sum()), ndcg=ndcg, over=over))
    return tuple(found)


def _estimate(values: npt.NDArray[np.float64], users: Int64) -> Estimate:
    mean, (low, high) = mean_interval(values, users)
    return Estimate(mean, low, high)


def _vocabulary(model: Model, answers: Answers) -> dict[str, float]:
    old = np.unique(answers.relevant[~answers.born])
    if not len(old):
        return {}
    return {source.name: float(source.knows(old).mean()) for source in model.sources if isinstance(source, Knows)}


class _Tried(Unprompted):
    """Remembers how long it took: ms a row, call by call."""

    def __init__(
        self, ranker: Ranker, plan: Plan, config: Config, timer: Callable[[], float], seen: Seen | None
    ) -> None:
        super().__init__(ranker, plan, config)
        self._timer, self._seen = timer, seen
        self._per_row: list[float] = []

    def _ranked(self, features: Features, attention: Attention | None) -> Scores:
        began = self._timer()
        scores = super()._ranked(features, attention)
        self._per_row.append(1e3 * (self._timer() - began) / max(len(features), 1))
        if self._seen is not None:
            self._look(self._seen, features, scores, attention)
        return scores

    def _look(self, seen: Seen, features: Features, scores: Scores, attention: Attention | None) -> None:
        head = seen.take(features, scores)
        if isinstance(self._ranker, Multihead) and seen.wants_heads:
            seen.take_heads(self._ranker.head_names, self._ranker.heads(features, attention)[head])

    def per_rows(self) -> float | None:
        """Median ms for ``ROWS`` rows; None when it never scored."""
        return float(np.median(self._per_row)) * ROWS if self._per_row else None
