"""The product in one process: the log and its writer, the fold, the pipeline that serves, training every day.

All of it is what production runs; what differs is who calls it, and that the clock is the world's.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.evaluation.closed_loop.policies import Policy
from headwater.evaluation.world_log import history_batch, list_id, list_number
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.replay import fold_to, stops
from headwater.features.zones import Zones
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.learning.giveaways import withheld
from headwater.learning.trainingset import Collector, positive_types, positives
from headwater.log.commands import AppendEvents, AppendServed, Command, ServedEntry
from headwater.log.identity import MemoryIdentity, UserKey
from headwater.log.memory import MemoryLog
from headwater.log.record import RECORD, Namespace
from headwater.log.writer import LogWriter
from headwater.ranking.gbdt import MODEL_FILE
from headwater.ranking.ranker import open_ranker
from headwater.retrieval.sources import Popular
from headwater.schema.events import EventDetail
from headwater.schema.items import Item
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.rules import open_rules
from headwater.serving.view import FoldView
from headwater.simulator import History, World
from headwater.simulator.catalogue import HOUR_MS
from headwater.simulator.history import CLICK, IMPRESSION, in_order
from headwater.simulator.people import COUNTRIES, DEVICES, user_id
from headwater.simulator.world import Populated

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MIN_GROUPS = 50
_NO_DEADLINE_MS = 1e9
_STRANGER = UserKey(0, 0)
_encode = msgspec.msgpack.Encoder().encode
_detail = msgspec.msgpack.Decoder(EventDetail).decode


class Rows(NamedTuple):
    """Training rows as in :class:`~headwater.learning.trainingset.TrainingSet`."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int32]


class Start:
    """What every policy starts from on one seed: the world, what people did in it before, and the rows learnt from that.

    ``rows`` are kept by what they are about ("lists", "candidates"), so that they are learnt once.
    """

    def __init__(self, world: World) -> None:
        self.world, self.history = world, world.history()
        self.rows: dict[str, Rows] = {}
        self._order = np.argsort(self.history.listing, kind="stable")
        self._listings = self.history.listing[self._order]

    def list_of(self, listing: int) -> tuple[Int64, Bools]:
        """The items of a list of the history, catalogue positions int64[k], and which of them were clicked."""
        first, end = np.searchsorted(self._listings, [listing, listing + 1])
        part = self.history.take(self._order[first:end])
        items = part.item[part.type == IMPRESSION].astype(np.int64)
        return items, np.isin(items, part.item[part.type == CLICK])


@dataclass(order=True)
class _Arriving:
    """Events that reach the log at ``at_ms``."""

    at_ms: int
    order: int
    part: History = field(compare=False)


class System:
    """The product under ``policy``, with the history of ``start`` in its log.

    ``share`` of the clicks train the ranker; ``threads`` are those of its training.
    """

    def __init__(self, policy: Policy, start: Start, *, seed: int, share: float, threads: int = 1) -> None:
        self.policy, self.config = policy, policy.config()
        self._seed, self._share, self._threads = seed, share, threads
        self._now_ms = start.world.start_ms
        identity = MemoryIdentity()
        self._identity = identity
        self.log = MemoryLog()
        self.writer = LogWriter(
            self.log, identity, clock=lambda: self._now_ms, segment_keys=self.config.segments.keys, dedup_window=2
        )
        self.plan: Plan = compile_plan(self.config)
        self.fold = Fold(self.plan, unseal=identity.decrypt)
        self.view = FoldView(self.plan, self.fold)
        self.model: Model | None = None
        vocabulary = self.log.vocabulary()
        self._vocabulary = vocabulary
        region, zones = StoredRegion(vocabulary), Zones(vocabulary)
        sources = None if policy.learns else (Popular(self.config, self.plan),)
        self._pipeline = Pipeline(
            self.config, self.plan, sources=sources, stored_region=region, zones=zones,
            rules=open_rules(self.config, self.plan, vocabulary),
        )  # fmt: skip
        self._candidates = Pipeline(self.config, self.plan, stored_region=region, zones=zones)
        self._rows: list[Rows] = []
        self._learnt: set[int] = set()  # lists of the history that are rows
        self._draws = np.random.default_rng([seed, 41])
        self._fresh: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]] = []  # lists since the last training
        self._collector = Collector(self.log, self.plan, self.config, None, groups=256, drawing=self._draws)
        self._arriving: list[_Arriving] = []
        self._order = 0
        self._served: list[ServedEntry] = []
        self._shown = np.zeros((0, len(self.plan.columns)), np.float32)  # the rows of the last list
        self._positions = np.full(1, -1, np.int64)  # of the world's catalogue, by dense item
        self._items = 0
        self._begin(start)

    # -- the log -----------------------------------------------------------------------------------------

    def put_items(self, items: Sequence[Item], now_ms: int) -> None:
        """New items, in the order of the world's catalogue."""
        self._now_ms = now_ms
        if not items:
            return
        self.writer.put_items(items)
        dense = np.array([self._vocabulary.index(Namespace.ITEM, item.id) for item in items], np.int64)
        grown = np.full(max(int(dense.max()) + 1, len(self._positions)), -1, np.int64)
        grown[: len(self._positions)] = self._positions
        grown[dense] = self._items + np.arange(len(items))
        self._positions, self._items = grown, self._items + len(items)

    def delete_items(self, ids: Sequence[str], now_ms: int) -> None:
        """Items that are gone."""
        self._now_ms = now_ms
        if ids:
            self.writer.delete_items(ids)

    def hear(self, part: History, arrive_ms: int) -> None:
        """Events that reach the log at ``arrive_ms``."""
        self._order += 1
        heapq.heappush(self._arriving, _Arriving(arrive_ms, self._order, part))

    def catch_up(self, world: Populated, now_ms: int) -> None:
        """Write and fold what has arrived by ``now_ms``."""
        self._now_ms = now_ms
        commands: list[Command] = []
        if self._served:
            commands.append(AppendServed(self._served))
            self._served = []
        arrived: list[History] = []
        while self._arriving and self._arriving[0].at_ms <= now_ms:
            arrived.append(heapq.heappop(self._arriving).part)
        if arrived:
            batch = history_batch(world, in_order(arrived), self.config.segments.keys, received_from_time=False)
            commands.append(AppendEvents(batch))
        if commands:
            for outcome in self.writer.commit_group(commands):
                if isinstance(outcome, Exception):
                    raise outcome
        if self.log.last_offset > self.fold.offset:
            fold_to(self.log, self.fold, self.log.last_offset)
            self.view.refresh()

    # -- serving -----------------------------------------------------------------------------------------

    def recommend(self, people: Populated, user: int, device: int, listing: int, k: int, now_ms: int) -> Int64:
        """The list for ``user``: catalogue positions int64[<= k]. It goes to the log with its propensities."""
        key = self._identity.lookup(user_id(user)) or _STRANGER
        query = Query(
            list_id(listing), user=key.user, k=k, segments=self._segments(people, user, device),
            deadline_ms=_NO_DEADLINE_MS,
        )  # fmt: skip
        answer: Answer = self._pipeline.recommend(query, self.view, self.model, now_ms)
        if answer.tier and self.model is not None:
            raise RuntimeError(f"a list of tier {answer.tier}: {'; '.join(answer.degraded)}")
        payload = _encode(served_list(query, answer, sampled=False))
        self._served.append(ServedEntry(key.user, key.surrogate, payload))
        self._shown = answer.features
        return self._positions[answer.items]

    def learn_from(self, people: Populated, user: int, device: int, shown: Int64, clicked: Bools, now_ms: int) -> None:
        """What became of the last list, ``shown`` at ``now_ms``: training rows, as the state stood when the list was made."""
        if not clicked.any() or self._draws.random() >= self._share:
            return
        if self.policy.learns == "lists" and len(self._shown) == len(shown):
            self._fresh.append((self._shown, clicked.astype(np.int32)))
        elif self.policy.learns == "candidates":
            key = self._identity.lookup(user_id(user)) or _STRANGER
            for position in shown[clicked].tolist():
                record = np.zeros((), RECORD)
                record["offset"], record["received_ms"], record["user"] = self.fold.offset + 1, now_ms, key.user
                record["item"] = self._vocabulary.index(Namespace.ITEM, people.catalogue.items[position].id)
                record["type"] = self._vocabulary.index(Namespace.EVENT_TYPE, "click")
                record["segments"] = self._segments(people, user, device)
                self._collect(record)

    def _collect(self, record: npt.NDArray[np.void]) -> None:
        """One event against other candidates of its moment."""
        if not self._collector.add(self._candidates, self.view, record, None):
            self._keep_rows()
            self._collector.add(self._candidates, self.view, record, None)

    def _segments(self, people: Populated, user: int, device: int) -> tuple[int, int]:
        country = COUNTRIES[people.people.country[user]]
        found = (f"country={country}", f"device={DEVICES[device]}")
        return self._vocabulary.index(Namespace.SEGMENT, found[0]), self._vocabulary.index(Namespace.SEGMENT, found[1])

    # -- training ----------------------------------------------------------------------------------------

    def train(self) -> None:
        """A ranker from the newest rows takes over."""
        if not self.policy.learns:
            return
        self._keep_rows()
        groups = sum(len(rows.groups) for rows in self._rows)
        if groups < MIN_GROUPS:
            return
        ranker = self.config.ranker
        rows = _joined(self._rows)
        # `fit_ranker` withholds the same from what is learnt from candidates
        hidden = (
            withheld(rows.features, self.plan, self.config) if self.policy.learns == "candidates" else nullcontext()
        )
        with hidden:
            text, _ = fit_gbdt(
                rows.features, rows.labels, rows.groups, rows.weights, columns=self.plan.columns,
                params=GbdtParams(trees=ranker.trees, leaves=ranker.leaves, learning_rate=ranker.learning_rate),
                seed=self._seed, num_threads=self._threads,
            )  # fmt: skip
        if self.model is not None:
            self.model.close()
        opened = open_ranker("lightgbm", {MODEL_FILE: text}, self.plan.columns)
        self.model = Model(f"after {groups} questions", opened)

    def close(self) -> None:
        """Let go of model and log."""
        if self.model is not None:
            self.model.close()
        self.writer.close()

    def _keep_rows(self) -> None:
        taken = self._collector.take(self.view, self.fold.offset)
        if len(taken.groups):
            self._rows.append(Rows(taken.features, taken.labels, taken.weights, taken.groups))
        if self._fresh:
            features, labels = (np.concatenate(column) for column in zip(*self._fresh, strict=True))
            groups = np.array([len(each) for each, _ in self._fresh], np.int32)
            self._rows.append(Rows(features, labels, np.ones(len(labels), np.float32), groups))
            self._fresh = []
        most = self.config.ranker.max_groups
        while len(self._rows) > 1 and sum(len(rows.groups) for rows in self._rows[1:]) >= most:
            del self._rows[0]

    def _begin(self, start: Start) -> None:
        """The history goes through the log hour by hour; what can be learnt from it is learnt once for all policies."""
        world, keys = start.world, self.config.segments.keys
        known_ms = 0
        learns = self.policy.learns
        collects = bool(learns) and learns not in start.rows
        for hour in range(world.hours):
            at_ms = world.start_ms + hour * HOUR_MS
            self.put_items(world.items_born(known_ms, at_ms), at_ms)
            known_ms = at_ms
            until = (
                len(start.history)
                if hour == world.hours - 1
                else int(np.searchsorted(start.history.time_ms, at_ms + HOUR_MS))
            )
            part = start.history.take(slice(int(np.searchsorted(start.history.time_ms, at_ms)), until))
            if len(part):
                self.writer.append_events(history_batch(world, part, keys))
            if collects:
                self._learn_from_history(start)
            fold_to(self.log, self.fold, self.log.last_offset)
        self._now_ms = world.end_ms
        self.put_items(world.items_born(known_ms, world.end_ms), world.end_ms)
        fold_to(self.log, self.fold, self.log.last_offset)
        self.view.refresh()
        if collects:
            self._keep_rows()
            start.rows[learns] = _joined(self._rows)
        if learns:
            self._rows = [start.rows[learns]]
            self.train()

    def _learn_from_history(self, start: Start) -> None:
        """The hour at hand: lists as the state stood when they were shown, or clicks as it stood when they happened."""
        vocabulary = self._vocabulary
        impression = vocabulary.index(Namespace.EVENT_TYPE, "impression")
        on_lists = self.policy.learns == "lists"
        positive = np.array([impression]) if on_lists else positive_types(self.log, self.config)
        for block, i in stops(self.log, self.fold, lambda block: positives(block, positive)):
            record = block.records[i]
            if not on_lists:
                if self._draws.random() < self._share:
                    self.view.refresh()
                    self._collect(record)
                continue
            listing = list_number(_detail(block.payload(i)).request_id or "")
            if listing in self._learnt:
                continue
            self._learnt.add(listing)
            if self._draws.random() >= self._share:
                continue
            positions, clicked = start.list_of(listing)
            if not clicked.any():
                continue
            self.view.refresh()
            catalogue = start.world.catalogue.items
            items = np.array(
                [self._vocabulary.index(Namespace.ITEM, catalogue[int(p)].id) for p in positions], np.int64
            )
            query = Query(
                "", user=int(record["user"]), segments=(int(record["segments"][0]), int(record["segments"][1])), candidates=items
            )  # fmt: skip
            now_ms = int(record["received_ms"])
            self._candidates.candidates(query, self.view, now_ms)  # so that it is this user's row that is at hand
            rows = np.zeros((len(items), len(self.plan.columns)), np.float32)
            self._fresh.append(
                (self._candidates.features(query, self.view, items, now_ms, rows), clicked.astype(np.int32))
            )


def _joined(parts: Sequence[Rows]) -> Rows:
    """``parts`` in their order."""
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
