"""``headwater evaluate``: how good are the lists, on events that training has not seen?"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, parse_time, print_json, settings
from headwater.cli.train import Bars

if TYPE_CHECKING:
    from headwater.evaluation.temporal import TemporalReport


def register(app: typer.Typer) -> None:
    """Add ``evaluate``."""
    app.command("evaluate")(evaluate)


def evaluate(
    config: ConfigOption = None,
    data: DataOption = None,
    protocol: Annotated[Literal["temporal", "exposures"], typer.Option("--protocol", help="How to ask")] = "temporal",
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
            help="all: positive events of users with a history; session: with an earlier one in their session",
        ),
    ] = "all",
    sample: Annotated[float, typer.Option("--sample", min=0.0, max=1.0, help="Share of the questions to ask")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of training and sampling")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Train before a moment, then walk the later events in order and rank for each as of that moment.

    Compared: recent popularity, co-visits with popularity behind them, the union of all sources, the ranker;
    all through the pipeline that serves. Intervals are 95%, with users as clusters. The protocol "exposures" judges
    probabilities on logged impressions instead: AUC, AUC inside each user, log loss, calibration.

    Example: headwater evaluate --protocol temporal --split 2017-10-12 --questions session --json
    """
    from headwater.evaluation.checks import checks_dir
    from headwater.features.profiles import Profiles
    from headwater.log.archived import open_log
    from headwater.offline.evaluate import evaluate as run

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
        split_ms = parse_time("--split", split)
        with Bars() as bars:
            report = run(
                chosen.config, log, chosen.data / "models",
                split_ms=log.last_received_ms - 86_400_000 if split_ms is None else split_ms,
                window=window, questions=questions, sample=sample, seed=seed, threads=os.cpu_count() or 1,
                created_ms=int(time.time() * 1000), checks=checks_dir(chosen.data), unseal=Profiles(chosen.data),
                until_ms=parse_time("--until", until), progress=bars.update,
            )  # fmt: skip
    finally:
        log.close()
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: TemporalReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.protocol}: {report.n:,} questions")
    for name in ("model", "HR@10", "NDCG@10", "MRR", "coverage"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, metrics in report.models.items():
        cells = []
        for key, value in (
            ("hr@10", metrics.hr_at_10), ("ndcg@10", metrics.ndcg_at_10), ("mrr", metrics.mrr),
            ("coverage", metrics.coverage),
        ):  # fmt: skip
            low, high = metrics.ci95[key]
            cells.append(f"{value:.4f} [{low:.4f}, {high:.4f}]")
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    for name, difference in report.ranker_over.items():
        if difference.relative is not None and difference.relative_ci95 is not None:
            low, high = difference.relative_ci95
            console.print(f"ranker over {name}: {difference.relative:+.1%} NDCG@10 [{low:+.1%}, {high:+.1%}]")
