"""Who runs the ranker: the caller itself, or one thread beside it with a deadline and a breaker.

The thread is for servers. A call that is not over in time is given up: the ranker is told to stop if it can be told, the
thread is left to itself and another one takes its place, so that a stalled model holds up nothing but itself. The breaker
then asks the ranker no more, and tries it again on the side: no request waits for the trial.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog

from headwater.ranking.ranker import Attention, Features, Interruptible, Ranker, RankerError, Scores

log = structlog.get_logger()

FIRST_PAUSE_S = 1.0  # how long a ranker that stalled is left alone
LONGEST_PAUSE_S = 4.0
MOST_STUCK = 4  # threads that may hang in one ranker before it is not even tried

_LONGEST_WAIT_S = 3600.0  # of a request without a deadline; a lock takes no more than some days


class StalledError(RankerError):
    """The ranker did not answer in time."""


class RestingError(RankerError):
    """The ranker stalled a moment ago and is not asked."""


class Scorer(Protocol):
    """Runs rankers. ``stalls`` counts the calls that were given up."""

    stalls: int

    def score(self, ranker: Ranker, rows: Features, attention: Attention | None, limit_ms: float) -> Scores:
        """The scores of ``rows``, within ``limit_ms``.

        Raises:
            StalledError: not in time; ``rows`` may still be read, so the caller must not write into them again.
            RestingError: the ranker was not asked.
            RankerError: the ranker failed.
        """
        ...


class DirectScorer:
    """Calls the ranker, however long it takes: evaluation and training, where every answer counts and nobody waits."""

    stalls = 0

    def score(self, ranker: Ranker, rows: Features, attention: Attention | None, limit_ms: float) -> Scores:  # noqa: ARG002
        return _scored(ranker, rows, attention)


class ThreadScorer:
    """One thread for all rankers, replaced when a call in it stalls. Belongs to one pipeline, the only one that calls it.

    ``clock`` is monotonic, in seconds; the breaker reads it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stalls = 0
        self._clock = clock
        self._lane = _Lane()
        self._breakers: list[_Breaker] = []

    def score(self, ranker: Ranker, rows: Features, attention: Attention | None, limit_ms: float) -> Scores:
        breaker = self._open_breaker(ranker)
        if breaker is not None:
            if breaker.ready():
                breaker.begin(
                    _Call(ranker, rows.copy(), attention, self._clock)
                )  # the caller goes on with its own rows
            raise RestingError("ranker rests: it stalled a moment ago")
        call = _Call(ranker, rows, attention, self._clock)
        self._lane.calls.put(call)
        if not call.over.acquire(timeout=min(max(limit_ms, 0.0) / 1e3, _LONGEST_WAIT_S)):
            self._give_up(call, limit_ms)
        return call.result()

    def close(self) -> None:
        """Let the thread end."""
        self._lane.calls.put(None)

    def _open_breaker(self, ranker: Ranker) -> _Breaker | None:
        """The breaker of ``ranker``, while it is open."""
        for breaker in self._breakers:
            if breaker.ranker is ranker:
                breaker.look()
                if breaker.is_open:
                    return breaker
                self._breakers.remove(breaker)
                log.info("ranker_back", after_s=round(self._clock() - breaker.since_s, 3))
                return None
        return None

    def _give_up(self, call: _Call, limit_ms: float) -> NoReturn:
        self.stalls += 1
        self._lane.calls.put(None)  # the thread ends if the call does
        self._lane = _Lane()
        # the breaker of a bundle that is no longer in service goes once nothing hangs in its ranker
        self._breakers = [other for other in self._breakers if other.stuck]
        self._breakers.append(_Breaker(call, limit_ms / 1e3, self._clock))
        log.error("ranker_stalled", limit_ms=round(limit_ms, 1))
        raise StalledError(f"ranker stalled: no answer in {limit_ms:.0f} ms")


def _scored(ranker: Ranker, rows: Features, attention: Attention | None) -> Scores:
    """What ``ranker`` says. It is somebody's model: whatever it raises costs its order, never the answer."""
    try:
        return ranker.score(rows, attention)
    except RankerError:
        raise
    except Exception as error:
        raise RankerError(f"{type(error).__name__}: {error}") from error


class _Call:
    """A call of a ranker. ``over`` is held until it is done; then either ``scores`` or ``error`` is there."""

    __slots__ = ("_clock", "attention", "began_s", "error", "over", "ranker", "rows", "scores", "took_s")

    def __init__(
        self, ranker: Ranker, rows: Features, attention: Attention | None, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self.ranker, self.rows, self.attention = ranker, rows, attention
        self.scores: Scores | None = None
        self.error: RankerError | None = None
        self._clock, self.began_s, self.took_s = clock, clock(), 0.0
        self.over = threading.Lock()
        self.over.acquire()

    def run(self) -> None:
        try:
            self.scores = _scored(self.ranker, self.rows, self.attention)
        except RankerError as error:  # the caller raises it
            self.error = error
        self.took_s = self._clock() - self.began_s
        self.over.release()

    def done(self) -> bool:
        return not self.over.locked()

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


class _Breaker:
    """Open from a stall until a trial on the side answers in the time that the stalled call was given.

    A trial comes after a pause, or at once when a stalled call came back with scores. At most ``MOST_STUCK`` threads
    hang in the ranker.
    """

    def __init__(self, stalled: _Call, limit_s: float, clock: Callable[[], float]) -> None:
        self.ranker = stalled.ranker
        self.is_open = True
        self.since_s = clock()
        self.stuck: list[_Call] = []
        self._clock, self._limit_s = clock, limit_s
        self._trial: _Call | None = None
        self._pause_s = FIRST_PAUSE_S / 2.0
        self._hang(stalled)

    def look(self) -> None:
        """Take note of what came back."""
        trial = self._trial
        if trial is not None:
            if trial.done():
                self._trial = None
                if trial.scores is not None and trial.took_s <= self._limit_s:
                    self.is_open = False
                else:
                    self._wait()
            elif self._clock() - trial.began_s > self._limit_s:
                self._trial = None
                self._hang(trial)
        back = [call for call in self.stuck if call.done()]
        if back:
            self.stuck = [call for call in self.stuck if call not in back]
            if any(call.scores is not None for call in back):  # not one that was told to stop
                self._next_s = self._clock()

    def ready(self) -> bool:
        """Whether it is time for a trial."""
        return self._trial is None and len(self.stuck) < MOST_STUCK and self._clock() >= self._next_s

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
        self._wait()

    def _wait(self) -> None:
        self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
        self._next_s = self._clock() + self._pause_s
