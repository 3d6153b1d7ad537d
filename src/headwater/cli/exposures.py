"""``headwater evaluate --protocol exposures``: probabilities on logged impressions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from headwater.cli.options import Settings, print_json
from headwater.cli.train import Bars

if TYPE_CHECKING:
    from headwater.offline.evaluate_exposures import ExposureReport

DAY_MS = 86_400_000


def evaluate_impressions(
    chosen: Settings, *, split_ms: int | None, until_ms: int | None, seed: int, as_json: bool
) -> None:
    """Run the protocol and print its report."""
    from contextlib import ExitStack, closing

    from headwater.features.profiles import Profiles
    from headwater.log.archived import open_log
    from headwater.log.identity import LmdbIdentity
    from headwater.offline.evaluate_exposures import evaluate_exposures

    with ExitStack() as opened:
        log = opened.enter_context(closing(open_log(chosen.data)))
        lookup = None
        if any(table.entity == "user" for table in chosen.config.tables):
            lookup = opened.enter_context(closing(LmdbIdentity(chosen.data / "identity", readonly=True))).lookup
        bars = opened.enter_context(Bars())
        report = evaluate_exposures(
            chosen.config, log, chosen.data / "evaluate",
            split_ms=log.last_received_ms - DAY_MS if split_ms is None else split_ms, until_ms=until_ms, seed=seed,
            threads=os.cpu_count() or 1, unseal=Profiles(chosen.data), lookup=lookup, progress=bars.update,
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: ExposureReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.protocol}: {report.n:,} impressions of {report.users:,} users")
    for name in ("model", "label", "AUC", "gAUC", "log loss", "ECE"):
        table.add_column(name, justify="left" if name in ("model", "label") else "right")
    for name, model in report.models.items():
        for head, metrics in model.heads.items():
            cells = []
            for key in ("auc", "gauc", "logloss", "ece"):
                low, high = metrics.ci95[key]
                cells.append(f"{getattr(metrics, key):.4f} [{low:.4f}, {high:.4f}]")
            table.add_row(name, head, *cells)
    Console().print(table)
