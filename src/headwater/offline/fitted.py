"""The fitted sources of a bundle: trained on what lies before the ranker's questions, and again on everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.evaluation.scoring import Askable
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import fold_to
from headwater.learning.fitting import FitJob, enabled_sources, fit_source
from headwater.learning.gbdt import TooFewError
from headwater.learning.sequences import Sequences, read_sequences
from headwater.log.protocol import EventLog
from headwater.retrieval.fitted import SearchedSource, VectorSource, open_sources, score_column
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.vectors.choice import IndexChoice, choose_index, write_choice
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model

Progress = Callable[[str, int, int], None]

QUERIES = 300  # users whose vectors the indexes are measured with


@dataclass(slots=True)
class FittedSources:
    """The enabled fitted sources of a configuration, on one stretch of a log.

    ``warm`` are the files of an earlier bundle that training may start from; ``seconds`` what each source took, all its
    trainings together. ``state`` is folded once: it stands where the last training ended, and goes on from there.
    """

    log: EventLog
    plan: Plan
    config: Config
    until: int
    start_ms: int
    seed: int
    threads: int
    unseal: Unseal | None = None
    warm: Mapping[str, bytes] = field(default_factory=dict)
    progress: Progress | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    indexes: dict[str, IndexChoice] = field(default_factory=dict)
    state: Askable = field(init=False)
    _latest: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # users, by their last event

    def __post_init__(self) -> None:
        self.state = Askable(self.plan, Fold(self.plan, unseal=self.unseal))

    @property
    def names(self) -> tuple[str, ...]:
        """The enabled ones, in the order in which a bundle has them."""
        return enabled_sources(self.config)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the ranker gets: the columns of the plan, then a score of each source."""
        return (*self.plan.columns, *map(score_column, self.names))

    def before_the_ranker(self) -> tuple[Model, int]:
        """Train the sources on the first part of the stretch; returns them and when the ranker's part begins (ms).

        Raises:
            TooFewError: too few events for two parts.
        """
        sequences = read_sequences(self.log, self.plan, self.config, until=self.until, start_ms=self.start_ms)
        first = ranker_begins(sequences, self.config.models.ranker_share)
        self._fit(sequences.where(sequences.offset < first), first - 1)
        sources = open_sources(self.names, self.files, self.config, self.plan)
        attended = next((source for source in sources if isinstance(source, VectorSource)), None)
        return Model("in training", None, sources, attended), received_ms(self.log, first)

    def again(self, *, attends: bool) -> None:
        """Train the sources on the whole stretch, unless the ranker attends to their vectors or `models.refit` is off."""
        if self.names and self.config.models.refit and not attends:
            sequences = read_sequences(self.log, self.plan, self.config, until=self.until, start_ms=self.start_ms)
            self.warm = self.files
            self._fit(sequences, self.until)

    def renewed(self, until: int, start_ms: int, progress: Progress | None = None) -> FittedSources:
        """The same sources trained on another stretch, with these weights to start from; ``state`` goes on to its end.

        How vectors are searched is not measured again.
        """
        later = copy(self)
        later.until, later.start_ms, later.progress = until, start_ms, progress
        later.warm, later.seconds = self.files, {}
        if later.names:
            later._fit(read_sequences(self.log, self.plan, self.config, until=until, start_ms=start_ms), until)
            for name, choice in self.indexes.items():
                later.files |= write_choice(choice, name)
        return later

    def choose_indexes(self) -> None:
        """Measure exact and HNSW search on the vectors of each searched source, for users of the log; ``files`` say which won."""
        state = self.state
        for source in open_sources(self.names, self.files, self.config, self.plan):
            if isinstance(source, SearchedSource):
                source.prepare(state.index)
                vectors = source.vectors(state.index, state.fold.received_ms)
                vectors = vectors[vectors.any(axis=1)]
                asked = (state.asked(user, state.fold.received_ms) for user in self._latest.tolist())
                queries = [query for each in asked if (query := source.query(each, state.index)) is not None]
                if len(vectors) and queries:
                    k = 2 * getattr(self.config.sources, source.name).width
                    chosen = choose_index(vectors, np.stack(queries), k, seed=self.seed, threads=self.threads)[1]
                    self.indexes[source.name] = chosen
                    self.files |= write_choice(chosen, source.name)
            source.close()

    def _fit(self, sequences: Sequences, until: int) -> None:
        state = self.state
        fold_to(self.log, state.fold, until)
        state.view.refresh()
        self._latest = latest_users(sequences, QUERIES)
        self.files, seconds = fit_sources(
            self.names, sequences, self.config, self.plan, state.index, state.fold.items.count, seed=self.seed, threads=self.threads,
            warm=self.warm, told=self._told,
        )  # fmt: skip
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def _told(self, name: str) -> Callable[[int, int], None] | None:
        tell = self.progress
        return None if tell is None else lambda done, total: tell(name, done, total)


def fit_sources(
    names: tuple[str, ...], sequences: Sequences, config: Config, plan: Plan, index: ItemIndex, items: int, *, seed: int,
    threads: int, warm: Mapping[str, bytes], told: Callable[[str], Callable[[int, int], None] | None] = lambda _: None,
) -> tuple[dict[str, bytes], dict[str, float]]:  # fmt: skip
    """The files of the sources ``names``, and the seconds that each took; ``index`` tells what the first ``items`` items are."""
    made: dict[str, bytes] = {}
    seconds: dict[str, float] = {}
    for name in names:
        job = FitJob(
            now_ms=int(sequences.time_ms.max(initial=0)), event_types=plan.event_types, content=index.content[:items],
            price=index.price[:items], born_ms=index.columns.born[:items], seed=seed, threads=threads, warm=warm, progress=told(name),
        )  # fmt: skip
        began = time.perf_counter()
        made |= fit_source(name, sequences, config, job)
        seconds[name] = time.perf_counter() - began
    return made, seconds


def ranker_begins(sequences: Sequences, share: float) -> int:
    """The offset from which on events train the ranker: the last ``share`` of the positive ones.

    Raises:
        TooFewError: a part without events.
    """
    offsets = np.sort(sequences.offset[sequences.positive])
    first = len(offsets) - int(len(offsets) * share)
    if not 0 < first < len(offsets):
        raise TooFewError(
            f"{len(offsets)} positive events are too few to train sources on the first {1 - share:.0%} of them and a "
            "ranker on the rest: import more events, or disable the trained sources"
        )
    return int(offsets[first])


def received_ms(log: EventLog, offset: int) -> int:
    """When the record at ``offset`` was received."""
    block = log.read(offset - 1, 1)
    if block is None:
        raise HeadwaterError(f"the log has no record at offset {offset}")
    return int(block.records["received_ms"][0])


def latest_users(sequences: Sequences, count: int) -> npt.NDArray[np.int64]:
    """The ``count`` users whose last events are the latest, int64[n]."""
    last = sequences.offset[sequences.starts[1:] - 1]
    return sequences.users[np.argsort(-last, kind="stable")[:count]]
