"""The product in one process: the log and its writer, the fold, the pipeline that serves, training every day.

All of it is what production runs; what differs is who calls it, and that the clock is the world's.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.evaluation.closed_loop.policies import Policy
from headwater.evaluation.world_log import history_batch, list_id
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.replay import fold_to, stops
from headwater.features.zones import Zones
from headwater.learning.collecting import MIN_GROUPS, RowCollector, build_rows
from headwater.learning.rankers import fit_ranker
from headwater.learning.trainingset import TrainingSet
from headwater.log.commands import AppendEvents, AppendServed, Command, ServedEntry
from headwater.log.identity import MemoryIdentity, UserKey
from headwater.log.memory import MemoryLog
from headwater.log.record import Namespace
from headwater.log.writer import LogWriter
from headwater.ranking.ranker import open_ranker
from headwater.retrieval.sources import Popular
from headwater.schema.items import Item
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.rules import open_rules
from headwater.serving.view import FoldView
from headwater.simulator import History, World
from headwater.simulator.catalogue import HOUR_MS
from headwater.simulator.history import in_order
from headwater.simulator.people import COUNTRIES, DEVICES, user_id
from headwater.simulator.world import Populated

Int64 = npt.NDArray[np.int64]

_NO_DEADLINE_MS = 1e9
_STRANGER = UserKey(0, 0)
_encode = msgspec.msgpack.Encoder().encode


class Start:
    """What every policy starts from on one seed: the world, and what people did in it before.

    ``learnt`` are rows of that, and the state behind them, by what they were made of, so that they are made once.
    """

    def __init__(self, world: World) -> None:
        self.world, self.history = world, world.history()
        self.learnt: dict[str, tuple[TrainingSet, Fold]] = {}


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
        self._learning = FoldView(
            self.plan, Fold(self.plan, unseal=identity.decrypt)
        )  # the state of the learner, which reads behind
        self._collector: RowCollector | None = None
        self.model: Model | None = None
        vocabulary = self.log.vocabulary()
        self._vocabulary = vocabulary
        region, zones = StoredRegion(vocabulary), Zones(vocabulary)
        sources = None if policy.learns else (Popular(self.config, self.plan),)
        self._pipeline = Pipeline(
            self.config, self.plan, sources=sources, stored_region=region, zones=zones,
            rules=open_rules(self.config, self.plan, vocabulary),
        )  # fmt: skip
        self._arriving: list[_Arriving] = []
        self._order = 0
        self._served: list[ServedEntry] = []
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
        return self._positions[answer.items]

    def _segments(self, people: Populated, user: int, device: int) -> tuple[int, int]:
        country = COUNTRIES[people.people.country[user]]
        found = (f"country={country}", f"device={DEVICES[device]}")
        return self._vocabulary.index(Namespace.SEGMENT, found[0]), self._vocabulary.index(Namespace.SEGMENT, found[1])

    # -- training ----------------------------------------------------------------------------------------

    def train(self) -> None:
        """A ranker from the newest rows takes over, as ``headwater learn`` makes it."""
        if self._collector is None:
            return
        collector, view, until = self._collector, self._learning, self.log.last_offset
        collector.expect(view.fold.offset)
        for block, i in stops(self.log, view.fold, collector.wanted, until=until):
            collector.collect(block, i, view, None)
        rows = collector.renew(view, until)
        if len(rows.groups) < MIN_GROUPS:
            return
        made = fit_ranker(
            self.config, self.plan, self.plan.columns, rows, warm=None, seed=self._seed, threads=self._threads, progress=None
        )  # fmt: skip
        if self.model is not None:
            self.model.close()
        opened = open_ranker(self.config.ranker.kind, made.files, self.plan.columns)
        self.model = Model(f"after {len(rows.groups)} {rows.learnt_from}", opened)

    def close(self) -> None:
        """Let go of model and log."""
        if self.model is not None:
            self.model.close()
        self.writer.close()

    def _begin(self, start: Start) -> None:
        """The history goes through the log hour by hour; what can be learnt from it is learnt once for all policies."""
        world, keys = start.world, self.config.segments.keys
        known_ms = 0
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
        self._now_ms = world.end_ms
        self.put_items(world.items_born(known_ms, world.end_ms), world.end_ms)
        fold_to(self.log, self.fold, self.log.last_offset)
        self.view.refresh()
        if self.policy.learns:
            self._collector = RowCollector(
                self.log, self.plan, self.config, None, first=self._from_history(start), share=self._share,
                list_share=1.0, drawing=np.random.default_rng([self._seed, 41]),
            )  # fmt: skip
            self.train()

    def _from_history(self, start: Start) -> TrainingSet:
        """The first rows, as ``headwater train`` makes them; the learner's state stands behind them."""
        config, fold = self.config, self._learning.fold
        of = f"{config.ranker.learn_from}, watermark {config.training.watermark}, fresh {config.sources.fresh.enabled}"
        if of not in start.learnt:
            rows = build_rows(
                self.log, self.plan, config, until=self.log.last_offset, start_ms=0, seed=self._seed, view=self._learning
            ).rows  # fmt: skip
            fold_to(self.log, fold, self.log.last_offset)
            kept = Fold(self.plan)
            kept.start_from(fold)
            start.learnt[of] = rows, kept
        rows, kept = start.learnt[of]
        fold.start_from(kept)
        return rows
