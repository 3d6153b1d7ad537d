"""The freshness protocol: one training, then the same questions to systems that renew their bundle more or less often.

Everybody starts from the bundle that was trained before the split and answers the questions of the temporal protocol;
features are as fresh as ever for all of them. What differs is how old the bundle may become (as in table 2 of Monolith,
Z. Liu et al., ORSUM 2022), and what that costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.metrics import Difference, ModelMetrics, compare
from headwater.evaluation.temporal import RECENT_POPULARITY, Questions, judged, picker
from headwater.evaluation.unprompted import unprompted
from headwater.evaluation.walk import Progress, System, walk
from headwater.features.plan import Plan
from headwater.features.zones import Zones
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.retrieval.sources import Trending
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.view import FoldView

HOUR_MS = 3_600_000


class Renewing(Protocol):
    """A bundle that is made again on the way. ``model`` is what serves; it may be another after :meth:`look`."""

    renewals: int
    seconds: float  # that all renewals took, the rows that were assembled for them included

    @property
    def model(self) -> Model: ...

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        """Before which records, besides positive events, :meth:`look` has to be called."""
        ...

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:
        """See a record of the log, with ``view`` as of just before it."""
        ...


class _All:
    """All of ``renewing`` look; whose bundle was made again serves with it at once, as ``asking`` makes it."""

    def __init__(
        self, renewing: Mapping[str, Renewing], systems: Mapping[str, System], asking: Callable[[Model], Model]
    ) -> None:
        self._renewing, self._systems, self._asking = renewing, systems, asking
        self._serves = {name: each.model for name, each in renewing.items()}

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        wanted = np.zeros(len(block), np.bool_)
        for each in self._renewing.values():
            wanted |= each.wanted(block)
        return wanted

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:
        for name, each in self._renewing.items():
            each.look(block, i, view)
            if each.model is not self._serves[name]:
                self._serves[name] = each.model
                self._systems[name].model = self._asking(each.model)


class Cost(Struct, frozen=True, kw_only=True):
    """What keeping a bundle fresh took: ``renewals``, and seconds of training a renewal and an hour of the log."""

    renewals: int
    seconds_each: float
    seconds_an_hour: float


class FreshnessReport(Struct, frozen=True, kw_only=True):
    """What ``headwater evaluate --protocol freshness --json`` prints. ``models`` and ``costs`` by how often a bundle is renewed."""

    protocol: str
    data: dict[str, int | str]
    n: int
    questions: Questions
    sample: float
    seed: int
    models: dict[str, ModelMetrics]
    over_once: dict[str, Difference]
    costs: dict[str, Cost]
    train_s: float
    seconds: float


def evaluate_freshness(
    log: EventLog, plan: Plan, config: Config, renewing: Mapping[str, Renewing], *, once: str, split_offset: int,
    until: int, questions: Questions, sample: float, seed: int, train_s: float, view: FoldView,
    progress: Progress | None = None,
) -> FreshnessReport:  # fmt: skip
    """Ask all of ``renewing``, and recent popularity, about a share ``sample`` of the events behind ``split_offset``.

    ``once`` names the system that the others are compared with. Rankers are not shown what the impression that led to an event gives away
    (:mod:`headwater.evaluation.unprompted`). ``view`` is the state at the split, which goes on to ``until``.

    Raises:
        HeadwaterError: there is no question to ask.
    """
    began = time.perf_counter()
    region, zones = StoredRegion(log.vocabulary()), Zones(log.vocabulary())
    popular = Pipeline(config, plan, sources=(Trending(config),), stored_region=region, zones=zones)
    systems = {RECENT_POPULARITY: System(popular, None)}

    def asking(model: Model) -> Model:
        return unprompted(model, plan, config)

    for name, each in renewing.items():
        systems[name] = System(Pipeline(config, plan, stored_region=region, zones=zones), asking(each.model))

    answers = walk(
        log, plan, config, systems, split_offset=split_offset, pick=picker(log, config, questions, sample, seed),
        until=until, before=_All(renewing, systems, asking), view=view, progress=progress,
    )  # fmt: skip
    if not len(answers.users):
        raise HeadwaterError(
            f"no question to ask behind offset {split_offset}: choose an earlier split or more of them"
        )
    ranks, models = judged(answers, {name: each.seconds for name, each in renewing.items()})
    hours = max((answers.last_ms - answers.first_ms) / HOUR_MS, 1e-9)
    return FreshnessReport(
        protocol="freshness",
        data={
            "log": log.log_id, "split_offset": split_offset, "last_offset": until, "first_ms": answers.first_ms,
            "last_ms": answers.last_ms,
        },
        n=len(answers.users), questions=questions, sample=sample, seed=seed,
        models=models,
        over_once={
            name: compare("ndcg@10", ranks[name], ranks[once], answers.users) for name in ranks if name != once
        },
        costs={
            name: Cost(
                renewals=each.renewals, seconds_each=each.seconds / max(each.renewals, 1),
                seconds_an_hour=each.seconds / hours,
            )
            for name, each in renewing.items()
        },
        train_s=train_s, seconds=time.perf_counter() - began,
    )  # fmt: skip
