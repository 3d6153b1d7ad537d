"""What a learner keeps from round to round: a state that folds every event once, and the newest training rows.

Every event judges before it teaches. A round trains on all that was folded so far; then it folds what has come since, and
at some of those events the new bundle and the one in service answer first (progressive validation: A. Blum et al., COLT
1999). The events then train the next round, so none is held back for good. A round that was asked for, because the world has
changed, does not wait for the next one: it learns what has come at once, but for the newest of it, which judge: ``gate.questions`` positive events, and as far
back as it takes for ``gate.lists`` lists where these can judge.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Struct

from headwater.evaluation.checks import checks_dir, mismatches
from headwater.evaluation.gate import MIN_QUESTIONS
from headwater.evaluation.held_lists import addresses
from headwater.evaluation.heldout import Stretch, behind, held_out_stretch, newest
from headwater.features.plan import Plan
from headwater.features.profiles import Profiles
from headwater.features.replay import stops
from headwater.learning.collecting import SETTLES_MS, settled
from headwater.learning.fitting import enabled_sources
from headwater.learning.gbdt import TooFewError
from headwater.learning.trainingset import LISTS, QUESTIONS
from headwater.log.archived import ArchivedLog, open_log
from headwater.log.identity import LmdbIdentity
from headwater.log.record import RecordBlock
from headwater.offline.fit import Fitted, fit
from headwater.offline.publish import Publication
from headwater.offline.renewal import Renewal, share_of_rows
from headwater.offline.tables.history import Lookup
from headwater.offline.train import last_offset_before, publish_fitted
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.audit import Author
from headwater.registry.registry import Registry
from headwater.retrieval.fitted import score_column
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import HeadwaterError
from headwater.serving.view import FoldView

Int64 = npt.NDArray[np.int64]

log = structlog.get_logger()


class StoppedError(HeadwaterError):
    """The round was cut short because the learner is to end; nothing was published."""


class NotYetError(HeadwaterError):
    """Too little was logged to train on, or has come since the last round to judge by."""


class Made(Struct, frozen=True, kw_only=True):
    """What a round made: ``warm`` is the bundle that it started from, ``last_offset`` where its state stands now."""

    published: Publication
    warm: str | None
    last_offset: int


class _Standing(Struct):
    """What the last round left: the bundle that served then, the state, and the rows beside it."""

    version: str
    view: FoldView
    renewal: Renewal


class _WhileJudging:
    """The next rows are collected on the walk that judges (:class:`~headwater.evaluation.walk.Before`)."""

    def __init__(self, renewal: Renewal | None, progress: Callable[[int], None]) -> None:
        self._renewal, self._progress = renewal, progress

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        return np.zeros(len(block), np.bool_) if self._renewal is None else self._renewal.wanted(block)

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:
        self._progress(view.fold.offset)
        if self._renewal is not None:
            self._renewal.collect(block, i, view)


class Learner:
    """Rounds of training on the log of ``data``.

    The first round replays the log, and so does the next one after a failure, or when another bundle serves than the one
    that the last round left in service. Under a ranker that attends to vectors every round does: its rows cannot be kept.
    :meth:`close` lets go of the log and the state.
    """

    def __init__(
        self, config: Config, plan: Plan, data: Path, *, threads: int, stop: threading.Event, clock: Callable[[], int]
    ) -> None:  # fmt: skip
        self._config, self._plan, self._data = config, plan, data
        self._threads, self._stop, self._clock = threads, stop, clock
        self._registry = Registry(data / "models")
        self._unseal = Profiles(data)
        self._log: ArchivedLog | None = None
        self._standing: _Standing | None = None
        self._read = 0  # how far a whole round has read
        window = config.learn.window
        self._window_ms = None if window == "never" else parse_duration(window)

    def round(self, *, at_once: bool = False) -> Made:
        """Train, judge, publish; ``at_once``: on all that has come, but for the newest of it that judges, once at least as much is left to learn from.

        Raises:
            NotYetError: there is nothing new, or too little to train on or to judge a bundle by; the next round goes on from here.
            StoppedError: ``stop`` was set meanwhile.
        """
        mismatches(checks_dir(self._data), self._plan.hash, self._plan.columns, allowed=False)  # before hours of work
        if self._log is None:
            self._log = open_log(self._data)
        standing = self._standing
        try:
            if standing is not None and standing.version == self._registry.current(self._plan.hash):
                return self._next(self._log, standing, at_once)
            return self._first(self._log, at_once)
        except NotYetError:
            raise
        except TooFewError as error:
            self.close()
            raise NotYetError(f"too little is in the log to train on: {error}") from error
        except BaseException:
            self.close()  # the state may stand in the middle of something: the next round begins anew
            raise

    def close(self) -> None:
        """Let go of the log and of all that was kept."""
        if self._standing is not None:
            self._standing.renewal.model.close()
        if self._log is not None:
            self._log.close()
        self._unseal.close()
        self._log = self._standing = None

    # -- rounds ----------------------------------------------------------------------------------------

    def _first(self, event_log: ArchivedLog, at_once: bool) -> Made:
        """Replay the log, train on what lies before the held-out stretch, and stay where judging ends."""
        config, plan, self._standing = self._config, self._plan, None
        version, reached, files = self._in_service()
        until, last_ms = self._settled(event_log)
        if until <= self._read:
            since = (
                f"since offset {self._read}"
                if self._read
                else f"until {SETTLES_MS // 1_000} s ago, which is what a round reads"
            )
            raise NotYetError(f"nothing new was logged {since}")
        start_ms = 0 if self._window_ms is None else last_ms - self._window_ms
        stretch = None
        if config.gate.enabled:
            stretch = held_out_stretch(event_log, config, until=until, until_ms=last_ms, start_ms=start_ms)
            if reached > stretch.split:  # what the bundle in service has learnt from cannot judge it
                stretch = behind(event_log, config, min(reached, until), until)
            if version is not None and stretch.positives < MIN_QUESTIONS:
                raise _too_few(stretch)
            if at_once:
                stretch = newest(event_log, config, stretch, self._lists(event_log, stretch))
        end = until if stretch is None else stretch.split
        seed = config.ranker.seed
        with self._lookup() as lookup:
            done = fit(
                config, plan, event_log, until=end, start_ms=start_ms, seed=seed, threads=self._threads,
                unseal=self._unseal, warm=files, lookup=lookup, progress=self._progress, follow=True,
            )  # fmt: skip
        renewal = None
        if not done.ranker.attends:
            renewal = Renewal(
                config, plan, event_log, done, window_ms=self._window_ms, seed=seed, threads=self._threads,
                share=share_of_rows(event_log, config, until=end, start_ms=start_ms),
            )  # fmt: skip
        published = self._publish(event_log, done, stretch, renewal, version if files else None)
        if renewal is not None and published.promoted:  # what was refused is nothing to go on from
            self._standing = _Standing(published.bundle, done.view, renewal)
        self._read = until
        return Made(published=published, warm=version if files else None, last_offset=until)

    def _next(self, event_log: ArchivedLog, standing: _Standing, at_once: bool) -> Made:
        """Train on what was folded, judge on what came since; with the gate off, train on all of it."""
        view, renewal, warm = standing.view, standing.renewal, standing.version
        until, last_ms = self._settled(event_log)
        if until <= view.fold.offset:
            raise NotYetError(f"nothing new was logged since offset {view.fold.offset}")
        stretch = None
        if self._config.gate.enabled:
            stretch = behind(event_log, self._config, view.fold.offset, until)
            lists = self._lists(event_log, stretch) if at_once else None
            self._enough(stretch, lists, view.fold.received_ms, last_ms)
            if lists is not None:
                stretch = newest(event_log, self._config, stretch, lists)
                self._fold(event_log, view, stretch.split, renewal)
        else:
            self._fold(event_log, view, until, renewal)
        with self._lookup() as lookup:
            done = renewal.renew(view.fold.received_ms, lookup, self._progress)
        published = self._publish(event_log, done, stretch, renewal, warm)
        self._fold(event_log, view, until, renewal)  # one that could not be opened was asked nothing
        self._read = until
        if published.promoted:
            standing.version = published.bundle
            renewal.adopt(done)
        return Made(published=published, warm=warm, last_offset=until)

    def _enough(self, stretch: Stretch, lists: Int64 | None, since_ms: int, until_ms: int) -> None:
        """Wait for ``gate.questions`` positive events, but no longer than ``gate.holdout`` of the log when there are some. A round that was asked for looks at
        ``lists`` too, and waits for twice as much, or the newest of it, which judges, would leave nothing to learn from.
        """
        gate = self._config.gate
        late = until_ms - since_ms >= parse_duration(gate.holdout)
        times = 1 if lists is None else 2
        if stretch.positives < (MIN_QUESTIONS if late else times * gate.questions):
            raise _too_few(stretch)
        if lists is not None and self._from_lists and not late and len(lists) < times * gate.lists:
            raise _too_few_lists(stretch, len(lists))

    @property
    def _from_lists(self) -> bool:
        """Whether what this learner made last learnt from lists."""
        return self._standing is not None and self._standing.renewal.rows.learnt_from == LISTS

    def _lists(self, event_log: ArchivedLog, stretch: Stretch) -> Int64:
        """The lists that can judge on ``stretch``; none where rankers learn from questions alone."""
        if self._config.ranker.learn_from == QUESTIONS:
            return np.zeros(0, np.int64)
        return addresses(event_log, self._config, split=stretch.split, until=stretch.until)

    def _settled(self, event_log: ArchivedLog) -> tuple[int, int]:
        """How far a round reads, and when that was received: where rankers may learn from lists, not the last moments of the log."""
        if self._config.ranker.learn_from == QUESTIONS:
            return last_offset_before(event_log, None)
        return settled(event_log, max(self._clock(), event_log.last_received_ms))

    def _fold(self, event_log: ArchivedLog, view: FoldView, until: int, renewal: Renewal) -> None:
        if view.fold.offset >= until:
            return
        renewal.expect()
        for block, i in stops(event_log, view.fold, renewal.wanted, until=until):
            renewal.collect(block, i, view)
            self._progress("fold", view.fold.offset, until)

    def _publish(
        self, event_log: ArchivedLog, done: Fitted, stretch: Stretch | None, renewal: Renewal | None, warm: str | None
    ) -> Publication:
        before = _WhileJudging(renewal, lambda at: self._progress("gate", at, event_log.last_offset))
        if renewal is not None and stretch is not None:
            renewal.expect()
        mismatches(checks_dir(self._data), self._plan.hash, self._plan.columns, allowed=False)  # as of now
        return publish_fitted(
            self._config, self._plan, event_log, self._registry, done, stretch=stretch, promote=Author("learn", self._clock), seed=self._config.ranker.seed,
            created_ms=self._clock(), lineage=None if warm is None else self._registry.lineage(warm), before=before, unseal=self._unseal, progress=self._progress,
        )  # fmt: skip

    # -- what a round needs ----------------------------------------------------------------------------

    def _progress(self, *_: object) -> None:
        if self._stop.is_set():
            raise StoppedError("the learner is to end")

    @contextmanager
    def _lookup(self) -> Iterator[Lookup | None]:
        if not any(table.entity == "user" for table in self._config.tables):
            yield None
            return
        with closing(LmdbIdentity(self._data / "identity", readonly=True)) as identity:
            yield identity.lookup

    def _in_service(self) -> tuple[str | None, int, Mapping[str, bytes]]:
        """The version in service, the last offset that it was trained on, and its files; no files when it cannot be read.

        Trees over other columns than the next ranker will have (another source was enabled) are left out.
        """
        try:
            version = self._registry.current(self._plan.hash)
            if version is None:
                return None, 0, {}
            bundle = self._registry.load(version, plan_hash=self._plan.hash)
        except HeadwaterError as error:
            log.warning("cold_start", reason=str(error))
            return None, 0, {}
        columns = (*self._plan.columns, *map(score_column, enabled_sources(self._config)))
        same = bundle.manifest.columns == columns
        files = {name: data for name, data in bundle.files.items() if same or name != MODEL_FILE}
        return version, bundle.manifest.data.last_offset, files


def _too_few(stretch: Stretch) -> NotYetError:
    return NotYetError(
        f"only {stretch.positives} positive events have come since offset {stretch.split}, up to which was trained: too few "
        "to judge a bundle by (gate.questions, gate.holdout)"
    )


def _too_few_lists(stretch: Stretch, lists: int) -> NotYetError:
    return NotYetError(
        f"only {lists} lists that can judge have come since offset {stretch.split}, up to which was trained: too few to learn from and to judge by at once "
        "(gate.lists, gate.holdout)"
    )
