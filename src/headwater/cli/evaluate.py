"""``headwater evaluate``: how good are the lists, on events that training has not seen?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, Settings, parse_time, print_json, settings
from headwater.cli.train import Bars
from headwater.schema.clock import wall_ms
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from msgspec import Struct

    from headwater.log.protocol import EventLog

Protocol = Literal["temporal", "loo", "cold-items", "cold-users", "exposures", "freshness"]

DAY_MS = 86_400_000
SPLITTING = ("temporal", "cold-users", "exposures", "freshness")


def register(app: typer.Typer) -> None:
    """Add ``evaluate``."""
    app.command("evaluate")(evaluate)


def evaluate(
    config: ConfigOption = None,
    data: DataOption = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="temporal: later events in order; loo: everyone's last event, by each model and by the whole system; cold-items: items without any event; "
            "cold-users: first events of new users; exposures: what becomes of logged impressions; "
            "freshness: temporal, with bundles that are renewed as time goes on",
        ),
    ] = "temporal",
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="TIME", help="Train before, ask after (ISO 8601, UTC) [default: the last day]"),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Ask no later than this")] = None,
    window: Annotated[
        str | None, typer.Option("--window", metavar="DURATION", help="Train on this stretch before the split only")
    ] = None,
    questions: Annotated[
        Literal["all", "session"],
        typer.Option(
            "--questions",
            help="temporal and freshness: positive events of users with a history, or those with an earlier one in their session",
        ),
    ] = "all",
    part: Annotated[
        Literal["test", "validation"],
        typer.Option("--part", help="loo: the last events, or those before them, to choose settings by"),
    ] = "test",
    every: Annotated[
        str, typer.Option("--every", metavar="DURATION[,…]", help="freshness: how often bundles are renewed")
    ] = "5h,1h",
    sample: Annotated[float, typer.Option("--sample", min=0.0, max=1.0, help="Share of the questions to ask")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of training and sampling")] = 7,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write report.json, report.md and report.svg there")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train on a part of the log and judge the lists on the rest, with intervals (95%, users as clusters).

    Recent popularity stands in every table, and every fitted source that the configuration enables. temporal and
    cold-users go through the pipeline that serves; loo and cold-items rank all items by one source at a time, loo also asks the pipeline,
    with a ranker that learnt from everyone's last event but one; exposures judges probabilities on logged impressions: AUC, AUC inside
    each user, log loss, calibration.

    Example: headwater evaluate --protocol temporal --split 2017-10-12 --questions session --out report --json
    """
    from headwater.evaluation.report import write_report
    from headwater.log.archived import open_log

    if protocol not in SPLITTING and (split, until, window) != (None, None, None):
        raise ConfigurationError(
            f"--split, --until and --window are for {' and '.join(SPLITTING)}; {protocol} has none"
        )
    chosen = settings(config, data)
    if protocol == "exposures":
        from headwater.cli.exposures import evaluate_impressions

        evaluate_impressions(
            chosen,
            split_ms=parse_time("--split", split),
            until_ms=parse_time("--until", until),
            seed=seed,
            as_json=as_json,
        )
        return
    log = open_log(chosen.data)
    try:
        with Bars() as bars:
            report = _run(chosen, log, protocol, split, until, window, questions, part, every, sample, seed, bars)
    finally:
        log.close()
    if out is not None:
        for path in write_report(report, out):
            typer.echo(f"wrote {path}", err=True)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _run(
    chosen: Settings, log: EventLog, protocol: Protocol, split: str | None, until: str | None, window: str | None,
    questions: Literal["all", "session"], part: Literal["test", "validation"], every: str,
    sample: float, seed: int, bars: Bars,
) -> Struct:  # fmt: skip
    from headwater.evaluation.checks import checks_dir
    from headwater.features.profiles import Profiles
    from headwater.offline import evaluate as jobs

    unseal, threads = Profiles(chosen.data), os.cpu_count() or 1
    if protocol == "loo":
        return jobs.leave_one_out(
            chosen.config, log, part=part, seed=seed, threads=threads, unseal=unseal, progress=bars.update
        )
    if protocol == "cold-items":
        return jobs.cold_items(chosen.config, log, seed=seed, threads=threads, unseal=unseal, progress=bars.update)
    split_ms, until_ms = parse_time("--split", split), parse_time("--until", until)
    split_ms = log.last_received_ms - DAY_MS if split_ms is None else split_ms
    created_ms = wall_ms()
    if protocol == "freshness":
        return jobs.freshness(
            chosen.config, log, split_ms=split_ms, window=window or chosen.config.learn.window,
            every=_durations(every), questions=questions, sample=sample, seed=seed, threads=threads, until_ms=until_ms,
            unseal=unseal, progress=bars.update,
        )  # fmt: skip
    if protocol == "cold-users":
        return jobs.cold_users(
            chosen.config, log, chosen.data / "models", split_ms=split_ms, window=window, sample=sample, seed=seed,
            threads=threads, created_ms=created_ms, checks=checks_dir(chosen.data), until_ms=until_ms, unseal=unseal,
            progress=bars.update,
        )  # fmt: skip
    return jobs.evaluate(
        chosen.config, log, chosen.data / "models", split_ms=split_ms, window=window, questions=questions,
        sample=sample, seed=seed, threads=threads, created_ms=created_ms, checks=checks_dir(chosen.data),
        until_ms=until_ms, unseal=unseal, progress=bars.update,
    )  # fmt: skip


def _durations(every: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in every.split(",") if part.strip())
    try:
        for name in names:
            parse_duration(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"--every {every}: {error}") from error
    return names


def _print(report: Struct) -> None:
    """The tables of a report, and what was compared in pairs."""
    import msgspec
    from rich.console import Console
    from rich.table import Table

    from headwater.evaluation.report import metrics_of, tables_of

    plain: dict[str, Any] = msgspec.to_builtins(report, str_keys=True)
    console = Console()
    for title, models in tables_of(plain):
        name = "" if title == "models" else f", {title.replace('_', ' ')}"
        table = Table(title=f"{plain['protocol']}{name}: {next(iter(models.values()))['questions']:,} questions")
        metrics = metrics_of(models)
        for heading in ("model", *metrics):
            shown = heading.upper() if "@" in heading or heading == "mrr" else heading
            table.add_column(shown, justify="left" if heading == "model" else "right")
        for model, found in models.items():
            cells = [f"{found[m]:.4f} [{found['ci95'][m][0]:.4f}, {found['ci95'][m][1]:.4f}]" for m in metrics]
            table.add_row(model, *cells)
        console.print(table)
    for name, cost in plain.get("costs", {}).items():
        console.print(
            f"renewed {name}: {cost['renewals']:,} times, {cost['seconds_each']:.1f} s each, {cost['seconds_an_hour']:.0f} s of "
            "training an hour"
        )
    if left_out := plain.get("left_out", ""):
        console.print(f"left out: {left_out}")
    for name, difference in plain.get("ranker_over", {}).items():
        if difference["relative"] is not None and difference["relative_ci95"] is not None:
            low, high = difference["relative_ci95"]
            console.print(f"ranker over {name}: {difference['relative']:+.1%} NDCG@10 [{low:+.1%}, {high:+.1%}]")
