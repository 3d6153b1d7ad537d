"""Training rows: for a positive event, what the pipeline would have offered just before it, assembled as-of.

The log is replayed through the production fold; at each chosen event the production sources name the
candidates and the production kernel assembles them, so a training row is the row that serving would
have seen. The event's item is the one relevant candidate of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.asof import Questions
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import stops
from headwater.features.zones import Zones
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace, RecordBlock
from headwater.registry.bundle import DataRange
from headwater.retrieval.fitted import Recent
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query
from headwater.serving.view import FoldView

Progress = Callable[[int, int], None]


class Attending(NamedTuple):
    """What target attention learns from: the vectors of all items ``float32[items, e]``, and the latest events of each
    question's user: items, type slots and ages in seconds, each ``[g, length]``, newest last, zeros in front.
    """

    vectors: npt.NDArray[np.float32]
    items: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    age_s: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """``features`` float32[n, d + s] (columns of the plan, then a score of each fitted source), ``labels`` int32[n] (1: the item of the event), ``groups`` int32[g] rows a question,
    ``outcomes`` int64[g] what was done with the answer of each question: bit t for the t-th of the configuration's ``events``. Besides
    the event that it was asked about these are later ones on the same item, inside the windows of ``training.labels``, that could
    not be asked about because what was clicked is not offered again.

    ``questions`` were asked, ``missed`` had an answer that no source offered (they train nothing). ``addresses`` says
    of each row what it was assembled for, and when. ``attending`` is there when a source with vectors was asked.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int32]
    outcomes: npt.NDArray[np.int64]
    questions: int
    missed: int
    data: DataRange
    addresses: Questions
    attending: Attending | None


def positive_types(log: EventLog, config: Config) -> npt.NDArray[np.int64]:
    """Dense numbers of the positive event types that the log knows."""
    vocabulary = log.vocabulary()
    found = (vocabulary.index(Namespace.EVENT_TYPE, t.name) for t in config.events if t.positive)
    return np.array([index for index in found if index], np.int64)


def build_training_set(
    log: EventLog, plan: Plan, config: Config, *, until: int, start_ms: int, groups: int, seed: int,
    unseal: Unseal | None = None, view: FoldView | None = None, model: Model | None = None, progress: Progress | None = None,
) -> TrainingSet:  # fmt: skip
    """Ask about ``groups`` positive events, drawn evenly at random from those received in ``[start_ms, until]``.

    ``model`` brings the fitted sources: they offer candidates and score them, as they will in service; they must have been
    trained on what lies before ``start_ms``. ``view`` is a state to go on from, instead of folding the log from its start:
    only events behind it are asked about, and it moves on to the last of them.
    ``until`` is the last offset that may be known. Every group holds the positive and up to
    ``ranker.negatives`` candidates drawn at random from what the sources offered.
    """
    # two generators: who is asked must not depend on what was drawn for the questions before
    asking, drawing = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    positive = positive_types(log, config)
    share = min(1.0, groups / max(count_positives(log, positive, until, start_ms), 1))

    def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
        records = block.records
        hit = positives(block, positive) & (records["received_ms"] >= start_ms)
        # one draw a record, so that the choice does not depend on how the log is cut into blocks
        return hit & (asking.random(len(records)) < share)

    view = FoldView(plan, Fold(plan, unseal=unseal)) if view is None else view
    fold = view.fold
    pipeline = Pipeline(config, plan, stored_region=StoredRegion(log.vocabulary()), zones=Zones(log.vocabulary()))
    collector = Collector(log, plan, config, model, groups=int(groups * 1.2) + 64, drawing=drawing)
    for block, i in stops(log, fold, wanted, until=until):
        if progress is not None and collector.asked % 200 == 199:
            progress(fold.offset, until)
        view.refresh()
        if not collector.add(pipeline, view, block.records[i], model):
            break
    return collector.take(view, until)


class Collector:
    """Training rows as they come, a group for each positive event: the event's item among what the pipeline would have offered.

    Room is for ``groups``; a model has to have the fitted sources that ``model`` has. ``drawing`` chooses candidates.
    """

    def __init__(
        self, log: EventLog, plan: Plan, config: Config, model: Model | None, *, groups: int, drawing: np.random.Generator
    ) -> None:  # fmt: skip
        self._groups, self._negatives, self._drawing = groups, config.ranker.negatives, drawing
        self._log, self._config = log, config
        self._kinds, self._windows_ms = _kinds(log, config), _windows_ms(config)
        self._plain, self._fitted = len(plan.columns), 0 if model is None else len(model.sources)
        self._assembled = np.zeros((self._negatives + 1, self._plain), np.float32)
        self._attended = None if model is None else model.attended
        self._begin()

    def _begin(self) -> None:
        count = self._groups * (self._negatives + 1)
        self._rows = np.zeros((count, self._plain + self._fitted), np.float32)
        self._labels, self._weight_of = np.zeros(count, np.int32), np.ones(count, np.float32)
        self._address_of = np.zeros((4, count), np.int64)  # offset, user, item, moment
        shape = (self._groups, 0 if self._attended is None else self._attended.length)
        self._latest = Recent(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        self._sizes: list[int] = []
        self._outcomes: list[int] = []
        # (user, item): its latest question, and when it was asked
        self._answered: dict[tuple[int, int], tuple[int, int]] = {}
        self._used = self.asked = self._missed = 0
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
        if self._used + self._negatives + 1 > len(self._rows):
            return False
        negatives = candidates[candidates != item]
        if len(negatives) > self._negatives:
            negatives = self._drawing.choice(negatives, self._negatives, replace=False)
        chosen = np.append(negatives, item)
        self._drawing.shuffle(chosen)
        here = slice(self._used, self._used + len(chosen))
        self._rows[here, : self._plain] = pipeline.features(query, view, chosen, now_ms, self._assembled)
        if model is not None:
            pipeline.modelled(model, view, chosen, self._rows[here, self._plain :])
        if self._attended is not None:
            recent, row = self._attended.recent(pipeline.asked, view.index), len(self._sizes)
            known = slice(self._attended.length - len(recent.items), self._attended.length)
            self._latest.items[row, known], self._latest.types[row, known] = recent.items, recent.types
            self._latest.age_s[row, known] = recent.age_s
        self._labels[here] = chosen == item
        self._weight_of[here] = weight
        self._address_of[0, here], self._address_of[1, here] = int(record["offset"]) - 1, query.user
        self._address_of[2, here], self._address_of[3, here] = chosen, now_ms
        self._used += len(chosen)
        self._sizes.append(len(chosen))
        self._answered[query.user, item] = len(self._outcomes), now_ms
        self._outcomes.append(1 << kind)
        return True

    def _kind(self, number: int) -> tuple[int, float]:
        """Position and weight of the event type that the log calls ``number``."""
        if number not in self._kinds:  # the log has met a type of the configuration for the first time
            self._kinds = _kinds(self._log, self._config)
        return self._kinds[number]

    def _follow(self, user: int, item: int, kind: int, now_ms: int) -> None:
        """Note an event on an item that an earlier question was about."""
        group, asked_ms = self._answered.get((user, item), (-1, 0))
        if group >= 0 and now_ms - asked_ms <= self._windows_ms.get(kind, 0):
            self._outcomes[group] |= 1 << kind

    def take(self, view: FoldView, until: int) -> TrainingSet:
        """What was collected since the last time, up to the offset ``until``."""
        used, groups, latest = self._used, len(self._sizes), self._latest
        offset, user, item, now_ms = self._address_of[:, :used]
        taken = TrainingSet(
            self._rows[:used], self._labels[:used], self._weight_of[:used], np.array(self._sizes, np.int32),
            np.array(self._outcomes, np.int64), self.asked, self._missed,
            DataRange(first_offset=self._first_offset, last_offset=until, first_ms=self._first_ms, last_ms=self._last_ms),
            Questions(offset=offset, user=user, item=item, now_ms=now_ms, segments=np.zeros((used, 2), np.uint16)),
            None if self._attended is None else Attending(
                self._attended.vectors(view.index), latest.items[:groups], latest.types[:groups], latest.age_s[:groups]
            ),
        )  # fmt: skip
        self._begin()
        return taken


def _windows_ms(config: Config) -> dict[int, int]:
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
    """Which records of a block are positive events (dense types ``positive``) that are not retractions."""
    records = block.records
    hit: npt.NDArray[np.bool_] = np.isin(records["type"], positive)
    hit &= (records["kind"] == Kind.EVENT) & (records["flags"] == 0)
    return hit


def count_positives(log: EventLog, positive: npt.NDArray[np.int64], until: int, start_ms: int) -> int:
    """How many positive events were received from ``start_ms`` on, up to the offset ``until``."""
    after, count = 0, 0
    while after < until and (block := log.read(after)) is not None:
        records = block.records
        inside = (records["received_ms"] >= start_ms) & (records["offset"] <= until)
        count += int(np.sum(positives(block, positive) & inside))
        after = block.last_offset
    return count
