"""Requests at random moments, and what came of them: for checks that take something away meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.bench.load import Pool
from headwater.cli.bench.schedule import http_request

USERS, CONNECTIONS = 200, 64
PATIENCE_S = 120.0
DEADLINE_MS = 50.0


class Reply(Struct):
    """What is looked at in an answer."""

    items: list[Any]
    tier: int
    reasons: list[str]


Answers = Sequence[tuple[float, Reply | None]]
"""When each was due (``time.perf_counter``), and what came; None: no good answer."""


class Answered(Struct, frozen=True, kw_only=True):
    """What came of requests. ``unlabelled``: without a word of what was missing. Latencies in ms from arrival."""

    requests: int
    failed: int
    unlabelled: int
    tiers: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @property
    def answered_well(self) -> bool:
        """Whether 99.9% were answered, all of these were labelled, and the P95 is below 100 ms."""
        return self.failed <= 0.001 * self.requests and not self.unlabelled and self.p95_ms < 100.0


def figures(latency_ms: Sequence[float], answers: Answers, unlabelled: int) -> dict[str, Any]:
    """The fields of :class:`Answered`."""
    latency = np.array(latency_ms)
    return {
        "requests": len(answers), "failed": sum(reply is None for _, reply in answers), "unlabelled": unlabelled,
        "tiers": tiers(reply for _, reply in answers),
        "p50_ms": float(np.percentile(latency, 50)), "p95_ms": float(np.percentile(latency, 95)),
        "p99_ms": float(np.percentile(latency, 99)), "max_ms": float(latency.max()),
    }  # fmt: skip


def tiers(replies: Iterable[Reply | None]) -> dict[str, int]:
    """How many answers each tier gave."""
    counts = Counter(reply.tier for reply in replies if reply is not None)
    return {str(tier): count for tier, count in sorted(counts.items())}


def since_noticed(answers: Answers, end: float = float("inf")) -> list[Reply]:
    """The good answers between the first one that was not in full and ``end``."""
    noticed = min((due for due, reply in answers if reply is not None and reply.tier > 0), default=float("inf"))
    return [reply for due, reply in answers if noticed <= due < end and reply is not None]


def unlabelled_since(answers: Answers, since: float) -> int:
    """Answers in full, or without a reason, among those that were due at ``since`` or later."""
    return sum(reply.tier < 1 or not reply.reasons for due, reply in answers if due >= since and reply is not None)


def unlabelled(answers: Answers, end: float = float("inf"), *, least_tier: int = 1) -> int:
    """Answers above ``least_tier``, or without a reason, :func:`since_noticed`; all of them when nothing was noticed."""
    during = since_noticed(answers, end)
    return sum(reply.tier < least_tier or not reply.reasons for reply in during) if during else len(answers)


def recovery_s(answers: Answers, back: float) -> float:
    """Seconds from ``back`` to the last answer that was not in full."""
    return max((due for due, reply in answers if due >= back and (reply is None or reply.tier)), default=back) - back


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> float:
    """Wait for ``condition``; the seconds that it took."""
    began = time.perf_counter()
    while not await condition():
        assert time.perf_counter() - began < PATIENCE_S, what
        await asyncio.sleep(0.02)
    return time.perf_counter() - began


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

    async def until_full(self, what: str = "the ranker does not come into service") -> float:
        """Ask until an answer is of tier 0; the seconds that it took."""

        async def full() -> bool:
            return await self.tier() == 0

        return await until(full, what)

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
