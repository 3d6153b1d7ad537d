"""``headwater bench tradeoffs``: how good lists are and how long they take, by ranker and by number of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, table
from headwater.cli.options import ConfigOption, DataOption, JsonOption, parse_time, print_json, settings
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    from headwater.features.plan import Plan
    from headwater.log.protocol import EventLog
    from headwater.schema.config import Config
    from headwater.serving.model import Model

RANKERS = ("none", "light", "lightgbm", "deep", "best")
_ROWS = 200_000  # of training, for each ranker


def register(app: typer.Typer) -> None:
    """Add ``tradeoffs``."""
    app.command("tradeoffs")(tradeoffs)


def tradeoffs(
    config: ConfigOption = None,
    data: DataOption = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="TIME", help="Train before, ask after (ISO 8601, UTC)")
    ] = None,
    rankers: Annotated[str, typer.Option(metavar="R[,…]", help="none, light, lightgbm, deep, best.")] = ",".join(
        RANKERS
    ),
    candidates: Annotated[str, typer.Option(metavar="N[,…]", help="Numbers of candidates.")] = "100,200,500,1000",
    sample: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the later positive events to ask.")] = 0.05,
    threads: Annotated[int, typer.Option(min=1, help="Threads of training.")] = 1,
    seed: SeedOption = 7,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves into this SVG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the rankers on a log before a split, then let every combination answer the same later questions.

    All go through the pipeline that serves, side by side, with recent popularity: NDCG@10 with 95% intervals, and
    milliseconds of a list without HTTP. `best` is `deep` with the sequence source, as the preset of that name. Nothing
    is published.

    Example: headwater bench tradeoffs --split 2017-10-04 --sample 0.05 --plot tradeoffs.svg --json
    """
    from headwater.cli.bench.measure import machine, versions
    from headwater.log.archived import open_log

    names, counts = _listed(rankers), sorted({int(text) for text in candidates.split(",")})
    split_ms = parse_time("--split", split)
    if split_ms is None:
        raise ConfigurationError("--split: Say where training ends, such as --split 2017-10-04")
    chosen = settings(config, data)
    log = open_log(chosen.data)
    try:
        figures = measured(chosen.config, log, names, counts, split_ms, sample, threads, seed)
    finally:
        log.close()
    figures |= {"seed": seed, "sample": sample, "machine": machine(), "versions": versions()}
    if plot is not None:
        plot.write_text(drawing(figures["curves"], figures["recent_popularity"]["ndcg@10"]), encoding="utf-8")
    if as_json:
        print_json(figures)
        return
    table(
        "Quality and time",
        {
            f"{each['ranker']}, {each['candidates']}": f"NDCG@10 {each['ndcg@10']:.4f}, {each['p50_ms']:.2f} ms"
            for each in figures["curves"]
        },
    )


def measured(
    config: Config, log: EventLog, rankers: Sequence[str], candidates: Sequence[int], split_ms: int, sample: float,
    threads: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Figures of every combination; ``curves`` holds one entry each."""
    import msgspec
    import numpy as np

    from headwater.evaluation.temporal import judged, picker
    from headwater.evaluation.walk import System, walk
    from headwater.features.plan import compile_plan
    from headwater.features.zones import Zones
    from headwater.offline.train import last_offset_before
    from headwater.retrieval.sources import Trending
    from headwater.serving.pipeline import Pipeline
    from headwater.serving.region import StoredRegion

    plan = compile_plan(config)
    offset, _ = last_offset_before(log, split_ms)
    models, train_s = _models(config, plan, log, rankers, offset, threads, seed)
    region, zones = StoredRegion(log.vocabulary()), Zones(log.vocabulary())

    def pipeline(kind: str, count: int) -> Pipeline:
        ranker = msgspec.structs.replace(
            config.ranker, kind="none" if kind == "none" else "lightgbm", candidates=count, light_keep=0
        )
        base = _with_sequence(config) if kind == "best" else config
        wide = {
            name: msgspec.structs.replace(getattr(base.sources, name), width=max(200, 2 * count // 5))
            for name in base.sources.__struct_fields__
        }
        changed = msgspec.structs.replace(base, ranker=ranker, sources=msgspec.structs.replace(base.sources, **wide))
        return Pipeline(changed, plan, stored_region=region, zones=zones)

    names = {f"{kind} {count}": (kind, count) for kind in rankers for count in candidates}
    systems = {name: System(pipeline(kind, count), models[kind]) for name, (kind, count) in names.items()}
    popular = Pipeline(config, plan, sources=(Trending(config),), stored_region=region, zones=zones)
    systems["recent_popularity"] = System(popular, None)
    answers = walk(
        log, plan, config, systems, split_offset=offset, pick=picker(log, config, "all", sample, seed),
        until=log.last_offset,
    )  # fmt: skip
    _, found = judged(answers, train_s)

    def entry(name: str) -> dict[str, Any]:
        told, ms = found[name], answers.replies[name].list_ms
        return {
            "ndcg@10": round(told.ndcg_at_10, 5), "hr@10": round(told.hr_at_10, 5), "ci95": told.ci95["ndcg@10"],
            "p50_ms": round(float(np.median(ms)), 3), "p95_ms": round(float(np.percentile(ms, 95)), 3),
            "p99_ms": round(float(np.percentile(ms, 99)), 3),
        }  # fmt: skip

    return {
        "n": len(answers.users),
        "items": answers.items,
        "data": {"split_offset": offset, "last_offset": log.last_offset},
        "train_s": train_s,
        "recent_popularity": entry("recent_popularity"),
        "curves": [
            {"ranker": kind, "candidates": count, **entry(name)} for name, (kind, count) in names.items()
        ],
    }  # fmt: skip


def _models(
    config: Config, plan: Plan, log: EventLog, rankers: Sequence[str], offset: int, threads: int, seed: int
) -> tuple[dict[str, Model | None], dict[str, float]]:
    """What ranks for each name, and seconds of training by kind of bundle. ``light`` comes with ``deep``."""
    import msgspec

    from headwater.offline.fit import fit
    from headwater.ranking.ranker import open_light, open_ranker
    from headwater.retrieval.fitted import VectorSource, open_sources
    from headwater.serving.model import Model

    found: dict[str, Model | None] = {"none": None}
    seconds: dict[str, float] = {}
    for name, kind in (("lightgbm", "lightgbm"), ("deep", "deep"), ("best", "deep")):
        if name not in rankers and not (name == "deep" and "light" in rankers):
            continue
        typer.echo(f"Training {name}", err=True)
        ranker = msgspec.structs.replace(config.ranker, kind=kind, max_rows=min(config.ranker.max_rows, _ROWS))
        changed = msgspec.structs.replace(_with_sequence(config) if name == "best" else config, ranker=ranker)
        done = fit(changed, plan, log, until=offset, start_ms=0, seed=seed, threads=threads, warm={})
        sources = open_sources(done.sources.names, done.files, changed, plan)
        attended = next((source for source in sources if isinstance(source, VectorSource)), None)
        columns = done.sources.columns
        found[name] = Model(name, open_ranker(kind, done.files, columns), sources, attended)
        if name == "deep" and "light" in rankers:
            found["light"] = replace(found[name] or Model(name, None), ranker=open_light(done.files, columns))
        seconds[name] = round(done.replay_s + done.fit_s, 1)
    return found, seconds


def _with_sequence(config: Config) -> Config:
    import msgspec

    sequence = msgspec.structs.replace(config.sources.sequence, enabled=True)
    return msgspec.structs.replace(config, sources=msgspec.structs.replace(config.sources, sequence=sequence))


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in RANKERS:
            raise ConfigurationError(f'--rankers: There is no ranker "{name}"; there are {", ".join(RANKERS)}')
    return names


# -- the plot ------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _EDGE = 640, 360, 50
_COLOURS = {"none": "#888888", "light": "#e0a030", "lightgbm": "#4a7ebb", "deep": "#b0413e", "best": "#3c8d5a"}


def drawing(curves: Sequence[Mapping[str, Any]], popular: float) -> str:
    """An SVG: NDCG@10 over the median milliseconds of a list, a line for each ranker, a point for each number of candidates."""
    most_ms: float = 1.1 * max(each["p50_ms"] for each in curves)
    values: list[float] = [bound for each in curves for bound in each["ci95"]] + [popular]
    low, high = 0.95 * min(values), 1.02 * max(values)

    def x(ms: float) -> float:
        return _EDGE + ms / most_ms * (_WIDTH - 2 * _EDGE)

    def y(value: float) -> float:
        return _HEIGHT - _EDGE - (value - low) / (high - low) * (_HEIGHT - 2 * _EDGE)

    parts = [
        f'<path d="M{_EDGE} {_EDGE}V{_HEIGHT - _EDGE}H{_WIDTH - _EDGE}" stroke="#222" fill="none"/>',
        f'<text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 12}" text-anchor="end">ms of a list (median), 0 … {most_ms:.1f}</text>',
        f'<text x="10" y="24">NDCG@10, {low:.3f} … {high:.3f}</text>',
        f'<path d="M{_EDGE} {y(popular):.1f}H{_WIDTH - _EDGE}" stroke="#222" stroke-dasharray="4"/>',
        f'<text x="{_WIDTH - _EDGE}" y="{y(popular) - 4:.1f}" text-anchor="end">recent popularity</text>',
    ]
    for number, kind in enumerate(dict.fromkeys(each["ranker"] for each in curves)):
        line = [each for each in curves if each["ranker"] == kind]
        places = " ".join(f"{x(each['p50_ms']):.1f},{y(each['ndcg@10']):.1f}" for each in line)
        colour = _COLOURS[kind]
        parts.append(f'<polyline points="{places}" stroke="{colour}" fill="none" stroke-width="2"/>')
        parts.append(f'<text x="{_WIDTH - 90}" y="{24 + 16 * number}" fill="{colour}">{kind}</text>')
        for each in line:
            at, (below, above) = x(each["p50_ms"]), each["ci95"]
            parts.append(
                f'<path d="M{at:.1f} {y(below):.1f}V{y(above):.1f}" stroke="{colour}"/>'
                f'<circle cx="{at:.1f}" cy="{y(each["ndcg@10"]):.1f}" r="3" fill="{colour}"/>'
                f'<text x="{at + 5:.1f}" y="{y(each["ndcg@10"]) + 12:.1f}" font-size="10">{each["candidates"]}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
