"""The evaluation jobs: train on a part of the log, judge on the rest, by the code that serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.evaluation.cold_items import ColdItemsReport, evaluate_cold_items
from headwater.evaluation.cold_users import ColdUsersReport, evaluate_cold_users
from headwater.evaluation.freshness import FreshnessReport, evaluate_freshness
from headwater.evaluation.loo import LooReport, Part, evaluate_loo
from headwater.evaluation.meter import Meter
from headwater.evaluation.scoring import Training
from headwater.evaluation.temporal import RANKER, Questions, TemporalReport, evaluate_temporal
from headwater.features.fold import Unseal
from headwater.features.plan import Plan, compile_plan
from headwater.learning.fitting import enabled_sources
from headwater.log.protocol import EventLog
from headwater.offline.fit import fit
from headwater.offline.renewal import RegularRenewal, Renewal, share_of_rows
from headwater.offline.train import last_offset_before, train
from headwater.registry.registry import Registry
from headwater.retrieval.fitted import FittedSource, open_sources
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.serving.model import Model, open_model

Progress = Callable[[str, int, int], None]

ONCE = "never"  # the system whose bundle is not renewed


@dataclass(frozen=True, slots=True)
class _Split:
    """What was trained before the split."""

    plan: Plan
    model: Model
    offset: int
    until: int | None
    alone: tuple[FittedSource, ...]
    train_s: dict[str, float]
    peak_mb: float


def evaluate(
    config: Config, log: EventLog, models: Path, *, split_ms: int, window: str | None, questions: Questions,
    sample: float, seed: int, threads: int, created_ms: int, checks: Path, until_ms: int | None = None,
    unseal: Unseal | None = None, progress: Progress | None = None,
) -> TemporalReport:  # fmt: skip
    """Train on everything received before ``split_ms`` and answer the questions behind it.

    The bundle is published to the registry ``models`` but not promoted: an evaluation changes nothing in service.
    For the same reason it goes on when the last report in ``checks`` says that serving and replay disagree on features;
    the bundle's manifest names them.
    """
    split = _train_before(
        config, log, models, split_ms, window, seed, threads, created_ms, checks, until_ms, unseal, progress
    )
    try:
        return evaluate_temporal(
            log, split.plan, config, split.model, split_offset=split.offset, questions=questions, sample=sample, seed=seed,
            train_s=split.train_s, alone=split.alone, until=split.until, unseal=unseal,
            progress=None if progress is None else lambda done, total: progress("questions", done, total),
        )  # fmt: skip
    finally:
        _close(split)


def cold_users(
    config: Config, log: EventLog, models: Path, *, split_ms: int, window: str | None, sample: float, seed: int,
    threads: int, created_ms: int, checks: Path, until_ms: int | None = None, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> ColdUsersReport:  # fmt: skip
    """As :func:`evaluate`, with questions about the first events of users who are new behind the split."""
    split = _train_before(
        config, log, models, split_ms, window, seed, threads, created_ms, checks, until_ms, unseal, progress
    )
    try:
        return evaluate_cold_users(
            log, split.plan, config, split.model, split_offset=split.offset, sample=sample, seed=seed,
            train_s=split.train_s, alone=split.alone, peak_mb=split.peak_mb, until=split.until, unseal=unseal,
        )  # fmt: skip
    finally:
        _close(split)


def freshness(
    config: Config, log: EventLog, *, split_ms: int, window: str, every: tuple[str, ...], questions: Questions, sample: float,
    seed: int, threads: int, until_ms: int | None = None, unseal: Unseal | None = None, progress: Progress | None = None,
) -> FreshnessReport:  # fmt: skip
    """Train on the ``window`` before ``split_ms``, then renew the bundle ``every`` so often ("never": not at all) beside each other.

    Nothing is published. The ranker of a renewed bundle learns from the share of the events that would have filled
    ``ranker.max_rows`` in the ``window`` before the split.

    Raises:
        ConfigurationError: no ranker is configured, or one that cannot be renewed.
    """
    if config.ranker.kind == "none":
        raise ConfigurationError('ranker.kind: "none" leaves nothing to renew; set it to "lightgbm"')
    plan = compile_plan(config)
    offset, last_ms = last_offset_before(log, split_ms)
    until = log.last_offset if until_ms is None else last_offset_before(log, until_ms)[0]
    window_ms = parse_duration(window)
    began = time.perf_counter()
    first = fit(
        config, plan, log, until=offset, start_ms=last_ms - window_ms, seed=seed, threads=threads, unseal=unseal, warm={},
        progress=progress,
    )  # fmt: skip
    train_s = time.perf_counter() - began
    share = share_of_rows(log, config, until=offset, start_ms=last_ms - window_ms)
    renewing = {
        name: RegularRenewal(
            Renewal(config, plan, log, first, window_ms=window_ms, share=share, seed=seed, threads=threads),
            every_ms=None if name == ONCE else parse_duration(name), split_ms=split_ms,
        )
        for name in dict.fromkeys((ONCE, *every))
    }  # fmt: skip
    try:
        return evaluate_freshness(
            log, plan, config, renewing, once=ONCE, split_offset=offset, until=until, questions=questions, sample=sample,
            seed=seed, train_s=train_s, view=first.view,
            progress=None if progress is None else lambda done, total: progress("questions", done, total),
        )  # fmt: skip
    finally:
        for each in renewing.values():
            each.model.close()


def leave_one_out(
    config: Config, log: EventLog, *, part: Part, seed: int, threads: int, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> LooReport:  # fmt: skip
    """Leave-one-out over the whole log, with the fitted sources that the configuration enables."""
    training = Training(sources=enabled_sources(config), seed=seed, threads=threads)
    return evaluate_loo(log, compile_plan(config), config, training, part=part, unseal=unseal, progress=progress)


def cold_items(
    config: Config, log: EventLog, *, seed: int, threads: int, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> ColdItemsReport:  # fmt: skip
    """A fifth of the items held out of training altogether, with the fitted sources that the configuration enables."""
    training = Training(sources=enabled_sources(config), seed=seed, threads=threads)
    return evaluate_cold_items(log, compile_plan(config), config, training, unseal=unseal, progress=progress)


def _train_before(
    config: Config, log: EventLog, models: Path, split_ms: int, window: str | None, seed: int, threads: int,
    created_ms: int, checks: Path, until_ms: int | None, unseal: Unseal | None, progress: Progress | None,
) -> _Split:  # fmt: skip
    """The bundle of what was received before the split, and its sources once more, to be asked alone."""
    plan = compile_plan(config)
    with Meter() as meter:
        made = train(
            config, log, models, until_ms=split_ms, window=window, seed=seed, threads=threads, promote=None,
            created_ms=created_ms, checks=checks, allow_mismatch=True, unseal=unseal, progress=progress,
        )  # fmt: skip
    bundle = Registry(models).load(made.bundle, plan_hash=plan.hash)
    model = open_model(bundle, config, plan)
    offset, _ = last_offset_before(log, split_ms)
    train_s = {RANKER: made.replay_s + made.fit_s + sum(made.sources_s.values()), **made.sources_s}
    alone = open_sources(bundle.manifest.sources, bundle.files, config, plan)
    until = None if until_ms is None else last_offset_before(log, until_ms)[0]
    return _Split(plan, model, offset, until, alone, train_s, meter.peak_mb)


def _close(split: _Split) -> None:
    split.model.close()
    for source in split.alone:
        source.close()
