"""``headwater bench off-policy`` and ``headwater bench open-bandit``: how far off-policy estimates can be trusted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.bench.report import SeedOption
from headwater.cli.options import JsonOption, print_json

if TYPE_CHECKING:
    from headwater.evaluation.off_policy.coverage import Coverage
    from headwater.evaluation.off_policy.open_bandit import Direction


def register(app: typer.Typer) -> None:
    """Add ``off-policy`` and ``open-bandit``."""
    app.command("off-policy")(off_policy)
    app.command("open-bandit")(open_bandit)


def off_policy(
    logs: Annotated[int, typer.Option(min=100, help="Simulated logs of each world.")] = 2_000,
    users: Annotated[int, typer.Option(min=50, help="Users of a log, one to three rows each.")] = 1_200,
    draws: Annotated[int, typer.Option(min=100, help="Draws of a bootstrap.")] = 300,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """How often the 95% intervals hold the true value, in worlds whose truth is known.

    Single actions: two worlds that the reward model can describe, and one that it cannot, as a warning. Lists: one in which a click depends on item
    and place, and one in which it depends on what stands above as well.

    Example: headwater bench off-policy --logs 2000 --json
    """
    import time
    from typing import get_args

    from headwater.cli.bench.measure import machine, versions
    from headwater.evaluation.off_policy.coverage import WorldName, measure_coverage
    from headwater.evaluation.off_policy.coverage_lists import measure_list_coverage

    began = time.process_time()
    worlds = [measure_coverage(name, logs=logs, users=users, draws=draws, seed=seed) for name in get_args(WorldName)]
    worlds += [
        measure_list_coverage(name, logs=logs, users=users, draws=draws, seed=seed)
        for name in ("independent", "cascade")
    ]
    if as_json:
        print_json(
            {
                "worlds": {world.world: world for world in worlds}, "cpu_s": round(time.process_time() - began, 1), "seed": seed,
                "machine": machine(), "versions": versions(),
            }
        )  # fmt: skip
        return
    for world in worlds:
        _show_coverage(world)


def _show_coverage(world: Coverage) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "", "asymptotic", "bootstrap", "bias", "spread", title=f"{world.world}: {world.logs} logs of {world.users} users, truth {world.truth:.4f}",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for name, one in world.estimators.items():
        table.add_row(name, f"{one.asymptotic:.1%}", f"{one.bootstrap:.1%}", f"{one.bias:+.4f}", f"{one.spread:.4f}")
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a file or a pipe has no width
    console.print(table)
    if world.found_out is not None:
        console.print(f"DM was not trusted in {world.found_out:.1%} of the logs", style="dim", highlight=False)


def open_bandit(
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="DIR", help="Folder with random_men.parquet, bts_men.parquet and those of women."
        ),
    ],
    bootstraps: Annotated[int, typer.Option(min=2, help="Bootstraps of each log.")] = 30,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """The value of each policy of the Open Bandit Dataset from the log of the other, beside what it really earned.

    Example: headwater bench open-bandit --data open-bandit --json
    """
    from headwater.cli.bench.measure import machine, versions
    from headwater.evaluation.off_policy.open_bandit import measure_open_bandit

    found = measure_open_bandit(data, bootstraps=bootstraps, seed=seed)
    if as_json:
        print_json(
            {"directions": found, "bootstraps": bootstraps, "seed": seed, "machine": machine(), "versions": versions()}
        )  # fmt: skip
        return
    for each in found:
        _show_direction(each)


def _show_direction(each: Direction) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = each.truth_ci95
    table = Table(
        "", "value", "95%", "relative error", "bootstrapped", "95%", "published", title_justify="left", box=None, pad_edge=False,
        title=f"{each.campaign}: {each.to} from the log of {each.of} ({each.clicks} clicks), truth {each.truth:.4%} ({low:.4%} to {high:.4%}), ESS {each.ess:,.0f}",
    )  # fmt: skip
    for name, one in each.estimators.items():
        table.add_row(
            name, f"{one.value:.4%}", f"{one.ci95[0]:.4%} to {one.ci95[1]:.4%}", f"{one.relative_error:.3f}", f"{one.mean:.3f}",
            f"{one.interval[0]:.3f} to {one.interval[1]:.3f}", "" if one.published is None else f"{one.published:.3f}",
        )  # fmt: skip
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a file or a pipe has no width
    console.print(table)
    if each.refused is not None:
        console.print(f"an evaluation would refuse: {each.refused}", style="dim", highlight=False)
