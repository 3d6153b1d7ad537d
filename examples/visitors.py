"""Simulated people use the server of ``make demo``: what do they click, by the source that found it?

``python examples/visitors.py URL``. The people are those of the demo's world (seed 7), so their tastes are
in the history that the server has learnt from; the simulator knows the truth and responds for them.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import numpy as np
from rich.console import Console

from headwater.client import AsyncClient
from headwater.schema.requests import RecommendRequest
from headwater.simulator import World
from headwater.simulator.traffic import WorldVisitors

DEMO_START_MS = 1_772_409_600_000


async def visit(
    client: AsyncClient, world: World, visitors: WorldVisitors, seed: int
) -> tuple[Counter[str], Counter[str]]:
    """One visit: a list, the person's responses; returns what was shown and what was clicked, by source."""
    rng = np.random.default_rng(seed)
    user, context = visitors.arrive(rng)
    answer = await client.recommend(RecommendRequest(user=user, k=10, context=dict(context)))
    source = {item.id: item.source for item in answer.items}
    events = visitors.respond(rng, user, list(source), world.end_ms, answer.request_id)
    if events:
        await client.send_events(events)
    return Counter(source.values()), Counter(source[event.item] for event in events if event.type == "click")


async def many(client: AsyncClient, world: World, visits: int, console: Console) -> float:
    """Visits, ten at a time; prints the click rate of each source and returns that of all."""
    visitors = WorldVisitors(world)
    shown, clicked = Counter[str](), Counter[str]()
    for first in range(0, visits, 10):
        batch = [visit(client, world, visitors, seed) for seed in range(first, min(first + 10, visits))]
        for shown_here, clicked_here in await asyncio.gather(*batch):
            shown += shown_here
            clicked += clicked_here
    for source, count in shown.most_common():
        console.print(f"{source:<10} shown {count:>6,}  clicked {clicked[source] / count:6.1%}")
    rate = clicked.total() / max(shown.total(), 1)
    console.print(f"{'all':<10} shown {shown.total():>6,}  clicked {rate:6.1%}")
    return rate


async def main() -> None:
    """Entry point."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    world = World(7, start_ms=DEMO_START_MS)
    async with AsyncClient(url) as client:
        await many(client, world, 300, Console())


if __name__ == "__main__":
    asyncio.run(main())
