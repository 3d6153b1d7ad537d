"""Options and output that the benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import print_json

if TYPE_CHECKING:
    from headwater.cli.bench.workload import Size

SeedOption = Annotated[int, typer.Option(min=0, help="Seed of world and arrivals.")]
UsersOption = Annotated[int, typer.Option(min=100, help="Users of the world.")]
ItemsOption = Annotated[int, typer.Option(min=100, help="Items of the world.")]
EventsOption = Annotated[int, typer.Option(min=1_000, help="Events in the history, roughly.")]
KeepOption = Annotated[
    Path | None,
    typer.Option(
        "--keep", metavar="DIR", help="Prepare this folder once and use it again [default: a temporary folder]."
    ),
]
DurationOption = Annotated[float, typer.Option(min=1.0, help="Seconds that are measured.")]
WarmOption = Annotated[float, typer.Option(min=0.0, help="Seconds of the same load before that.")]


def show(title: str, figures: Mapping[str, Any], size: Size, events: int, as_json: bool) -> None:
    """Print figures with what they depend on: as one JSON object, or as a table."""
    from headwater.cli.bench.measure import machine, versions

    complete = {
        **figures,
        "seed": size.seed,
        "sizes": {"users": size.users, "items": size.items, "events": events},
        "machine": machine(),
        "versions": versions(),
    }
    if as_json:
        print_json(complete)
        return
    table(title, complete)


def table(title: str, figures: Mapping[str, Any]) -> None:
    """Print figures for a person."""
    from rich.console import Console
    from rich.table import Table

    rows = Table(title=title, title_justify="left", show_header=False)
    for name, value in figures.items():
        rows.add_row(name, _text(value))
    Console().print(rows)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return "not measured" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
