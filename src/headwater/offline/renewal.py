"""A bundle that is renewed as the log goes on: rows are kept from one renewal to the next, nothing is folded twice.

When an event comes, its row gets the scores of the sources that are in service then, which were trained on earlier events. So no
score that a ranker learns from ever knew the answer, and no events have to be set aside for the ranker.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from headwater.features.plan import Plan
from headwater.learning.collecting import RowCollector
from headwater.learning.rankers import fit_ranker
from headwater.learning.trainingset import LISTS, TrainingSet, count_positives, positive_types
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.offline.fit import Fitted, Progress, with_tables
from headwater.offline.tables.history import Lookup, TableOrigins
from headwater.ranking.ranker import open_ranker
from headwater.retrieval.fitted import open_sources
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.serving.model import Model
from headwater.serving.view import FoldView


class Renewal:
    """One bundle that is renewed: sources from the last ``window_ms`` of the log (``None``: from all of it), the ranker from
    the newest ``ranker.max_rows`` rows.

    ``share`` is the share of the positive events that train the ranker, where it learns from questions. ``first`` is what was trained before; its
    rows are used until newer ones have taken their places, so a quiet night does not leave the ranker with few. ``model`` is what
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
        self._window_ms = window_ms
        self._seed, self._threads = seed, threads
        self._adopted = first
        self.model = self._opened(first)
        used = len(first.rows.groups) / max(first.rows.asked - first.rows.missed, 1)
        self._collector = RowCollector(
            log, plan, config, self.model, first=first.rows, share=share,
            list_share=used if first.rows.learnt_from == LISTS else 1.0, drawing=np.random.default_rng(seed),
            waiting=first.waiting,
        )  # fmt: skip

    @property
    def rows(self) -> TrainingSet:
        """What the ranker was trained on last."""
        return self._collector.rows

    def expect(self) -> None:
        """The state is about to be folded on."""
        self._collector.expect(self._adopted.view.fold.offset)

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        """Before which records :meth:`collect` has to be called."""
        return self._collector.wanted(block)

    def collect(self, block: RecordBlock, i: int, view: FoldView) -> None:
        """See a record of the log, with ``view`` as of just before it: perhaps rows of that moment will train the ranker."""
        self._collector.collect(block, i, view, self.model)

    def renew(self, now_ms: int, lookup: Lookup | None = None, progress: Progress | None = None) -> Fitted:
        """Train on what the log holds up to where the state of ``first`` stands by now; ``now_ms`` is the time of that moment.

        Sources start from the weights of the adopted bundle, where they can; the ranker starts anew, on the kept rows.
        """
        config, view = self._config, self._adopted.view
        until = view.fold.offset
        tables: dict[str, TableOrigins] = {}
        rows = self._collector.renew(
            view, until, lambda new: tables.update(with_tables(config, self._plan, self._log, new, lookup))
        )
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
        if every_ms is not None:
            renewal.expect()

    @property
    def model(self) -> Model:
        """The one in service."""
        return self._renewal.model

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        """Before which records :meth:`look` has to be called."""
        return np.zeros(len(block), np.bool_) if self._every_ms is None else self._renewal.wanted(block)

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:
        """Renew when it is time to, and perhaps learn from the record to come."""
        if self._every_ms is None:
            return
        began = time.perf_counter()
        now_ms = int(block.records["received_ms"][i])
        if now_ms >= self._next_ms:
            self._renewal.adopt(self._renewal.renew(now_ms))
            self._next_ms += self._every_ms * ((now_ms - self._next_ms) // self._every_ms + 1)
            self.renewals += 1
        self._renewal.collect(block, i, view)
        self.seconds += time.perf_counter() - began


def share_of_rows(log: EventLog, config: Config, *, until: int, start_ms: int) -> float:
    """The share of the positive events that fills ``ranker.max_rows`` in the time from ``start_ms`` to the offset ``until``."""
    positive = count_positives(log, positive_types(log, config), until, start_ms)
    return min(1.0, config.ranker.max_groups / max(positive, 1))
