"""``headwater ope``: what a bundle would have earned, from the lists that were drawn by lot."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

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
    from headwater.evaluation.off_policy.estimators import Estimate
    from headwater.evaluation.off_policy.report import OffPolicyReport


def register(app: typer.Typer) -> None:
    """Add ``ope``."""
    app.command("ope")(ope)


def ope(
    policy: Annotated[str, typer.Option(metavar="BUNDLE", help='A version, its beginning, or "current"')],
    config: ConfigOption = None,
    data: DataOption = None,
    surface: Annotated[str, typer.Option(help="The surface whose lists are looked at")] = "home",
    reward: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The event type that counts [default: any positive one]")
    ] = None,
    window: WindowOption = "30m",
    temperature: Annotated[
        float | None, typer.Option(min=0.01, max=100.0, help="Draw with this [default: as the surface is configured]")
    ] = None,
    since: SinceOption = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many lists")] = None,
    least_ess: Annotated[float, typer.Option(min=1.0, help="Refuse below this effective sample size")] = 100.0,
    most_uncovered: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse when more of its draws lie where the log never drew from")
    ] = 0.1,
    draws: Annotated[int, typer.Option(min=100, max=100_000, help="Draws of the bootstrap")] = 1_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Estimate the value of a bundle that never served, from the lists that were drawn by lot: off-policy evaluation.

    Example: headwater ope --policy 20261124T101500123Z-0123456789ab --reward click

    Every list that was drawn is asked again of the bundle at its address in the log: how likely would it have drawn this one? The value is
    how many items of a list are taken up within the window. Exit code 2: the log cannot say (nothing was drawn, or too little
    of what the bundle would do).
    """
    from contextlib import ExitStack, closing

    from headwater.cli.train import Bars
    from headwater.evaluation.off_policy.bundles import judge_version
    from headwater.evaluation.off_policy.feedback import Overlap
    from headwater.evaluation.off_policy.report import Question
    from headwater.features.plan import compile_plan
    from headwater.features.profiles import Profiles
    from headwater.log.archived import open_log
    from headwater.registry.listing import resolved_version
    from headwater.registry.registry import Registry

    chosen = settings(config, data)
    window_ms = parse_length("--window", window)
    plan, registry = compile_plan(chosen.config), Registry(chosen.data / "models")
    question = Question(
        surface=surface, reward=reward, window_ms=window_ms, temperature=temperature, since=since, limit=limit, draws=draws,
        seed=seed, overlap=Overlap(least_ess=least_ess, most_uncovered=most_uncovered),
    )  # fmt: skip
    with ExitStack() as opened:
        event_log = opened.enter_context(closing(open_log(chosen.data)))
        unseal = opened.enter_context(closing(Profiles(chosen.data)))
        bars = opened.enter_context(Bars())
        report = judge_version(
            event_log, plan, chosen.config, registry, resolved_version(registry, plan.hash, policy), question, unseal=unseal,
            progress=lambda done, total: bars.update("replay", done, total),
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: OffPolicyReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "95%", "bootstrap 95%", "less logged", "95%", "ESS", box=None, pad_edge=False)
    table.add_row(
        "as logged",
        f"{report.logging.value:.4f}",
        _interval(report.logging),
        _bootstrap(report.logging),
        "",
        "",
        f"{report.lists:,}",
    )
    for name, one in report.estimates.items():
        over = report.difference[name]
        table.add_row(
            name, f"{one.value:.4f}", _interval(one), _bootstrap(one), f"{over.value:+.4f}", _interval(over, "+"),
            "" if one.ess is None else f"{one.ess:,.0f}",
        )  # fmt: skip
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a file or a pipe has no width
    console.print(table)
    for name, why in report.refused.items():
        console.print(f"{name}: {why}", highlight=False, markup=False)
    console.print(
        f"{report.lists:,} lists of {report.users:,} users on {report.surface}, {report.rewarded:,} with {report.reward}; drawn with temperature "
        f"{report.temperature:g}; {report.uncovered:.1%} of the first draws of {report.policy} are not covered",
        style="dim", highlight=False,
    )  # fmt: skip
    if report.skipped:
        console.print(
            "passed over: " + ", ".join(f"{count:,} {why}" for why, count in report.skipped.items()),
            style="dim",
            highlight=False,
        )


def _interval(one: Estimate, sign: str = "") -> str:
    return f"{one.ci95[0]:{sign}.4f} to {one.ci95[1]:{sign}.4f}"


def _bootstrap(one: Estimate) -> str:
    return "" if one.bootstrap95 is None else f"{one.bootstrap95[0]:.4f} to {one.bootstrap95[1]:.4f}"
