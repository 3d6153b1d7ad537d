"""The evaluation job: train before T, then judge the later events with the production pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headwater.evaluation.temporal import RANKER, Questions, TemporalReport, evaluate_temporal
from headwater.features.fold import Unseal
from headwater.features.plan import compile_plan
from headwater.log.protocol import EventLog
from headwater.offline.train import last_offset_before, train
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.serving.model import open_model

Progress = Callable[[str, int, int], None]


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
    plan = compile_plan(config)
    trained = train(
        config, log, models, until_ms=split_ms, window=window, seed=seed, threads=threads, promote=False,
        created_ms=created_ms, checks=checks, allow_mismatch=True, unseal=unseal, progress=progress,
    )  # fmt: skip
    model = open_model(Registry(models).load(trained.bundle, plan_hash=plan.hash), config, plan)
    split_offset, _ = last_offset_before(log, split_ms)
    until = None if until_ms is None else last_offset_before(log, until_ms)[0]
    return evaluate_temporal(
        log, plan, config, model, split_offset=split_offset, questions=questions, sample=sample, seed=seed,
        train_s={RANKER: trained.replay_s + trained.fit_s + sum(trained.sources_s.values())}, until=until, unseal=unseal,
        progress=None if progress is None else lambda done, total: progress("questions", done, total),
    )  # fmt: skip
