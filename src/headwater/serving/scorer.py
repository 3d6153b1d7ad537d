"""Who runs the ranker: the caller itself, or one thread beside it with a deadline and a breaker.

The thread is for servers. A call that is not over in time is given up: the ranker is told to stop if it can be told, the
thread is left to itself and another one takes its place, so that a stalled model holds up nothing but itself. The breaker
then asks the ranker no more, and tries it again on the side: no request waits for the trial. It does the same for a ranker on
another machine that cannot be reached.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog

from headwater.breaker import Breaker
from headwater.ranking.ranker import (
    Attention,
    Features,
    Interruptible,
    Ranker,
    RankerError,
    Scores,
    Timed,
    UnreachableError,
)

log = structlog.get_logger()

FIRST_PAUSE_S = 1.0  # how long a ranker that stalled is left alone
LONGEST_PAUSE_S = 4.0
REMOTE_FIRST_PAUSE_S, REMOTE_LONGEST_PAUSE_S = 0.1, 1.0  # one that could not be reached: a network forgets quickly
MOST_STUCK = 4  # threads that may hang in one ranker before it is not even tried

_LONGEST_WAIT_S = 3600.0  # of a request without a deadline; a lock takes no more than some days


class StalledError(RankerError):
    """The ranker did not answer in time."""


class RestingError(RankerError):
    """The ranker stalled or could not be reached a moment ago, and is not asked."""


class Scorer(Protocol):
    """Runs rankers. ``stalls`` counts the calls that were given up."""

    stalls: int

    def score(self, ranker: Ranker, rows: Features, attention: Attention | None, limit_ms: float) -> Scores:
        """The scores of ``rows``, within ``limit_ms``.

        Raises:
            StalledError: not in time; ``rows`` may still be read, so the caller must not write into them again.
            RestingError: the ranker was not asked.
            UnreachableError: it is elsewhere and gave no answer.
            RankerError: the ranker failed.
        """
        ...


class DirectScorer:
    """Calls the ranker, however long it takes: evaluation and training, where every answer counts and nobody waits."""

    stalls = 0

    def score(self, ranker: Ranker, rows: Features, attention: Attention | None, limit_ms: float) -> Scores:  # noqa: ARG002
        return _scored(ranker, rows, attention, float("inf"))


class ThreadScorer:
    """One thread for all rankers, replaced when a call in it stalls. Belongs to the pipelines of one worker, which call it one at a time.

    ``clock`` is monotonic, in seconds; the breaker reads it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stalls = 0
        self._clock = clock
        self._lane = _Lane()
        self._rests: list[_Rest] = []

    @property
    def resting(self) -> int:
        """Rankers that are not asked at the moment."""
        return sum(rest.breaker.is_open for rest in self._rests)

    def score(self, ranker: Ranker, rows: Features, attention: Attention | None, limit_ms: float) -> Scores:
        limit_s = min(max(limit_ms, 0.0) / 1e3, _LONGEST_WAIT_S)
        rest = self._rest_of(ranker)
        if rest is not None:
            if rest.ready():
                # the caller goes on with its own rows; a call that failed for want of time does not judge those with more
                rest.begin(_Call(ranker, rows.copy(), attention, self._clock, max(rest.limit_s, limit_s)))
            raise RestingError(rest.why)
        call = _Call(ranker, rows, attention, self._clock, limit_s)
        self._lane.calls.put(call)
        if not call.over.acquire(timeout=limit_s):
            self._give_up(call, limit_ms)
        if isinstance(call.error, UnreachableError):
            self._leave(call, call.error)
        return call.result()

    def close(self) -> None:
        """Let the thread end."""
        self._lane.calls.put(None)

    def _rest_of(self, ranker: Ranker) -> _Rest | None:
        """The rest of ``ranker``, while it lasts."""
        for rest in self._rests:
            if rest.ranker is ranker:
                rest.look()
                if rest.breaker.is_open:
                    return rest
                self._rests.remove(rest)
                log.info("ranker_back", after_s=round(self._clock() - rest.breaker.since_s, 3))
                return None
        return None

    def _give_up(self, call: _Call, limit_ms: float) -> NoReturn:
        self.stalls += 1
        self._lane.calls.put(None)  # the thread ends if the call does
        self._lane = _Lane()
        breaker = Breaker(FIRST_PAUSE_S, LONGEST_PAUSE_S, clock=self._clock, draw=_no_jitter)
        self._add(_Rest(call, breaker, "ranker rests: it stalled a moment ago", hangs=True))
        log.error("ranker_stalled", limit_ms=round(limit_ms, 1))
        raise StalledError(f"ranker stalled: no answer in {limit_ms:.0f} ms")

    def _leave(self, call: _Call, error: UnreachableError) -> None:
        breaker = Breaker(REMOTE_FIRST_PAUSE_S, REMOTE_LONGEST_PAUSE_S, clock=self._clock)
        self._add(_Rest(call, breaker, f"ranker rests: {error}", hangs=False))
        log.error("ranker_unreachable", reason=str(error))

    def _add(self, rest: _Rest) -> None:
        # the rest of a bundle that is no longer in service goes once nothing hangs in its ranker
        self._rests = [other for other in self._rests if other.stuck]
        self._rests.append(rest)


def _no_jitter() -> float:
    """The ranker is in this process: nobody else waits for it."""
    return 0.0


def _scored(ranker: Ranker, rows: Features, attention: Attention | None, limit_s: float) -> Scores:
    """What ``ranker`` says. It is somebody's model: whatever it raises costs its order, never the answer."""
    try:
        if isinstance(ranker, Timed):
            return ranker.score_within(rows, attention, limit_s)
        return ranker.score(rows, attention)
    except RankerError:
        raise
    except Exception as error:
        raise RankerError(f"{type(error).__name__}: {error}") from error


class _Call:
    """A call of a ranker. ``over`` is held until it is done; then either ``scores`` or ``error`` is there."""

    __slots__ = ("_clock", "attention", "began_s", "error", "limit_s", "over", "ranker", "rows", "scores", "took_s")

    def __init__(
        self, ranker: Ranker, rows: Features, attention: Attention | None, clock: Callable[[], float], limit_s: float
    ) -> None:  # fmt: skip
        self.ranker, self.rows, self.attention = ranker, rows, attention
        self.scores: Scores | None = None
        self.error: RankerError | None = None
        self.limit_s = limit_s
        self._clock, self.began_s, self.took_s = clock, clock(), 0.0
        self.over = threading.Lock()
        self.over.acquire()

    def run(self) -> None:
        try:
            self.scores = _scored(self.ranker, self.rows, self.attention, self.limit_s)
        except RankerError as error:  # the caller raises it
            self.error = error
        self.took_s = self._clock() - self.began_s
        self.over.release()

    def done(self) -> bool:
        return not self.over.locked()

    def spent_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self.began_s

    def result(self) -> Scores:
        if self.scores is None:
            raise self.error or RankerError("The ranker gave no scores.")
        return self.scores


class _Lane:
    """A thread that runs calls one after the other, until it is told ``None``."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        # a daemon: a model that never comes back must not keep the process from ending
        threading.Thread(target=self._run, name="ranker", daemon=True).start()

    def _run(self) -> None:
        while (call := self.calls.get()) is not None:
            call.run()


class _Rest:
    """A ranker is left alone until a trial on the side answers in time: what its request had, at least what the call had that failed.

    A trial comes after a pause of ``breaker``, or at once when a call that hung came back with scores. At most
    ``MOST_STUCK`` threads hang in the ranker.
    """

    def __init__(self, failed: _Call, breaker: Breaker, why: str, *, hangs: bool) -> None:
        self.ranker, self.limit_s = failed.ranker, failed.limit_s
        self.breaker, self.why = breaker, why
        self.stuck: list[_Call] = []
        self._trial: _Call | None = None
        self.breaker.failed()
        if hangs:
            self._hang(failed)

    def look(self) -> None:
        """Take note of what came back."""
        trial = self._trial
        if trial is not None:
            if trial.done():
                self._trial = None
                if trial.scores is not None and trial.took_s <= trial.limit_s:
                    self.breaker.succeeded()
                else:
                    self.breaker.failed()
            elif trial.spent_s() > trial.limit_s:
                self._trial = None
                self._hang(trial)
                self.breaker.failed()
        back = [call for call in self.stuck if call.done()]
        if back:
            self.stuck = [call for call in self.stuck if call not in back]
            if any(call.scores is not None for call in back):  # not one that was told to stop
                self.breaker.hasten()

    def ready(self) -> bool:
        """Whether it is time for a trial; the caller begins it."""
        return len(self.stuck) < MOST_STUCK and self.breaker.trial()

    def begin(self, trial: _Call) -> None:
        """Run ``trial`` in a thread of its own."""
        self._trial = trial
        lane = _Lane()
        lane.calls.put(trial)
        lane.calls.put(None)

    def _hang(self, call: _Call) -> None:
        if isinstance(self.ranker, Interruptible):
            self.ranker.interrupt()
        self.stuck.append(call)
