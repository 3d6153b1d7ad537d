"""``headwater experiments report`` and ``headwater experiments power``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from headwater.cli.options import (
    ConfigOption,
    DataOption,
    JsonOption,
    Settings,
    parse_length,
    parse_time,
    print_json,
    read_file,
    settings,
)

if TYPE_CHECKING:
    from headwater.experiments.analysis import ExperimentReport
    from headwater.experiments.definitions import Experiment
    from headwater.experiments.metrics import Metric
    from headwater.experiments.power import SampleSize

R = TypeVar("R")

WindowOption = Annotated[
    str, typer.Option("--window", metavar="DURATION", help="How long after exposure a predefined metric counts.")
]
BeforeOption = Annotated[
    str, typer.Option("--before", metavar="DURATION", help="The time before exposure that CUPED takes into account; 0s: none.")
]  # fmt: skip
MetricsOption = Annotated[
    Path | None,
    typer.Option("--metrics", metavar="FILE", help="Further metrics, as [[metrics]] in TOML; they replace predefined ones of their name."),
]  # fmt: skip
AlphaOption = Annotated[float, typer.Option("--alpha", min=0.0001, max=0.5, help="Level of intervals and decisions.")]


def register_report(group: typer.Typer) -> None:
    """Add ``report`` and ``power``."""
    group.command("report")(report)
    group.command("power")(power)


def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The experiment")],
    config: ConfigOption = None,
    data: DataOption = None,
    window: Annotated[
        str | None, typer.Option("--window", metavar="DURATION", help="How long after exposure a predefined metric counts [default: 7d], or after a list a click, of interleaved experiments and shadows [1h].")
    ] = None,
    before: BeforeOption = "14d",
    metrics: MetricsOption = None,
    alpha: AlphaOption = 0.05,
    planned: Annotated[
        int | None, typer.Option("--planned", min=200, metavar="USERS", help="Where confidence sequences are tightest; choose it before the start [default: 10000; interleaved 2000].")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="As it stood then [default: now]")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write report.json, report.md and report.svg here")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Judge an experiment: the split, every metric against the control, guardrails, segments, and whether to go on, stop or ship.

    It may be asked at any time and as often as one likes: verdict and confidence sequences hold at all looks together. Of an interleaved
    experiment it says whose items are clicked more, of a shadow where it would have put what was clicked.

    Example: headwater experiments report new-ranker --window 3d --out report
    """
    from contextlib import closing

    from headwater.experiments.judge import judge
    from headwater.experiments.report import write_report
    from headwater.experiments.store import read_experiment
    from headwater.log.archived import open_log
    from headwater.schema.durations import parse_delay

    chosen = settings(config, data)
    experiment = read_experiment(chosen.data, name)
    if experiment.shadow:
        _report_shadow(
            chosen, experiment, parse_length("--window", window or "1h"), parse_time("--until", until), out, as_json
        )
        return
    if experiment.interleave:
        _report_preference(
            chosen, experiment, parse_length("--window", window or "1h"), alpha, planned or 2_000, parse_time("--until", until), out, as_json
        )  # fmt: skip
        return
    defined = metrics_of(chosen, window or "7d", metrics)
    with closing(open_log(chosen.data)) as event_log:
        found = judge(
            event_log, experiment, list(defined.values()), before_ms=parse_delay(before), alpha=alpha, planned_users=planned or 10_000,
            until_ms=parse_time("--until", until),
        )  # fmt: skip
    if _delivered(found, write_report, out, as_json):
        return
    _show(found)


def _delivered(found: R, write: Callable[[R, Path], Iterable[Path]], out: Path | None, as_json: bool) -> bool:
    """Write the files that ``--out`` asks for; whether ``--json`` said all, so that there is nothing left to print."""
    if out is not None:
        for path in write(found, out):
            typer.echo(f"wrote {path}", err=True)
    if as_json:
        print_json(found)
    return as_json


def _report_preference(
    chosen: Settings, experiment: Experiment, window_ms: int, alpha: float, planned: int, until_ms: int | None, out: Path | None, as_json: bool
) -> None:  # fmt: skip
    from contextlib import closing

    from headwater.experiments.credits import preference_lines, read_preference, verdict, write_preference
    from headwater.log.archived import open_log

    types = [kind.name for kind in chosen.config.events if kind.positive]
    with closing(open_log(chosen.data)) as event_log:
        found = read_preference(
            event_log, experiment, types, window_ms=window_ms, alpha=alpha, planned_users=planned, until_ms=until_ms
        )
    if _delivered(found, write_preference, out, as_json):
        return
    for line in (verdict(found), *preference_lines(found)):
        typer.echo(line)


def _report_shadow(
    chosen: Settings, experiment: Experiment, window_ms: int, until_ms: int | None, out: Path | None, as_json: bool
) -> None:
    from contextlib import closing

    from headwater.experiments.shadows import read_shadows, shadow_lines, shadow_verdict, write_shadows
    from headwater.log.archived import open_log

    types = [kind.name for kind in chosen.config.events if kind.positive]
    with closing(open_log(chosen.data)) as event_log:
        found = read_shadows(event_log, experiment, types, window_ms=window_ms, until_ms=until_ms)
    if _delivered(found, write_shadows, out, as_json):
        return
    for line in (*shadow_lines(found), shadow_verdict(found)):
        typer.echo(line)


def power(
    metric: Annotated[str, typer.Option("--metric", metavar="NAME", help="Measure mean and spread of this metric on the log")] = "clicks_per_user",
    mean: Annotated[float | None, typer.Option("--mean", help="Mean of the metric in the control, in place of measuring it")] = None,
    sd: Annotated[float | None, typer.Option("--sd", help="Standard deviation between users, with --mean")] = None,
    effect: Annotated[float, typer.Option("--effect", help="Relative effect that is to be found: 0.02 is +2%")] = 0.02,
    chance: Annotated[float, typer.Option("--power", min=0.01, max=0.999, help="With this probability.")] = 0.8,
    share: Annotated[float, typer.Option("--share", min=0.001, max=0.999, help="Part of the users that gets the treatment.")] = 0.5,
    primary: Annotated[int, typer.Option("--primary", min=1, help="Primary metrics times treatments.")] = 1,
    users_per_day: Annotated[float | None, typer.Option("--users-per-day", help="Users exposed a day [default: as measured]")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    window: WindowOption = "7d",
    before: BeforeOption = "14d",
    metrics: MetricsOption = None,
    alpha: AlphaOption = 0.05,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """How many users an experiment needs, and how many days: looked at once, and looked at all the time.

    Without --mean the metric is measured on the log, as if an experiment had begun two windows ago.

    Example: headwater experiments power --mean 0.4 --sd 1.2 --effect 0.05 --users-per-day 20000
    """
    from headwater.experiments.power import sample_size
    from headwater.schema.errors import ConfigurationError

    if (mean is None) != (sd is None):
        raise ConfigurationError(
            "--mean and --sd belong together; give both, or neither to measure the metric on the log"
        )
    left = 1.0
    if mean is None or sd is None:
        from contextlib import closing

        from headwater.experiments.judge import baseline
        from headwater.log.archived import open_log
        from headwater.schema.durations import parse_delay

        chosen = settings(config, data)
        defined = metrics_of(chosen, window, metrics)
        if metric not in defined:
            raise ConfigurationError(f"--metric {metric}: there is no such metric; there are {', '.join(defined)}")
        with closing(open_log(chosen.data)) as event_log:
            known = baseline(event_log, defined[metric], before_ms=parse_delay(before))
        mean, variance, left = known.mean, known.variance, known.variance_ratio
        users_per_day = known.users_per_day if users_per_day is None else users_per_day
    else:
        variance = sd * sd
    found = sample_size(
        mean, variance, effect, alpha=alpha, power=chance, share=share, variance_ratio=left, metrics=primary, users_per_day=users_per_day
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    _show_sizes(found)


def metrics_of(chosen: Settings, window: str, path: Path | None) -> dict[str, Metric]:
    """The metrics that ``--window`` and ``--metrics`` define, by name.

    Raises:
        ConfigurationError: the window is no duration, or the file cannot be read or defines what no metric can be.
    """
    from headwater.experiments.metrics import check_types, parse_metrics, predefined

    parse_length("--window", window)
    defined = predefined(chosen.config, window)
    if path is not None:
        defined |= parse_metrics(read_file("--metrics", path), str(path))
    check_types(defined.values(), chosen.config)
    return defined


def _show(found: ExperimentReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from headwater.experiments.report import interval

    console = Console()
    whole = found.verdicts[0]
    console.print(f"[bold]{whole.decision}[/bold]: {'; '.join(whole.reasons)}")
    users = ", ".join(f"{name} {count:,}" for name, count in found.users.items())
    console.print(
        f"users: {users}; split p = {found.split.p_value:.3g}, {'ALARM' if found.split.alarm else 'no alarm'}"
    )
    table = Table(
        "metric",
        "variant",
        "role",
        "change",
        "confidence sequence",
        "p",
        "one look only",
        "p",
        box=None,
        pad_edge=False,
    )
    for one in found.comparisons:
        fixed = ("–", "–") if one.fixed is None else (interval(one.fixed.relative_interval), f"{one.fixed_p_holm:.3g}")
        change = "–" if one.relative is None else f"{one.relative:+.2%}"
        table.add_row(
            one.metric, one.variant, one.role, change, interval(one.relative_sequence), f"{one.p_holm:.3g}", *fixed
        )
    console.print(table)
    for guardrail in found.guardrails:
        console.print(
            f"guardrail {guardrail.metric}, {guardrail.variant}: {guardrail.state} ({interval(guardrail.sequence)})"
        )
    for one_slice in found.breakdown.slices:
        said = f"{one_slice.segment}, {one_slice.metric}, {one_slice.variant}: {interval(one_slice.interval)}, p {one_slice.p_holm:.3g}"
        console.print(said, style="dim")
    console.print(found.breakdown.warning, style="dim")


def _show_sizes(found: SampleSize) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("looked at", "users", "days", box=None, pad_edge=False)
    rows = (
        ("once, at the end", "fixed"),
        ("all the time, at most", "sequential"),
        ("all the time, half are over by", "sequential_median"),
    )
    for words, name in rows:
        days = "–" if found.days is None else f"{found.days[name]:,.1f}"
        table.add_row(words, f"{getattr(found, name):,}", days)
    console = Console()
    console.print(table)
    console.print(
        f"mean {found.mean:.4g}, standard deviation {found.variance**0.5:.4g}, CUPED leaves {found.variance_ratio:.0%} of the variance; "
        f"effect {found.effect:+.1%}, power {found.power:.0%}, level {found.alpha:g}; a metric's window comes on top",
        style="dim",
    )
