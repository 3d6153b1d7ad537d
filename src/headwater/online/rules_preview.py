"""``python -m headwater.online.rules_preview``: recent requests asked again with other rules, in a process of its own, politely.

A :class:`Job` comes in on standard input, a :class:`RulesPreview` goes out on standard output. Nothing is written.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from msgspec import Struct

from headwater.features.plan import Plan, compile_plan
from headwater.features.zones import Zones
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.online.jobs import do_job
from headwater.online.stores import open_stores
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Millis
from headwater.schema.rule_changes import ChangedList, RulesPreview
from headwater.serving.explain import query_of
from headwater.serving.model import Model, open_model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.rules import open_rules
from headwater.serving.served import Served, newest_served
from headwater.serving.stages import TIER_LAST
from headwater.serving.view import View

LIMIT_S = 8.0
EXAMPLES = 8


class Job(Struct, frozen=True):
    """Compare the rules of ``served`` with those of ``changed`` on the newest ``lists`` requests of the data directory, as of ``now_ms``."""

    served: Config
    changed: Config
    data: str
    lists: int
    now_ms: Millis


def preview(job: Job, limit_s: float = LIMIT_S) -> RulesPreview:
    """What the rules of ``job`` would change; with what could be asked in ``limit_s`` seconds, newest requests first."""
    until = time.monotonic() + limit_s
    plan = compile_plan(job.served)
    with ExitStack() as opened:
        try:
            stores = opened.enter_context(closing(open_stores(job.served, Path(job.data), plan)))
            served = newest_served(stores.log, job.lists)[::-1]
            if not served:
                return RulesPreview(job.now_ms, unasked="no lists were served yet")
            model = _model(opened, Path(job.data), job.served, plan, stores.view)
        except HeadwaterError as error:
            return RulesPreview(job.now_ms, unasked=str(error))
        vocabulary = stores.log.vocabulary()
        before = _pipeline(job.served, plan, vocabulary)
        after = _pipeline(job.changed, plan, vocabulary)
        return _compared(job, served, before, after, stores.view, model, vocabulary, until)


def _compared(
    job: Job, served: list[Served], before: Pipeline, after: Pipeline, view: View, model: Model | None,
    vocabulary: Vocabulary, until: float,
) -> RulesPreview:  # fmt: skip
    lists = changed = shortened = emptied = 0
    examples: list[ChangedList] = []
    for each in served:
        if lists and time.monotonic() >= until:
            break
        query = query_of(each)
        old, new = (pipeline.recommend(query, view, model, job.now_ms) for pipeline in (before, after))
        if max(old.tier, new.tier) >= TIER_LAST:  # something failed, which is not what is asked here
            continue
        lists += 1
        if np.array_equal(old.items, new.items):
            continue
        changed += 1
        shortened += len(new.items) < len(old.items)
        emptied += not len(new.items)
        if len(examples) < EXAMPLES:
            names = (
                tuple(vocabulary.text(Namespace.ITEM, i) or "" for i in found.items.tolist()) for found in (old, new)
            )
            examples.append(ChangedList(query.request_id, query.surface, *names))
    return RulesPreview(
        job.now_ms, lists, changed, shortened, emptied, tuple(examples), bundle=model.version if model else "",
        unasked="" if lists else "no recent request could be asked again",
    )  # fmt: skip


def _pipeline(config: Config, plan: Plan, vocabulary: Vocabulary) -> Pipeline:
    rules = open_rules(config, plan, vocabulary)
    return Pipeline(config, plan, stored_region=StoredRegion(vocabulary), zones=Zones(vocabulary), rules=rules)


def _model(opened: ExitStack, data: Path, config: Config, plan: Plan, view: View) -> Model | None:
    registry = Registry(data / "models")
    version = registry.current(plan.hash)
    if version is None:
        return None
    model = opened.enter_context(closing(open_model(registry.load(version, plan_hash=plan.hash), config, plan)))
    for source in model.sources:
        source.prepare(view.index)
    return model


def _reply(job: Job) -> RulesPreview:
    signal.alarm(120)  # whoever waits has given up by then
    return preview(job)


if __name__ == "__main__":
    do_job(Job, _reply, "rules_preview_failed")
