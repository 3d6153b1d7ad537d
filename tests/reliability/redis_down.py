"""Redis is killed while requests come in and events are posted: every request is answered, in time, and all is well soon after.

``python -m tests.reliability.redis_down --down-s 30`` prints one JSON object (table row 13). Requests arrive by a Poisson process
whatever becomes of the earlier ones; latency counts from the moment of arrival. The short form is in
``tests/online/test_serve_redis.py``, where a server with Redis runs anyway. The stampede is the most that Redis
was asked in a second after it came back (reads of the workers, scripts of all) over the mean before. Exit code 1 when a
target was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import redis

from headwater.cli.options import configure_logging
from tests.features.redis_server import RedisServer
from tests.online.running import CONFIG, Running, catalogue, publish_ranker
from tests.reliability.asking import USERS, Answered, Load, figures, recovery_s, unlabelled, until
from tests.reliability.load import Poster

ITEMS = 300
BEFORE_S, AFTER_S = 5.0, 10.0
NOTICED_S = 0.5  # of load before it goes down
SAMPLE_S = 0.25
DEADLINE_MS = 50.0


class Outcome(Answered, frozen=True, kw_only=True):
    """Requests while Redis was down and in the ten seconds after. ``unlabelled``: answers of a tier above 3, or without a
    reason, between the first one that noticed and the return. ``recovery_s``: from the return of Redis to the last answer
    that was not in full; ``fresh_s``: until an event of then was reflected. Latencies in ms at ``rate`` requests a second.
    """

    seed: int
    rate: float
    down_s: float
    workers: int
    baseline_p95_ms: float
    recovery_s: float
    fresh_s: float
    reads_per_s_before: float
    reads_per_s_after_max: float
    scripts_per_s_before: float
    scripts_per_s_after_max: float
    connections_after: int
    retries: int

    @property
    def stampede(self) -> float:
        """The most in a second after the return, in multiples of the mean before: reads of the workers, or scripts of all."""
        reads = self.reads_per_s_after_max / self.reads_per_s_before
        return max(reads, self.scripts_per_s_after_max / self.scripts_per_s_before)

    @property
    def good(self) -> bool:
        """Whether the targets are met."""
        return self.answered_well and max(self.recovery_s, self.fresh_s) <= 5.0 and self.stampede <= 2.0


class Watch:
    """Asks again and again: workers how often they read from Redis, Redis how many scripts it has run since its start."""

    def __init__(self, running: Running, server: RedisServer, password: str | None = None) -> None:
        self.reads: list[tuple[float, int]] = []
        self.scripts: list[tuple[float, int]] = []
        self.connections = 0
        self._running, self._server, self._password = running, server, password
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with redis.Redis(unix_socket_path=str(self._server.socket), password=self._password) as raw:
            while not self._stop.wait(SAMPLE_S):
                self.reads.append((time.perf_counter(), counted(self._running, "headwater_remote_calls_total")))
                with contextlib.suppress(redis.RedisError, OSError):  # it is down
                    scripts = raw.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"]
                    self.scripts.append((time.perf_counter(), scripts))
                    self.connections = raw.info("stats")["total_connections_received"]


def most_per_s(samples: list[tuple[float, int]]) -> float:
    """The most in any second."""
    most = 0.0
    for k, (at, count) in enumerate(samples):
        earlier = [sample for sample in samples[:k] if at - sample[0] >= 1.0] or samples[:1]
        most = max(most, (count - earlier[-1][1]) / max(at - earlier[-1][0], 1.0))
    return most


def mean_per_s(samples: list[tuple[float, int]]) -> float:
    """The mean over all of them."""
    (first, least), (last, most) = samples[0], samples[-1]
    return (most - least) / (last - first)


async def fresh(running: Running) -> None:
    """Return once an event of now is reflected."""
    token = await asyncio.to_thread(running.ingest, "/v1/events", {"user": "user-1", "item": "item-1", "type": "click"})

    async def reflected() -> bool:
        request = {"user": "user-1", "k": 1, "token": token, "deadline_ms": 200}
        reply = await asyncio.to_thread(lambda: running.recommend(**request))
        return bool(reply["address"]["user_offset"] >= int(token))

    await until(reflected, "state is not folded on")


def prepare(running: Running) -> None:
    """Items, a ranker, and a row for every user."""
    running.ingest("/v1/items", catalogue(ITEMS))
    publish_ranker(running.data, running.config, seed=1, created_ms=1_772_000_000_000)
    events = [{"user": f"user-{n}", "item": f"item-{n % ITEMS}", "type": "click"} for n in range(USERS)]
    running.reflected(running.ingest("/v1/events", events))


def settings(url: str, workers: int) -> str:
    """The configuration with the state in Redis at ``url``; no row is kept, so that every request asks Redis."""
    served = CONFIG.replace("[serving]", f"[serving]\nworkers = {workers}")
    return f'{served}\n[state]\nstore = "redis"\nurl = "{url}"\npartitions = 3\n\n[cache]\nuser_rows = 0\n'


def counted(running: Running, name: str) -> int:
    """A counter of the state at ``/metrics``."""
    lines = running.http.get("/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith(f'{name}{{part="state"}}')))


async def measure(
    running: Running, server: RedisServer, *, before_s: float, down_s: float, after_s: float, rate: float, seed: int,
    password: str | None = None,
) -> Outcome:  # fmt: skip
    """Kill ``server``, which holds the state of ``running``, for so long, with so much load before and after."""
    load = Load(running.url, rate=rate, seed=seed)

    async def unready() -> bool:
        return (await asyncio.to_thread(running.http.get, "/readyz")).status_code == 503

    try:
        await load.until_full()
        await load.run(0.2 * before_s)  # connections open, kernels warm
        with Watch(running, server, password) as before:
            await load.run(before_s)
        baseline = float(np.percentile(load.latency_ms, 95))
        during = asyncio.create_task(load.run(NOTICED_S + down_s + after_s))
        await asyncio.sleep(NOTICED_S)
        await asyncio.to_thread(server.kill)
        click = {"user": "user-1", "item": "item-2", "type": "click"}
        await asyncio.to_thread(running.ingest, "/v1/events", click)  # taken all the same; the fold notices
        await asyncio.gather(asyncio.sleep(down_s), until(unready, "/readyz says yes without state"))
        with Watch(running, server, password) as after:
            back = time.perf_counter()
            await asyncio.to_thread(server.start)
            await fresh(running)
            fresh_s = time.perf_counter() - back
            await during
        retries = await asyncio.to_thread(counted, running, "headwater_remote_retries_total")
    finally:
        load.close()
    answers = list(load.answers)
    return Outcome(
        **figures(load.latency_ms, answers, unlabelled(answers, back, least_tier=3)),
        seed=seed, rate=rate, down_s=down_s, workers=running.config.serving.workers, baseline_p95_ms=baseline,
        recovery_s=recovery_s(answers, back),
        fresh_s=fresh_s, reads_per_s_before=mean_per_s(before.reads), reads_per_s_after_max=most_per_s(after.reads),
        scripts_per_s_before=mean_per_s(before.scripts), scripts_per_s_after_max=most_per_s([(back, 0), *after.scripts]),
        connections_after=after.connections, retries=retries,
    )  # fmt: skip


@contextlib.contextmanager
def under_events(folder: Path, url: str, *, workers: int, seed: int) -> Iterator[Running]:
    """A server in ``folder`` with its state in Redis at ``url``, while events are posted."""
    with Running(folder, settings(url, workers)) as running:
        prepare(running)
        poster = Poster(running.url, "p", seed=seed, users=USERS, items=ITEMS, batch=5, pause_s=0.1)
        poster.start()
        try:
            yield running
        finally:
            poster.stop()
        assert running.stop() == 0


def run(folder: Path, *, down_s: float, rate: float, seed: int, workers: int = 1) -> Outcome:
    """Serve in ``folder`` and kill Redis for ``down_s`` seconds."""
    server = RedisServer("--appendonly", "yes")
    try:
        with under_events(folder, server.url, workers=workers, seed=seed) as running:
            return asyncio.run(
                measure(running, server, before_s=BEFORE_S, down_s=down_s, after_s=AFTER_S, rate=rate, seed=seed)
            )
    finally:
        server.stop()


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down-s", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), down_s=given.down_s, rate=given.rate, seed=given.seed, workers=given.workers)
    print(msgspec.json.encode(outcome).decode())  # noqa: T201
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
