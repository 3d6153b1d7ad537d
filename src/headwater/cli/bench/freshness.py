"""``headwater bench freshness``: from a posted event to a recommendation that reflects it, under load."""

from __future__ import annotations

from typing import Annotated

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

# A probe asks for two lists: the one that is clicked on, and the one that is measured.
_LISTS_OF_A_PROBE = 2


def register(app: typer.Typer) -> None:
    """Add ``freshness``."""
    app.command("freshness")(freshness)


def freshness(
    events_per_s: Annotated[float, typer.Option(min=0.0, help="Events a second beside the probes.")] = 1_000.0,
    requests_per_s: Annotated[float, typer.Option(min=0.0, help="Recommendations a second, probes included.")] = 50.0,
    probes_per_s: Annotated[float, typer.Option(min=0.1, help="Measured events a second.")] = 10.0,
    batch: Annotated[int, typer.Option(min=1, max=100, help="Most events of a post; sizes are uniform from 1.")] = 10,
    duration: DurationOption = 30.0,
    warm: WarmOption = 5.0,
    items: ItemsOption = 20_000,
    users: UsersOption = 50_000,
    events: EventsOption = 300_000,
    seed: SeedOption = 7,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the time from sending an event to the arrival of a list that reflects it.

    A probe clicks on the first item of a user's list and asks again with the token of the click. It counts
    only if the answer stands at or after the token and the clicked item is gone.

    Example: headwater bench freshness --duration 60 --json
    """
    import uuid

    from headwater.cli.bench.measure import failures, lag_p99_ms, percentile_ms, send
    from headwater.cli.bench.schedule import Plan, in_order
    from headwater.cli.bench.workload import Requests, Size, prepared
    from headwater.cli.local import Server

    size = Size(seed=seed, users=users, items=items, events=events)
    with prepared(size, keep) as ready:
        requests = Requests(ready.world, seed, uuid.uuid4().hex[:8])
        whole = warm + duration
        posts = requests.times(events_per_s / ((1 + batch) / 2), 0.0, whole)
        background, ids = requests.ingest(posts, requests.sizes(len(posts), batch))
        asks = max(requests_per_s - _LISTS_OF_A_PROBE * probes_per_s, 0.0)
        lists = requests.recommend(requests.times(asks, 0.0, whole))
        probes = requests.probes(requests.times(probes_per_s, 0.5, whole - 0.5))
        with Server(ready.site) as server:
            outcomes = send(Plan("127.0.0.1", server.port, in_order(background, lists, probes)))
    measured = [outcome for outcome in outcomes if outcome.at_s >= warm]
    probed = [outcome for outcome in measured if outcome.stream == "probe"]
    answered = [outcome for outcome in measured if outcome.stream == "recommend"]
    accepted = sum(outcome.accepted for outcome in measured if outcome.stream == "events")
    reflected = [outcome for outcome in probed if outcome.ok]
    figures = {
        "events_per_s": round((accepted + len(reflected)) / duration, 1),
        "requests_per_s": round((len(answered) + _LISTS_OF_A_PROBE * len(probed)) / duration, 1),
        "p50_ms": percentile_ms(probed, 50),
        "p95_ms": percentile_ms(probed, 95),
        "p99_ms": percentile_ms(probed, 99),
        "max_ms": percentile_ms(probed, 100),
        "probes": len(probed),
        "reflected": len(reflected),
        "errors": sum(not outcome.ok for outcome in measured),
        "why": failures(measured),
        "posts_per_s": round(sum(o.stream == "events" for o in measured) / duration, 1),
        "post_p99_ms": percentile_ms([o for o in measured if o.stream == "events"], 99),
        "recommend_p99_ms": percentile_ms(answered, 99),
        "load_lag_p99_ms": lag_p99_ms(probed),
        "duration_s": duration,
        "events_sent": sum(map(len, ids)),
    }
    show("Event to recommendation", figures, size, ready.events, as_json)
