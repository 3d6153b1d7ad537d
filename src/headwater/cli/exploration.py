"""``headwater exploration``: what exploration costs and what it buys, from the log."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import typer

from headwater.cli.options import (
    ConfigOption,
    DataOption,
    JsonOption,
    SinceOption,
    WindowOption,
    parse_length,
    print_json,
    settings,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from headwater.evaluation.exploration import ExplorationReport, Gain, SurfaceCost


def register(app: typer.Typer) -> None:
    """Add ``exploration``."""
    app.command("exploration")(exploration)


def exploration(
    config: ConfigOption = None,
    data: DataOption = None,
    window: WindowOption = "30m",
    since: SinceOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Compare lists and places that were drawn by lot with those that were not, and say what became of promises to new items.

    Example: headwater exploration --window 1h
    """
    from contextlib import closing

    from headwater.evaluation.exploration import measure_exploration
    from headwater.log.archived import open_log

    chosen = settings(config, data)
    window_ms = parse_length("--window", window)
    with closing(open_log(chosen.data)) as event_log:
        report = measure_exploration(event_log, chosen.config, window_ms=window_ms, since=since)
    if as_json:
        print_json(report)
    else:
        _print(report, window)


def _print(report: ExplorationReport, window: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    lists = Table(
        "surface", "lists", "number", "users", "taken up", "95%", "against plain", "95%", box=None, pad_edge=False
    )
    places = Table(
        "surface",
        "promised places",
        "given",
        "expected",
        "cost a place",
        "95%",
        "cost a list",
        "95%",
        box=None,
        pad_edge=False,
    )
    for cost in report.surfaces:
        _add_lists(lists, cost)
        if (said := cost.promised) is not None:
            places.add_row(
                cost.surface, f"{said.places:,}", f"{said.kept:,}", f"{said.expected:,.1f}", _share(said.place_cost),
                _range(said.place_ci95), _share(said.list_cost), _range(said.list_ci95),
            )  # fmt: skip
    if report.surfaces:
        console.print(lists)
    if places.row_count:
        console.print()
        console.print(places)
    if report.gain is not None:
        console.print()
        _print_gain(console, report.gain)
    console.print(
        f"taken up: a positive event of the user on an item of the list (at the place) within {window}; "
        f"{report.strangers:,} lists of strangers not counted",
        style="dim",
    )


def _add_lists(table: Table, cost: SurfaceCost) -> None:
    for line in cost.lists:
        table.add_row(
            cost.surface, line.how, f"{line.lists:,}", f"{line.users:,}", f"{line.rate:.2%}", _range(line.ci95),
            _share(line.difference), _range(line.difference_ci95),
        )  # fmt: skip


def _print_gain(console: Console, gain: Gain) -> None:
    from rich.table import Table

    from headwater.schema.durations import format_duration

    table = Table("new items", "number", "impressions", "rate", "later", "rate later", box=None, pad_edge=False)
    for name in ("reached", "stopped", "missed", "running"):
        of = getattr(gain, name)
        table.add_row(
            name,
            f"{of.items:,}",
            f"{of.impressions:,}",
            _rate(of.rate),
            f"{of.later_impressions:,}",
            _rate(of.later_rate),
        )
    console.print(table)
    took = ", ".join(f"{name} {hours:.2f} h" for name, hours in gain.hours_to_promise.items())
    console.print(
        f"{gain.impressions:,} impressions within {format_duration(gain.within_ms)} were promised to {gain.items:,} items; kept: "
        f"{gain.reached_share:.1%} of those whose time is over and that were not stopped{f' ({took})' if took else ''}"
    )


def _rate(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2%}"  # there were no impressions


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2%}"


def _range(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}"
