"""The walk over later events: at each chosen positive event every system answers just before it, as it would have served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import fold_to, stops
from headwater.learning.trainingset import is_positive, positive_types, positives
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.schema.config import Config
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Answer, Query
from headwater.serving.view import FoldView

Int64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Pick = Callable[
    [RecordBlock, int, Fold], bool
]  # called once for every positive event, in order, just before it is folded

LIST_LENGTH = 100  # MRR counts ranks up to here
NO_DEADLINE_MS = 1e9


class Before(Protocol):
    """Who looks at the log on the way, before it is folded and anybody is asked about it."""

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        """Before which records, besides the positive events."""
        ...

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:
        """May give systems another model, prepared, and has to refresh the view if it looks at it."""
        ...


@dataclass(slots=True)
class System:
    """What is compared: a pipeline, and the model that it ranks with (None: it doesn't); it may get another on the way."""

    pipeline: Pipeline
    model: Model | None


@dataclass(slots=True)
class Replies:
    """What one system answered: ``lists`` int64[n, LIST_LENGTH], filled up with 0.

    ``unranked`` counts lists that came from a lower tier than was asked for, ``failed`` requests in which a trained source
    failed, ``problem`` is what the first of them said; ``offers`` counts by source the requests that it had an offer for;
    ``fetch_ms`` and ``list_ms`` are float64[n].
    """

    lists: Int64
    unranked: int
    failed: int
    problem: str
    offers: dict[str, int]
    fetch_ms: npt.NDArray[np.float64]
    list_ms: npt.NDArray[np.float64]


@dataclass(slots=True)
class Answers:
    """What was asked (n questions), and what every system answered.

    ``relevant`` and ``users`` int64[n]; ``segments`` int64[n, 2]; ``history`` int64[n] events of the user that were known;
    ``born`` bool[n] whether the item was first heard of behind the split; ``seen`` questions about an item that the user
    had seen; ``items`` how many there were at the end.
    """

    replies: dict[str, Replies]
    relevant: Int64
    users: Int64
    segments: Int64
    history: Int64
    born: npt.NDArray[np.bool_]
    seen: int
    items: int
    first_ms: int
    last_ms: int


@dataclass(slots=True)
class _Heard:
    lists: list[Int64] = field(default_factory=list)
    unranked: int = 0
    failed: int = 0
    problem: str = ""
    offers: dict[str, int] = field(default_factory=dict)
    fetch_ms: list[float] = field(default_factory=list)
    list_ms: list[float] = field(default_factory=list)

    def take(self, answer: Answer, model: Model | None) -> None:
        row = np.zeros(LIST_LENGTH, np.int64)
        row[: len(answer.items)] = answer.items
        self.lists.append(row)
        self.fetch_ms.append(answer.trace["fetch"].ms)
        self.list_ms.append(answer.took_ms)
        trained = () if model is None else model.sources
        failures = [note for note in answer.degraded if any(note.startswith(f"{s.name} failed") for s in trained)]
        if model is not None and answer.tier:
            self.unranked += 1
            self.problem = self.problem or "; ".join(answer.degraded)
        self.failed += bool(failures)
        self.problem = self.problem or "; ".join(failures)
        for source in trained:
            self.offers[source.name] = self.offers.get(source.name, 0) + (answer.widths.get(source.name, 0) > 0)

    def done(self) -> Replies:
        lists = np.stack(self.lists) if self.lists else np.zeros((0, LIST_LENGTH), np.int64)
        return Replies(
            lists,
            self.unranked,
            self.failed,
            self.problem,
            self.offers,
            np.array(self.fetch_ms),
            np.array(self.list_ms),
        )


def walk(
    log: EventLog, plan: Plan, config: Config, systems: Mapping[str, System], *, split_offset: int,
    pick: Callable[[Fold], Pick], until: int, before: Before | None = None, view: FoldView | None = None,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> Answers:  # fmt: skip
    """Fold the log up to ``split_offset``, then ask every system at each positive event up to ``until`` that is picked.

    ``pick`` is given the fold at the split, and returns what chooses the events behind it. A pipeline belongs to one
    system; systems take turns in who is asked first. ``before`` looks at every positive event before it is asked about.
    ``view`` is a state to go on from, which stands at the split or before it; it ends at ``until``.
    """
    view = FoldView(plan, Fold(plan, unseal=unseal)) if view is None else view
    fold = view.fold
    fold_to(log, fold, split_offset)
    chosen = pick(fold)
    view.refresh()
    for system in systems.values():
        for source in () if system.model is None else system.model.sources:
            source.prepare(view.index)
    positive = positive_types(log, config)
    heard = {name: _Heard() for name in systems}
    known_items, start, first_ms, seen = fold.items.count, fold.offset, 0, 0
    columns: list[tuple[int, ...]] = []

    types = frozenset(positive.tolist())

    def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
        hit = positives(block, positive)
        return hit if before is None else hit | before.wanted(block)

    for block, i in stops(log, fold, wanted, until=until):
        record = block.records[i]
        user, item, now_ms = int(record["user"]), int(record["item"]), int(record["received_ms"])
        if before is not None:
            before.look(block, i, view)
        if not is_positive(record, types):
            continue
        first_ms = first_ms or now_ms
        if not chosen(block, i, fold):
            continue
        view.refresh()
        segments = (int(record["segments"][0]), int(record["segments"][1]))
        query = Query("", user=user, k=LIST_LENGTH, segments=segments, deadline_ms=NO_DEADLINE_MS)
        seen += int(fold.users.has_seen(user, item))
        turn = list(systems.items())
        for name, system in turn if len(columns) % 2 == 0 else turn[::-1]:
            heard[name].take(system.pipeline.recommend(query, view, system.model, now_ms), system.model)
        columns.append((item, user, *segments, fold.users.length(user), int(item >= known_items)))
        if progress is not None and len(columns) % 100 == 0:
            progress(fold.offset - start, until - start)
    asked = np.array(columns, np.int64).reshape(-1, 6)
    return Answers(
        replies={name: said.done() for name, said in heard.items()},
        relevant=asked[:, 0], users=asked[:, 1], segments=asked[:, 2:4], history=asked[:, 4], born=asked[:, 5] > 0,
        seen=seen, items=fold.items.count, first_ms=first_ms, last_ms=fold.received_ms,
    )  # fmt: skip
