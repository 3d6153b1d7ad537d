"""``headwater drift``: what is served now against what the bundle in service served at first."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import (
    EXIT_CHECK_FAILED,
    ConfigOption,
    DataOption,
    JsonOption,
    parse_length,
    print_json,
    settings,
)
from headwater.schema.errors import HeadwaterError

if TYPE_CHECKING:
    from headwater.log.protocol import EventLog
    from headwater.monitoring.drift import DriftWatch
    from headwater.monitoring.samples import Sample
    from headwater.schema.config import Config
    from headwater.schema.drift import Drift

_YES = ("_drifted", "_off", "_dead", "_silent", "_changed")


def register(app: typer.Typer) -> None:
    """Add ``drift``."""
    app.command("drift")(drift)


def drift(
    config: ConfigOption = None,
    data: DataOption = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="How long the reference is [default: monitoring.drift.reference]")
    ] = None,
    window: Annotated[
        str | None, typer.Option("--window", help="How long a window is [default: monitoring.drift.window]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay what the bundle in service served, and say what of it drifted: features, scores, calibration, click rate, volume of events.

    The monitor says the same all the time; here nothing is kept. Served lists have to be logged with their feature rows (serving.feature_sample).
    Exit code 1: something drifted.

    Example: headwater drift --window 6h --json
    """
    from contextlib import closing

    import msgspec

    from headwater.log.archived import open_log

    chosen = settings(config, data)
    changes = {name: value for name, value in (("reference", reference), ("window", window)) if value is not None}
    for name, value in changes.items():
        parse_length(f"--{name}", value)
    how = msgspec.structs.replace(chosen.config.monitoring.drift, **changes)
    with closing(open_log(chosen.data)) as event_log:
        watch = watch_of(chosen.config, chosen.data, event_log, how, keep=False)
        now_ms = event_log.last_received_ms
        samples = list(watch.look(now_ms))
        while watch.behind:
            samples = list(watch.look(now_ms))
        if watch.served.version is None:
            raise HeadwaterError(
                "no bundle served a list of this log: train one, and serve with serving.log_served = true"
            )
        watch.served.close(now_ms, whole=False)  # the last window may be shorter than the others
        samples = list(watch.look(now_ms))
    found = drifted(samples)
    if as_json:
        print_json(
            {"bundle": watch.served.version, "lineage": watch.served.lineage, "drifted": found, **nested(samples)}
        )
    else:
        _print(watch, samples, found)
    if found:
        raise typer.Exit(EXIT_CHECK_FAILED)


def watch_of(
    config: Config, data: Path, event_log: EventLog, how: Drift, *, keep: bool, live: bool = False, piece_s: float = inf
) -> DriftWatch:
    """The watch over data, as it is configured. With ``keep`` it goes on from what an earlier one knew; without, it begins where the bundle in
    service was trained up to.
    """
    from headwater.experiments.metrics import conversion_type
    from headwater.features.plan import compile_plan
    from headwater.monitoring.drift import DriftWatch
    from headwater.registry.registry import Registry

    registry, after = Registry(data / "models"), None
    if not keep:
        version = registry.current(compile_plan(config).hash)
        if version is not None:
            after = registry.manifest(version).data.last_offset
    positive = tuple(type_.name for type_ in config.events if type_.positive)
    return DriftWatch(
        event_log, registry, data, how, positive, live=live, keep=keep, after=after,
        surfaces=[surface.name for surface in config.surfaces], conversion=conversion_type(config), piece_s=piece_s,
    )  # fmt: skip


def nested(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples as one object: a value, or values by label, under each name without its prefix."""
    made: dict[str, Any] = {}
    for name, labels, value in samples:
        key = name.removeprefix("headwater_")
        if labels:
            made.setdefault(key, {})[" ".join(text for _, text in labels)] = value
        else:
            made[key] = value
    return made


def drifted(samples: Sequence[Sample]) -> list[str]:
    """What is not as it was, in words such as ``feature item_ctr`` and ``event_volume click``."""
    found = []
    for name, labels, value in samples:
        key = name.removeprefix("headwater_")
        if value and key.endswith(_YES) and key not in ("features_drifted", "features_dead"):
            for ending in _YES[:2]:
                key = key.removesuffix(ending)
            found.append(" ".join([key, *(text for _, text in labels)]))
    return found


def _print(watch: DriftWatch, samples: Sequence[Sample], found: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    features = watch.served.features
    look = None if features is None else features.state.latest
    if features is not None and look is None:
        typer.echo(
            f"{watch.served.version}: {features.filled:.0%} of the reference is there, and no window was judged yet "
            "(monitoring.drift.reference, window and min_rows; serving.feature_sample says how many rows are logged)"
        )
    if look is not None:
        table = Table(
            title=f"{watch.served.version}, window {look.number}: {look.rows:,} rows", box=None, pad_edge=False
        )
        for name in ("feature", "PSI", "allowed", "JS", "missing", "out of range", "independent rows", ""):
            table.add_column(name, justify="left" if name in ("feature", "") else "right", no_wrap=True)
        for column in sorted(look.columns, key=lambda each: (-each.drifted, -each.psi)):
            table.add_row(
                column.name, f"{column.psi:.4f}", f"{column.psi_null:.4f}", f"{column.js:.4f}", f"{column.missing:.1%}",
                f"{column.out_of_range:.1%}", f"{column.effective_rows:,.0f}", "drifted" if column.drifted else "",
            )  # fmt: skip
        (console if console.is_terminal else Console(width=200)).print(table)
    for key, value in nested(samples).items():
        if not key.startswith(("feature_", "drift_")):
            typer.echo(f"{key}: {_text(value)}")
    typer.echo(f"drifted: {', '.join(found) or 'nothing'}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return f"{value:.4g}"
