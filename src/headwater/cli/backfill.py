"""``headwater features backfill``: from one feature plan to another while the server answers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    print_json,
    settings,
)
from headwater.schema.errors import UnavailableError

if TYPE_CHECKING:
    from headwater.features.plan import Plan
    from headwater.offline.backfill import Built

_LOOK_S = 0.1
_PATIENCE_S = 300.0
_NICE = 10


class Report(Struct, frozen=True):
    """What happened. ``flip`` is one of served already, done, refused, no server; ``reason`` says why, or what to do."""

    plan: str
    flip: str
    reason: str = ""
    first: int = 0
    offset: int = 0
    records: int = 0
    seconds: float = 0.0


def backfill(
    config: ConfigOption = None,
    data: DataOption = None,
    without_ranker: Annotated[
        bool, typer.Option("--without-ranker", help="Flip although no bundle was promoted for the new plan.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the state of the edited configuration's feature plan from the log, then have the server flip to it.

    The old plan serves until the new one is ready; no request fails. A backfill that was stopped goes on where it
    stood. Exit code 1: the flip was refused, and the old plan serves on.

    Example: headwater features backfill --config headwater.toml
    """
    chosen = settings(config, data)
    report = run(chosen, without_ranker)
    if as_json:
        print_json(report)
    else:
        _say(report)
    if report.flip == "refused":
        raise typer.Exit(EXIT_CHECK_FAILED)


def run(chosen: Settings, without_ranker: bool) -> Report:
    """The command without its words."""
    from headwater.features.paths import read_current
    from headwater.features.pinned import config_digest
    from headwater.features.plan import compile_plan
    from headwater.log.archived import open_log
    from headwater.offline.backfill import NoBundleError, check_promoted, one_backfill, request_flip
    from headwater.online.supervisor import serving_process

    digest = config_digest(chosen.config)  # before the feature module is run: what changes later is noticed
    compiled = compile_plan(chosen.config)
    plan = compiled.hash
    with one_backfill(chosen.data):
        current = read_current(chosen.data)
        serves = serving_process(chosen.data)
        if serves and current is not None and current.plan == plan:
            log = open_log(chosen.data)
            try:
                return Report(plan, "served already", offset=log.last_offset)
            finally:
                log.close()
        built = _build(chosen, compiled)

        def report(flip: str, reason: str = "") -> Report:
            return Report(plan, flip, reason, built.first, built.offset, built.records, built.seconds)

        if not serves:
            return report("no server", "the next `headwater serve` with this configuration starts from it")
        if current is not None and not without_ranker:
            try:
                check_promoted(chosen.data / "models", current.plan, plan)
            except NoBundleError as error:
                return report("refused", str(error))
        request = request_flip(chosen.data, plan, chosen.config_path, digest)
        reason = _outcome(chosen.data, request)
        return report("refused" if reason else "done", reason)


def _build(chosen: Settings, plan: Plan) -> Built:
    from headwater.cli.train import Bars
    from headwater.log.archived import open_log
    from headwater.offline.backfill import build_state

    os.nice(_NICE)  # whoever answers requests on this machine comes first
    event_log = open_log(chosen.data)
    try:
        with Bars() as bars:
            return build_state(
                chosen.config, chosen.data, plan, event_log,
                progress=lambda done, total: bars.update("backfill", done, total),
            )  # fmt: skip
    finally:
        event_log.close()


def _outcome(data: Path, request: str) -> str:
    """Wait for what the server says to ``request``: empty when it serves the new plan, else why it does not.

    Raises:
        UnavailableError: it ended, or said nothing for minutes.
    """
    from headwater.features.paths import read_flip
    from headwater.online.supervisor import serving_process

    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        flip = read_flip(data)
        if flip is not None and flip.request == request and flip.stage != "switching":
            return flip.reason
        if not serving_process(data):
            raise UnavailableError("The server ended while it was to flip; start it again")
        time.sleep(_LOOK_S)
    raise UnavailableError(f"The server did not flip within {_PATIENCE_S:.0f} s; its log says why")


def _say(report: Report) -> None:
    if report.flip == "served already":
        typer.echo(f"plan {report.plan} is in service, its state follows the log (at offset {report.offset:,})")
        return
    found = f" (found at {report.first:,})" if report.first else ""
    typer.echo(
        f"state of plan {report.plan} stands at offset {report.offset:,}{found}: {report.records:,} records in "
        f"{report.seconds:.1f} s"
    )
    if report.flip == "done":
        typer.echo(f"plan {report.plan} is in service")
    elif report.flip == "no server":
        typer.echo(f"no server runs on this data directory; {report.reason}")
    else:
        typer.secho(f"the old plan serves on: {report.reason}", err=True, fg="red")
