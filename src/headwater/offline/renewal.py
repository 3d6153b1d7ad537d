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
from headwater.learning.trainingset import Collector, TrainingSet, count_positives, positive_types
from headwater.log.protocol import EventLog
from headwater.offline.fit import MIN_GROUPS, Fitted, Progress, with_tables
from headwater.offline.rankers import fit_ranker
from headwater.offline.tables.history import Lookup
from headwater.ranking.ranker import open_ranker
from headwater.registry.bundle import DataRange
from headwater.retrieval.fitted import open_sources
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.view import FoldView

_T = TypeVar("_T", bound=np.generic)


class Renewal:
    """One bundle that is renewed: sources from the last ``window_ms`` of the log (``None``: from all of it), the ranker from
    the newest ``ranker.max_rows`` rows.

    ``share`` is the share of the positive events that train the ranker. ``first`` is what was trained before; its rows are
    used until newer ones have taken their places, so a quiet night does not leave the ranker with few. ``model`` is what
    rows are scored with: the bundle that was adopted last.

    Raises:
        ConfigurationError: a ranker that attends to vectors: those of its rows would be of many trainings.
    """

    def __init__(
        self, config: Config, plan: Plan, log: EventLog, first: Fitted, *, window_ms: int | None, share: float, seed: int,
        threads: int,
    ) -> None:  # fmt: skip
        if first.ranker.attends:
            raise ConfigurationError(
                "a ranker that attends to the recent sequence is not renewed from rows of earlier bundles: their vectors "
                'differ. Set ranker.kind = "lightgbm", or disable sources.sequence'
            )
        self._config, self._plan, self._log = config, plan, log
        self._window_ms, self._share = window_ms, share
        self._seed, self._threads = seed, threads
        self._adopted, self._rows = first, first.rows
        self._random = np.random.default_rng(seed)
        self.model = self._opened(first)
        self._pipeline = Pipeline(
            config, plan, stored_region=StoredRegion(log.vocabulary()), zones=Zones(log.vocabulary())
        )
        self._groups = groups = max(config.ranker.max_groups, MIN_GROUPS)
        self._collector = Collector(log, plan, config, self.model, groups=2 * groups, drawing=self._random)

    def collect(self, record: npt.NDArray[np.void], view: FoldView) -> None:
        """See a positive event of the log, with ``view`` as of just before it: perhaps its row will train the ranker."""
        if self._random.random() < self._share:
            view.refresh()
            self._collector.add(self._pipeline, view, record, self.model)

    def renew(self, now_ms: int, lookup: Lookup | None = None, progress: Progress | None = None) -> Fitted:
        """Train on what the log holds up to where the state of ``first`` stands by now; ``now_ms`` is the time of that moment.

        Sources start from the weights of the adopted bundle, where they can; the ranker starts anew, on the kept rows.
        """
        config, view = self._config, self._adopted.view
        until = view.fold.offset
        view.refresh()
        new = self._collector.take(view, until)
        tables = with_tables(config, self._plan, self._log, new, lookup)
        self._rows = rows = newest([self._rows, new], self._groups)
        start_ms = 0 if self._window_ms is None else now_ms - self._window_ms
        sources = self._adopted.sources.renewed(until, start_ms, progress)
        began = time.perf_counter()
        ranker = fit_ranker(
            config,
            self._plan,
            sources.columns,
            rows,
            warm=None,
            seed=self._seed,
            threads=self._threads,
            progress=progress,
        )
        return Fitted(rows, tables, ranker, sources, 0.0, time.perf_counter() - began)

    def adopt(self, made: Fitted) -> None:
        """Go on from ``made``: rows to come are scored by its sources, and the next training starts from their weights."""
        before, self._adopted, self.model = self.model, made, self._opened(made)
        before.close()

    def _opened(self, made: Fitted) -> Model:
        ranker = open_ranker(self._config.ranker.kind, made.files, made.sources.columns)
        sources = open_sources(made.sources.names, made.files, self._config, self._plan)
        for source in sources:
            source.prepare(made.view.index)
        return Model("renewed", ranker, sources)


class RegularRenewal:
    """A bundle that is renewed every ``every_ms`` of the log (``None``: never) from ``split_ms`` on, and serves at once."""

    def __init__(self, renewal: Renewal, *, every_ms: int | None, split_ms: int) -> None:
        self._renewal, self._every_ms = renewal, every_ms
        self._next_ms = split_ms + (every_ms or 0)
        self.renewals, self.seconds = 0, 0.0

    @property
    def model(self) -> Model:
        """The one in service."""
        return self._renewal.model

    def before(self, record: npt.NDArray[np.void], view: FoldView) -> None:
        """Renew when it is time to, and perhaps learn from the event to come."""
        if self._every_ms is None:
            return
        began = time.perf_counter()
        now_ms = int(record["received_ms"])
        if now_ms >= self._next_ms:
            self._renewal.adopt(self._renewal.renew(now_ms))
            self._next_ms += self._every_ms * ((now_ms - self._next_ms) // self._every_ms + 1)
            self.renewals += 1
        self._renewal.collect(record, view)
        self.seconds += time.perf_counter() - began


def share_of_rows(log: EventLog, config: Config, *, until: int, start_ms: int) -> float:
    """The share of the positive events that fills ``ranker.max_rows`` in the time from ``start_ms`` to the offset ``until``."""
    positive = count_positives(log, positive_types(log, config), until, start_ms)
    return min(1.0, config.ranker.max_groups / max(positive, 1))


def newest(sets: list[TrainingSet], count: int) -> TrainingSet:
    """The last ``count`` groups of ``sets`` (in order of time), as one set up to the end of the last one."""
    groups = np.concatenate([each.groups for each in sets])
    old = max(len(groups) - count, 0)
    cut = int(groups[:old].sum())

    def kept(of: Callable[[TrainingSet], npt.NDArray[_T]]) -> npt.NDArray[_T]:
        return np.concatenate([of(each) for each in sets])[cut:]

    addresses = Questions(
        offset=kept(lambda s: s.addresses.offset), user=kept(lambda s: s.addresses.user),
        item=kept(lambda s: s.addresses.item), now_ms=kept(lambda s: s.addresses.now_ms),
        segments=kept(lambda s: s.addresses.segments),
    )  # fmt: skip
    return replace(
        sets[-1], features=kept(lambda s: s.features), labels=kept(lambda s: s.labels), weights=kept(lambda s: s.weights),
        groups=groups[old:], outcomes=np.concatenate([each.outcomes for each in sets])[old:],
        questions=sum(each.questions for each in sets), missed=sum(each.missed for each in sets),
        addresses=addresses,
        data=DataRange(
            first_offset=int(addresses.offset[0]) + 1, last_offset=sets[-1].data.last_offset,
            first_ms=int(addresses.now_ms[0]), last_ms=max(each.data.last_ms for each in sets),
        ),
    )  # fmt: skip
