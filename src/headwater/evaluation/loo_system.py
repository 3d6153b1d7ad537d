"""The whole system under leave-one-out: trained sources, and a ranker that learnt from validation questions.

The sources saw neither of a user's last two positive events. So a ranker can learn from the questions about the first of the two,
and its rows are those of production: candidates and scores of sources that never knew the answer, on a state that holds neither
event. What is then judged is the list of the pipeline that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.meter import Meter
from headwater.evaluation.scoring import Askable, Progress, Training
from headwater.evaluation.unprompted import unprompted
from headwater.evaluation.walk import LIST_LENGTH, NO_DEADLINE_MS
from headwater.features.plan import Plan
from headwater.features.zones import Zones
from headwater.learning.collecting import MIN_GROUPS
from headwater.learning.gbdt import TooFewError
from headwater.learning.rankers import FittedRanker, fit_ranker
from headwater.learning.trainingset import Collector, TrainingSet
from headwater.log.protocol import EventLog
from headwater.log.record import RECORD
from headwater.ranking.ranker import open_light, open_ranker
from headwater.retrieval.fitted import FittedSource, VectorSource, score_column
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query
from headwater.serving.stages import TIER_FULL

Int64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]


class LooRanker(Struct, frozen=True, kw_only=True):
    """A ranker and what it learnt from: of ``asked`` questions those whose answer a source offered, all but ``missed``.

    ``trees`` of LightGBM or ``epochs`` of the deep ranker. ``train_s`` and ``peak_mb`` are those of its rows and its training.
    """

    kind: str
    asked: int
    missed: int
    trees: int
    epochs: int
    train_s: float
    peak_mb: float


class LooSystem:
    """The pipeline of a configuration with trained ``sources``, asked about records of ``log``.

    Records (dtype ``RECORD``) are questions: who is asked for which item, and in ``received_ms`` when. Items that are not among ``items``
    int64[m] do not count in a list.
    """

    def __init__(
        self, log: EventLog, plan: Plan, config: Config, sources: Sequence[FittedSource], items: Int64, training: Training,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self._log, self._plan, self._config, self._items = log, plan, config, items
        self._training, self._progress = training, progress
        self._columns = (*plan.columns, *(score_column(source.name) for source in sources))
        attended = next((source for source in sources if isinstance(source, VectorSource)), None)
        self._sources = Model("loo", None, tuple(sources), attended)

    def cross_fitted(self, state: Askable, questions: Records, order: Int64) -> tuple[Int64, list[LooRanker]]:
        """The lists for ``questions``, each by a ranker that learnt from the other half of them (as ``order`` halves them)."""
        lists = np.zeros((len(questions), LIST_LENGTH), np.int64)
        halves = order[::2], order[1::2]
        rankers = []
        for asked, learnt in (halves, halves[::-1]):
            ranker, said = self.learn(state, questions[learnt])
            lists[asked] = self.answers(ranker, state, questions[asked])
            rankers.append(said)
        return lists, rankers

    def learn(self, state: Askable, questions: Records) -> tuple[FittedRanker, LooRanker]:
        """The ranker that the configuration names, fitted on ``questions`` as ``headwater train`` fits it."""
        with Meter() as meter:
            rows = self.rows(state, questions)
            made = fit_ranker(
                self._config, self._plan, self._columns, rows, warm=None, seed=self._training.seed,
                threads=self._training.threads, progress=self._progress,
            )  # fmt: skip
        said = LooRanker(
            kind=self._config.ranker.kind, asked=rows.asked, missed=rows.missed, trees=made.trees, epochs=made.epochs,
            train_s=meter.seconds, peak_mb=meter.peak_mb,
        )  # fmt: skip
        return made, said

    def rows(self, state: Askable, questions: Records) -> TrainingSet:
        """The training rows of ``questions`` on ``state``, as many as ``ranker.max_rows`` has room for.

        A ranker keeps the last groups to judge itself, so questions come in an order that says nothing about the user.

        Raises:
            TooFewError: there are too few that a source offered the answer of.
        """
        pipeline = self._ready(state)
        questions = questions[: self._config.ranker.max_groups]
        collector = Collector(
            self._log, self._plan, self._config, self._sources, groups=len(questions),
            drawing=np.random.default_rng(self._training.seed),
        )  # fmt: skip
        for n, question in enumerate(questions):
            collector.add(pipeline, state.view, question, self._sources)
            self._tell("rows", n, len(questions))
        rows = collector.take(state.view, state.fold.offset)
        if len(rows.groups) < MIN_GROUPS:
            raise TooFewError(
                f"of {rows.asked} validation questions the sources offer the answer of {len(rows.groups)}, and a ranker learns "
                f"from no fewer than {MIN_GROUPS}"
            )
        return rows

    def answers(self, ranker: FittedRanker, state: Askable, questions: Records) -> Int64:
        """The pipeline's list for each question, ``int64[n, LIST_LENGTH]``, filled up with 0.

        Raises:
            HeadwaterError: the ranker could not order a list.
        """
        pipeline = self._ready(state)
        opened = unprompted(self._with(ranker), self._plan, self._config)
        lists = np.zeros((len(questions), LIST_LENGTH), np.int64)
        try:
            for n, question in enumerate(questions):
                segments = (int(question["segments"][0]), int(question["segments"][1]))
                query = Query(
                    "", user=int(question["user"]), k=LIST_LENGTH, segments=segments, deadline_ms=NO_DEADLINE_MS
                )
                answer = pipeline.recommend(query, state.view, opened, int(question["received_ms"]))
                if answer.tier != TIER_FULL or answer.missed:
                    raise HeadwaterError(f"the system could not make its list: {'; '.join(answer.degraded)}")
                found = answer.items[np.isin(answer.items, self._items)]
                lists[n, : len(found)] = found
                self._tell("lists", n, len(questions))
        finally:
            for each in (opened.ranker, opened.light):
                if each is not None:
                    each.close()  # the sources go on
        return lists

    def _ready(self, state: Askable) -> Pipeline:
        """A pipeline whose sources know the items of ``state``."""
        for source in self._sources.sources:
            source.prepare(state.index)
        vocabulary = self._log.vocabulary()
        return Pipeline(self._config, self._plan, stored_region=StoredRegion(vocabulary), zones=Zones(vocabulary))

    def _with(self, ranker: FittedRanker) -> Model:
        opened = open_ranker(self._config.ranker.kind, ranker.files, self._columns)
        return replace(self._sources, ranker=opened, light=open_light(ranker.files, self._columns))

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._progress is not None and done % 100 == 0:
            self._progress(what, done, total)


def questions_at(log: EventLog, offsets: Int64, now_ms: Int64) -> Records:
    """The records of ``log`` at ``offsets`` int64[n], asked about at ``now_ms`` int64[n]."""
    found = np.zeros(len(offsets), RECORD)
    for n, offset in enumerate(offsets.tolist()):
        block = log.read(offset - 1, 1)
        if block is None:
            raise HeadwaterError(f"the log has no record at offset {offset}")
        found[n] = block.records[0]
    found["received_ms"] = now_ms
    return found
