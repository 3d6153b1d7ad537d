"""The evaluation jobs: train on a part of the log, judge on the rest, by the code that serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.evaluation.cold_items import ColdItemsReport, evaluate_cold_items
from headwater.evaluation.cold_users import ColdUsersReport, evaluate_cold_users
from headwater.evaluation.loo import LooReport, Part, evaluate_loo
from headwater.evaluation.meter import Meter
from headwater.evaluation.scoring import Training
from headwater.evaluation.temporal import RANKER, Questions, TemporalReport, evaluate_temporal
from headwater.features.fold import Unseal
from headwater.features.plan import Plan, compile_plan
from headwater.learning.fitting import enabled_sources
from headwater.log.protocol import EventLog
from headwater.offline.train import last_offset_before, train
from headwater.registry.registry import Registry
from headwater.retrieval.fitted import FittedSource, open_sources
from headwater.schema.config import Config
from headwater.serving.model import Model, open_model

Progress = Callable[[str, int, int], None]


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
            config, log, models, until_ms=split_ms, window=window, seed=seed, threads=threads, promote=False,
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
    for source in (*split.alone, *split.model.sources):
        source.close()
