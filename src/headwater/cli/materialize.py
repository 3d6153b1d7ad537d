"""``headwater features materialize``: training rows as Parquet files or a Delta table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, parse_time, print_json, settings
from headwater.cli.train import Bars

if TYPE_CHECKING:
    from headwater.offline.materialize import MaterializeReport


def materialize_features(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the rows; made if it is not there")],
    config: ConfigOption = None,
    data: DataOption = None,
    rows: Annotated[
        str,
        typer.Option(
            "--rows", metavar="KIND", help='"impressions", "served", "positives" or the name of an event type'
        ),
    ] = "impressions",
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Exposures received from TIME on (ISO 8601, UTC)")
    ] = None,
    stop: Annotated[str | None, typer.Option("--to", metavar="TIME", help="and before TIME")] = None,
    output: Annotated[Literal["parquet", "delta"], typer.Option("--format", help="How rows are stored")] = "parquet",
    negatives: Annotated[int, typer.Option("--negatives", min=0, help="Items drawn for each of the positives")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the drawing")] = 7,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="[default: one a core]")] = None,
    slices: Annotated[
        int | None, typer.Option("--slices", min=1, help="Parts of the log worked on at once [default: one a thread]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write training rows: exposures, their features as of that moment, and labels from what followed.

    Example: headwater features materialize --rows impressions --from 2026-01-01 --to 2026-01-08 --out rows

    Exposures whose labels are not closed yet (window + watermark) are left to a later run; what --out holds
    already is not written again. The rows are the same for any number of slices and threads.
    """
    from contextlib import ExitStack, closing

    from headwater.features.profiles import Profiles
    from headwater.learning.exposures import Asked
    from headwater.log.archived import open_log
    from headwater.log.identity import LmdbIdentity
    from headwater.offline.materialize import materialize

    chosen = settings(config, data)
    workers = threads or os.cpu_count() or 1
    with ExitStack() as opened:
        log = opened.enter_context(closing(open_log(chosen.data)))
        lookup = None
        if any(table.entity == "user" for table in chosen.config.tables):
            lookup = opened.enter_context(closing(LmdbIdentity(chosen.data / "identity", readonly=True))).lookup
        bars = opened.enter_context(Bars())
        report = materialize(
            chosen.config, log, out, asked=Asked(rows, negatives, seed), from_ms=parse_time("--from", start),
            to_ms=parse_time("--to", stop), output=output, threads=workers, slices=slices or workers,
            unseal=Profiles(chosen.data), lookup=lookup, progress=bars.update,
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _print(report, out)


def _print(report: MaterializeReport, out: Path) -> None:
    typer.echo(
        f"{report.rows:,} rows of offsets {report.first_offset} to {report.last_offset} in {out} "
        f"({report.seconds:.1f} s, {report.rows_per_s:,.0f} rows/s, plan {report.plan})"
        if report.last_offset
        else f"nothing to add to {out}"
    )
    for name, label in report.labels.items():
        delays = ", ".join(f"{quantile} {ms / 1000:.1f} s" for quantile, ms in label.delay_ms.items())
        typer.echo(f"  {name}: {label.positives:,} ({label.rate:.2%}){'; after ' + delays if delays else ''}")
    if report.open:
        typer.echo(f"  {report.open:,} exposures have labels that are not closed yet: a later run writes them")
    for name, origins in report.tables.items():
        if origins.joined:
            typer.echo(
                f"  table {name}: {origins.log:,} rows as loaded, {origins.joined:,} from before, joined as of then"
            )
    for reason, count in report.skipped.items():
        typer.echo(f"  left out, {reason}: {count:,}")
