"""``headwater experiments guard``: stops experiments that do harm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.experiment_report import AlphaOption, MetricsOption, metrics_of
from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from headwater.experiments.guard import Guarded


def register_guard(group: typer.Typer) -> None:
    """Add ``guard``."""
    group.command("guard")(guard)


def guard(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Experiments [default: all that run].")] = None,
    every: Annotated[str | None, typer.Option("--every", metavar="DURATION", help="Go on, with so long between looks [default: one look].")] = None,
    window: Annotated[str, typer.Option("--window", metavar="DURATION", help="How long after exposure a predefined metric counts; short is soon.")] = "1h",
    before: Annotated[str, typer.Option("--before", metavar="DURATION", help="The time before exposure that CUPED takes into account.")] = "7d",
    metrics: MetricsOption = None,
    alpha: AlphaOption = 0.05,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Stop running experiments whose guardrail is violated, whose metric is worse, or whose split is broken; the others go on.

    Looks may be as many as one likes. Exit code 1 when something was stopped or could not be judged.

    Example: headwater experiments guard --every 5m
    """
    chosen = settings(config, data)
    looked = _look(chosen, names or [], window, before, metrics, alpha)
    _say(looked, as_json)
    if every is None:
        if any(one.stopped or one.problem for one in looked):
            raise typer.Exit(EXIT_CHECK_FAILED)
        return
    import signal
    import threading

    from headwater.schema.durations import parse_duration

    wait_s = parse_duration(every) / 1e3
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    while not over.wait(wait_s):
        _say(_look(chosen, names or [], window, before, metrics, alpha), as_json)


def _look(
    chosen: Settings, names: list[str], window: str, before: str, metrics: Path | None, alpha: float
) -> list[Guarded]:
    from contextlib import closing

    from headwater.experiments import store
    from headwater.experiments.guard import guard as run
    from headwater.log.archived import open_log
    from headwater.schema.durations import parse_delay

    wanted = [store.read_experiment(chosen.data, name) for name in names]
    wanted = wanted or list(store.read_experiments(chosen.data)[0].values())
    running = [each for each in wanted if each.is_running and not each.shadow]
    defined = metrics_of(chosen, window, metrics)
    with closing(open_log(chosen.data)) as event_log:
        return run(
            event_log, running, list(defined.values()), before_ms=parse_delay(before), alpha=alpha,
            stop=lambda name, now_ms, why: store.stop(chosen.data, name, now_ms=now_ms, why=why),
        )  # fmt: skip


def _say(looked: list[Guarded], as_json: bool) -> None:
    if as_json:
        print_json({"experiments": looked})
        return
    for one in looked:
        said = one.problem or "; ".join(one.reasons)
        typer.echo(f"{one.experiment}: {'not judged' if one.problem else one.decision}, {one.users:,} users: {said}")
    if not looked:
        typer.echo("no experiment is running")
