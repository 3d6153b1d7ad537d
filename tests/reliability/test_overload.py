"""The short form of :mod:`tests.reliability.overload`: no figures, but every answer is a good one or says when to come back."""

from __future__ import annotations

import asyncio
import random
import re
import time
from pathlib import Path

import httpx
import msgspec

from headwater.cli.bench.measure import Metrics, send
from headwater.cli.bench.schedule import Arrival, Outcome, Plan, http_request
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue
from tests.reliability.overload import level_of, recovery_s
from tests.reliability.slow import hold

TIGHT = f"""{CONFIG}
[overload]
target_ms = 15.0
body_timeout = "1s"
header_timeout = "2s"
"""


def post(priority: str, user: str) -> bytes:
    raw = http_request("POST", "/v1/recommend", msgspec.json.encode({"user": user, "k": 10}))
    return raw.replace(b"\r\n", f"\r\nx-priority: {priority}\r\n".encode(), 1)


def shed(running: Running) -> dict[str, float]:
    samples = Metrics(running.http.get("/metrics").text).samples
    found: dict[str, float] = {}
    for (name, labels), value in samples.items():
        if name == "headwater_shed_total":
            priority = dict(labels)["priority"]
            found[priority] = found.get(priority, 0.0) + value
    return found


def test_overload_sheds_and_ends(tmp_path: Path) -> None:
    draw = random.Random(7)
    with Running(tmp_path, TIGHT) as running:
        running.ingest("/v1/items", catalogue(300))
        address = httpx.URL(running.url)
        assert address.port is not None
        arrivals = [
            Arrival(n / 2_000, priority, post(priority, f"user-{draw.randrange(100)}"))
            for n in range(3_000)
            for priority in (draw.choice(("low", "low", "low", "normal")),)
        ]
        outcomes = send(Plan("127.0.0.1", address.port, arrivals, connections=512))
        assert len(outcomes) == len(arrivals)
        assert {outcome.status for outcome in outcomes} == {200, 503}
        refused = {p: sum(o.stream == p and o.status == 503 for o in outcomes) for p in ("low", "normal")}
        counted = shed(running)
        assert {p: counted.get(p, 0.0) for p in refused} == refused
        share = {p: refused[p] / sum(o.stream == p for o in outcomes) for p in refused}
        assert share["low"] > share["normal"]
        assert all("time in Retry-After" in outcome.note for outcome in outcomes if outcome.status == 503)

        assert running.recommend(user="user-1", k=5)["items"], "no restart is needed"
        until = time.monotonic() + PATIENCE_S
        while running.http.get("/readyz").status_code != 200:
            assert time.monotonic() < until

        slow = asyncio.run(hold("127.0.0.1", address.port, 40))
        assert slow.closed == slow.connections
        assert re.search(r"^headwater_slow_bodies_total 20\.0$", running.http.get("/metrics").text, re.MULTILINE)


def outcome(at_s: float, latency_ms: float, status: int = 200) -> Outcome:
    return Outcome(0, "recommend", at_s, 0.0, latency_ms, status, status == 200)


def test_recovery_counts_from_the_last_bad_second() -> None:
    calm = [outcome(n / 10, 10.0) for n in range(100)]
    assert recovery_s(calm, calm) == 0.0
    assert recovery_s([*calm, outcome(2.5, 20.0)], calm) == 0.0
    assert recovery_s([*calm, outcome(2.5, 20.1)], calm) == 3.0
    assert recovery_s([*calm, outcome(2.5, 10.0, 503)], calm) == 3.0, "of eleven, the failed one is the P95"
    assert recovery_s([*calm, outcome(9.5, 10.0, 503)], calm) is None


def test_a_level_tells_good_from_shed() -> None:
    level = level_of(2.0, [outcome(0.0, 10.0), outcome(0.0, 1.0, 503), outcome(0.0, 9.0, 500)], [])
    assert (level.goodput_per_s, level.accepted_p95_ms, level.shed, level.shed_p99_ms, level.other) == (
        0.5,
        10.0,
        1,
        1.0,
        1,
    )
    assert level.user_success == 0.33333
