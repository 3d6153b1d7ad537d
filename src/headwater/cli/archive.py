"""``headwater archive`` and ``headwater retain``: the log's way to the lake, and what leaves each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, Settings, print_json, settings
from headwater.schema.clock import wall_ms

if TYPE_CHECKING:
    from headwater.offline.archive import ArchiveReport
    from headwater.offline.retain import RetainReport

DAY_MS = 86_400_000

DaysOption = Annotated[
    float | None,
    typer.Option("--log-days", min=0.0, help="Age at which records leave the log [default: retention.log]"),
]
LakeDaysOption = Annotated[
    float | None,
    typer.Option("--lake-days", min=0.0, help="Age at which records leave the lake [default: retention.lake]"),
]


def register(app: typer.Typer) -> None:
    """Add ``archive`` and ``retain``."""
    app.command()(archive)
    app.command()(retain)


def archive(
    once: Annotated[bool, typer.Option("--once", help="Archive what is there and end.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the log to a Delta table in DATA/lake/log, each record once; goes on until it is stopped.

    Example: headwater archive --once

    A commit comes every 64 MiB or 10 minutes. It may die at any instant: the next run goes on where the lake stands.
    """
    import signal
    import threading

    from headwater.offline.archive import Archiver

    chosen = settings(config, data)
    archiver = Archiver(chosen.data)
    try:
        if once:
            report = archiver.run()
        else:
            stop = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            typer.echo(f"archiving {chosen.data}; stop with Ctrl-C", err=True)
            report = archiver.follow(stop)
    finally:
        archiver.close()
    _show_archive(report, as_json)


def _show_archive(report: ArchiveReport, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"{report.records:,} records in {report.commits} commits ({report.bytes / 2**20:.1f} MiB, {report.seconds:.1f} s); "
        f"the lake holds offsets {report.first_offset} to {report.last_offset} (version {report.version})"
    )


def retain(
    log_days: DaysOption = None,
    lake_days: LakeDaysOption = None,
    force: Annotated[bool, typer.Option("--force", help="Let the lake go of records that no state has in it.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove old records: from the log once they are archived, from the lake for good.

    Example: headwater retain --log-days 30

    From the log goes only what the lake holds, what every state has folded, and what the dedup window does not need;
    it is read from the lake then. Without --log-days and --lake-days, retention.log and retention.lake count.
    """
    from headwater.offline.retain import retain as apply
    from headwater.schema.durations import parse_duration

    chosen = settings(config, data)

    def age(days: float | None, configured: str) -> int | None:
        if days is not None:
            return round(days * DAY_MS)
        return None if configured == "never" else parse_duration(configured)

    retention = chosen.config.retention
    report = apply(
        chosen.data, chosen.config, log_ms=age(log_days, retention.log), lake_ms=age(lake_days, retention.lake),
        now_ms=now_ms_of(chosen), force=force,
    )  # fmt: skip
    _show_retain(report, as_json)


def now_ms_of(chosen: Settings) -> int:
    """The time by the configured clock: real, or that of the newest record."""
    if chosen.config.clock == "wall":
        return wall_ms()
    from headwater.log.lmdb import LmdbLog

    log = LmdbLog(chosen.data / "log", readonly=True)
    try:
        return log.last_received_ms
    finally:
        log.close()


def _show_retain(report: RetainReport, as_json: bool) -> None:
    for lost in report.lost:
        typer.secho(f"can no longer be rebuilt: {lost}", err=True, fg="yellow")
    if report.held_by:
        typer.secho(f"older records stay in the log: {report.held_by}", err=True, fg="yellow")
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"{report.log_removed:,} records left the log, {report.lake_removed:,} left the lake "
        f"({report.lake_files_removed} files); the log begins with offset {report.log_first_offset}, "
        f"with the lake {report.first_offset}"
    )
