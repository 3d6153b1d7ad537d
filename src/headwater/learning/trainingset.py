"""Training rows as a set, and those of questions: for a positive event, what the pipeline would have offered just before it.

The log is replayed through the production fold; at each chosen event the production sources name the
candidates and the production kernel assembles them, so a training row is the row that serving would
have seen. The event's item is the one relevant candidate of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from headwater.features.asof import Questions
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import stops
from headwater.features.zones import Zones
from headwater.learning.row_buffer import Attending, RowBuffer
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace, RecordBlock
from headwater.registry.bundle import DataRange
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query
from headwater.serving.view import FoldView

Progress = Callable[[int, int], None]

LearntFrom = Literal["questions", "lists"]
QUESTIONS: Final = "questions"
LISTS: Final = "lists"
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Groups of rows that competed for the same request, in order of time.

    ``features`` float32[n, d + s] (columns of the plan, then a score of each fitted source), ``labels`` int32[n] (1: taken), ``weights`` float32[n],
    ``groups`` int32[g] rows a group, ``outcomes`` int64[n] what was done with an item: bit t for the t-th of the configuration's
    ``events``; ``position`` int16[n] the place where it was shown (-1: none). ``addresses`` says of each row what it was assembled for, and
    when. ``attending`` is there when a source with vectors was asked.

    ``learnt_from`` "questions" (:class:`Collector`): the item of a positive event among what could have been offered just before. ``asked`` counts questions, ``missed`` those
    whose answer no source offered (they train nothing). ``outcomes`` has, besides the event that was asked about, later ones on
    the same item inside the windows of ``training.labels``, that could not be asked about because what was clicked is not offered again.
    "lists" (:class:`~headwater.learning.lists.ListCollector`): lists as they were shown. ``asked`` counts those whose labels are closed, ``missed`` those
    of which nothing was taken (they train nothing).
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int32]
    outcomes: npt.NDArray[np.int64]
    position: npt.NDArray[np.int16]
    asked: int
    missed: int
    data: DataRange
    addresses: Questions
    attending: Attending | None
    learnt_from: LearntFrom


class Beside(Protocol):
    """Who makes other rows while the log is replayed: :class:`~headwater.learning.lists.ListCollector`."""

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]: ...

    def due(self, view: FoldView) -> bool: ...

    def add(self, pipeline: Pipeline, view: FoldView, model: Model | None) -> bool: ...


def positive_types(log: EventLog, config: Config) -> npt.NDArray[np.int64]:
    """Dense numbers of the positive event types that the log knows."""
    vocabulary = log.vocabulary()
    found = (vocabulary.index(Namespace.EVENT_TYPE, t.name) for t in config.events if t.positive)
    return np.array([index for index in found if index], np.int64)


def build_training_set(
    log: EventLog, plan: Plan, config: Config, *, until: int, start_ms: int, groups: int, seed: int,
    unseal: Unseal | None = None, view: FoldView | None = None, model: Model | None = None, beside: Beside | None = None,
    progress: Progress | None = None,
) -> TrainingSet:  # fmt: skip
    """Ask about ``groups`` positive events, drawn evenly at random from those received in ``[start_ms, until]``.

    ``model`` brings the fitted sources: they offer candidates and score them, as they will in service; they must have been
    trained on what lies before ``start_ms``. ``view`` is a state to go on from, instead of folding the log from its start:
    only events behind it are asked about, and it moves on to the last of them.
    ``beside`` makes rows of its own on the same way. ``until`` is the last offset that may be known. Every group holds the positive and up to
    ``ranker.negatives`` candidates drawn at random from what the sources offered.
    """
    # two generators: who is asked must not depend on what was drawn for the questions before
    asking, drawing = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    positive = positive_types(log, config)
    share = min(1.0, groups / max(count_positives(log, positive, until, start_ms), 1))

    chosen = np.zeros(0, np.bool_)  # of the block at hand

    def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
        nonlocal chosen
        records = block.records
        hit = positives(block, positive) & (records["received_ms"] >= start_ms)
        # one draw a record, so that the choice does not depend on how the log is cut into blocks
        chosen = hit & (asking.random(len(records)) < share)
        return chosen if beside is None else chosen | beside.wanted(block)

    view = FoldView(plan, Fold(plan, unseal=unseal)) if view is None else view
    fold = view.fold
    pipeline = Pipeline(config, plan, stored_region=StoredRegion(log.vocabulary()), zones=Zones(log.vocabulary()))
    collector = Collector(log, plan, config, model, groups=int(groups * 1.2) + 64, drawing=drawing)
    for block, i in stops(log, fold, wanted, until=until):
        if progress is not None and collector.asked % 200 == 199:
            progress(fold.offset, until)
        view.refresh()
        if beside is not None and beside.due(view):
            beside.add(pipeline, view, model)
        if chosen[i] and not collector.add(pipeline, view, block.records[i], model):
            break
    return collector.take(view, until)


class Collector:
    """Training rows as they come, a group for each positive event: the event's item among what the pipeline would have offered.

    Room is for ``groups``; a model has to have the fitted sources that ``model`` has. ``drawing`` chooses candidates.
    """

    def __init__(
        self, log: EventLog, plan: Plan, config: Config, model: Model | None, *, groups: int, drawing: np.random.Generator
    ) -> None:  # fmt: skip
        self._negatives, self._drawing = config.ranker.negatives, drawing
        self._log, self._config = log, config
        self._kinds, self._windows_ms = _kinds(log, config), windows_ms(config)
        self._plan, self._model, self._groups = plan, model, groups
        self._begin()

    def _begin(self) -> None:
        most = self._negatives + 1
        count = self._groups * most
        self._rows = RowBuffer(self._plan, self._model, rows=count, groups=self._groups, most=most)
        self._labels, self._weight_of = np.zeros(count, np.int32), np.ones(count, np.float32)
        self._outcome_of = np.zeros(count, np.int64)
        # (user, item): the row of its latest question, and when it was asked
        self._answered: dict[tuple[int, int], tuple[int, int]] = {}
        self.asked = self._missed = 0
        self._first_ms = self._last_ms = self._first_offset = 0

    def add(self, pipeline: Pipeline, view: FoldView, record: npt.NDArray[np.void], model: Model | None) -> bool:
        """Ask about one positive event, with ``view`` as of just before it; false when there is no room for another."""
        now_ms, item = int(record["received_ms"]), int(record["item"])
        self._first_ms = self._first_ms or now_ms
        self._first_offset = self._first_offset or int(record["offset"])
        self._last_ms = now_ms
        self.asked += 1
        segments = record["segments"]
        query = Query("", user=int(record["user"]), segments=(int(segments[0]), int(segments[1])))
        candidates = pipeline.candidates(query, view, now_ms, model).items
        kind, weight = self._kind(int(record["type"]))
        if item not in candidates:
            self._missed += 1
            self._follow(query.user, item, kind, now_ms)
            return True
        if self._rows.full:
            return False
        negatives = candidates[candidates != item]
        if len(negatives) > self._negatives:
            negatives = self._drawing.choice(negatives, self._negatives, replace=False)
        chosen = np.append(negatives, item)
        self._drawing.shuffle(chosen)
        here = self._rows.put(pipeline, view, query, chosen, now_ms, model)
        self._labels[here] = chosen == item
        self._weight_of[here] = weight
        answer = here.start + int(np.flatnonzero(chosen == item)[0])
        self._answered[query.user, item] = answer, now_ms
        self._outcome_of[answer] = 1 << kind
        return True

    def _kind(self, number: int) -> tuple[int, float]:
        """Position and weight of the event type that the log calls ``number``."""
        if number not in self._kinds:  # the log has met a type of the configuration for the first time
            self._kinds = _kinds(self._log, self._config)
        return self._kinds[number]

    def _follow(self, user: int, item: int, kind: int, now_ms: int) -> None:
        """Note an event on an item that an earlier question was about."""
        answer, asked_ms = self._answered.get((user, item), (-1, 0))
        if answer >= 0 and now_ms - asked_ms <= self._windows_ms.get(kind, 0):
            self._outcome_of[answer] |= 1 << kind

    def take(self, view: FoldView, until: int) -> TrainingSet:
        """What was collected since the last time, up to the offset ``until``."""
        rows, used = self._rows, slice(0, self._rows.used)
        taken = TrainingSet(
            rows.features[used], self._labels[used], self._weight_of[used], np.array(rows.sizes, np.int32),
            self._outcome_of[used], np.full(rows.used, -1, np.int16), self.asked, self._missed,
            DataRange(first_offset=self._first_offset, last_offset=until, first_ms=self._first_ms, last_ms=self._last_ms),
            rows.addresses(used), rows.attending(slice(0, len(rows.sizes)), view), QUESTIONS,
        )  # fmt: skip
        self._begin()
        return taken


def windows_ms(config: Config) -> dict[int, int]:
    """How long after a question an event of a type, by its position, still belongs to it."""
    names = [t.name for t in config.events]
    return {names.index(name): parse_duration(of.window) for of in config.training.labels for name in of.types}


def _kinds(log: EventLog, config: Config) -> dict[int, tuple[int, float]]:
    """Of each positive event type that the log knows its position in the configuration, and what a row of it weighs."""
    vocabulary = log.vocabulary()
    return {
        vocabulary.index(Namespace.EVENT_TYPE, t.name): (place, max(t.weight, 0.1))
        for place, t in enumerate(config.events)
        if t.positive
    }


def positives(block: RecordBlock, positive: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which records of a block are positive events (dense types ``positive``) that are neither retractions nor trials."""
    records = block.records
    hit: npt.NDArray[np.bool_] = np.isin(records["type"], positive)
    hit &= (records["kind"] == Kind.EVENT) & (records["flags"] == 0)
    return hit


def is_positive(record: npt.NDArray[np.void], positive: Collection[int]) -> bool:
    """:func:`positives` of one record."""
    return int(record["type"]) in positive and int(record["kind"]) == Kind.EVENT and int(record["flags"]) == 0


def count_positives(log: EventLog, positive: npt.NDArray[np.int64], until: int, start_ms: int) -> int:
    """How many positive events were received from ``start_ms`` on, up to the offset ``until``."""
    after, count = 0, 0
    while after < until and (block := log.read(after)) is not None:
        records = block.records
        inside = (records["received_ms"] >= start_ms) & (records["offset"] <= until)
        count += int(np.sum(positives(block, positive) & inside))
        after = block.last_offset
    return count


def newest(sets: Sequence[TrainingSet], most_rows: int) -> TrainingSet:
    """The last groups of ``sets`` (in order of time, all learnt from the same), at most ``most_rows`` rows, as one set up to the end of the last one."""
    groups = np.concatenate([each.groups for each in sets])
    excess = int(groups.sum()) - most_rows
    cut = 0 if excess <= 0 else int(np.searchsorted(np.cumsum(groups), excess)) + 1  # groups that have to go
    rows = int(groups[:cut].sum())

    def kept(of: Callable[[TrainingSet], npt.NDArray[_T]]) -> npt.NDArray[_T]:
        return np.concatenate([of(each) for each in sets])[rows:]

    addresses = Questions(
        offset=kept(lambda s: s.addresses.offset), user=kept(lambda s: s.addresses.user),
        item=kept(lambda s: s.addresses.item), now_ms=kept(lambda s: s.addresses.now_ms),
        segments=kept(lambda s: s.addresses.segments),
    )  # fmt: skip
    return replace(
        sets[-1], features=kept(lambda s: s.features), labels=kept(lambda s: s.labels), weights=kept(lambda s: s.weights),
        groups=groups[cut:], outcomes=kept(lambda s: s.outcomes), position=kept(lambda s: s.position),
        asked=sum(each.asked for each in sets), missed=sum(each.missed for each in sets), addresses=addresses,
        data=DataRange(
            first_offset=int(addresses.offset[0]) + 1 if len(addresses.offset) else 0, last_offset=sets[-1].data.last_offset,
            first_ms=int(addresses.now_ms[0]) if len(addresses.offset) else 0, last_ms=max(each.data.last_ms for each in sets),
        ),
    )  # fmt: skip
