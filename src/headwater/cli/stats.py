"""``headwater features stats``: what the columns of a bundle's training rows look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import ConfigOption, DataOption, JsonOption, print_json, settings
from headwater.schema.errors import HeadwaterError

if TYPE_CHECKING:
    from pathlib import Path

    from headwater.features.statistics import FeatureStatistics, Statistics
    from headwater.registry.bundle import Bundle
    from headwater.schema.config import Config

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TOP = 10


def feature_statistics(
    config: ConfigOption = None,
    data: DataOption = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", metavar="VERSION", help="Bundle [default: the one in service]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the statistics of every feature over the rows that a bundle was trained on.

    Example: headwater features stats --json

    Missing cells, mean, deviation, quantiles and the most frequent values: the reference for drift.
    """
    chosen = settings(config, data)
    found = _bundle(chosen.config, chosen.data / "models", bundle)
    statistics = _statistics(found)
    features = statistics.read()
    if as_json:
        described = [_described(feature) for feature in features]
        print_json({"bundle": found.version, "plan": statistics.plan, "features": described})
    else:
        _print(found.version, features)


def _bundle(config: Config, models: Path, version: str | None) -> Bundle:
    from headwater.features.plan import compile_plan
    from headwater.registry.registry import Registry

    registry = Registry(models)
    if version is not None:
        return registry.load(version, plan_hash=None)
    plan = compile_plan(config)
    current = registry.current(plan.hash)
    if current is None:
        raise HeadwaterError(
            f"no bundle was promoted for plan {plan.hash}: run headwater train, or name one with --bundle"
        )
    return registry.load(current, plan_hash=plan.hash)


def _statistics(bundle: Bundle) -> Statistics:
    from headwater.features.statistics import STATISTICS_FILE, Statistics

    if STATISTICS_FILE not in bundle.files:
        raise HeadwaterError(f"bundle {bundle.version} holds no statistics: headwater train publishes one that does")
    return Statistics.decode(bundle.files[STATISTICS_FILE])


def _described(feature: FeatureStatistics) -> dict[str, Any]:
    """A feature as one JSON object; what no finite cell can tell is null or empty."""
    sketch = feature.sketch()
    quantiles = dict(zip(map(str, QUANTILES), sketch.get_quantiles(list(QUANTILES)), strict=True)) if sketch.n else {}
    return {
        "name": feature.name,
        "version": feature.version,
        "count": feature.count,
        "nan": feature.nan,
        "infinite": feature.infinite,
        "default": feature.default,
        "defaults": feature.defaults,
        "mean": feature.mean,
        "standard_deviation": feature.standard_deviation,
        "min": feature.smallest,
        "max": feature.largest,
        "quantiles": quantiles,
        "rank_error": sketch.normalized_rank_error(False) if sketch.is_estimation_mode() else 0.0,
        "distinct": feature.distinct,
        "top": [{"value": value, "count": count} for value, count in feature.top[:_TOP]],
        "top_error": feature.top_error,
    }


def _print(version: str, features: tuple[FeatureStatistics, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = features[0].count if features else 0
    table = Table(title=f"{version}: {rows:,} rows", box=None, pad_edge=False)
    for name in (
        "feature",
        "default",
        "nan",
        "inf",
        "mean",
        "std",
        "min",
        "5 %",
        "50 %",
        "95 %",
        "max",
        "most frequent",
    ):
        table.add_column(name, justify="left" if name == "feature" else "right", no_wrap=True)
    for feature in features:
        sketch = feature.sketch()
        low, middle, high = sketch.get_quantiles([0.05, 0.5, 0.95]) if sketch.n else (None, None, None)
        numbers = (feature.mean, feature.standard_deviation, feature.smallest, low, middle, high, feature.largest)
        value, count = feature.top[0] if feature.top else (None, 0)
        shares = (_share(part, feature.count) for part in (feature.defaults, feature.nan, feature.infinite))
        often = "-" if value is None else f"{_number(value)} ({_share(count, feature.count)})"
        table.add_row(feature.name, *shares, *map(_number, numbers), often)
    console = Console()
    # a file or a pipe has no width: nothing is cut there
    (console if console.is_terminal else Console(width=200)).print(table)


def _share(part: int, whole: int) -> str:
    return "-" if not part else f"{100.0 * part / whole:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
