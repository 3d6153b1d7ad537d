"""``headwater bench``: measures a real server, started for the purpose, from a load process of its own.

``schedule`` says what is sent when, ``load`` sends it, ``measure`` reads percentiles and processor time,
``workload`` prepares the system; the other modules hold one benchmark each.
"""

from __future__ import annotations

import typer

from headwater.cli.bench import (
    drift,
    experiments,
    freshness,
    index,
    ingest,
    memory,
    models,
    monitoring,
    off_policy,
    replay,
    serve,
    tradeoffs,
    world,
)


def register(app: typer.Typer) -> None:
    """Add ``bench`` with its subcommands."""
    bench = typer.Typer(
        no_args_is_help=True,
        help="Measure a server of your own machine: serve, ingest, freshness, replay, memory, index, models, monitoring, tradeoffs; the analysis of experiments, drift, off-policy estimates, the simulated world. Example: headwater bench serve",
    )
    for benchmark in (
        serve, ingest, freshness, replay, memory, index, models, monitoring, tradeoffs, experiments, drift, off_policy, world,
    ):  # fmt: skip
        benchmark.register(bench)
    app.add_typer(bench, name="bench")
