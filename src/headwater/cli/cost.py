"""What the rows of a plan cost on this machine: a small generated log is folded, and rows are assembled from it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
from msgspec import Struct

from headwater.features.aggregations import Affinity
from headwater.features.assemble import Context, assemble, new_scratch
from headwater.features.decay import FOREVER_MS, PERIOD
from headwater.features.definitions import Column, Formula, Term, TermOp
from headwater.features.fold import Fold
from headwater.features.layout import U_RECENT_LENGTH, U_SEEN_LENGTH
from headwater.features.plan import Plan
from headwater.features.reads import compile_reads
from headwater.features.rows import User, pack_user
from headwater.features.wording import KINDS, kind_of
from headwater.log.batch import events_to_batch
from headwater.log.commands import AppendEvents, PutItems
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.record import RecordBlock
from headwater.log.writer import LogWriter
from headwater.schema.config import Config
from headwater.schema.events import MAX_ATTRIBUTES, Event, Scalar
from headwater.schema.items import Item

EVENTS, USERS, ITEMS = 20_000, 1_000, 1_000
CANDIDATES = 200
_START_MS = 1_772_409_600_000
_STEP_MS = 20_000
_CATEGORIES = 40
_CHUNK = 5_000
_TRIES = 12
_TRY_S = 0.006


class Kind(Struct, frozen=True):
    """Columns of one kind, and what a row of them alone takes more than a row of nothing."""

    columns: int
    ns_per_row: float


class Packed(Struct, frozen=True):
    """Bytes of the stored user rows of the log: of all, of what is no ring, and of an entry of each ring."""

    mean: float
    p99: float
    fixed: float
    per_recent_event: float
    per_seen_item: float


class Cost(Struct, frozen=True):
    """Nanoseconds, the best of several tries. A row alone bears the whole call; ``base`` is a row of nothing in a group."""

    events: int
    users: int
    items: int
    fold_ns_per_event: float
    assemble_ns_alone: float
    assemble_ns_per_row: float
    candidates: int
    base_ns_per_row: float
    by_kind: dict[str, Kind]
    packed_user: Packed


class Bench:
    """A folded log of its own, on which any columns of ``plan`` can be timed."""

    def __init__(
        self, plan: Plan, config: Config, *, seed: int = 7, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.plan, self._clock = plan, clock
        log = _log(plan, config, np.random.default_rng(seed))
        blocks = list(_blocks(log))
        self.fold_ns = min(self._folded(blocks) for _ in range(3))
        self._now_ms = log.last_received_ms + 60_000
        rows = [self._fold.users.user(user) for user in range(1, USERS + 1)]
        self._users = [row for row in rows if row.u4[U_RECENT_LENGTH]]
        self._user = sorted(self._users, key=lambda row: int(row.u4[U_RECENT_LENGTH]))[len(self._users) // 2]
        self._lives = [0 if p == FOREVER_MS else p // PERIOD for p in plan.lives.period_ms.tolist()]
        self._nothing = self._only([Column("nothing", Formula.VALUE, (Term(TermOp.CONSTANT),), "", "")])
        self._nothing_ns = self.row_ns(self._nothing, CANDIDATES)

    def row_ns(self, plan: Plan, candidates: int) -> float:
        """Assembling a group of ``candidates``, for each of its rows, for the user with a median history."""
        items = self._fold.items.rows
        scratch = new_scratch(len(items.i8), candidates, plan)
        out = np.zeros((candidates, len(plan.reads.formula)), np.float32)
        chosen = np.arange(1, candidates + 1)

        def once() -> None:
            assemble(plan, self._user, items, chosen, Context((1, 1)), self._now_ms, scratch, out)

        return self._best_ns(once) / candidates

    def alone_ns(self, columns: list[Column]) -> float:
        """What a row of ``columns`` alone takes in a group, more than a row of nothing."""
        took = self.row_ns(self._only(columns), CANDIDATES)
        self._nothing_ns = min(self._nothing_ns, self.row_ns(self._nothing, CANDIDATES))  # others use this machine too
        return max(took - self._nothing_ns, 0.0)

    def cost(self) -> Cost:
        """All figures."""
        kinds: dict[str, list[Column]] = {kind: [] for kind in KINDS}
        for column in self.plan.declared:
            kinds[kind_of(column)].append(column)
        by_kind = {
            kind: Kind(len(columns), round(self.alone_ns(columns), 1)) for kind, columns in kinds.items() if columns
        }
        return Cost(
            events=EVENTS, users=len(self._users), items=ITEMS,
            fold_ns_per_event=round(self.fold_ns, 1),
            assemble_ns_alone=round(self.row_ns(self.plan, 1), 1),
            assemble_ns_per_row=round(self.row_ns(self.plan, CANDIDATES), 1),
            candidates=CANDIDATES,
            base_ns_per_row=round(self._nothing_ns, 1),
            by_kind=by_kind,
            packed_user=self._packed(),
        )  # fmt: skip

    def _only(self, columns: list[Column]) -> Plan:
        """The plan with the same rows, reading ``columns`` alone."""
        plan = self.plan
        groups = [cell for cell in plan.positions if isinstance(cell, Affinity)]
        reads = compile_reads(tuple(columns), plan.positions, self._lives, groups, plan.layout, plan.factors.size)
        return dataclasses.replace(plan, reads=reads)

    def _folded(self, blocks: list[RecordBlock]) -> float:
        """Nanoseconds an event, once the kernels are loaded and the first rows are there."""
        self._fold = Fold(self.plan, unseal=lambda _user, _sealed: None)
        self._fold.apply(blocks[0])
        began = self._clock()
        for block in blocks[1:]:
            self._fold.apply(block)
        return (self._clock() - began) * 1e9 / sum(len(block) for block in blocks[1:])

    def _best_ns(self, once: Callable[[], None]) -> float:
        once()  # loads the kernel
        best = float("inf")
        for _ in range(_TRIES):
            count, began = 0, self._clock()
            while (passed := self._clock() - began) < _TRY_S:
                once()
                count += 1
            best = min(best, passed / count)
        return best * 1e9

    def _packed(self) -> Packed:
        layout = self.plan.layout
        whole, fixed, recent, seen = (np.zeros(len(self._users)) for _ in range(4))
        for k, row in enumerate(self._users):
            unseen = User(row.i8, row.f4, row.u4.copy())
            whole[k] = len(pack_user(row, layout))
            unseen.u4[U_SEEN_LENGTH] = 0
            unseen.u4[layout.seen :] = 0
            recent[k] = len(pack_user(unseen, layout))
            unseen.u4[U_RECENT_LENGTH] = 0
            unseen.u4[layout.recent_keys : layout.seen] = 0
            fixed[k] = len(pack_user(unseen, layout))
            seen[k] = min(int(row.u4[U_SEEN_LENGTH]), layout.seen_size)
        events = sum(int(row.u4[U_RECENT_LENGTH]) for row in self._users)
        return Packed(
            mean=round(float(whole.mean()), 1), p99=round(float(np.percentile(whole, 99)), 1),
            fixed=round(float(fixed.mean()), 1),
            per_recent_event=round(float((recent - fixed).sum()) / max(events, 1), 2),
            per_seen_item=round(float((whole - recent).sum()) / max(float(seen.sum()), 1.0), 2),
        )  # fmt: skip


def _log(plan: Plan, config: Config, rng: np.random.Generator) -> MemoryLog:
    """Users and items by a power law, event types evenly, a value with every other event."""
    log, keys = MemoryLog(), config.segments.keys
    writer = LogWriter(log, MemoryIdentity(), clock=lambda: _START_MS, segment_keys=keys)
    writer.commit(PutItems([_item(plan, number, rng) for number in range(ITEMS)]))
    types = [t.name for t in config.events]
    users, items = (np.minimum(count * rng.random(EVENTS) ** 2, count - 1).astype(np.int64) for count in (USERS, ITEMS))
    drawn, values, places = rng.integers(0, len(types), EVENTS), rng.random(EVENTS), rng.integers(0, 8, USERS)
    for start in range(0, EVENTS, _CHUNK):
        events = [
            Event(
                user=f"u{users[n]}", item=f"i{items[n]}", type=types[int(drawn[n])], time=_START_MS + n * _STEP_MS,
                value=float(values[n]) if n % 2 else None, attributes=dict.fromkeys(keys, f"v{places[users[n]]}"),
            )
            for n in range(start, min(start + _CHUNK, EVENTS))
        ]  # fmt: skip
        writer.commit(AppendEvents(events_to_batch(events, keys, received_from_time=True)))
    return log


def _item(plan: Plan, number: int, rng: np.random.Generator) -> Item:
    said: dict[str, Scalar] = {
        a.name: float(rng.random()) if a.kind == "number" else f"v{rng.integers(0, 100)}"
        for a, _ in plan.item_attributes[:MAX_ATTRIBUTES]
    }
    category = f"c{int(_CATEGORIES * rng.random() ** 2)}"
    return Item(
        id=f"i{number}", title=f"word{rng.integers(0, 500)} word{rng.integers(0, 500)}", categories=[category],
        price=float(rng.integers(1, 100)), attributes=said or None,
    )  # fmt: skip


def _blocks(log: MemoryLog) -> Iterator[RecordBlock]:
    after = 0
    while (block := log.read(after, _CHUNK)) is not None:
        after = block.last_offset
        yield block
