"""The ranker stalls while requests come in: every one is answered, in time and labelled, and the ranker comes back.

``python -m tests.reliability.stalled --stall-s 30`` prints one JSON object. The bundle in service holds an ONNX graph with
a loop whose length is the highest price among the candidates; a price of 10¹⁵ is a stall without end, which an ingest call
begins and another one ends. Requests arrive by a Poisson process whatever becomes of the earlier ones; latency counts from
the moment of arrival. Exit code 1 when a target of ``docs/ladder.md`` is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.bench.load import Pool
from headwater.cli.bench.schedule import http_request
from headwater.cli.options import configure_logging
from headwater.features.plan import compile_plan
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.registry import Registry
from tests.online.running import CONFIG, Running, catalogue
from tests.serving.endless import endless

ITEMS, USERS, CONNECTIONS = 300, 200, 64
PATIENCE_S = 60.0
STALLING_PRICE = 1e12  # turns of a loop: hours
DEADLINE_MS = 50.0


class Reply(Struct):
    """What is looked at in an answer."""

    items: list[Any]
    tier: int
    reasons: list[str]


class Outcome(Struct, frozen=True):
    """Requests during the stall. ``unlabelled``: answers of tier 0, or without a reason, that came after the stall had been
    noticed; ``labelled`` is their share. Latencies in ms from arrival, at ``rate`` requests a second.
    """

    seed: int
    rate: float
    stall_s: float
    requests: int
    failed: int
    unlabelled: int
    tiers: dict[str, int]
    baseline_p95_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    over_deadline: int
    stalls: int
    recovery_s: float

    @property
    def good(self) -> bool:
        """Whether all were answered, all were labelled, the P95 is below 100 ms and the ranker came back within 6 s."""
        return (
            self.failed <= 0.001 * self.requests
            and not self.unlabelled
            and self.p95_ms < 100.0
            and self.recovery_s < 6.0
        )


class Load:
    """Asks at random moments; keeps when, how long it took and what came."""

    def __init__(self, url: str, *, rate: float, seed: int) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._pool = Pool(address.hostname, address.port, CONNECTIONS)
        self._rate, self._random = rate, random.Random(seed)
        self.latency_ms: list[float] = []
        self.answers: list[tuple[float, Reply | None]] = []

    async def run(self, seconds: float) -> None:
        """Send for so long, and wait for all answers."""
        self.latency_ms.clear()
        self.answers.clear()
        due = time.perf_counter()
        end = due + seconds
        async with asyncio.TaskGroup() as group:
            while (due := due + self._random.expovariate(self._rate)) < end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._ask(due))

    async def tier(self) -> int | None:
        """The tier of one answer; ``None``: it was no good one."""
        await self._ask(time.perf_counter())
        reply = self.answers[-1][1]
        return None if reply is None else reply.tier

    async def _ask(self, due: float) -> None:
        user = f"user-{self._random.randrange(USERS)}"
        body = msgspec.json.encode({"user": user, "k": 10, "deadline_ms": DEADLINE_MS})
        answer = await self._pool.ask(http_request("POST", "/v1/recommend", body))
        self.latency_ms.append(1e3 * (time.perf_counter() - due))
        good = answer.status == 200
        reply = msgspec.json.decode(answer.body, type=Reply) if good else None
        self.answers.append((due, reply if reply is not None and len(reply.items) == 10 else None))

    def close(self) -> None:
        self._pool.close()


def publish_endless(running: Running) -> str:
    """Publish and promote the ranker that can be made to stall; returns its version."""
    plan = compile_plan(running.config)
    fields = ManifestFields(
        created_ms=1_760_000_000_000, plan_hash=plan.hash, columns=plan.columns, ranker="deep",
        event_types=plan.event_types, data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
    )  # fmt: skip
    registry = Registry(running.data / "models")
    version = registry.publish(fields, endless(plan.columns, "item_price")).version
    registry.promote(version, plan_hash=plan.hash)
    return version


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> float:
    """Seconds until ``condition``."""
    began = time.perf_counter()
    while not await condition():
        assert time.perf_counter() - began < PATIENCE_S, what
        await asyncio.sleep(0.02)
    return time.perf_counter() - began


async def _measure(running: Running, *, stall_s: float, rate: float, seed: int) -> Outcome:
    load = Load(running.url, rate=rate, seed=seed)

    async def full() -> bool:
        return await load.tier() == 0

    async def priced(price: float) -> None:
        items = [{**item, "price": price} for item in catalogue(ITEMS)]
        await asyncio.to_thread(running.ingest, "/v1/items", items)

    try:
        await _until(full, "the ranker does not come into service")
        await load.run(2.0)  # connections open, kernels warm
        await load.run(2.0)
        baseline = float(np.percentile(load.latency_ms, 95))

        async def stalls() -> float:
            during = asyncio.create_task(load.run(stall_s))
            await priced(STALLING_PRICE)
            await during
            return time.perf_counter()

        await stalls()
        latency, answers = np.array(load.latency_ms), list(load.answers)
        noticed = min((due for due, reply in answers if reply is not None and reply.tier > 0), default=float("inf"))
        await priced(1.0)
        recovery = await _until(full, "the ranker does not come back")
        text = await asyncio.to_thread(lambda: running.http.get("/metrics").text)
        counted = [line for line in text.splitlines() if line.startswith("headwater_ranker_stalls_total")]
    finally:
        load.close()
    given = [reply for due, reply in answers if due >= noticed and reply is not None]
    return Outcome(
        seed=seed, rate=rate, stall_s=stall_s, requests=len(answers), failed=sum(reply is None for _, reply in answers),
        unlabelled=sum(reply.tier == 0 or not reply.reasons for reply in given) if given else len(answers),
        tiers={str(tier): count for tier, count in sorted(Counter(reply.tier for reply in given).items())},
        baseline_p95_ms=baseline, p50_ms=float(np.percentile(latency, 50)), p95_ms=float(np.percentile(latency, 95)),
        p99_ms=float(np.percentile(latency, 99)), max_ms=float(latency.max()),
        over_deadline=int((latency > DEADLINE_MS).sum()), stalls=int(float(counted[0].split()[-1])), recovery_s=recovery,
    )  # fmt: skip


def run(folder: Path, *, stall_s: float, rate: float, seed: int) -> Outcome:
    """Serve in ``folder`` and stall the ranker for ``stall_s`` seconds."""
    with Running(folder, CONFIG) as running:
        running.ingest("/v1/items", [{**item, "price": 1.0} for item in catalogue(ITEMS)])
        publish_endless(running)
        outcome = asyncio.run(_measure(running, stall_s=stall_s, rate=rate, seed=seed))
        assert running.stop() == 0
    return outcome


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stall-s", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), stall_s=given.stall_s, rate=given.rate, seed=given.seed)
    print(msgspec.json.encode(outcome).decode())  # noqa: T201
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
