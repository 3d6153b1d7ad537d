"""What the caches of a worker save: processor time of the pipeline for a hit and a miss, of a popular list, of a user row.

``OPENBLAS_NUM_THREADS=1 python -m tests.reliability.caching`` prints one JSON object. One process; without the variable the threads
of the matrix product are counted while they wait. A redis-server on a Unix socket is started for the user rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing

import msgspec
import numpy as np

from headwater.cli.bench.measure import machine
from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.state_redis import RedisState, Wire
from headwater.features.user_rows import UserRows
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.log.commands import PutItems
from headwater.ranking.gbdt import MODEL_FILE
from headwater.ranking.ranker import open_ranker
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.feed import Changes, Position
from headwater.schema.items import Item
from headwater.serving.model import Model
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.request import Query
from headwater.serving.results import ResultLists
from headwater.testing.events import START_MS, Step
from tests.features.redis_server import RedisServer
from tests.retrieval.worlds import World, world

EVENTS_EACH = 30


def made(items: int, users: int, seed: int) -> World:
    """A world in which everybody has clicked, the popular items more often."""
    rng = np.random.default_rng(seed)
    catalogue = [Item(id=f"i{n}", title=f"number {n}", categories=[f"c{n % 50}"]) for n in range(items)]
    taken = (rng.zipf(1.2, users * EVENTS_EACH) - 1) % items
    events = [Event(user=f"u{n % users}", item=f"i{item}", type="click") for n, item in enumerate(taken.tolist())]
    return world(Step(START_MS, PutItems(catalogue)), Step(START_MS, events), config=Config())


def ranker(small: World, seed: int) -> Model:
    """200 trees that learnt nothing: they cost what any others do."""
    rng = np.random.default_rng(seed)
    rows = rng.random((4_000, len(small.plan.columns)), np.float32)
    labels, groups = np.tile([1, 0, 0, 0], 1_000), np.full(1_000, 4)
    params = GbdtParams(trees=200, holdout=0.0)
    text, _ = fit_gbdt(rows, labels, groups, None, columns=small.plan.columns, params=params, seed=seed, num_threads=1)
    return Model("bench", open_ranker("lightgbm", {MODEL_FILE: text}, small.plan.columns))


def cost_us(call: Callable[[int], object], times: int) -> dict[str, float]:
    """Processor time and the median of the clock's time of ``call(0)`` … ``call(times - 1)``, in microseconds."""
    took = np.empty(times)
    spent = time.process_time()
    for n in range(times):
        began = time.perf_counter()
        call(n)
        took[n] = time.perf_counter() - began
    return {
        "cpu_us": round(1e6 * (time.process_time() - spent) / times, 1),
        "p50_us": round(1e6 * float(np.median(took)), 1),
        "p99_us": round(1e6 * float(np.percentile(took, 99)), 1),
    }


def rows_of_redis(small: World, users: list[int], times: int) -> dict[str, dict[str, float]]:
    """Reading a user row: a round trip, and one that is kept."""
    server = RedisServer()
    try:
        with closing(RedisState(Wire(server.url), small.plan, writable=True)) as state:
            fold = Fold(small.plan, state)
            while (block := small.log.log.read(fold.offset)) is not None:
                fold.apply(block)
            fold.commit(epoch=True)
            row, kept = stranger(small.plan), UserRows(state, small.plan, len(users))
            kept.follow(Position(fold.offset, 1, fold.offset), Changes((), ()))
            for user in users:
                kept.read_user(user, row)
            return {
                "user_row_read": cost_us(lambda n: state.read_user(users[n % len(users)], row), times),
                "user_row_kept": cost_us(lambda n: kept.read_user(users[n % len(users)], row), times),
            }
    finally:
        server.stop()


def run(items: int, users: int, requests: int, seed: int) -> dict[str, object]:
    """All figures."""
    small = made(items, users, seed)
    model, results = ranker(small, seed), ResultLists(1_000, users + 1)
    pipeline = Pipeline(Config(), small.plan, conditions=Conditions(results=results))
    now_ms, numbers = small.now_ms, [small.log.user(f"u{n}") for n in range(users)]

    def ask(user: int, *, reuse: bool) -> None:
        query = Query("r", user=user, k=20, deadline_ms=1e9, reuse=reuse)
        pipeline.recommend(query, small.view, model, now_ms)

    for user in numbers:
        ask(user, reuse=True)
    index = small.view.index
    figures: dict[str, object] = {
        "miss": cost_us(lambda n: ask(numbers[n % users], reuse=False), requests),
        "hit": cost_us(lambda n: ask(numbers[n % users], reuse=True), requests),
        "popular_list_made": cost_us(lambda n: index.popular(1, 200, now_ms + 1_000 * n), requests // 4),
        "popular_list_kept": cost_us(lambda _: index.popular(1, 200, now_ms), requests),
    }
    assert results.hits >= requests
    return {
        "items": items, "users": users, "requests": requests, "seed": seed, "k": 20, **figures,
        **rows_of_redis(small, numbers[: min(users, 500)], requests), "machine": machine(),
    }  # fmt: skip


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    report = run(chosen.items, chosen.users, chosen.requests, chosen.seed)
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


if __name__ == "__main__":
    main()
