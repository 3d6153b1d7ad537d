"""``headwater features``: what the features are, and whether serving and replay agree on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.backfill import backfill
from headwater.cli.materialize import materialize_features
from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    parse_time,
    print_json,
    settings,
)
from headwater.cli.show import show_features
from headwater.cli.stats import feature_statistics
from headwater.cli.tables import load_features

if TYPE_CHECKING:
    from headwater.log.protocol import EventLog


def register(app: typer.Typer) -> None:
    """Add ``features``."""
    features = typer.Typer(no_args_is_help=True, help="The features that a ranker sees.")
    features.command("show")(show_features)
    features.command("verify")(verify_features)
    features.command("stats")(feature_statistics)
    features.command("materialize")(materialize_features)
    features.command("backfill")(backfill)
    features.command("load")(load_features)
    app.add_typer(features, name="features")


def verify_features(
    config: ConfigOption = None,
    data: DataOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="OFFSET|TIME",
            help="Compare only lists logged from that offset or time (ISO 8601, UTC) on.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Compare only the newest so many requests.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the logged feature rows of served lists by replaying the log, and compare them byte for byte.

    Example: headwater features verify --json

    Set serving.feature_sample to the share of requests that keep their rows. The report is kept in the data directory,
    and `headwater train` refuses features that it found to differ. Exit code 1: bytes differ, or there was
    nothing to compare (the report before this one stays then).
    """
    from contextlib import ExitStack, closing

    from headwater.cli.train import Bars
    from headwater.evaluation.checks import checks_dir, store_check
    from headwater.evaluation.verify import verify
    from headwater.features.plan import compile_plan
    from headwater.features.profiles import Profiles
    from headwater.log.archived import open_log

    chosen = settings(config, data)
    plan = compile_plan(chosen.config)
    with ExitStack() as opened:
        event_log = opened.enter_context(closing(open_log(chosen.data)))
        unseal = opened.enter_context(closing(Profiles(chosen.data)))
        bars = opened.enter_context(Bars())
        report = verify(
            event_log, plan, since=_offset(event_log, since), limit=limit, unseal=unseal,
            progress=lambda done, total: bars.update("compare", done, total),
        )  # fmt: skip
    stored = store_check(checks_dir(chosen.data), report)
    if as_json:
        print_json(report)
    else:
        typer.echo(f"{report.requests} requests, {report.rows} rows, {report.mismatched_bytes} mismatched bytes")
        for name, count in report.by_feature.items():
            if count:
                typer.echo(f"  {name}: {count}")
        for reason, count in report.skipped.items():
            if count:
                typer.echo(f"  passed over, {reason}: {count}")
        if stored is not None:
            typer.echo(f"offsets {report.first_offset} to {report.last_offset}; report in {stored}")
    if report.mismatched_bytes or not report.requests:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _offset(event_log: EventLog, since: str | None) -> int:
    """The first offset that ``--since`` names."""
    from headwater.log.seek import last_before

    if since is None or since.isdecimal():
        return int(since or 0)
    time_ms = parse_time("--since", since)
    return 0 if time_ms is None else last_before(event_log, time_ms)[0] + 1
