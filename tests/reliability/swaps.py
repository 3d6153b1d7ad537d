"""Swap the bundle in service and restart the workers again and again under load: no request fails, no list is made by two bundles.

``python -m tests.reliability.swaps --swaps 20 --restarts 20 --requests 100000`` prints one JSON object. Requests arrive by a Poisson
process whatever becomes of the earlier ones, and latency counts from the moment of arrival. A first part without swaps
gives the baseline. Exit code 1 when a request failed, a list was mixed, or the P99 is twice the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.bench.load import Pool
from headwater.cli.bench.schedule import http_request
from headwater.cli.options import configure_logging
from headwater.features.plan import compile_plan
from headwater.registry.registry import Registry
from tests.online.running import Running, catalogue
from tests.reliability.marked import Reply, publish_marked

USERS, ITEMS = 500, 300
CONNECTIONS = 64
TAKEN_UP_S = 120.0
REPLACED_S = 120.0

_decode = msgspec.json.Decoder(Reply).decode


class Outcome(Struct, frozen=True):
    """``failures`` counts what the failed requests said; ``mixed``: lists whose scores are not those of the bundle that they name. ``taken_up``: swaps that came into service; ``replaced``: rolling restarts after which every worker was a new process.

    Latencies in ms, at ``rate`` requests a second.
    """

    seed: int
    swaps: int
    taken_up: int
    restarts: int
    replaced: int
    requests: int
    failed: int
    failures: dict[str, int]
    mixed: int
    versions_seen: int
    rate: float
    baseline_requests: int
    baseline_p99_ms: float
    p50_ms: float
    p99_ms: float
    swap_p50_s: float
    swap_max_s: float

    @property
    def good(self) -> bool:
        """Whether nothing failed, nothing was mixed, every swap came into service and every worker was replaced."""
        return not (self.failed or self.mixed) and self.taken_up == self.swaps and self.replaced == self.restarts


class Load:
    """Asks at random moments; keeps what came of it."""

    def __init__(self, url: str, marks: dict[str, float], *, rate: float, seed: int) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._pool = Pool(address.hostname, address.port, CONNECTIONS)
        self._marks, self._rate, self._random = marks, rate, random.Random(seed)
        self.latency_ms: list[float] = []
        self.failed = self.mixed = 0
        self.failures: Counter[str] = Counter()
        self.seen: dict[str, float] = {}

    async def run(self, requests: int) -> None:
        """Send ``requests`` and wait for all answers."""
        self.latency_ms.clear()
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                due += self._random.expovariate(self._rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._ask(due))

    async def _ask(self, due: float) -> None:
        body = msgspec.json.encode({"user": f"user-{self._random.randrange(USERS)}", "k": 10})
        answer = await self._pool.ask(http_request("POST", "/v1/recommend", body))
        self.latency_ms.append(1e3 * (time.perf_counter() - due))
        if answer.status != 200:
            self.failed += 1
            self.failures[f"{answer.status} {answer.body[:80].decode(errors='replace')}"] += 1
            return
        reply = _decode(answer.body)
        self.seen[reply.model] = time.perf_counter()
        mark = self._marks[reply.model]
        self.mixed += reply.address.bundle != reply.model or not all(item.score == mark for item in reply.items)

    def close(self) -> None:
        self._pool.close()


async def _swaps(registry: Registry, load: Load, order: list[str], plan_hash: str, pause_s: float) -> list[float]:
    """Promote one after the other (and roll back every fourth time); seconds until each was first seen in an answer."""
    taken: list[float] = []
    for number, version in enumerate(order):
        await asyncio.sleep(pause_s)
        load.seen.pop(version, None)
        began = time.perf_counter()
        if number % 4 == 3:
            assert await asyncio.to_thread(registry.rollback, plan_hash) == version
        else:
            await asyncio.to_thread(registry.put_in_service, version, plan_hash=plan_hash)
        while load.seen.get(version, 0.0) < began:
            if time.perf_counter() - began > TAKEN_UP_S:
                return taken
            await asyncio.sleep(0.01)
        taken.append(load.seen[version] - began)
    return taken


async def restart(running: Running) -> bool:
    """One rolling restart: whether every worker was another process after it, and the old ones were gone."""
    before = set(await asyncio.to_thread(running.pids, "api"))
    os.kill(running.process.pid, signal.SIGUSR1)
    began = time.perf_counter()
    while time.perf_counter() - began < REPLACED_S:
        now = set(await asyncio.to_thread(running.pids, "api"))
        if len(now) == len(before) and not now & before:
            return True
        await asyncio.sleep(0.1)
    return False


async def _restarts(running: Running, count: int, pause_s: float) -> int:
    """``count`` rolling restarts; how many replaced every worker."""
    replaced = 0
    for _ in range(count):
        await asyncio.sleep(pause_s)
        replaced += await restart(running)
    return replaced


def run(
    folder: Path, *, swaps: int, requests: int, rate: float, seed: int, workers: int = 1, restarts: int = 0
) -> Outcome:
    """Serve in ``folder``, measure a baseline of a fifth of ``requests``, then the rest with ``swaps`` spread over it, and
    more for as long as ``restarts`` take.
    """
    with Running(folder, arguments=("--workers", str(workers))) as running:
        running.ingest("/v1/items", catalogue(ITEMS))
        plan, registry = compile_plan(running.config), Registry(running.data / "models")
        versions = [publish_marked(running.data, running.config, number) for number in range(1, swaps + 2)]
        registry.put_in_service(versions[0])
        until = time.monotonic() + TAKEN_UP_S
        while running.recommend(user="user-1", k=1)["model"] != versions[0]:
            assert time.monotonic() < until, "the first bundle does not come into service"
            time.sleep(0.05)
        order = [versions[n + 1] if n % 4 != 3 else versions[n - 1] for n in range(swaps)]
        marks = {version: float(number) for number, version in enumerate(versions, 1)}
        return asyncio.run(_measure(running, registry, plan.hash, order, marks, requests, rate, seed, restarts))


async def _measure(
    running: Running, registry: Registry, plan_hash: str, order: list[str], marks: dict[str, float], requests: int,
    rate: float, seed: int, restarts: int,
) -> Outcome:  # fmt: skip
    load = Load(running.url, marks, rate=rate, seed=seed)
    try:
        await load.run(max(requests // 50, 20))  # connections open, kernels warm
        first = max(requests // 5, 50)
        await load.run(first)
        baseline = float(np.percentile(load.latency_ms, 99))
        pause_s = 0.8 * requests / rate / max(len(order), 1) - 0.6  # half a second goes by until a swap is noticed
        swapping = asyncio.create_task(_swaps(registry, load, order, plan_hash, max(pause_s, 0.05)))
        await load.run(requests)
        latency, replaced = list(load.latency_ms), 0
        while not swapping.done():  # on a busy machine it takes longer; without requests nothing would be seen of it
            await load.run(max(requests // 50, 20))
            latency += load.latency_ms
        taken = swapping.result()
        if restarts:
            restarting = asyncio.create_task(_restarts(running, restarts, 0.5))
            while not restarting.done():
                await load.run(max(requests // 10, 50))
                latency += load.latency_ms
            replaced = restarting.result()
    finally:
        load.close()
    return Outcome(
        seed=seed, swaps=len(order), taken_up=len(taken), restarts=restarts, replaced=replaced, requests=len(latency), failed=load.failed, failures=dict(load.failures), mixed=load.mixed,
        versions_seen=len(load.seen), rate=rate, baseline_requests=first, baseline_p99_ms=baseline,
        p50_ms=float(np.percentile(latency, 50)), p99_ms=float(np.percentile(latency, 99)),
        swap_p50_s=float(np.median(taken)) if taken else 0.0, swap_max_s=max(taken, default=0.0),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            Path(folder),
            swaps=given.swaps,
            requests=given.requests,
            rate=given.rate,
            seed=given.seed,
            workers=given.workers,
            restarts=given.restarts,
        )
    print(msgspec.json.encode(outcome).decode())  # noqa: T201
    return 0 if outcome.good and outcome.p99_ms < 2.0 * outcome.baseline_p99_ms else 1


if __name__ == "__main__":
    sys.exit(main())
