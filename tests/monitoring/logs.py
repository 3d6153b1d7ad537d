"""A log of served lists whose truth is known, and the registry that they come from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.log.memory import MemoryLog
from headwater.log.protocol import Commit, Term
from headwater.log.record import RECORD, Kind, Namespace, RecordBlock, crcs_of
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.reference import REFERENCE_FILE, BundleReference, ReferenceColumn, encode_reference
from headwater.registry.registry import Registry
from headwater.schema.events import EventDetail
from headwater.schema.requests import Address, Explored, ServedList

PLAN = "5f6e7d8c9b0a1f2e"
COLUMNS = ("normal", "heavy", "counts", "flag")
HOUR_MS = 3_600_000
START_MS = 1_767_225_600_000  # a Thursday, 00:00 UTC
VIEW, CLICK = 1, 2
LIST = 10

Rows = npt.NDArray[np.float32]
Shift = Callable[[Rows], Rows]


def as_it_was(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Nothing has changed."""
    return rows


def publish(models: Path, created_ms: int, plan: str = PLAN, *, lineage: str | None = None) -> str:
    """A bundle without a model, in service for ``plan``; returns its version."""
    column = {"version": "", "default": 0.0, "smallest": -50.0, "largest": 50.0, "count": 10, "nan": 0}
    statistics = msgspec.json.encode({"format": 1, "features": [{"name": name, **column} for name in COLUMNS]})
    registry = Registry(models)
    fields = ManifestFields(
        created_ms=created_ms, plan_hash=plan, columns=COLUMNS, ranker="none", event_types=("view", "click"),
        data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
        training={} if lineage is None else {"lineage": lineage},
    )  # fmt: skip
    columns = tuple(
        ReferenceColumn(name=name, missing=0.0, quantiles=(), hours=((400, 120 if name == "flag" else 0),))
        for name in (*COLUMNS, "score")
    )
    reference = encode_reference(BundleReference(lists=400, learnt_from="lists", columns=columns))
    bundle = registry.publish(fields, {"statistics.json": statistics, REFERENCE_FILE: reference})
    registry.put_in_service(bundle.version, plan_hash=plan)
    return bundle.version


@dataclass
class Traffic:
    """Lists and clicks, appended hour by hour; users ask several times, so that rows are not independent."""

    bundle: str
    log: MemoryLog = field(default_factory=lambda: MemoryLog("traffic"))
    users: int = 400
    seed: int = 1
    hour: int = 0
    plan: str = PLAN

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._taste = self._rng.normal(size=self.users).astype(np.float32)
        self._requests = 0
        self._terms = (Term(Namespace.EVENT_TYPE, VIEW, "view"), Term(Namespace.EVENT_TYPE, CLICK, "click"))
        if not self.log.last_offset:
            self._append([(Kind.EVENT, VIEW, 1, 1, START_MS, b"")], self._terms)

    def copied(self) -> Traffic:
        """The same traffic so far, to go on by itself."""
        log = MemoryLog(self.log.log_id)
        terms: tuple[Term, ...] = self._terms
        while (block := self.log.read(log.last_offset)) is not None:
            log.append(Commit(block, terms))
            terms = ()
        made = Traffic(self.bundle, log, self.users, self.seed, self.hour)
        made._rng, made._requests = copy.deepcopy(self._rng), self._requests
        return made

    def run(
        self, hours: int, *, lists: int = 100, shift: Shift = as_it_was, click_rate: float = 0.1, views: int = 200,
        clicks: bool = True,
    ) -> int:  # fmt: skip
        """So many hours more; returns the time at their end."""
        for _ in range(hours):
            self._hour(lists, shift, click_rate if clicks else 0.0, views)
            self.hour += 1
        return START_MS + self.hour * HOUR_MS

    def _hour(self, lists: int, shift: Shift, click_rate: float, views: int) -> None:
        rng, start = self._rng, START_MS + self.hour * HOUR_MS
        made: list[tuple[Kind, int, int, int, int, bytes]] = [
            (Kind.EVENT, VIEW, int(rng.integers(1, self.users)), 1, time_ms, b"")
            for time_ms in np.sort(rng.integers(start, start + HOUR_MS, views)).tolist()
        ]
        for time_ms in np.sort(rng.integers(start, start + HOUR_MS, lists)).tolist():
            user = int(rng.integers(1, self.users))
            items = rng.choice(np.arange(1, 500), LIST, replace=False).tolist()
            scores = np.sort(rng.normal(self._taste[user], 1.0, LIST))[::-1]
            rows = np.column_stack((
                self._taste[user] + rng.normal(size=LIST), rng.standard_t(3, LIST), rng.poisson(2, LIST), rng.random(LIST) < 0.2,
            )).astype(np.float32)  # fmt: skip
            self._requests += 1
            request, uniform = f"r{self._requests}", self._requests % 50 == 0
            explored = Explored([0.0] * LIST, items, 0.0, 0.02, uniform=True) if uniform else None
            served = ServedList(
                request, "home", items, scores.tolist(), ["popular"] * LIST, 0, [], Address(1, 1, time_ms, self.plan, self.bundle),
                [0, 0, 0, 0], shift(rows).astype(np.float32).tobytes(), explored=explored,
            )  # fmt: skip
            made.append((Kind.SERVED, 0, user, 0, time_ms, msgspec.msgpack.encode(served)))
            chance = click_rate * 2 / (1 + np.exp(-scores))
            for place in np.flatnonzero(rng.random(LIST) < chance).tolist():
                detail = msgspec.msgpack.encode(EventDetail(request_id=request))
                made.append((Kind.EVENT, CLICK, user, items[place], time_ms + int(rng.exponential(60_000)), detail))
        self._append(sorted(made, key=lambda each: each[4]))

    def _append(self, made: list[tuple[Kind, int, int, int, int, bytes]], terms: tuple[Term, ...] = ()) -> None:
        records = np.zeros(len(made), RECORD)
        heap = b"".join(each[5] for each in made)
        at = 0
        for i, (kind, type_, user, item, time_ms, payload) in enumerate(made):
            record = records[i]
            record["offset"], record["kind"], record["type"], record["version"] = (
                self.log.last_offset + 1 + i,
                kind,
                type_,
                1,
            )
            record["user"], record["item"] = user, item
            record["received_ms"] = record["time_ms"] = time_ms
            record["payload_at"], record["payload_size"] = at, len(payload)
            at += len(payload)
        block = RecordBlock(records, np.frombuffer(heap, np.uint8))
        records["crc"] = crcs_of(block)[0]
        self.log.append(Commit(block, terms))
