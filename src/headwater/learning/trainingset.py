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
    """``features`` float32[n, d + s] (columns of the plan, then a score of each fitted source), ``labels`` int32[n] (1: the item of the event), ``groups`` int32[g] rows a question.

    ``questions`` were asked, ``missed`` had an answer that no source offered (they train nothing). ``addresses`` says
    of each row what it was assembled for, and when. ``attending`` is there when a source with vectors was asked.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int32]
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
    unseal: Unseal | None = None, model: Model | None = None, progress: Progress | None = None,
) -> TrainingSet:  # fmt: skip
    """Ask about ``groups`` positive events, drawn evenly at random from those received in ``[start_ms, until]``.

    ``model`` brings the fitted sources: they offer candidates and score them, as they will in service; they must have been
    trained on what lies before ``start_ms``.
    ``until`` is the last offset that may be known. Every group holds the positive and up to
    ``ranker.negatives`` candidates drawn at random from what the sources offered.
    """
    # two generators: who is asked must not depend on what was drawn for the questions before
    asking, drawing = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    positive = positive_types(log, config)
    share = min(1.0, groups / max(_count_positives(log, positive, until, start_ms), 1))

    def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
        records = block.records
        hit = positives(block, positive) & (records["received_ms"] >= start_ms)
        # one draw a record, so that the choice does not depend on how the log is cut into blocks
        return hit & (asking.random(len(records)) < share)

    fold = Fold(plan, unseal=unseal)
    view = FoldView(plan, fold)
    pipeline = Pipeline(config, plan, stored_region=StoredRegion(log.vocabulary()), zones=Zones(log.vocabulary()))
    width = config.ranker.negatives + 1
    capacity = int(groups * 1.2) + 64
    plain, fitted = len(plan.columns), 0 if model is None else len(model.sources)
    rows = np.zeros((capacity * width, plain + fitted), np.float32)
    assembled = np.zeros((width, plain), np.float32)
    attended = None if model is None else model.attended
    shape = (capacity, 0 if attended is None else attended.length)
    latest = Recent(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32))
    labels = np.zeros(len(rows), np.int32)
    sizes: list[int] = []
    used = asked = missed = 0
    first_ms = last_ms = first_offset = 0
    weight_of = np.ones(len(rows), np.float32)
    address_of = np.zeros((4, len(rows)), np.int64)  # offset, user, item, moment
    weights = _weights(log, config)
    for block, i in stops(log, fold, wanted, until=until):
        record = block.records[i]
        now_ms, item = int(record["received_ms"]), int(record["item"])
        first_ms, first_offset = first_ms or now_ms, first_offset or int(record["offset"])
        last_ms = now_ms
        asked += 1
        if progress is not None and asked % 200 == 0:
            progress(fold.offset, until)
        view.refresh()
        segments = record["segments"]
        query = Query("", user=int(record["user"]), segments=(int(segments[0]), int(segments[1])))
        candidates = pipeline.candidates(query, view, now_ms, model).items
        if item not in candidates:
            missed += 1
            continue
        if used + width > len(rows):
            break
        negatives = candidates[candidates != item]
        if len(negatives) > config.ranker.negatives:
            negatives = drawing.choice(negatives, config.ranker.negatives, replace=False)
        chosen = np.append(negatives, item)
        drawing.shuffle(chosen)
        here = slice(used, used + len(chosen))
        rows[here, :plain] = pipeline.features(query, view, chosen, now_ms, assembled)
        if model is not None:
            pipeline.modelled(model, view, chosen, rows[here, plain:])
        if attended is not None:
            recent = attended.recent(pipeline.asked, view.index)
            known = slice(attended.length - len(recent.items), attended.length)
            latest.items[len(sizes), known], latest.types[len(sizes), known] = recent.items, recent.types
            latest.age_s[len(sizes), known] = recent.age_s
        labels[used : used + len(chosen)] = chosen == item
        weight_of[used : used + len(chosen)] = weights[int(record["type"])]
        address_of[0, here], address_of[1, here] = int(record["offset"]) - 1, query.user
        address_of[2, here], address_of[3, here] = chosen, now_ms
        used += len(chosen)
        sizes.append(len(chosen))
    return TrainingSet(
        rows[:used], labels[:used], weight_of[:used], np.array(sizes, np.int32), asked, missed,
        DataRange(first_offset=first_offset, last_offset=until, first_ms=first_ms, last_ms=last_ms),
        Questions(
            offset=address_of[0, :used], user=address_of[1, :used], item=address_of[2, :used],
            now_ms=address_of[3, :used], segments=np.zeros((used, 2), np.uint16),
        ),
        None if attended is None else Attending(
            attended.vectors(view.index), latest.items[: len(sizes)], latest.types[: len(sizes)], latest.age_s[: len(sizes)]
        ),
    )  # fmt: skip


def _weights(log: EventLog, config: Config) -> dict[int, float]:
    vocabulary = log.vocabulary()
    return {vocabulary.index(Namespace.EVENT_TYPE, t.name): max(t.weight, 0.1) for t in config.events if t.positive}


def positives(block: RecordBlock, positive: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which records of a block are positive events (dense types ``positive``) that are not retractions."""
    records = block.records
    hit: npt.NDArray[np.bool_] = np.isin(records["type"], positive)
    hit &= (records["kind"] == Kind.EVENT) & (records["flags"] == 0)
    return hit


def _count_positives(log: EventLog, positive: npt.NDArray[np.int64], until: int, start_ms: int) -> int:
    after, count = 0, 0
    while after < until and (block := log.read(after)) is not None:
        records = block.records
        inside = (records["received_ms"] >= start_ms) & (records["offset"] <= until)
        count += int(np.sum(positives(block, positive) & inside))
        after = block.last_offset
    return count
