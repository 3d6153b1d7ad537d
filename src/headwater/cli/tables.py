"""``headwater features load``: rows of ``[[tables]]`` into the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    configure_logging,
    parse_time,
    print_json,
    settings,
    system_clock,
)
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from headwater.offline.tables.load import TableReport


def load_features(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]...", help="Names of tables [default: all]")
    ] = None,
    once: Annotated[bool, typer.Option("--once/--follow", help="One look, or on and on until Ctrl-C")] = True,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="Load what was due at TIME, received then (ISO 8601, UTC); for histories"
        ),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load new rows of your own tables: each once, none before it is valid and published.

    Example: headwater features load --json

    Goes through the writer of a running server, which looks by itself every `refresh`; otherwise it opens the log itself.
    """
    from headwater.offline.tables.load import TableLoader, load_tables

    chosen = settings(config, data)
    if not chosen.config.tables:
        raise ConfigurationError("The configuration has no [[tables]]; docs/tables.md shows one")
    at_ms = parse_time("--at", at)
    clock = system_clock(chosen)
    if once:
        loader = TableLoader(chosen.config, chosen.data, _pace())
        _show(load_tables(loader, clock() if at_ms is None else at_ms, at_ms=at_ms, names=tables or ()), as_json)
        return
    if at_ms is not None:
        raise ConfigurationError("--at is a moment and --follow goes on: give one of them")
    _follow(chosen, clock, tables or [], as_json)


def _pace() -> Callable[[int], None]:
    from headwater.offline.tables.follow import ServedPace

    return ServedPace()


def _follow(chosen: Settings, clock: Callable[[], int], names: list[str], as_json: bool) -> None:
    import asyncio
    import signal

    from headwater.offline.tables.follow import follow_tables

    configure_logging("info")

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await follow_tables(
            chosen.config, chosen.data, clock=clock, stop=stop, names=names, told=lambda one: _show([one], as_json)
        )

    asyncio.run(run())


def _show(reports: list[TableReport], as_json: bool) -> None:
    if as_json:
        print_json({"tables": {report.table: report for report in reports}})
        return
    for report in reports:
        typer.echo(
            f"{report.table}: {report.rows:,} rows in {report.files} files: {report.written:,} written, "
            f"{report.already:,} before, {report.held:,} not due, {sum(report.refused.values()):,} refused; "
            f"valid from {_moment(report.newest_valid_from_ms)} at the latest"
        )
        for reason, count in report.refused.items():
            typer.echo(f"  {count:>10,}  {reason}")
        if report.next_due_ms is not None:
            typer.echo(f"  the next row is due at {_moment(report.next_due_ms)}")
        if report.stale:
            typer.secho("  stale: its features are at their defaults", err=True, fg="yellow")


def _moment(millis: int | None) -> str:
    from datetime import UTC, datetime

    if millis is None:
        return "no time"
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
