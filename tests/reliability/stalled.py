"""The ranker stalls while requests come in: every one is answered, in time and labelled, and the ranker comes back.

``python -m tests.reliability.stalled --stall-s 30`` prints one JSON object. The bundle in service holds an ONNX graph with
a loop whose length is the highest price among the candidates; a price of 10¹⁵ is a stall without end, which an ingest call
begins and another one ends. Requests arrive by a Poisson process whatever becomes of the earlier ones; latency counts from
the moment of arrival. Exit code 1 when a target of ``docs/ladder.md`` is missed.
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
from headwater.features.plan import compile_plan
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.registry import Registry
from tests.online.running import CONFIG, Running, catalogue
from tests.reliability.asking import DEADLINE_MS, Answered, Load, figures, tiers, unlabelled_since, until
from tests.serving.endless import endless

ITEMS = 300
BEGINS_S = 1.0  # of the stall, with requests under way while it begins
STALLING_PRICE = 1e12  # turns of a loop: hours


class Outcome(Answered, frozen=True, kw_only=True):
    """Requests during the stall, at ``rate`` a second. ``unlabelled``: answers of tier 0, or without a reason, to what was asked
    after the items that stall the ranker were there; ``tiers`` are those of the answers since then.
    """

    seed: int
    rate: float
    stall_s: float
    baseline_p95_ms: float
    over_deadline: int
    stalls: int
    recovery_s: float

    @property
    def good(self) -> bool:
        """Whether all were answered, all were labelled, the P95 is below 100 ms and the ranker came back within 6 s."""
        return self.answered_well and self.recovery_s < 6.0


def publish_endless(running: Running) -> str:
    """Publish and promote the ranker that can be made to stall; returns its version."""
    plan = compile_plan(running.config)
    fields = ManifestFields(
        created_ms=1_760_000_000_000, plan_hash=plan.hash, columns=plan.columns, ranker="deep",
        event_types=plan.event_types, data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
    )  # fmt: skip
    registry = Registry(running.data / "models")
    version = registry.publish(fields, endless(plan.columns, "item_price")).version
    registry.put_in_service(version, plan_hash=plan.hash)
    return version


async def _measure(running: Running, *, stall_s: float, rate: float, seed: int) -> Outcome:
    load = Load(running.url, rate=rate, seed=seed)

    async def priced(price: float) -> int:
        items = [{**item, "price": price} for item in catalogue(ITEMS)]
        return int(await asyncio.to_thread(running.ingest, "/v1/items", items))

    async def there(token: int) -> float:
        """When lists are made of those items."""

        def asked() -> bool:
            answer = running.recommend(k=1, trace=True, deadline_ms=DEADLINE_MS)
            return bool(answer["address"]["item_offset"] >= token)

        await until(lambda: asyncio.to_thread(asked), "the items do not come")
        return time.perf_counter()

    try:
        await load.until_full()
        await load.run(2.0)  # connections open, kernels warm
        await load.run(2.0)
        baseline = float(np.percentile(load.latency_ms, 95))

        begins = asyncio.create_task(load.run(BEGINS_S))
        since = await there(await priced(STALLING_PRICE))
        await begins
        latency, answers = list(load.latency_ms), list(load.answers)
        await load.run(stall_s - BEGINS_S)
        latency, answers = latency + load.latency_ms, answers + load.answers
        await priced(1.0)
        recovery = await load.until_full("the ranker does not come back")
        text = await asyncio.to_thread(lambda: running.http.get("/metrics").text)
        counted = [line for line in text.splitlines() if line.startswith("headwater_ranker_stalls_total")]
    finally:
        load.close()
    during = [reply for due, reply in answers if due >= since]
    seen = figures(latency, answers, unlabelled_since(answers, since)) | {"tiers": tiers(during)}
    return Outcome(
        **seen, seed=seed, rate=rate, stall_s=stall_s, baseline_p95_ms=baseline,
        over_deadline=sum(ms > DEADLINE_MS for ms in latency), stalls=int(float(counted[0].split()[-1])), recovery_s=recovery,
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
