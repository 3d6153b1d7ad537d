"""``headwater closed-loop``: the product on a world with known tastes, against less of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import JsonOption, print_json

if TYPE_CHECKING:
    from headwater.evaluation.closed_loop import Policy

_ALL = "popular,batch,no-exploration,headwater"


def register(app: typer.Typer) -> None:
    """Add ``closed-loop``."""
    app.command("closed-loop")(closed_loop)


def closed_loop(
    policies: Annotated[str, typer.Option(help=f"Of {_ALL},on-questions, divided by commas; none: an empty text.")] = _ALL,
    delays: Annotated[
        str, typer.Option(help="How late events reach the full system, such as 0s,1m,10m,1h,1d.")
    ] = "",
    scenario: Annotated[str | None, typer.Option(help="What happens: a built-in scenario or a TOML file.")] = None,
    days: Annotated[int, typer.Option(min=2, max=365, help="Days that are lived.")] = 5,
    users: Annotated[int, typer.Option(min=50, help="People of the world.")] = 400,
    items: Annotated[int, typer.Option(min=50, help="Items of the world.")] = 500,
    births: Annotated[float, typer.Option(min=0.0, help="New items a day, while creators are content.")] = 30.0,
    impressions: Annotated[int, typer.Option(min=1, help="The first impressions of a new item that are waited for.")] = 10,
    seeds: Annotated[str, typer.Option(help="A world for each, divided by commas.")] = "1,2,3",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON, Markdown and drawings there.")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run policies in a simulated world, in process, on the real log, fold, pipeline and training, and compare what they came to.

    Every policy meets the same people: satisfaction of a visit, regret against the best lists, who comes back, what becomes of
    new items; 95% intervals.

    Example: headwater closed-loop --policies popular,headwater --users 200 --days 4 --seeds 1,2 --json
    """
    from rich.console import Console

    from headwater.cli.bench.measure import machine, versions
    from headwater.evaluation.closed_loop import Sizes, closed_loop, delayed
    from headwater.evaluation.closed_loop.report import markdown, write_closed_loop
    from headwater.schema.errors import ConfigurationError
    from headwater.simulator import load_scenario

    chosen = [_policy(name) for name in _names(policies)]
    late = [delayed(delay) for delay in _names(delays)]
    if not chosen and not late:
        raise ConfigurationError("--policies and --delays are both empty: there is nothing to compare")
    try:
        numbers = [int(seed) for seed in _names(seeds)]
    except ValueError as error:
        raise ConfigurationError(f'--seeds: Expected whole numbers divided by commas, got "{seeds}"') from error
    if not numbers or min(numbers) < 0:
        raise ConfigurationError(f'--seeds: Expected at least one number from 0 on, got "{seeds}"')
    console = Console(stderr=True)
    with console.status("") as status:
        report = closed_loop(
            Sizes(users=users, items=items, days=days, births=births, impressions=impressions), numbers, chosen, late,
            scenario=None if scenario is None else load_scenario(scenario),
            progress=lambda _, done, total: status.update(f"{done} of {total} runs"),
        )  # fmt: skip
    if out is not None:
        for path in write_closed_loop(report, out):
            console.print(f"wrote {path}")
    if as_json:
        from msgspec import to_builtins

        facts: dict[str, Any] = to_builtins(report) | {"machine": machine(), "versions": versions()}
        print_json(facts)
        return
    from rich.markdown import Markdown

    Console().print(Markdown(markdown(report)))


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _policy(name: str) -> Policy:
    from headwater.evaluation.closed_loop import POLICIES
    from headwater.schema.errors import ConfigurationError
    from headwater.schema.strict import nearest

    if name not in POLICIES:
        raise ConfigurationError(f'--policies: There is no policy "{name}"{nearest(name, list(POLICIES))}')
    return POLICIES[name]
