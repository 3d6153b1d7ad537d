"""The remote ranker hangs, then dies, while requests come in: every one is answered, in time and labelled, and the ranker comes back.

``python -m tests.reliability.remote_ranker --down-s 30 --server mlserver`` prints one JSON object (``strict``: a small
server of our own). First the server is stopped (SIGSTOP) and goes on, then it is killed and started again. Its short form, in a
pipeline without a server, is ``tests/serving/test_remote_ranker.py``. Exit code 1 when a target was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from headwater.cli.options import configure_logging
from headwater.features.plan import compile_plan
from headwater.registry.registry import Registry
from headwater.schema.config import parse_config
from tests.online.running import CONFIG, Running, catalogue, publish_ranker
from tests.reliability.asking import Answered, Load, figures, recovery_s, unlabelled
from tests.serving.elsewhere import Elsewhere, Kind, elsewhere

ITEMS = 300
AFTER_S = 8.0
BEFORE_S = 3.0


class Phase(Answered, frozen=True, kw_only=True):
    """Requests while the ranker was away and in the seconds after. ``unlabelled``: in full, or without a reason, after the first
    answer that noticed. ``recovery_s``: from its return to the last answer that was not in full. Latencies in ms.
    """

    recovery_s: float

    @property
    def good(self) -> bool:
        """Whether the targets are met."""
        return self.answered_well and self.recovery_s <= 5.0


class Outcome(Struct, frozen=True):
    """Both phases; ``p50_ms`` and ``p95_ms`` are from before them, ``full`` the share that was answered in full then."""

    seed: int
    rate: float
    down_s: float
    server: str
    p50_ms: float
    p95_ms: float
    full: float
    hung: Phase
    killed: Phase


async def _phase(load: Load, down_s: float, down: Callable[[], object], up: Callable[[], object]) -> Phase:
    during = asyncio.create_task(load.run(0.5 + down_s + AFTER_S))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(down)
    await asyncio.sleep(down_s)
    await asyncio.to_thread(up)
    back = time.perf_counter()
    await during
    answers = list(load.answers)
    return Phase(
        **figures(load.latency_ms, answers, unlabelled(answers, back - 0.5)), recovery_s=recovery_s(answers, back)
    )


async def _measure(
    running: Running, there: Elsewhere, *, down_s: float, rate: float, seed: int, kind: Kind
) -> Outcome:  # fmt: skip
    load = Load(running.url, rate=rate, seed=seed)

    try:
        await load.until_full()
        await load.run(1.0)
        await load.run(BEFORE_S)
        before, tiers = np.array(load.latency_ms), [reply.tier for _, reply in load.answers if reply is not None]
        hung = await _phase(
            load,
            down_s,
            lambda: there.process.send_signal(signal.SIGSTOP),
            lambda: there.process.send_signal(signal.SIGCONT),
        )
        killed = await _phase(load, down_s, there.kill, there.start)
    finally:
        load.close()
    return Outcome(
        seed=seed, rate=rate, down_s=down_s, server=kind, p50_ms=float(np.percentile(before, 50)),
        p95_ms=float(np.percentile(before, 95)), full=tiers.count(0) / max(len(tiers), 1), hung=hung, killed=killed,
    )  # fmt: skip


def run(folder: Path, *, kind: Kind, down_s: float, rate: float, seed: int) -> Outcome:
    """Serve in ``folder`` with the ranker in another process, and have that go away twice."""
    config = parse_config(CONFIG)
    version = publish_ranker(folder / "data", config, seed=1, created_ms=1_772_000_000_000)
    bundle = Registry(folder / "data" / "models").load(version, plan_hash=compile_plan(config).hash)
    with ExitStack() as stack:
        there = stack.enter_context(elsewhere(kind, folder, bundle))
        running = stack.enter_context(Running(folder, f'{CONFIG}\n[ranker]\nremote = "{there.url}"\n'))
        running.ingest("/v1/items", catalogue(ITEMS))
        outcome = asyncio.run(_measure(running, there, down_s=down_s, rate=rate, seed=seed, kind=kind))
        assert running.stop() == 0
    return outcome


def main() -> int:
    """Run from the command line."""
    configure_logging("warning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("strict", "mlserver"), default="mlserver")
    parser.add_argument("--down-s", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), kind=given.server, down_s=given.down_s, rate=given.rate, seed=given.seed)
    print(msgspec.json.encode(outcome).decode())  # noqa: T201
    return 0 if outcome.hung.good and outcome.killed.good else 1


if __name__ == "__main__":
    sys.exit(main())
