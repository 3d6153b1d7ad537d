"""Redis answers 200 ms late and loses 5% of what is sent, through a proxy: every request is answered in time all the same.

``python -m tests.reliability.redis_slow --slow-s 30`` prints one JSON object (table row 14). See :mod:`tests.reliability.redis_down`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from headwater.cli.options import configure_logging
from tests.features.redis_server import RedisServer
from tests.online.running import Running
from tests.reliability.asking import Answered, Load, figures, recovery_s, unlabelled
from tests.reliability.proxy import SlowProxy
from tests.reliability.redis_down import AFTER_S, BEFORE_S, counted, under_events


class Outcome(Answered, frozen=True, kw_only=True):
    """Requests while Redis was slow and afterwards. ``retry_ratio``: tries of a read over reads; ``asked_per_request``: what
    went to Redis while it was slow (by all processes), over requests.
    """

    seed: int
    rate: float
    slow_s: float
    delay_ms: float
    loss: float
    workers: int
    baseline_p95_ms: float
    recovery_s: float
    retry_ratio: float
    asked_per_request: float
    pieces_lost: int

    @property
    def good(self) -> bool:
        """Whether the targets are met."""
        return self.answered_well and self.retry_ratio <= 1.1 and self.recovery_s <= 5.0


async def measure(
    running: Running, proxy: SlowProxy, *, before_s: float, slow_s: float, after_s: float, delay_s: float, loss: float,
    rate: float, seed: int,
) -> Outcome:  # fmt: skip
    """Make ``proxy``, behind which the state of ``running`` lies, slow for so long, with so much load before and after."""
    load = Load(running.url, rate=rate, seed=seed)

    try:
        await load.until_full()
        await load.run(0.2 * before_s)  # connections open, kernels warm
        await load.run(before_s)
        baseline = float(np.percentile(load.latency_ms, 95))
        names = "headwater_remote_calls_total", "headwater_remote_retries_total"
        before = [await asyncio.to_thread(counted, running, name) for name in names]
        asked = proxy.asked
        during = asyncio.create_task(load.run(slow_s + after_s))
        proxy.delay_s, proxy.loss = delay_s, loss
        await asyncio.sleep(slow_s)
        proxy.delay_s, proxy.loss = 0.0, 0.0
        back, asked = time.perf_counter(), proxy.asked - asked
        await during
        calls, retries = [
            await asyncio.to_thread(counted, running, name) - earlier
            for name, earlier in zip(names, before, strict=True)
        ]
    finally:
        load.close()
    answers = list(load.answers)
    return Outcome(
        **figures(load.latency_ms, answers, unlabelled(answers, back, least_tier=3)),
        seed=seed, rate=rate, slow_s=slow_s, delay_ms=1e3 * delay_s, loss=loss, workers=running.config.serving.workers,
        baseline_p95_ms=baseline, recovery_s=recovery_s(answers, back),
        retry_ratio=(calls + retries) / calls, asked_per_request=asked / sum(due < back for due, _ in answers),
        pieces_lost=proxy.lost,
    )  # fmt: skip


def run(
    folder: Path, *, slow_s: float, delay_s: float, loss: float, rate: float, seed: int, workers: int = 1
) -> Outcome:
    """Serve in ``folder``, and make Redis slow for ``slow_s`` seconds."""
    server = RedisServer("--appendonly", "no")
    proxy = SlowProxy(server.folder / "proxy.sock", server.socket, seed=seed)
    try:
        with under_events(folder, proxy.url, workers=workers, seed=seed) as running:
            return asyncio.run(
                measure(
                    running, proxy, before_s=BEFORE_S, slow_s=slow_s, after_s=AFTER_S, delay_s=delay_s, loss=loss, rate=rate, seed=seed
                )
            )  # fmt: skip
    finally:
        proxy.close()
        server.stop()


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow-s", type=float, default=30.0)
    parser.add_argument("--delay-ms", type=float, default=200.0)
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            Path(folder), slow_s=given.slow_s, delay_s=given.delay_ms / 1e3, loss=given.loss,
            rate=given.rate, seed=given.seed, workers=given.workers,
        )  # fmt: skip
    print(msgspec.json.encode(outcome).decode())  # noqa: T201
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
