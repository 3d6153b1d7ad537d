"""``headwater backup`` and ``headwater restore``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, print_json, settings
from headwater.schema.clock import wall_ms
from headwater.schema.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    """Add ``backup`` and ``restore``."""
    app.command()(backup)
    app.command()(restore)


def backup(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A folder that does not exist yet.")],
    with_state: Annotated[
        bool, typer.Option("--state", help="Take the folded state along, so that a restored server need not fold anew.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the data directory while everything runs: log, identities, models, lake, list of erasures.

    Example: headwater backup /mnt/backups/2026-03-01

    DEST gets its name when it is whole; until then it is DEST.incomplete. Keep the configuration file beside it.
    """
    from headwater.offline.backup import backup as make

    chosen = settings(config, data)
    report = make(chosen.data, dest, created_ms=wall_ms(), config=chosen.config, with_state=with_state)
    if report.left_out:
        typer.secho(f"not in the backup: {', '.join(report.left_out)}", err=True, fg="yellow")
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"{report.files} files, {report.bytes / 2**20:.1f} MiB in {dest}: the log to offset {report.last_offset}, "
        f"the lake to {report.lake_offset}, {len(report.states)} states"
    )


def restore(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A backup.")],
    erasures_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--erasures-from", metavar="PATH", help="erasures.jsonl, or a data directory with it; repeatable."
        ),
    ] = None,
    no_erasures: Annotated[
        bool, typer.Option("--no-erasures", help="Nobody was erased since the backup was made.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an empty data directory what it was when the backup was made, less those who were erased since.

    Example: headwater restore /mnt/backups/2026-03-01 --data data --erasures-from old-data/erasures.jsonl

    Every file is compared with the manifest before anything is written. Say where the erasures since the backup
    stand, or that there were none.
    """
    from headwater.log.environment import GIB
    from headwater.offline.backup import restore as put_back

    if bool(erasures_from) == no_erasures:
        raise ConfigurationError(
            "restore: Say --erasures-from PATH (erasures.jsonl or the data directory in which people were erased), so "
            "that nobody who was erased comes back, or --no-erasures if nobody was erased since the backup"
        )
    chosen = settings(config, data)
    report = put_back(
        source, chosen.data, erasures_from=erasures_from or (), map_size=int(chosen.config.log.map_size_gib * GIB)
    )
    if as_json:
        print_json(report)
        return
    made, newest = (_time(ms) for ms in (report.created_ms, report.received_ms))
    typer.echo(
        f"{report.files} files, {report.bytes / 2**20:.1f} MiB from the backup of {made} in {chosen.data}\n"
        f"the log stands at offset {report.last_offset} (received {newest}); what came later is not in it\n"
        f"{report.erased} users were erased again"
    )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds")
