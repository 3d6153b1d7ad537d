"""More requests than can be answered: what becomes of them, of those that matter more, and of the time afterwards.

``python -m tests.reliability.overload --keep FOLDER`` finds the capacity C (the highest Poisson rate with P95 below 100 ms and
99.9% success), sends 2, 5 and 10 times as much, floods the server with 12 times C of low priority, goes back to 0.8 C, and holds
1,000 connections that send a byte a second. It prints one JSON object; exit code 1 when a target was missed. Half of C comes
from the open loop of ``headwater bench``, by all kinds of users; the rest from ``flood.mjs`` (needs Node). The machine has to have cores
for all of them: figures of a server that shares its core say more about the other work.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.bench.measure import lag_p99_ms, send
from headwater.cli.bench.schedule import Arrival, Outcome, Plan, http_request
from headwater.cli.bench.serve import P95_LIMIT_MS, capacity_of
from headwater.cli.bench.workload import Requests, Size, prepared
from headwater.cli.local import Server
from headwater.cli.options import configure_logging
from tests.reliability.flood import Flood, FloodPlan, Sent
from tests.reliability.slow import Slow, hold

OK, SHED = 200, 503


class Level(Struct, frozen=True):
    """What became of ``per_s`` requests a second; ``user_success``: of those of normal priority that came beside a flood."""

    per_s: float
    goodput_per_s: float
    accepted_p95_ms: float | None
    shed: int
    shed_p50_ms: float | None
    shed_p99_ms: float | None
    other: int
    user_success: float | None = None
    load_lag_p99_ms: float | None = None


class Report(Struct, frozen=True):
    """``recovery_s``: from the end of the flood until every second's P95 was normal; None: it never was."""

    seed: int
    capacity_per_s: float
    levels: dict[str, Level]
    flood: Level
    recovery_s: float | None
    slow: Slow
    slow_others_p95_ms: float | None

    def missed(self) -> list[str]:
        """The targets of the acceptance table that were missed."""
        found = []
        for name, level in self.levels.items():
            if level.goodput_per_s < 0.9 * self.capacity_per_s:
                found.append(f"{name}: goodput")
            if level.accepted_p95_ms is None or level.accepted_p95_ms >= P95_LIMIT_MS:
                found.append(f"{name}: P95 of accepted")
            if level.shed_p99_ms is not None and level.shed_p99_ms >= 10.0:
                found.append(f"{name}: P99 of shed")
        if (self.flood.user_success or 0.0) < 0.995:
            found.append("flood: success of users")
        if self.recovery_s is None or self.recovery_s > 10.0:
            found.append("recovery")
        if self.slow.closed < self.slow.connections or self.slow.last_closed_s > 10.0:
            found.append("slow: closed")
        if self.slow_others_p95_ms is None or self.slow_others_p95_ms >= P95_LIMIT_MS:
            found.append("slow: P95 of the others")
        return found


def _percentile(latencies: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(latencies, percent)), 2) if latencies else None


def level_of(seconds: float, users: Sequence[Outcome], flood: Sequence[Sent], lag: float | None = None) -> Level:
    """Sum up what two generators saw in ``seconds``."""
    every = [(outcome.latency_ms, outcome.status) for outcome in users] + [(s.latency_ms, s.status) for s in flood]
    good = [ms for ms, status in every if status == OK]
    shed = [ms for ms, status in every if status == SHED]
    return Level(
        per_s=round(len(every) / seconds, 1), goodput_per_s=round(len(good) / seconds, 1),
        accepted_p95_ms=_percentile(good, 95), shed=len(shed), shed_p50_ms=_percentile(shed, 50),
        shed_p99_ms=_percentile(shed, 99), other=len(every) - len(good) - len(shed),
        user_success=round(sum(o.status == OK for o in users) / len(users), 5) if users else None, load_lag_p99_ms=lag,
    )  # fmt: skip


def p95_by_second(outcomes: Sequence[Outcome]) -> list[float]:
    """The P95 of each second's requests; one that failed took for ever."""
    last = int(max(outcome.at_s for outcome in outcomes))
    seconds: list[list[float]] = [[] for _ in range(last + 1)]
    for outcome in outcomes:
        seconds[int(outcome.at_s)].append(outcome.latency_ms if outcome.ok else float("inf"))
    return [float(np.percentile(took, 95, method="higher")) for took in seconds if took]


def recovery_s(after: Sequence[Outcome], normal: Sequence[Outcome]) -> float | None:
    """Seconds until no second's P95 is above twice the highest of normal seconds any more; None: the last one still is."""
    limit = 2.0 * max(p95_by_second(normal))
    p95s = p95_by_second(after)
    slow = [second for second, p95 in enumerate(p95s) if p95 > limit]
    if not slow:
        return 0.0
    return None if slow[-1] == len(p95s) - 1 else slow[-1] + 1.0


class Bench:
    """Load on one server: ``arrivals`` makes requests of users at given times."""

    def __init__(
        self,
        url: str,
        arrivals: Callable[[float, float], list[Arrival]],
        *,
        node: str,
        folder: Path,
        step_s: float,
        seed: int,
    ) -> None:
        self.url, self.step_s, self._seed = url, step_s, seed
        self._address = httpx.URL(url)
        self._arrivals, self._node, self._folder = arrivals, node, folder

    def users(self, per_s: float, seconds: float) -> list[Outcome]:
        """The open loop: Poisson arrivals of all kinds of users."""
        host, port = self._address.host, self._address.port
        assert port is not None
        return send(Plan(host, port, self._arrivals(per_s, seconds), connections=512))

    def both(self, users_per_s: float, flood_per_s: float, priority: str = "normal") -> Level:
        """Users and a flood at the same time."""
        request = http_request("POST", "/v1/recommend", b'{"user": "flood"}')
        request = request.replace(b"\r\n", b"\r\nx-priority: " + priority.encode() + b"\r\n", 1)
        plan = FloodPlan(
            host=self._address.host, port=self._address.port or 80, request=request.decode(), per_s=flood_per_s,
            duration_s=self.step_s, seed=self._seed,
        )  # fmt: skip
        flood = Flood(self._node, plan, self._folder)
        flood.start()
        users = self.users(users_per_s, self.step_s)
        return level_of(self.step_s, users, flood.answers(), lag_p99_ms(users))

    def slow(self, per_s: float, connections: int) -> tuple[Slow, float | None]:
        """Slow connections, and the P95 of users meanwhile."""
        held: list[Slow] = []

        async def run(opened: threading.Event) -> None:
            ready = asyncio.Event()
            task = asyncio.create_task(hold(self._address.host, self._address.port or 80, connections, ready))
            await ready.wait()
            opened.set()
            held.append(await task)

        opened = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(run(opened)))
        thread.start()
        opened.wait(60.0)
        users = self.users(per_s, self.step_s)
        thread.join()
        return held[0], level_of(self.step_s, users, []).accepted_p95_ms


def run(bench: Bench, *, first: float, seed: int, slow_connections: int) -> Report:
    """All of it, one after the other."""
    bench.users(first / 2, bench.step_s)  # connections open, caches of the processor warm
    capacity, _ = capacity_of(lambda per_s: bench.users(per_s, bench.step_s), first)
    if capacity is None:
        raise SystemExit(f"{first} requests/s are already too many for this server; give a lower --first")
    normal = bench.users(0.8 * capacity, bench.step_s)
    levels = {f"{times}x": bench.both(0.5 * capacity, (times - 0.5) * capacity) for times in (2, 5, 10)}
    after = bench.users(0.8 * capacity, max(bench.step_s, 12.0))
    recovered = recovery_s(after, normal)
    flood = bench.both(0.5 * capacity, 12 * capacity, priority="low")
    slow, others = bench.slow(0.5 * capacity, slow_connections)
    return Report(seed, capacity, levels, flood, recovered, slow, others)


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, default=None, help="a folder to prepare once and use again")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--first", type=float, default=100.0, help="requests/s to begin the search for C with")
    parser.add_argument("--step", type=float, default=15.0, help="seconds of each load")
    parser.add_argument("--slow", type=int, default=1_000, help="slow connections")
    parser.add_argument("--node", default=shutil.which("node"), help="path of Node, which sends the flood")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    if given.node is None:
        parser.error("there is no `node` in PATH; install it or name it with --node")
    size = Size(seed=given.seed, users=given.users, items=given.items, events=given.events)
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared(size, given.keep) as ready,
        Server(ready.site) as server,
    ):
        requests = Requests(ready.world, given.seed, "overload")

        def arrivals(per_s: float, seconds: float) -> list[Arrival]:
            return requests.recommend(requests.times(per_s, 0.0, seconds))

        bench = Bench(server.url, arrivals, node=given.node, folder=Path(folder), step_s=given.step, seed=given.seed)
        report = run(bench, first=given.first, seed=given.seed, slow_connections=given.slow)
    missed = report.missed()
    print(msgspec.json.encode(msgspec.to_builtins(report) | {"missed": missed}).decode())  # noqa: T201
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
