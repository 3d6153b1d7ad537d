"""A bundle that is renewed as the log goes on: rows are kept from one renewal to the next, nothing is folded twice.

When an event comes, its row gets the scores of the sources that are in service then, which were trained on earlier events. So no
score that a ranker learns from ever knew the answer, and no events have to be set aside for the ranker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from headwater.features.asof import Questions
from headwater.features.plan import Plan
from headwater.features.zones import Zones
from headwater.learning.sequences import read_sequences
from headwater.learning.trainingset import Collector, TrainingSet
from headwater.log.protocol import EventLog
from headwater.offline.fit import MIN_GROUPS, Fitted
from headwater.offline.fitted import fit_sources
from headwater.offline.rankers import fit_ranker
from headwater.ranking.ranker import open_ranker
from headwater.retrieval.fitted import open_sources
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.view import FoldView

_T = TypeVar("_T", bound=np.generic)


class Renewal:
    """One bundle, renewed every ``every_ms`` (``None``: never): sources from the last ``window_ms`` of the log, the ranker from
    the newest ``ranker.max_rows`` rows.

    ``share`` is the share of the positive events that train the ranker. ``first`` is what was trained before; its rows are
    used until newer ones have taken their places, so a quiet night does not leave the ranker with few.

    Raises:
        ConfigurationError: a ranker that attends to vectors: those of its rows would be of many trainings.
    """

    def __init__(
        self, config: Config, plan: Plan, log: EventLog, first: Fitted, *, every_ms: int | None, window_ms: int,
        split_ms: int, share: float, seed: int, threads: int,
    ) -> None:  # fmt: skip
        if first.ranker.attends:
            raise ConfigurationError(
                "a ranker that attends to the recent sequence is not renewed from rows of earlier bundles: their vectors "
                'differ. Set ranker.kind = "lightgbm", or disable sources.sequence'
            )
        self._config, self._plan, self._log = config, plan, log
        self._every_ms, self._window_ms, self._share = every_ms, window_ms, share
        self._next_ms = split_ms + (every_ms or 0)
        self._seed, self._threads = seed, threads
        self._columns, self._names = first.sources.columns, first.sources.names
        self._rows, self._files = first.rows, dict(first.files)
        self._random = np.random.default_rng(seed)
        self.model = self._opened()
        self._pipeline = Pipeline(
            config, plan, stored_region=StoredRegion(log.vocabulary()), zones=Zones(log.vocabulary())
        )
        self._groups = groups = max(config.ranker.max_groups, MIN_GROUPS)
        self._collector = Collector(log, plan, config, self.model, groups=2 * groups, drawing=self._random)
        self.renewals, self.seconds = 0, 0.0

    def before(self, record: npt.NDArray[np.void], view: FoldView) -> None:
        """Renew when it is time to, and perhaps learn from the event to come."""
        if self._every_ms is None:
            return
        began = time.perf_counter()
        now_ms = int(record["received_ms"])
        if now_ms >= self._next_ms:
            view.refresh()
            self._renew(view, now_ms)
            self._next_ms += self._every_ms * ((now_ms - self._next_ms) // self._every_ms + 1)
            self.renewals += 1
        if self._random.random() < self._share:
            view.refresh()
            self._collector.add(self._pipeline, view, record, self.model)
        self.seconds += time.perf_counter() - began

    def _renew(self, view: FoldView, now_ms: int) -> None:
        start_ms, until = now_ms - self._window_ms, view.fold.offset
        self._rows = rows = newest([self._rows, self._collector.take(view, until)], self._groups)
        if self._names:
            sequences = read_sequences(self._log, self._plan, self._config, until=until, start_ms=start_ms)
            self._files |= fit_sources(
                self._names, sequences, self._config, self._plan, view.index, view.fold.items.count, seed=self._seed,
                threads=self._threads, warm=self._files,
            )[0]  # fmt: skip
        if len(rows.groups) >= MIN_GROUPS:
            made = fit_ranker(
                self._config, self._columns, rows, warm=None, seed=self._seed, threads=self._threads, progress=None
            )
            self._files |= made.files
        before, self.model = self.model, self._opened()
        for source in self.model.sources:
            source.prepare(view.index)
        before.close()

    def _opened(self) -> Model:
        ranker = open_ranker(self._config.ranker.kind, self._files, self._columns)
        return Model("renewed", ranker, open_sources(self._names, self._files, self._config, self._plan))


def newest(sets: list[TrainingSet], count: int) -> TrainingSet:
    """The last ``count`` groups of ``sets`` (in order of time), as one set."""
    groups = np.concatenate([each.groups for each in sets])
    old = max(len(groups) - count, 0)
    cut = int(groups[:old].sum())

    def kept(of: Callable[[TrainingSet], npt.NDArray[_T]]) -> npt.NDArray[_T]:
        return np.concatenate([of(each) for each in sets])[cut:]

    return replace(
        sets[-1], features=kept(lambda s: s.features), labels=kept(lambda s: s.labels), weights=kept(lambda s: s.weights),
        groups=groups[old:], questions=sum(each.questions for each in sets), missed=sum(each.missed for each in sets),
        addresses=Questions(
            offset=kept(lambda s: s.addresses.offset), user=kept(lambda s: s.addresses.user),
            item=kept(lambda s: s.addresses.item), now_ms=kept(lambda s: s.addresses.now_ms),
            segments=kept(lambda s: s.addresses.segments),
        ),
    )  # fmt: skip
