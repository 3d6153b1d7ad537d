"""``headwater experiments``: write, start, watch, judge, guard and stop them."""

from __future__ import annotations

import typer

from headwater.cli.experiment_guard import register_guard
from headwater.cli.experiment_report import register_report
from headwater.cli.experiment_runs import register_runs


def register(app: typer.Typer) -> None:
    """Add ``experiments`` with its subcommands."""
    group = typer.Typer(
        no_args_is_help=True, help="Experiments: run and judge them. Example: headwater experiments status"
    )
    register_runs(group)
    register_report(group)
    register_guard(group)
    app.add_typer(group, name="experiments")
