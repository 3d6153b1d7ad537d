"""What a ranker learns from, as ``ranker.learn_from`` says: questions about events, or lists as they were shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.replay import stops
from headwater.features.zones import Zones
from headwater.learning.lists import ListCollector
from headwater.learning.shown import ShownLists, read_shown
from headwater.learning.trainingset import (
    LISTS,
    QUESTIONS,
    Collector,
    TrainingSet,
    build_training_set,
    is_positive,
    newest,
    positive_types,
    positives,
)
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.log.seek import last_before
from headwater.schema.config import Config
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.view import FoldView

Bools = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]

logger = structlog.get_logger()

MIN_GROUPS = 50  # fewer train no ranker
SETTLES_MS = 10_000  # servers write lists twenty times a second; the rest is for a writer that is being restarted
ENOUGH_LISTS = 500  # lists of which something was taken: from so many on, "auto" learns from lists


def settled(log: EventLog, now_ms: int) -> tuple[int, int]:
    """The last offset before which no list was made that is not recorded yet at ``now_ms``, and when it was received: a server's list reaches the log
    a little after the state that it was made from.
    """
    return last_before(log, now_ms - SETTLES_MS)


class Begun(NamedTuple):
    """``rows`` to train on, and ``waiting``: lists that were assembled and wait for their labels, where somebody follows the log from here."""

    rows: TrainingSet
    waiting: ListCollector | None


def build_rows(
    log: EventLog, plan: Plan, config: Config, *, until: int, start_ms: int, seed: int, unseal: Unseal | None = None,
    view: FoldView | None = None, model: Model | None = None, progress: Progress | None = None, follow: bool = False,
) -> Begun:  # fmt: skip
    """The rows that ``ranker.max_rows`` has room for, from what was received in ``[start_ms, until]``.

    ``view`` and ``model`` as in :func:`~headwater.learning.trainingset.build_training_set`. Lists are drawn evenly at random from those whose labels are
    closed at ``until``, and of which something was taken. ``follow``: a :class:`RowCollector` goes on from here, so lists that are not closed yet are
    assembled too, and those as well that were made before ``until`` and recorded behind it.
    """
    wanted, waiting = config.ranker.learn_from, None
    if wanted != QUESTIONS:
        since = max(last_before(log, start_ms)[0], log.first_offset - 1)
        lists = read_shown(log, config, since=since, until=until)
        from_lists = wanted == LISTS or _usable(lists) >= ENOUGH_LISTS
        if from_lists or follow:
            view = FoldView(plan, Fold(plan, unseal=unseal)) if view is None else view
            most = config.ranker.max_rows
            share = min(1.0, most / max(int(lists.sizes[lists.closed & lists.taken].sum()), 1))
            waiting = ListCollector(
                log, plan, config, model, rows=int(most * 1.2), share=share, drawing=np.random.default_rng(seed)
            )
            known = log.last_offset if follow else until
            if known > until:
                lists = read_shown(log, config, since=since, until=known)
            waiting.expect(lists, known=known, from_offset=view.fold.offset, still_open=follow)
        if from_lists and view is not None and waiting is not None:
            return Begun(_from_lists(log, plan, config, waiting, view, until, model, progress), waiting)
    rows = build_training_set(
        log, plan, config, until=until, start_ms=start_ms, groups=config.ranker.max_groups, seed=seed, unseal=unseal,
        view=view, model=model, beside=waiting, progress=progress,
    )  # fmt: skip
    return Begun(rows, waiting)


def _usable(lists: ShownLists) -> int:
    return int((lists.closed & lists.taken).sum())


def _from_lists(
    log: EventLog, plan: Plan, config: Config, collector: ListCollector, view: FoldView, until: int, model: Model | None,
    progress: Progress | None,
) -> TrainingSet:  # fmt: skip
    pipeline = _pipeline(log, plan, config)
    for n, (block, _) in enumerate(stops(log, view.fold, collector.wanted, until=until)):
        if progress is not None and n % 200 == 199:
            progress(block.first_offset, until)
        view.refresh()
        if not collector.add(pipeline, view, model):
            break
    return collector.take(view, until)


def _pipeline(log: EventLog, plan: Plan, config: Config) -> Pipeline:
    return Pipeline(config, plan, stored_region=StoredRegion(log.vocabulary()), zones=Zones(log.vocabulary()))


class RowCollector:
    """Rows that follow the log: the newest that ``ranker.max_rows`` has room for, beginning with ``first``.

    They are questions or lists as ``first`` is. Where ``ranker.learn_from`` is "auto" and ``first`` is of questions, lists are collected beside them, and take over
    once there are enough. ``waiting`` are lists that wait since then. ``share`` of the positive events become questions, ``list_share`` of the lists rows (where none
    wait); ``drawing`` decides which. ``model`` is what rows are scored with; those that come later have to have the same sources.

    Each list is learnt from once, when its labels are closed, wherever rounds end: those that wait are kept from one round to the next, and a list may be recorded
    a moment after its round has ended, as long as the log is folded no further than to where the lists of that moment are known (:meth:`expect`).
    """

    def __init__(
        self, log: EventLog, plan: Plan, config: Config, model: Model | None, *, first: TrainingSet, share: float,
        list_share: float, drawing: np.random.Generator, waiting: ListCollector | None = None,
    ) -> None:  # fmt: skip
        self._log, self._config, self._share, self._drawing = log, config, share, drawing
        self._positive = positive_types(log, config)
        self._types = frozenset(self._positive.tolist())
        self._pipeline = _pipeline(log, plan, config)
        self.rows, self._most = first, max(config.ranker.max_rows, MIN_GROUPS * (config.ranker.negatives + 1))
        self._new_lists: list[TrainingSet] = []  # that have not taken over yet
        self._questions: Collector | None = None
        self._lists: ListCollector | None = None
        if first.learnt_from == QUESTIONS:
            groups = 2 * max(config.ranker.max_groups, MIN_GROUPS)
            self._questions = Collector(log, plan, config, model, groups=groups, drawing=drawing)
        if first.learnt_from == LISTS or config.ranker.learn_from == "auto":
            self._lists = waiting or ListCollector(
                log, plan, config, model, rows=2 * self._most, share=list_share, drawing=drawing.spawn(1)[0]
            )

    def expect(self, offset: int) -> None:
        """The log is about to be folded on from ``offset``: look at which lists were recorded by now, wherever folding will end.

        Lists that are recorded later and were made before that end are lost, and told: end a moment before the log does.
        """
        self._positive = positive_types(self._log, self._config)
        self._types = frozenset(self._positive.tolist())
        if self._lists is None:
            return
        known = self._log.last_offset
        since = offset if self._lists.known < 0 else self._lists.known
        lists = read_shown(self._log, self._config, since=since, until=known)
        self._lists.expect(lists, known=known, from_offset=offset, still_open=True)
        if self._lists.passed:
            logger.warning(
                "lists_came_late", lists=self._lists.passed, hint="recorded long after they were made: not learnt from"
            )
            self._lists.passed = 0

    def wanted(self, block: RecordBlock) -> Bools:
        """Before which records :meth:`collect` has to be called."""
        wanted = np.zeros(len(block), np.bool_) if self._questions is None else positives(block, self._positive)
        return wanted if self._lists is None else wanted | self._lists.wanted(block)

    def collect(self, block: RecordBlock, i: int, view: FoldView, model: Model | None) -> None:
        """See a record of the log, with ``view`` as of just before it: perhaps rows are made of that moment."""
        if self._lists is not None and self._lists.due(view):
            view.refresh()
            self._lists.add(self._pipeline, view, model)
        record = block.records[i]
        if self._questions is None or not is_positive(record, self._types):
            return
        if self._drawing.random() < self._share:
            view.refresh()
            self._questions.add(self._pipeline, view, record, model)

    def renew(self, view: FoldView, until: int, finish: Callable[[TrainingSet], None] = lambda _: None) -> TrainingSet:
        """Take in what was collected, up to the offset ``until``, where ``view`` stands; ``finish`` completes new rows in place."""
        view.refresh()
        lists = None if self._lists is None else self._lists.take(view, until)
        questions = None if self._questions is None else self._questions.take(view, until)
        for new in (lists, questions):
            if new is not None and len(new.groups):
                finish(new)
        if questions is not None:
            self.rows = newest([self.rows, questions], self._most)
            self._new_lists += [lists] if lists is not None else []
            if sum(len(each.groups) for each in self._new_lists) >= ENOUGH_LISTS:
                self.rows, self._new_lists, self._questions = newest(self._new_lists, self._most), [], None
        elif lists is not None:
            self.rows = newest([self.rows, lists], self._most)
        return self.rows
