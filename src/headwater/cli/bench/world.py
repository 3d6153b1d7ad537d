"""``headwater bench world``: how many people a second the simulated world can confront with a list."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from headwater.cli.bench.report import ItemsOption, SeedOption, UsersOption, table
from headwater.cli.options import JsonOption, print_json

_START_MS = 1_772_409_600_000


def register(app: typer.Typer) -> None:
    """Add ``world``."""
    app.command("world")(world)


def world(
    users: UsersOption = 100_000,
    items: ItemsOption = 20_000,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Items of a list.")] = 10,
    batch: Annotated[int, typer.Option(min=1, max=65_536, help="People who are confronted at once.")] = 2_048,
    lists: Annotated[int, typer.Option(min=1_000, help="Lists that are timed.")] = 500_000,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """Confront people of a world that goes on with random lists, on one core, and count.

    A choice is one person in front of one list: the true chance and worth of every item, whether it is clicked, viewed, liked,
    bought or skipped, what has been seen, how content the person is afterwards.

    Example: headwater bench world --users 20000 --lists 100000 --json
    """
    import numpy as np

    from headwater.cli.bench.measure import machine, versions
    from headwater.simulator import Life, World
    from headwater.simulator.catalogue import HOUR_MS, TOPICS
    from headwater.simulator.history import CLICK

    life = Life(World(seed, start_ms=_START_MS, users=users, items=items, hours=24))
    began = time.perf_counter()
    life.advance(life.now_ms + HOUR_MS)
    hour_s = time.perf_counter() - began
    rng = np.random.default_rng([seed, 31])
    alive = np.flatnonzero(life.alive)
    size = min(batch, users)
    rounds = -(-lists // size)
    spent = clicks = 0.0
    for turn in range(rounds + 1):
        who, about = rng.permutation(users)[:size], rng.integers(0, TOPICS, size)
        shown = alive[rng.integers(0, len(alive), (size, k))]
        began = time.perf_counter()
        choices = life.choose(who, shown, life.now_ms, about)
        life.finish(who, choices.gained)
        if turn:  # the first one touches memory for the first time
            spent += time.perf_counter() - began
            clicks += float(choices.happened[CLICK].sum())
    made = rounds * size
    figures: dict[str, Any] = {
        "choices_per_s": round(made / spent), "items_judged_per_s": round(made * k / spent), "choices": made, "k": k, "batch": size,
        "ctr": round(clicks / (made * k), 4), "hour_of_drift_s": round(hour_s, 3), "seed": seed,
        "sizes": {"users": users, "items": items}, "machine": machine(), "versions": versions(),
    }  # fmt: skip
    if as_json:
        print_json(figures)
        return
    table("The simulated world", figures)
