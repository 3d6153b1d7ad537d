"""The temporal protocol: train before T, then walk the later events in order and rank for each positive one.

A question is a positive event after T; the answer is the list that the production pipeline gives just
before that event, with the state folded up to it. The event's own item is the relevant one; ties cannot
occur, because the pipeline orders equal scores by item number. Items the user has seen never come back,
so a question about a seen item counts as a miss for every model.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.metrics import Difference, ModelMetrics, compare, judge, ranks_in
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import fold_to, stops
from headwater.features.zones import Zones
from headwater.learning.trainingset import positive_types, positives
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.log.seek import last_before
from headwater.retrieval.fitted import FittedSource
from headwater.retrieval.sources import CoVisit, Source, Trending, configured_sources
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import EventDetail
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query
from headwater.serving.view import FoldView

Questions = Literal["all", "session"]
Progress = Callable[[int, int], None]

LIST_LENGTH = 100  # MRR counts ranks up to here
NO_DEADLINE_MS = 1e9
DAY_MS = 86_400_000  # a session that began longer before the split is over

_decode_detail = msgspec.msgpack.Decoder(EventDetail).decode

RECENT_POPULARITY, CO_VISITS, UNION, RANKER = "recent_popularity", "co_visits", "union", "ranker"


class TemporalReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol temporal --json`` prints."""

    protocol: str
    data: dict[str, int | str]
    n: int
    questions: Questions
    sample: float
    seed: int
    models: dict[str, ModelMetrics]
    ranker_over: dict[str, Difference]
    seen_targets: int
    replay_s: float  # the whole walk, all models together


@dataclass(slots=True)
class _Walk:
    lists: dict[str, list[npt.NDArray[np.int64]]]
    relevant: list[int]
    users: list[int]
    seen: int = 0


def pipelines(
    config: Config, plan: Plan, region: StoredRegion, zones: Zones, fitted: tuple[FittedSource, ...] = ()
) -> dict[str, tuple[Pipeline, bool]]:
    """The compared systems: name → (pipeline, whether it ranks). Co-visits and each of ``fitted`` fall back on recent popularity."""

    def through(sources: tuple[Source, ...]) -> Pipeline:
        return Pipeline(config, plan, sources=sources, stored_region=region, zones=zones)

    covisit, trending = CoVisit(config, plan), Trending(config)
    # popularity only fills up behind co-visits: any co-visited item stands before any that is merely popular
    covisit.weight, trending.weight = 1e6, 1.0
    for source in fitted:
        source.weight = 1e6
    return {
        RECENT_POPULARITY: (through((Trending(config),)), False),
        CO_VISITS: (through((covisit, trending)), False),
        UNION: (through(configured_sources(config, plan)), False),
        RANKER: (through(configured_sources(config, plan)), True),
        **{source.name: (through((source, trending)), False) for source in fitted},
    }


def evaluate_temporal(
    log: EventLog, plan: Plan, config: Config, model: Model, *, split_offset: int, questions: Questions, sample: float,
    seed: int, train_s: Mapping[str, float], fitted: tuple[FittedSource, ...] = (), until: int | None = None, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> TemporalReport:  # fmt: skip
    """Compare recent popularity, co-visits, the union of all sources, the ranker and each of ``fitted`` on events after ``split_offset``.

    ``questions="session"`` asks only about events that have an earlier positive event in their session;
    ``"all"`` about every event of a user with any history. ``sample`` is the share of questions asked.
    """
    began = time.perf_counter()
    fold = Fold(plan, unseal=unseal)
    view = FoldView(plan, fold)
    fold_to(log, fold, split_offset)
    until = log.last_offset if until is None else until
    compared = pipelines(config, plan, StoredRegion(log.vocabulary()), Zones(log.vocabulary()), fitted)
    for source in fitted:
        source.prepare(view.index)
    walk = _Walk({name: [] for name in compared}, [], [])
    first_ms = _ask(log, fold, view, compared, model, config, walk, questions, sample, seed, until, progress)
    if not walk.users:
        raise HeadwaterError(
            f"no question to ask: no positive event behind offset {split_offset} "
            + ("has an earlier one in its session" if questions == "session" else "is of a user with a history")
            + "; choose an earlier split or other questions"
        )
    users = np.array(walk.users, np.int64)
    relevant = np.array(walk.relevant, np.int64)
    ranks = {name: ranks_in(np.stack(lists), relevant) for name, lists in walk.lists.items() if lists}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    models = {
        name: judge(
            ranks[name], users, np.stack(walk.lists[name]), eligible=fold.items.count - 1,
            train_s=train_s.get(name, 0.0), peak_mb=peak_mb,
        )
        for name in ranks
    }  # fmt: skip
    return TemporalReport(
        protocol="temporal",
        data={"split_offset": split_offset, "last_offset": until, "first_ms": first_ms, "last_ms": fold.received_ms},
        n=len(relevant),
        questions=questions,
        sample=sample,
        seed=seed,
        models=models,
        ranker_over={name: compare("ndcg@10", ranks[RANKER], ranks[name], users) for name in ranks if name != RANKER},
        seen_targets=walk.seen,
        replay_s=time.perf_counter() - began,
    )


def _ask(
    log: EventLog, fold: Fold, view: FoldView, compared: dict[str, tuple[Pipeline, bool]], model: Model,
    config: Config, walk: _Walk, questions: Questions, sample: float, seed: int, until: int, progress: Progress | None,
) -> int:  # fmt: skip
    rng = np.random.default_rng(seed)
    positive = positive_types(log, config)
    sessions = _open_sessions(log, positive, fold.offset, fold.received_ms - DAY_MS) if questions == "session" else {}
    first_ms = 0
    start = fold.offset

    def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
        return positives(block, positive)

    for block, i in stops(log, fold, wanted, until=until):
        record = block.records[i]
        user, item, now_ms = int(record["user"]), int(record["item"]), int(record["received_ms"])
        first_ms = first_ms or now_ms
        chosen = rng.random() < sample
        if questions == "session":
            session = _session(block, i)
            earlier = session is not None and sessions.get(user) == session
            sessions[user] = session
            if not earlier:
                continue
        elif fold.users.length(user) == 0:
            continue
        if not chosen:
            continue
        view.refresh()
        segments = record["segments"]
        query = Query(
            "", user=user, k=LIST_LENGTH, segments=(int(segments[0]), int(segments[1])), deadline_ms=NO_DEADLINE_MS
        )
        walk.seen += int(fold.users.has_seen(user, item))
        for name, (pipeline, ranks) in compared.items():
            items = pipeline.recommend(query, view, model if ranks else None, now_ms).items
            row = np.zeros(LIST_LENGTH, np.int64)
            row[: len(items)] = items
            walk.lists[name].append(row)
        walk.relevant.append(item)
        walk.users.append(user)
        if progress is not None and len(walk.users) % 100 == 0:
            progress(fold.offset - start, until - start)
    return first_ms


def _session(block: RecordBlock, i: int) -> str | None:
    payload = block.payload(i)
    return _decode_detail(payload).session if payload else None


def _open_sessions(log: EventLog, positive: npt.NDArray[np.int64], until: int, since_ms: int) -> dict[int, str | None]:
    """The latest session of each user with a positive event between ``since_ms`` and the offset ``until``."""
    sessions: dict[int, str | None] = {}
    after, _ = last_before(log, since_ms)
    while after < until and (block := log.read(after, min(16_384, until - after))) is not None:
        for i in np.flatnonzero(positives(block, positive)).tolist():
            sessions[int(block.records["user"][i])] = _session(block, i)
        after = block.last_offset
    return sessions
