"""``headwater features``: what the features are, and whether serving and replay agree on them."""

from __future__ import annotations

from typing import Annotated

import typer

from headwater.cli.backfill import backfill
from headwater.cli.materialize import materialize_features
from headwater.cli.options import EXIT_CHECK_FAILED, ConfigOption, DataOption, JsonOption, print_json, settings


def register(app: typer.Typer) -> None:
    """Add ``features``."""
    features = typer.Typer(no_args_is_help=True, help="The features that a ranker sees.")
    features.command("list")(list_features)
    features.command("verify")(verify_features)
    features.command("materialize")(materialize_features)
    features.command("backfill")(backfill)
    app.add_typer(features, name="features")


def list_features(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print every column of the feature plan, in order, with its description.

    Example: headwater features list
    """
    from headwater.features.plan import compile_plan

    plan = compile_plan(settings(config, None).config)
    if as_json:
        columns = [{"name": column.name, "description": column.description} for column in plan.declared]
        print_json({"plan": plan.hash, "columns": columns})
        return
    for column in plan.declared:
        typer.echo(f"{column.name:32} {column.description}")
    typer.echo(f"plan {plan.hash}, {len(plan.columns)} columns")


def verify_features(
    config: ConfigOption = None,
    data: DataOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Compare only the newest so many requests.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the logged feature rows of served lists by replaying the log, and compare them byte for byte.

    Example: headwater features verify --json

    Set serving.feature_sample to the share of requests that keep their rows. Exit code 1: bytes differ, or
    there was nothing to compare.
    """
    from headwater.evaluation.verify import verify
    from headwater.features.plan import compile_plan
    from headwater.log.lmdb import LmdbLog

    chosen = settings(config, data)
    event_log = LmdbLog(chosen.data / "log", readonly=True)
    try:
        report = verify(event_log, compile_plan(chosen.config), limit=limit)
    finally:
        event_log.close()
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
    if report.mismatched_bytes or not report.requests:
        raise typer.Exit(EXIT_CHECK_FAILED)
