"""Warming a worker: every kernel of the request path runs once before the first request may come."""

from __future__ import annotations

from itertools import chain

import numpy as np

from headwater.features.fold import Fold
from headwater.features.plan import Plan
from headwater.features.replay import fold_to
from headwater.log.batch import events_to_batch
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.writer import LogWriter
from headwater.ranking.ranker import Attention, Features, Scores
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.segments import parts_of
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Query
from headwater.serving.view import FoldView

_NOW_MS = 1_000_000_000
_ITEMS = 12


class _Flat:
    """A ranker without a preference (a real one warms itself when it is opened)."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns

    @property
    def attends(self) -> bool:
        return False

    def score(self, features: Features, attention: Attention | None = None) -> Scores:  # noqa: ARG002
        return np.zeros(len(features), np.float32)

    def close(self) -> None:
        """Nothing is held."""


def warm_up(config: Config, plan: Plan) -> None:
    """Serve a user, a stranger and an item page from a small world in memory: compiles the kernels, or loads them."""
    log = MemoryLog()
    identity = MemoryIdentity()
    with LogWriter(log, identity, clock=lambda: _NOW_MS, segment_keys=config.segments.keys) as writer:
        names = [f"item-{n}" for n in range(_ITEMS)]
        writer.put_items([Item(id=name, title=f"about {name}", categories=["c"], tags=["t"]) for name in names])
        attributes: dict[str, str | int | float | bool] = dict.fromkeys(
            chain.from_iterable(map(parts_of, config.segments.keys)), "x"
        )
        kinds = [kind.name for kind in config.events]
        events = [
            Event(user=f"user-{turn % 3}", item=names[turn % 6], type=kind, attributes=attributes)
            for turn in range(9)
            for kind in kinds
        ]
        writer.append_events(events_to_batch(events, config.segments.keys))
        fold = Fold(plan, unseal=identity.decrypt)
        fold_to(log, fold, log.last_offset)
    view = FoldView(plan, fold)
    view.refresh()
    pipeline = Pipeline(config, plan)
    model = Model("warm-up", _Flat(plan.columns))
    for user, anchor in ((1, 0), (0, 0), (1, 2)):
        query = Query("warm-up", user=user, k=5, anchor=anchor, segments=(1, 1), region=1, deadline_ms=600_000.0)
        pipeline.recommend(query, view, model, _NOW_MS + 1)
