"""``headwater bench serve``: the highest rate that holds, latency below it, and the cost of a request beside its floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import (
    DurationOption,
    EventsOption,
    ItemsOption,
    KeepOption,
    SeedOption,
    UsersOption,
    WarmOption,
    show,
)
from headwater.cli.bench.setups import KeepBy, RankerKind, tables_of
from headwater.cli.options import JsonOption

if TYPE_CHECKING:
    from headwater.cli.bench.schedule import Outcome

P95_LIMIT_MS = 100.0
SUCCESS_LIMIT = 0.999
_MOST_PER_S = 2_000.0  # beyond this one load process is no longer sure to keep its times
_FIRST_PER_S = 150.0
_STEP = 1.5
_HALVINGS = 3
_FRACTIONS = (0.5, 0.7)  # of capacity; the figures at the top are those of the last


def register(app: typer.Typer) -> None:
    """Add ``serve``."""
    app.command("serve")(serve)


def serve(
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, help="Recommendations a second (Poisson) [default: 50% and 70% of capacity]."),
    ] = None,
    duration: DurationOption = 30.0,
    warm: WarmOption = 5.0,
    items: ItemsOption = 50_000,
    users: UsersOption = 1_000_000,
    events: EventsOption = 300_000,
    recent: Annotated[int, typer.Option(min=1, max=1_000, help="Recent clicks of each user who asks.")] = 50,
    candidates: Annotated[int, typer.Option(min=1, max=2_000, help="Candidates after merging.")] = 500,
    ranked: Annotated[int, typer.Option(min=1, max=2_000, help="How many of them the deep ranker orders.")] = 300,
    ranker: Annotated[RankerKind, typer.Option(help="What orders them.")] = RankerKind.DEEP,
    keep_by: Annotated[
        KeepBy, typer.Option(help="What chooses them: the order of the sources, or the light ranker.")
    ] = KeepBy.MERGED,
    seed: SeedOption = 7,
    capacity: Annotated[
        bool, typer.Option("--capacity/--no-capacity", help="Look for the highest rate that holds.")
    ] = True,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Time the reference kernels and bare HTTP in the same run.")
    ] = True,
    step_s: Annotated[float, typer.Option(min=1.0, help="Seconds of each rate that is tried for capacity.")] = 8.0,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure recommendations: capacity, latency at shares of it, processor time by stage and beside the floor.

    One worker, on a processor of its own where there are two. Latencies count from the scheduled arrival, failures included.
    Capacity is the highest Poisson rate with P95 below 100 ms and at least 99.9% success. The floor is frozen reference
    code: scan, encoder, ranker and bare HTTP alone, each in a loop of its own, and together as a server under the same arrivals
    (`floor_at_rate`).

    Example: headwater bench serve --items 20000 --users 100000 --ranker lightgbm --rate 100 --no-capacity --json
    """
    from headwater.cli.bench.floor import floor_at, floor_ms
    from headwater.cli.bench.measure import one_core, pin_part
    from headwater.cli.bench.point import Measuring
    from headwater.cli.bench.workload import Requests, Size, prepared
    from headwater.cli.local import Server

    size = Size(seed=seed, users=users, items=items, events=events, recent=recent)
    tables = tables_of(ranker, candidates, ranked, keep_by, items=items)
    with prepared(size, keep, tables) as ready, one_core() as core, Server(ready.site) as server:
        if core is not None:
            pin_part(server.pid, "api", core)
        measuring = Measuring(server, Requests(ready.world, seed, "serve", askers=True))
        if warm:
            measuring.load(rate or _FIRST_PER_S / 2, warm)
        floors = [floor_ms(core)] if floor else []
        highest, tried = (
            capacity_of(lambda per_s: measuring.load(per_s, step_s), rate or _FIRST_PER_S) if capacity else (None, [])
        )
        rates = [rate] if rate else [fraction * (highest or _FIRST_PER_S) for fraction in _FRACTIONS]
        points = []
        for per_s in rates:
            point = measuring.at(per_s, duration)
            if floor:
                bare = floor_at(core, measuring.arrivals(per_s, duration))
                point["floor_at_rate"] = {**bare, "cpu_over": ratio(point["cpu_ms_per_request"], bare["cpu_ms"])}
            points.append(point)
        if floor:
            floors.append(floor_ms(core))
    for point in points:
        point["load_fraction"] = None if not highest else round(point["rate"] / highest, 3)
    figures = {
        "items": items,
        "users": users,
        "recent": recent,
        "ranker": ranker.value,
        "capacity_rps": highest,
        **points[-1],
        **against_floor(points[-1]["cpu_ms_per_request"], floors),
        "at": points,
        "configured": {
            "candidates": candidates,
            "ranked": ranked,
            "keep_by": keep_by.value,
            "sources": [*measuring.sources],
        },
        "models": "trained briefly on drawn clicks, default sizes: the figures are of speed, not of quality",
        "one_core": core is not None,
        "duration_s": duration,
        "capacity_tried": tried,
    }
    show("Recommendations", figures, size, ready.events, as_json)


def against_floor(cpu_ms: float | None, floors: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The floor, timed before and after (the mean of both), and how many times as much a request costs."""
    if not floors:
        return {"floor_ms": None, "cpu_over_floor": None, "floor_parts_ms": {}, "floors_ms": []}
    parts = {name: round(sum(each[name] for each in floors) / len(floors), 4) for name in floors[0]}
    whole = parts.pop("all")
    return {
        "floor_ms": whole,
        "cpu_over_floor": ratio(cpu_ms, whole),
        "floor_parts_ms": parts,
        "floors_ms": [each["all"] for each in floors],
    }


def ratio(cpu_ms: float | None, floor: float | None) -> float | None:
    """How many times the floor a request costs; None where one of them was not measured."""
    return None if cpu_ms is None or not floor else round(cpu_ms / floor, 3)


def holds(outcomes: Sequence[Outcome]) -> bool:
    """Whether a rate counts as served: P95 below 100 ms, at least 99.9% success."""
    from headwater.cli.bench.measure import percentile_ms

    p95 = percentile_ms(outcomes, 95)
    good = sum(outcome.ok for outcome in outcomes)
    return p95 is not None and p95 < P95_LIMIT_MS and good >= SUCCESS_LIMIT * len(outcomes)


def capacity_of(
    load: Callable[[float], Sequence[Outcome]], first: float
) -> tuple[float | None, list[dict[str, float | bool | None]]]:
    """The highest rate that holds, and every rate that was tried: by steps of half as much again, then by halving."""
    from headwater.cli.bench.measure import percentile_ms

    tried: list[dict[str, float | bool | None]] = []

    def attempt(rate: float) -> bool:
        outcomes = load(rate)
        held = holds(outcomes)
        tried.append({"rate": round(rate, 1), "p95_ms": percentile_ms(outcomes, 95), "holds": held})
        return held

    good, bad, rate = 0.0, None, first
    while bad is None and rate <= _MOST_PER_S:
        if attempt(rate):
            good, rate = rate, rate * _STEP
        else:
            bad = rate
    for _ in range(_HALVINGS if bad is not None else 0):
        middle = (good + (bad or good)) / 2
        if attempt(middle):
            good = middle
        else:
            bad = middle
    return (round(good, 1) if good else None), tried
