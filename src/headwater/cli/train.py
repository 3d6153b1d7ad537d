"""``headwater train``: replay the log as of each moment, fit the ranker, publish a bundle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Self

import typer

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    parse_time,
    print_json,
    settings,
)
from headwater.schema.clock import wall_ms

if TYPE_CHECKING:
    from headwater.registry.listing import GateReport


def register(app: typer.Typer) -> None:
    """Add ``train``."""
    app.command("train")(train)


UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Know nothing received from TIME on (ISO 8601, UTC)")
]


def train(
    config: ConfigOption = None,
    data: DataOption = None,
    until: UntilOption = None,
    window: Annotated[
        str | None, typer.Option("--window", metavar="DURATION", help="Learn from the last stretch only, e.g. 2d")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed [default: ranker.seed]")] = None,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Publish, but keep the current bundle")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote whatever the gate says; its report says so")] = False,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Train although serving and replay disagree on features")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay the log as of each moment, train the ranker on it and publish a model bundle.

    The last stretch of the log is held out, and the gate compares there with the bundle in service: exit code 1 when it
    refuses. A running server takes a promoted bundle up by itself, without a restart. Refused when the last
    `headwater features verify` of this feature plan found bytes that differ.

    Example: headwater train --window 2d
    """
    from contextlib import ExitStack, closing

    from headwater.evaluation.checks import checks_dir
    from headwater.features.profiles import Profiles
    from headwater.log.archived import open_log
    from headwater.log.identity import LmdbIdentity
    from headwater.offline.train import train as run
    from headwater.registry.audit import Author

    chosen = settings(config, data)
    with ExitStack() as opened:
        log = opened.enter_context(closing(open_log(chosen.data)))
        lookup = None
        if any(table.entity == "user" for table in chosen.config.tables):
            lookup = opened.enter_context(closing(LmdbIdentity(chosen.data / "identity", readonly=True))).lookup
        with Bars() as bars:
            report = run(
                chosen.config, log, chosen.data / "models", until_ms=parse_time("--until", until), window=window, seed=seed,
                threads=os.cpu_count() or 1, promote=None if no_promote else Author("cli", wall_ms), force=force, created_ms=wall_ms(),
                checks=checks_dir(chosen.data), unseal=Profiles(chosen.data), lookup=lookup, allow_mismatch=allow_mismatch,
                progress=bars.update,
            )  # fmt: skip
    if report.allowed_mismatch:
        typer.echo(f"trained although serving and replay disagree on {', '.join(report.allowed_mismatch)}", err=True)
    if as_json:
        print_json(report)
    else:
        typer.echo(
            f"bundle {report.bundle}{'' if report.promoted else ' (not promoted)'}: {report.groups:,} {report.learnt_from}, "
            f"{report.rows:,} rows, {f'{report.epochs} epochs' if report.epochs else f'{report.trees} trees'}, holdout NDCG@10 "
            f"{'-' if report.holdout_ndcg10 is None else f'{report.holdout_ndcg10:.4f}'}; "
            f"replay {report.replay_s:.1f} s, fit {report.fit_s:.1f} s, gate {report.gate_s:.1f} s"
            + "".join(f", {name} {seconds:.1f} s" for name, seconds in report.sources_s.items())
        )
    if report.frozen:
        from headwater.cli.models import print_frozen

        print_frozen(report.frozen)
    if report.gate is not None:
        print_verdict(report.gate)
        if not report.promoted:
            raise typer.Exit(EXIT_CHECK_FAILED)


def print_verdict(report: GateReport) -> None:
    """What the gate says, on standard error."""
    from headwater.registry.listing import in_words

    if not report.passed:
        what = "refuses this bundle; it was promoted all the same" if report.forced else "refuses this bundle"
        typer.secho(f"the gate {what}:", err=True, fg="red")
        for reason in report.reasons:
            typer.echo(f"- {reason}", err=True)
    else:
        typer.echo(in_words(report), err=True)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)


class Bars:
    """One progress bar a phase, on standard error, with rate and time left; nothing when it is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total)
        self._progress.update(self._tasks[phase], completed=done, total=total)
