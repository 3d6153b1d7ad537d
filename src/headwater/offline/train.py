"""The training job: fitted sources → replay → training rows → ranker → bundle → registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct

from headwater.evaluation.checks import mismatches
from headwater.evaluation.heldout import Stretch, held_out_stretch
from headwater.evaluation.walk import Before
from headwater.features.fold import Unseal
from headwater.features.plan import Plan, compile_plan
from headwater.features.statistics import STATISTICS_FILE, Statistics
from headwater.learning.gbdt import TooFewError
from headwater.learning.trainingset import LearntFrom, TrainingSet
from headwater.log.protocol import EventLog
from headwater.log.seek import last_before
from headwater.offline.fit import Fitted, fit
from headwater.offline.held_rows import reference_of
from headwater.offline.publish import Publication, publish_and_promote
from headwater.offline.tables.history import Lookup, TableOrigins
from headwater.registry.audit import Author
from headwater.registry.bundle import ManifestFields
from headwater.registry.listing import GateReport
from headwater.registry.registry import Registry
from headwater.retrieval.vectors.choice import IndexChoice
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError, HeadwaterError

Progress = Callable[[str, int, int], None]


class TrainReport(Struct, frozen=True, kw_only=True):
    """What a training run made. ``learnt_from``, ``asked`` and ``missed``: as in :class:`~headwater.learning.trainingset.TrainingSet`. ``allowed_mismatch`` are features that its data has wrong, with permission; ``tables`` how
    many rows have the columns of a table from the log, and how many from its files; ``sources_s`` are seconds of training
    each fitted source, ``indexes`` how the vectors of each searched one are searched; ``gate`` is the verdict on the bundle
    (``None``: it was not asked for), ``gate_s`` what that took; ``frozen`` why it was not promoted all the same ("": promotion is not frozen).
    """

    bundle: str
    promoted: bool
    frozen: str
    allowed_mismatch: tuple[str, ...]
    rows: int
    groups: int
    learnt_from: LearntFrom
    asked: int
    missed: int
    tables: dict[str, TableOrigins]
    trees: int
    epochs: int
    holdout_ndcg10: float | None
    replay_s: float
    fit_s: float
    sources_s: dict[str, float]
    indexes: dict[str, IndexChoice]
    gain: dict[str, float]
    gate: GateReport | None
    gate_s: float


def train(
    config: Config, log: EventLog, models: Path, *, until_ms: int | None = None, window: str | None = None,
    seed: int | None = None, threads: int = 2, promote: Author | None, force: bool = False, created_ms: int, checks: Path,
    warm: Mapping[str, bytes] | None = None, allow_mismatch: bool = False, unseal: Unseal | None = None,
    lookup: Lookup | None = None, progress: Progress | None = None,
) -> TrainReport:  # fmt: skip
    """Train the configured ranker on the log up to ``until_ms`` (default: all of it) and publish the bundle.

    ``window`` (a duration) limits the questions to the last stretch; state is folded from the start either
    way. ``created_ms`` is the wall clock's time, for the bundle's name. ``checks`` is the folder of the reports on
    whether serving and replay agree (:mod:`headwater.evaluation.checks`); ``allow_mismatch`` trains although they
    do not, and the manifest says so. ``lookup`` finds a user's number, for tables of users that were loaded after some
    of the questions.

    ``promote`` is who promotes it (None: nobody). With the gate enabled, what is to be promoted is trained on what lies before the held-out last stretch, judged there,
    and promoted when it passes, or ``force`` says so (:mod:`headwater.offline.publish`). ``warm`` are the files of a bundle
    of the same columns to start from.

    Raises:
        ConfigurationError: ``ranker.kind`` is "none".
        MismatchError: the last check found a feature of the plan to differ, and it is not allowed.
        TooFewError: too few positive events that the sources could have found.
    """
    plan = compile_plan(config)
    ranker = config.ranker
    if ranker.kind == "none":
        raise ConfigurationError('ranker.kind: "none" leaves nothing to train; set it to "lightgbm" or "deep"')
    mismatches(checks, plan.hash, plan.columns, allowed=allow_mismatch)  # before hours of work
    until, last_ms = last_offset_before(log, until_ms)
    start_ms = 0 if window is None else last_ms - parse_duration(window)
    seed = ranker.seed if seed is None else seed
    stretch = None
    if promote is not None and config.gate.enabled:
        stretch = held_out_stretch(log, config, until=until, until_ms=last_ms, start_ms=start_ms)
        until = stretch.split
    done = fit(
        config, plan, log, until=until, start_ms=start_ms, seed=seed, threads=threads, unseal=unseal,
        warm={} if warm is None else warm, lookup=lookup, progress=progress,
    )  # fmt: skip
    rows, made, fitted, ended = done.rows, done.ranker, done.sources, time.perf_counter()
    allowed = mismatches(checks, plan.hash, plan.columns, allowed=allow_mismatch)  # a check may have ended meanwhile
    published = publish_fitted(
        config, plan, log, Registry(models), done, stretch=stretch, promote=promote, force=force, seed=seed,
        created_ms=created_ms, allowed=allowed, unseal=unseal, progress=progress,
    )  # fmt: skip
    return TrainReport(
        bundle=published.bundle, promoted=published.promoted, frozen=published.frozen, gate=published.gate, gate_s=time.perf_counter() - ended,
        allowed_mismatch=allowed, rows=len(rows.features), groups=len(rows.groups), learnt_from=rows.learnt_from, asked=rows.asked,
        missed=rows.missed, tables=done.tables, trees=made.trees, epochs=made.epochs, holdout_ndcg10=made.holdout_ndcg10,
        replay_s=done.replay_s, fit_s=done.fit_s, sources_s=fitted.seconds, indexes=fitted.indexes, gain=made.gain,
    )  # fmt: skip


def publish_fitted(
    config: Config, plan: Plan, log: EventLog, registry: Registry, done: Fitted, *, stretch: Stretch | None, promote: Author | None,
    force: bool = False, seed: int, created_ms: int, allowed: tuple[str, ...] = (), lineage: str | None = None,
    before: Before | None = None, unseal: Unseal | None = None, progress: Progress | None = None,
) -> Publication:  # fmt: skip
    """Publish what was fitted, through the gate when a ``stretch`` was held out (:mod:`headwater.offline.publish`).

    ``promote`` is who promotes it. Judging goes on from where the state of ``done`` stands. ``allowed`` are features that the data has wrong, with permission;
    ``lineage`` is the bundle with which the warm starts began that led to this one.
    """
    rows, made, fitted = done.rows, done.ranker, done.sources
    return publish_and_promote(
        config, plan, log, registry,
        ManifestFields(
            created_ms=created_ms,
            plan_hash=plan.hash,
            columns=fitted.columns,
            ranker=config.ranker.kind,
            sources=fitted.names,
            event_types=plan.event_types,
            data=rows.data,
            metrics={} if made.holdout_ndcg10 is None else {"holdout_ndcg@10": made.holdout_ndcg10},
            training=_training(done, seed, allowed, lineage),
        ),
        {**done.files, STATISTICS_FILE: _statistics(plan, rows)},
        stretch=stretch, promote=promote, force=force, seed=seed, indexes=fitted.indexes,
        reference=reference_of(config, plan, fitted.columns, made, rows), view=done.view, before=before, unseal=unseal,
        progress=None if progress is None else lambda done, total: progress("gate", done, total),
    )  # fmt: skip


def _training(
    done: Fitted, seed: int, allowed: tuple[str, ...], lineage: str | None
) -> dict[str, str | int | float | bool | None]:
    """What the manifest says of the training."""
    made: dict[str, str | int | float | bool | None] = {
        "seed": seed, "rows": len(done.rows.features), "groups": len(done.rows.groups), "learnt_from": done.rows.learnt_from,
        "trees": done.ranker.trees, "epochs": done.ranker.epochs,
    }  # fmt: skip
    if allowed:
        made["allow_mismatch"] = ", ".join(allowed)
    if lineage is not None:
        made["lineage"] = lineage
    return made


def _statistics(plan: Plan, rows: TrainingSet) -> bytes:
    statistics = Statistics.of_plan(plan)
    statistics.update(np.ascontiguousarray(rows.features[:, : len(plan.columns)]))
    return statistics.encode()


def last_offset_before(log: EventLog, until_ms: int | None) -> tuple[int, int]:
    """The last offset received before ``until_ms`` (``None``: the last of all) and its ``received_ms``."""
    if log.last_offset == 0:
        raise TooFewError("the log is empty: import events first (headwater import --help)")
    if until_ms is None:
        return log.last_offset, log.last_received_ms
    low, at = last_before(log, until_ms)
    if low < log.first_offset:
        raise HeadwaterError(f"no record was received before {until_ms} ms: choose a later split")
    return low, at
