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
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.metrics import Difference, ModelMetrics, compare, judge, ranks_in
from headwater.evaluation.unprompted import unprompted
from headwater.evaluation.walk import Answers, Pick, Progress, System, walk
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
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

Questions = Literal["all", "session"]

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


def pipelines(
    config: Config, plan: Plan, region: StoredRegion, zones: Zones, alone: tuple[FittedSource, ...] = ()
) -> dict[str, tuple[Pipeline, bool]]:
    """The compared systems: name → (pipeline, whether it ranks). Co-visits and each of the sources ``alone`` fall back on
    recent popularity; these are no objects of the model that ranks, because their weight is changed.
    """

    def through(sources: tuple[Source, ...]) -> Pipeline:
        return Pipeline(config, plan, sources=sources, stored_region=region, zones=zones)

    covisit, trending = CoVisit(config, plan), Trending(config)
    # popularity only fills up behind co-visits: any co-visited item stands before any that is merely popular
    covisit.weight, trending.weight = 1e6, 1.0
    for source in alone:
        source.weight = 1e6
    return {
        RECENT_POPULARITY: (through((Trending(config),)), False),
        CO_VISITS: (through((covisit, trending)), False),
        UNION: (through(configured_sources(config, plan)), False),
        RANKER: (through(configured_sources(config, plan)), True),
        **{source.name: (through((source, trending)), False) for source in alone},
    }


def evaluate_temporal(
    log: EventLog, plan: Plan, config: Config, model: Model, *, split_offset: int, questions: Questions, sample: float,
    seed: int, train_s: Mapping[str, float], alone: tuple[FittedSource, ...] = (), until: int | None = None, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> TemporalReport:  # fmt: skip
    """Compare recent popularity, co-visits, the union of the untrained sources, the ranker and each of ``alone`` on events
    after ``split_offset``.

    ``questions="session"`` asks only about events that have an earlier positive event in their session;
    ``"all"`` about every event of a user with any history. ``sample`` is the share of questions asked. The ranker is not shown what the impression that
    led to an event gives away (:mod:`headwater.evaluation.unprompted`), whatever it learnt from.
    """
    began = time.perf_counter()
    until = log.last_offset if until is None else until
    model = unprompted(model, plan, config)
    compared = pipelines(config, plan, StoredRegion(log.vocabulary()), Zones(log.vocabulary()), alone)
    answers = walk(
        log, plan, config, {name: System(pipeline, model if ranks else None) for name, (pipeline, ranks) in compared.items()},
        split_offset=split_offset, pick=picker(log, config, questions, sample, seed), until=until, unseal=unseal,
        progress=progress,
    )  # fmt: skip
    users = answers.users
    if not len(users):
        raise HeadwaterError(
            f"no question to ask: no positive event behind offset {split_offset} "
            + ("has an earlier one in its session" if questions == "session" else "is of a user with a history")
            + "; choose an earlier split or other questions"
        )
    ranks, models = judged(answers, train_s)
    return TemporalReport(
        protocol="temporal",
        data={
            "split_offset": split_offset,
            "last_offset": until,
            "first_ms": answers.first_ms,
            "last_ms": answers.last_ms,
        },
        n=len(users),
        questions=questions,
        sample=sample,
        seed=seed,
        models=models,
        ranker_over={name: compare("ndcg@10", ranks[RANKER], ranks[name], users) for name in ranks if name != RANKER},
        seen_targets=answers.seen,
        replay_s=time.perf_counter() - began,
    )


def judged(
    answers: Answers, train_s: Mapping[str, float]
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, ModelMetrics]]:
    """The ranks that each system gave to what was relevant, and its metrics; ``train_s`` is 0 where it names none."""
    ranks = {name: ranks_in(replies.lists, answers.relevant) for name, replies in answers.replies.items()}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    models = {
        name: judge(
            ranks[name], answers.users, answers.replies[name].lists, eligible=answers.items - 1,
            train_s=train_s.get(name, 0.0), peak_mb=peak_mb,
        )
        for name in ranks
    }  # fmt: skip
    return ranks, models


def picker(log: EventLog, config: Config, questions: Questions, sample: float, seed: int) -> Callable[[Fold], Pick]:
    """Which positive events are asked about: a share of those that the protocol's ``questions`` name."""

    def from_split(fold: Fold) -> Pick:
        rng = np.random.default_rng(seed)
        positive = positive_types(log, config)
        sessions = (
            _open_sessions(log, positive, fold.offset, fold.received_ms - DAY_MS) if questions == "session" else {}
        )

        def pick(block: RecordBlock, i: int, fold: Fold) -> bool:
            user = int(block.records["user"][i])
            chosen = bool(rng.random() < sample)
            if questions == "session":
                session = _session(block, i)
                earlier = session is not None and sessions.get(user) == session
                sessions[user] = session
                return earlier and chosen
            return fold.users.length(user) > 0 and chosen

        return pick

    return from_split


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
