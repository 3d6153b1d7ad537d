"""Hours of even load: memory, descriptors and latency must stay where they are (table row 24).

``python -m tests.reliability.soak --minutes 60 --rate 100`` prints one JSON object. Requests and events arrive by Poisson processes; the same
users and items all the time, so nothing has a reason to grow but the log. The first tenth warms up and does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.bench.load import Pool
from headwater.cli.bench.schedule import http_request
from headwater.cli.options import configure_logging
from tests.online.running import PARTS, Running, catalogue, publish_ranker

USERS, ITEMS, CONNECTIONS = 500, 300, 64
SAMPLES = 40


class Sample(Struct, frozen=True):
    """A moment: anonymous memory (MB) and descriptors by role, and the P95 (ms) since the sample before."""

    at_s: float
    memory_mb: dict[str, float]
    descriptors: dict[str, int]
    p95_ms: float


class Outcome(Struct, frozen=True):
    """Slopes are those of a line through all samples: ``memory_slope`` in % of the mean an hour, all processes together, and the
    part of it that the scatter of the samples could make by chance (two standard errors). ``p95_drift``: last third
    against first, in %.
    """

    seed: int
    minutes: float
    rate: float
    requests: int
    failed: int
    memory_mb: dict[str, float]
    memory_slope: float
    memory_slope_error: float
    slope_by_role: dict[str, float]
    descriptors: dict[str, list[int]]
    p95_ms: float
    p95_drift: float

    @property
    def good(self) -> bool:
        """Whether memory does not grow by more than 1%/h (beyond the error), descriptors are flat and P95 stays within 10%."""
        flat = all(last <= first + 2 for first, last in self.descriptors.values())
        return self.memory_slope - self.memory_slope_error <= 1.0 and flat and self.p95_drift <= 10.0


class _Load:
    """Requests and events at random moments."""

    def __init__(self, url: str, rate: float, seed: int) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._pool = Pool(address.hostname, address.port, CONNECTIONS)
        self._rate, self._random = rate, random.Random(seed)
        self.latency_ms: list[float] = []
        self.requests = self.failed = 0

    async def run(self, end: float) -> None:
        """Send until ``end`` (perf_counter)."""
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (due := due + self._random.expovariate(self._rate)) < end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._send(due))

    async def _send(self, due: float) -> None:
        user = f"user-{self._random.randrange(USERS)}"
        if self._random.random() < 0.3:
            event = {"user": user, "item": f"item-{self._random.randrange(ITEMS)}", "type": "view"}
            answer = await self._pool.ask(http_request("POST", "/v1/events", msgspec.json.encode([event])))
        else:
            answer = await self._pool.ask(
                http_request("POST", "/v1/recommend", msgspec.json.encode({"user": user, "k": 10}))
            )
            self.latency_ms.append(1e3 * (time.perf_counter() - due))
        self.requests += 1
        self.failed += answer.status != 200

    def close(self) -> None:
        self._pool.close()


def _anonymous_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no RssAnon")


def _sample(running: Running, at_s: float, latency_ms: list[float]) -> Sample:
    pids = {role: running.pids(role) for role in PARTS}
    return Sample(
        at_s,
        {role: sum(map(_anonymous_mb, found)) for role, found in pids.items()},
        {role: sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in found) for role, found in pids.items()},
        float(np.percentile(latency_ms, 95)) if latency_ms else float("nan"),
    )


def slope(at_s: list[float], values: list[float]) -> tuple[float, float]:
    """Rise of a line through ``values``, in % of their mean an hour, and two standard errors of it."""
    x, y = np.array(at_s) / 3_600.0, np.array(values)
    dx = x - x.mean()
    rise = float(dx @ y / (dx @ dx))
    rest = y - y.mean() - rise * dx
    error = float(np.sqrt(rest @ rest / max(len(x) - 2, 1) / (dx @ dx)))
    return 100.0 * rise / float(y.mean()), 200.0 * error / float(y.mean())


async def _soak(running: Running, *, minutes: float, rate: float, seed: int) -> tuple[_Load, list[Sample]]:
    load, samples = _Load(running.url, rate, seed), list[Sample]()
    began = time.perf_counter()
    try:
        for number in range(SAMPLES + SAMPLES // 10):
            await load.run(began + 60.0 * minutes * (number + 1) / SAMPLES)
            samples.append(_sample(running, time.perf_counter() - began, load.latency_ms))
            load.latency_ms.clear()
    finally:
        load.close()
    return load, samples[SAMPLES // 10 :]


def run(folder: Path, *, minutes: float, rate: float, seed: int) -> Outcome:
    """Serve below ``folder`` under load for ``minutes`` (and a tenth more, at first, that does not count)."""
    with Running(folder) as running:
        running.ingest("/v1/items", catalogue(ITEMS))
        publish_ranker(running.data, running.config, seed=seed, created_ms=1_772_000_000_000)
        load, samples = asyncio.run(_soak(running, minutes=minutes, rate=rate, seed=seed))
        assert running.stop() == 0
    at_s = [sample.at_s for sample in samples]
    rise, error = slope(at_s, [sum(sample.memory_mb.values()) for sample in samples])
    third = len(samples) // 3
    first, last = (float(np.median([s.p95_ms for s in part])) for part in (samples[:third], samples[-third:]))
    return Outcome(
        seed=seed, minutes=minutes, rate=rate, requests=load.requests, failed=load.failed,
        memory_mb={role: round(samples[-1].memory_mb[role], 1) for role in PARTS}, memory_slope=rise, memory_slope_error=error,
        slope_by_role={role: slope(at_s, [sample.memory_mb[role] for sample in samples])[0] for role in PARTS},
        descriptors={role: [samples[0].descriptors[role], samples[-1].descriptors[role]] for role in PARTS},
        p95_ms=float(np.median([sample.p95_ms for sample in samples])), p95_drift=100.0 * (last / first - 1.0),
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-soak-") as folder:
        outcome = run(Path(folder), minutes=given.minutes, rate=given.rate, seed=given.seed)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
