"""``headwater learn``: continuous training beside a server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    print_json,
    settings,
)
from headwater.schema.clock import wall_ms

if TYPE_CHECKING:
    from headwater.offline.learn import Round

NICENESS = 10
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def register(app: typer.Typer) -> None:
    """Add ``learn``."""
    app.command("learn")(learn)


def learn(
    config: ConfigOption = None,
    data: DataOption = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="DURATION", help="From start to start [default: learn.every]")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="End after so many rounds")] = None,
    once: Annotated[bool, typer.Option("--once", help="One round")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads of the training")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train on the newest events again and again, and publish through the gate. Ctrl-C or SIGTERM ends it politely.

    The first round replays the log; later ones read what is new: it judges the bundle that was just trained, and trains the
    next one. Every round makes a whole bundle. One that fails, or that the gate refuses, is told and the next one tries
    again; one that has too little to judge by waits. The bundle in service goes on. It runs at low priority, so that a
    server beside it keeps its cores.

    Example: headwater learn --every 5m
    """
    from headwater.cli.options import configure_logging

    configure_logging("info")
    chosen = settings(config, data)
    done: list[Round] = []

    def report(round_: Round) -> None:
        done.append(round_)
        if as_json:
            print_json(round_)
            return
        what = f"bundle {round_.bundle}{' serves' if round_.promoted else ' was not promoted'}"
        why = "" if round_.reason is None else f": {round_.reason}"
        if round_.bundle is None:
            what = "waits" if round_.waits else "failed"
        typer.echo(f"round {round_.number} ({round_.seconds:.1f} s): {what}{why}")

    failed = keep_learning(chosen, every=every, rounds=1 if once else rounds, threads=threads, report=report)
    if (once or rounds is not None) and done and all(each.waits for each in done):
        typer.echo("no bundle was made; without --once and --rounds it waits and looks again", err=True)
    if done and failed == len(done):
        raise typer.Exit(EXIT_CHECK_FAILED)


def keep_learning(
    chosen: Settings, *, every: str | None, rounds: int | None, threads: int, report: Callable[[Round], None]
) -> int:
    """Learn round after round at low priority until SIGTERM, SIGINT or for ``rounds``; returns how many failed."""
    import signal
    import threading

    for name in THREADS:  # before anything that starts threads is loaded
        os.environ.setdefault(name, str(threads))
    os.nice(NICENESS)

    from headwater.offline.learn import learn as run
    from headwater.schema.durations import parse_duration

    every_ms = parse_duration(chosen.config.learn.every if every is None else every)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # below a supervisor, which decides
            signal.signal(number, lambda *_: stop.set())
    return run(
        chosen.config, chosen.data, every_s=every_ms / 1e3, rounds=rounds, threads=threads, stop=stop,
        clock=wall_ms, report=report,
    )  # fmt: skip
