"""The ranker's thread: what it returns, what a stall costs, and how the breaker lets a ranker back in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.ranking.deep import DEEP_FILE, DESCRIPTION_FILE, DeepRanker
from headwater.ranking.ranker import Attention, Features, Interruptible, RankerError, Scores, UnreachableError
from headwater.serving.scorer import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MOST_STUCK,
    REMOTE_FIRST_PAUSE_S,
    DirectScorer,
    RestingError,
    StalledError,
    ThreadScorer,
)
from tests.serving.endless import endless
from tests.serving.rankers import Stalling

PATIENCE_S = 60.0
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)
STALL_MS = 30.0
FINE_MS = 1e3 * PATIENCE_S


@dataclass
class Clock:
    """Stands until it is moved."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[object]]:
    with capture_logs():
        yield []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scorer(clock: Clock) -> Iterator[ThreadScorer]:
    made = ThreadScorer(clock)
    yield made
    made.close()


@pytest.fixture
def ranker() -> Iterator[Stalling]:
    made = Stalling(("a", "b"))
    yield made
    made.go.set()


@dataclass
class Raising:
    """Raises what it is told to."""

    error: Exception
    columns: tuple[str, ...] = ("a", "b")
    attends: bool = False
    threads: set[int] = field(default_factory=set)

    def score(self, features: Features, attention: Attention | None = None) -> Scores:  # noqa: ARG002
        self.threads.add(threading.get_ident())
        raise self.error

    def close(self) -> None:
        """Nothing is held."""


def until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_thread_gives_the_scores_of_a_direct_call(scorer: ThreadScorer, ranker: Stalling) -> None:
    for _ in range(3):
        wanted = DirectScorer().score(ranker, ROWS, None, 0.0)
        assert np.array_equal(scorer.score(ranker, ROWS, None, FINE_MS), wanted)
        assert np.array_equal(scorer.score(ranker, ROWS, None, float("inf")), wanted)
    assert scorer.stalls == 0


@pytest.mark.parametrize("threaded", [True, False])
def test_whatever_a_ranker_raises_is_an_error_of_the_ranker(scorer: ThreadScorer, threaded: bool) -> None:
    calls = scorer if threaded else DirectScorer()
    with pytest.raises(RankerError, match="no trees"):
        calls.score(Raising(RankerError("no trees")), ROWS, None, FINE_MS)
    odd = Raising(IndexError("17"))
    with pytest.raises(RankerError, match="IndexError: 17"):
        calls.score(odd, ROWS, None, FINE_MS)
    assert (threading.get_ident() in odd.threads) is not threaded
    with pytest.raises(RankerError, match="IndexError"):  # a failure is quick: the ranker is asked again
        calls.score(odd, ROWS, None, FINE_MS)


def test_a_stalled_ranker_is_left_alone_and_others_go_on(scorer: ThreadScorer, ranker: Stalling) -> None:
    ranker.go.clear()
    with pytest.raises(StalledError, match="no answer in 30 ms"):
        scorer.score(ranker, ROWS, None, STALL_MS)
    for _ in range(5):
        with pytest.raises(RestingError):
            scorer.score(ranker, ROWS, None, STALL_MS)
    assert (ranker.calls, scorer.stalls) == (1, 1)
    other = Stalling(("a", "b"))
    assert scorer.score(other, ROWS, None, FINE_MS).shape == (3,)


def test_a_trial_on_the_side_lets_it_back_in(scorer: ThreadScorer, ranker: Stalling, clock: Clock) -> None:
    ranker.interruptible = True  # so that the call that stalled says nothing about its health when it ends
    ranker.go.clear()
    with pytest.raises(StalledError):
        scorer.score(ranker, ROWS, None, STALL_MS)
    ranker.go.set()
    until(lambda: ranker.ended == 1)
    clock.now_s += 0.9 * FIRST_PAUSE_S
    with pytest.raises(RestingError):
        scorer.score(ranker, ROWS, None, STALL_MS)
    assert ranker.calls == 1, "it is left alone for the whole pause"
    clock.now_s += 0.2 * FIRST_PAUSE_S
    rows = ROWS.copy()
    with pytest.raises(RestingError):  # nobody waits for the trial
        scorer.score(ranker, rows, None, STALL_MS)
    rows[:] = np.nan  # nor does it look at the rows of the request any more
    until(lambda: ranker.ended == 2)
    until(lambda: ranker.ended == 2 and ranker.given is not None and np.array_equal(ranker.given, ROWS))
    answered = None
    end = time.monotonic() + PATIENCE_S
    while answered is None and time.monotonic() < end:
        try:
            answered = scorer.score(ranker, ROWS, None, FINE_MS)
        except RestingError:
            time.sleep(0.001)
    assert answered is not None
    assert ranker.calls == 3


def test_a_call_that_comes_back_with_scores_is_reason_to_try_at_once(
    scorer: ThreadScorer, ranker: Stalling, clock: Clock
) -> None:
    ranker.go.clear()
    with pytest.raises(StalledError):
        scorer.score(ranker, ROWS, None, STALL_MS)
    ranker.go.set()
    until(lambda: ranker.ended == 1)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:  # the clock stands: no pause is over
        try:
            scorer.score(ranker, ROWS, None, FINE_MS)
            break
        except RestingError:
            time.sleep(0.001)
    assert ranker.calls == 3


def test_only_so_many_threads_hang_in_a_ranker(scorer: ThreadScorer, ranker: Stalling, clock: Clock) -> None:
    ranker.go.clear()
    with pytest.raises(StalledError):
        scorer.score(ranker, ROWS, None, STALL_MS)
    for _ in range(3 * MOST_STUCK):
        clock.now_s += 2.0 * LONGEST_PAUSE_S
        with pytest.raises(RestingError):
            scorer.score(ranker, ROWS, None, STALL_MS)
    until(lambda: ranker.calls == MOST_STUCK)
    ranker.go.set()
    until(lambda: ranker.ended == MOST_STUCK)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            scorer.score(ranker, ROWS, None, FINE_MS)
            break
        except RestingError:
            time.sleep(0.001)
    assert ranker.calls == MOST_STUCK + 2, "a trial, and the request after it"


def test_a_deep_ranker_that_stalls_is_told_to_stop_and_its_thread_ends(scorer: ThreadScorer) -> None:
    files = endless(("a", "b"), "a")
    ranker = DeepRanker(files[DEEP_FILE], files[DESCRIPTION_FILE], ("a", "b"))
    assert isinstance(ranker, Interruptible)
    assert scorer.score(ranker, np.zeros((4, 2), np.float32), None, FINE_MS).tolist() == [1.0] * 4
    before = {thread for thread in threading.enumerate() if thread.name == "ranker"}
    with pytest.raises(StalledError):
        scorer.score(ranker, np.full((4, 2), 1e15, np.float32), None, 50.0)
    until(lambda: not any(thread.is_alive() for thread in before))
    assert DirectScorer().score(ranker, np.zeros((4, 2), np.float32), None, 0.0).tolist() == [1.0] * 4


@dataclass
class Elsewhere:
    """A ranker that waits for somebody else: it is not there, or answers; knows the limits that it was given."""

    away: bool = False
    columns: tuple[str, ...] = ("a", "b")
    attends: bool = False
    limits_s: list[float] = field(default_factory=list)

    def score(self, features: Features, attention: Attention | None = None) -> Scores:
        return self.score_within(features, attention, float("inf"))

    def score_within(self, features: Features, attention: Attention | None, limit_s: float) -> Scores:  # noqa: ARG002
        self.limits_s.append(limit_s)
        if self.away:
            raise UnreachableError("nobody is there")
        return features[:, 0].copy()

    def close(self) -> None:
        """Nothing is held."""


def test_a_ranker_that_cannot_be_reached_rests_until_a_trial_reaches_it(scorer: ThreadScorer, clock: Clock) -> None:
    ranker = Elsewhere()
    assert scorer.score(ranker, ROWS, None, FINE_MS).tolist() == ROWS[:, 0].tolist()
    ranker.away = True
    with pytest.raises(UnreachableError, match="nobody is there"):
        scorer.score(ranker, ROWS, None, FINE_MS / 2)
    for _ in range(5):
        with pytest.raises(RestingError, match="ranker rests: nobody is there"):
            scorer.score(ranker, ROWS, None, FINE_MS)
    assert (ranker.limits_s, scorer.stalls, scorer.resting) == ([PATIENCE_S, PATIENCE_S / 2], 0, 1)
    ranker.away = False
    clock.now_s += 1.1 * REMOTE_FIRST_PAUSE_S
    with pytest.raises(RestingError):  # nobody waits for the trial
        scorer.score(ranker, ROWS, None, FINE_MS)
    until(lambda: len(ranker.limits_s) == 3)
    assert ranker.limits_s[-1] == PATIENCE_S, "a request that had little time must not judge those that have more"
    found: list[Scores] = []
    end = time.monotonic() + PATIENCE_S
    while not found and time.monotonic() < end:
        try:
            found.append(scorer.score(ranker, ROWS, None, FINE_MS))
        except RestingError:
            time.sleep(0.001)
    assert found
    assert scorer.resting == 0
