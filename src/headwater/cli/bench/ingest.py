"""``headwater bench ingest``: durable events a second over HTTP, the delay of single ones, and what is lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.bench.report import (
    DurationOption,
    KeepOption,
    SeedOption,
    show,
)
from headwater.cli.options import EXIT_CHECK_FAILED, JsonOption

_MOST_EVENTS_PER_S = 60_000  # that the load process can have ready


def register(app: typer.Typer) -> None:
    """Add ``ingest``."""
    app.command("ingest")(ingest)


def ingest(
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Events of a post.")] = 100,
    connections: Annotated[int, typer.Option(min=1, max=256, help="Posts that are under way at any time.")] = 8,
    single_rate: Annotated[
        float, typer.Option(min=1.0, help="Single events a second (Poisson), measured after.")
    ] = 200.0,
    duration: DurationOption = 10.0,
    users: Annotated[int, typer.Option(min=100, help="Users of the world.")] = 50_000,
    items: Annotated[int, typer.Option(min=100, help="Items of the world.")] = 20_000,
    events: Annotated[int, typer.Option(min=1_000, help="Events in the history, roughly.")] = 100_000,
    seed: SeedOption = 7,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure ingest: saturating posts of batches first, then single events at a rate.

    Afterwards the log is read: an acknowledged event that is not in it is lost (exit code 1).

    Example: headwater bench ingest --batch 100 --json
    """
    import uuid

    from headwater.cli.bench.measure import failures, growth, lag_p99_ms, percentile_ms, seconds_by_part, send
    from headwater.cli.bench.schedule import Plan
    from headwater.cli.bench.workload import Requests, Size, prepared
    from headwater.cli.local import Server

    size = Size(seed=seed, users=users, items=items, events=events)
    with prepared(size, keep) as ready:
        requests = Requests(ready.world, seed, uuid.uuid4().hex[:8])
        most = max(1, int(_MOST_EVENTS_PER_S * duration / batch))
        batches, batch_ids = requests.ingest([0.0] * most, [batch] * most)
        times = requests.times(single_rate, 0.0, duration)
        singles, single_ids = requests.ingest(times, [1] * len(times), "single")
        with Server(ready.site) as server:
            spent = seconds_by_part(server.pid)
            bulk = send(Plan("127.0.0.1", server.port, batches, closed=connections, stop_after_s=duration))
            used = growth(spent, seconds_by_part(server.pid))
            single = send(Plan("127.0.0.1", server.port, singles))
        acknowledged = {
            event_id
            for outcomes, ids in ((bulk, batch_ids), (single, single_ids))
            for outcome in outcomes
            if outcome.ok and outcome.accepted == len(ids[outcome.index])
            for event_id in ids[outcome.index]
        }
        lost = len(acknowledged) - stored(ready.site.data, acknowledged)
    took_s = max((o.at_s + o.latency_ms / 1_000 for o in bulk), default=duration)
    acked = sum(outcome.accepted for outcome in (*bulk, *single) if outcome.ok)
    figures = {
        "events_per_s": round(sum(o.accepted for o in bulk if o.ok) / took_s, 1),
        "batch": batch,
        "batch_p50_ms": percentile_ms(bulk, 50),
        "batch_p99_ms": percentile_ms(bulk, 99),
        "single_rate": single_rate,
        "single_p50_ms": percentile_ms(single, 50),
        "single_p99_ms": percentile_ms(single, 99),
        "acked": acked,
        "lost": lost,
        "errors": sum(not outcome.ok for outcome in (*bulk, *single)),
        "why": failures([*bulk, *single]),
        "connections": connections,
        "cpu_s_by_part": {part: round(seconds, 2) for part, seconds in used.items()},
        "load_lag_p99_ms": lag_p99_ms(single),
        "duration_s": duration,
    }
    show("Ingest", figures, size, ready.events, as_json)
    if lost:
        raise typer.Exit(EXIT_CHECK_FAILED)


def stored(data: Path, event_ids: Iterable[str]) -> int:
    """How many of ``event_ids`` stand in the log of ``data``; every CRC on the way is checked.

    Raises:
        CorruptLogError: a record is not what was written.
    """
    import numpy as np

    from headwater.log.batch import event_key
    from headwater.log.lmdb import LmdbLog

    wanted = np.unique(np.array([event_key(event_id) for event_id in event_ids], np.uint64))
    found = np.zeros(len(wanted), np.bool_)
    log = LmdbLog(data / "log", readonly=True)
    try:
        offset = 0
        while len(wanted) and (block := log.read(offset, 65_536)) is not None:
            offset = block.last_offset
            at = np.minimum(np.searchsorted(wanted, block.records["event_key"]), len(wanted) - 1)
            found[at[wanted[at] == block.records["event_key"]]] = True
    finally:
        log.close()
    return int(found.sum())
