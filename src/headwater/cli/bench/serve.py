"""``headwater bench serve``: latency of recommendations at a rate, open loop, and the highest rate that holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

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
from headwater.cli.options import JsonOption

if TYPE_CHECKING:
    from headwater.cli.bench.schedule import Outcome

P95_LIMIT_MS = 100.0
SUCCESS_LIMIT = 0.999
_MOST_PER_S = 2_000.0  # beyond this one load process is no longer sure to keep its times
_STEP = 1.5
_HALVINGS = 3


def register(app: typer.Typer) -> None:
    """Add ``serve``."""
    app.command("serve")(serve)


def serve(
    rate: Annotated[float, typer.Option(min=0.1, help="Recommendations a second (Poisson arrivals).")] = 100.0,
    duration: DurationOption = 30.0,
    warm: WarmOption = 5.0,
    items: ItemsOption = 20_000,
    users: UsersOption = 100_000,
    events: EventsOption = 300_000,
    seed: SeedOption = 7,
    capacity: Annotated[
        bool, typer.Option("--capacity/--no-capacity", help="Also look for the highest rate that holds.")
    ] = True,
    step_s: Annotated[float, typer.Option(min=1.0, help="Seconds of each rate that is tried for it.")] = 8.0,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure recommendations: latency at a rate, processor time, stages, and capacity.

    Latencies count from the scheduled arrival, failures included. Capacity is the highest Poisson rate with
    P95 below 100 ms and at least 99.9% success.

    Example: headwater bench serve --rate 100 --duration 30 --items 20000 --json
    """
    import httpx

    from headwater.cli.bench.measure import (
        Metrics,
        failures,
        growth,
        lag_p99_ms,
        percentile_ms,
        seconds_by_role,
        send,
    )
    from headwater.cli.bench.schedule import Plan
    from headwater.cli.bench.workload import Requests, Size, prepared
    from headwater.cli.local import Server
    from headwater.schema.config import load_config

    size = Size(seed=seed, users=users, items=items, events=events)
    with prepared(size, keep) as ready, Server(ready.site) as server:
        config = load_config(ready.site.config)
        requests = Requests(ready.world, seed, "serve")

        def load(per_s: float, seconds: float) -> list[Outcome]:
            return send(Plan("127.0.0.1", server.port, requests.recommend(requests.times(per_s, 0.0, seconds))))

        def scrape() -> Metrics:
            return Metrics(httpx.get(f"{server.url}/metrics", timeout=10.0).text)

        if warm:
            load(rate, warm)
        metrics, spent = scrape(), seconds_by_role(server.pid)
        outcomes = load(rate, duration)
        spent_after, metrics_after = seconds_by_role(server.pid), scrape()
        highest, tried = capacity_of(lambda per_s: load(per_s, step_s), rate) if capacity else (None, [])
    answers = max(len(outcomes), 1)
    cpu_ms = {role: round(seconds * 1_000 / answers, 3) for role, seconds in growth(spent, spent_after).items()}
    offered = metrics_after.growth_since(metrics, "headwater_source_candidates_total")
    stages = metrics_after.means_since(metrics, "headwater_stage_seconds", "stage")
    figures = {
        "items": items,
        "users": users,
        "candidates": round(sum(offered.values()) / answers, 1),
        "candidates_by_source": {source: round(count / answers, 1) for source, count in offered.items()},
        "ranked": config.ranker.candidates,
        "ranker": config.ranker.kind,
        "capacity_rps": highest,
        "load_fraction": None if not highest else round(rate / highest, 3),
        "rate": rate,
        "requests": len(outcomes),
        "p50_ms": percentile_ms(outcomes, 50),
        "p95_ms": percentile_ms(outcomes, 95),
        "p99_ms": percentile_ms(outcomes, 99),
        "max_ms": percentile_ms(outcomes, 100),
        "errors": sum(not outcome.ok for outcome in outcomes),
        "why": failures(outcomes),
        "cpu_ms_per_request": cpu_ms.get("api"),
        "cpu_ms_by_role": cpu_ms,
        "floor_ms": None,
        "cpu_over_floor": None,
        "floor_note": "not measured: the reference kernels of the floor are those of the deep model",
        "stages_ms": {stage: round(seconds * 1_000, 4) for stage, seconds in stages.items()},
        "load_lag_p99_ms": lag_p99_ms(outcomes),
        "duration_s": duration,
        "capacity_tried": tried,
    }
    show("Recommendations", figures, size, ready.events, as_json)


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
