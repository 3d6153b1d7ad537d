"""``headwater ladder``: what the lower tiers cost, from the traffic that walked them."""

from __future__ import annotations

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


def register(app: typer.Typer) -> None:
    """Add ``ladder``."""
    app.command("ladder")(ladder)


def ladder(
    config: ConfigOption = None,
    data: DataOption = None,
    window: WindowOption = "30m",
    since: SinceOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Compare the lists that walked a lower tier by lot with those that did not, by what people did with them.

    Example: headwater ladder --window 1h
    """
    from contextlib import closing

    from headwater.evaluation.ladder import measure_ladder
    from headwater.log.archived import open_log

    chosen = settings(config, data)
    window_ms = parse_length("--window", window)
    with closing(open_log(chosen.data)) as event_log:
        report = measure_ladder(event_log, chosen.config, window_ms=window_ms, since=since)
    if as_json:
        print_json(report)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("walked", "lists", "users", "taken up", "95%", "served in tier", box=None, pad_edge=False)
    for line in report.tiers:
        low, high = line.ci95
        table.add_row(
            str(line.walked or "–"), f"{line.lists:,}", f"{line.users:,}", f"{line.rate:.2%}", f"{low:.2%} to {high:.2%}",
            ", ".join(f"{tier}: {count:,}" for tier, count in line.served.items()),
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"taken up: a positive event of the user on an item of the list within {window}; "
        f"{report.strangers:,} lists of strangers not counted",
        style="dim",
    )
