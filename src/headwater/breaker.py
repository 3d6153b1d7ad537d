"""How a part that can fail is asked: a breaker, a budget for second tries, pauses with jitter.

Every remote part has these round it: the state in Redis, the writer behind its socket, a ranker behind the Open Inference
Protocol. The timeout is the caller's, for it knows how much time is left.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

Draw = Callable[[], float]
"""A number from 0 to 1."""

JITTER = 0.2  # a pause is up to so much shorter than its nominal length: many that failed together come back one by one


def jittered(pause_s: float, draw: Draw = random.random) -> float:
    """``pause_s``, less up to a fifth of it."""
    return pause_s * (1.0 - JITTER * draw())


class Breaker:
    """Closed until the part fails; then open, and the part is left alone for a pause; then one trial decides.

    A trial that succeeds closes it, one that fails makes the next pause twice as long, up to ``longest_s``. ``clock`` is
    monotonic, in seconds. Threads may share it.
    """

    def __init__(
        self, first_s: float, longest_s: float, *, clock: Callable[[], float] = time.monotonic,
        draw: Draw = random.random,
    ) -> None:  # fmt: skip
        self.is_open = False
        self.opened = 0  # how often it went from closed to open
        self.since_s = 0.0
        self._first_s, self._longest_s = first_s, longest_s
        self._clock, self._draw = clock, draw
        self._pause_s = first_s
        self._next_s = 0.0
        self._trying = False
        self._lock = threading.Lock()

    def trial(self) -> bool:
        """Whether to try the part now, while it is open: True for one caller a pause, who says how it went."""
        with self._lock:
            if self._trying or not self.is_open or self._clock() < self._next_s:
                return False
            self._trying = True
            return True

    def failed(self) -> None:
        """A call failed, or the trial did. Failures of calls that began before it opened change nothing."""
        with self._lock:
            if self.is_open and not self._trying:
                return
            if not self.is_open:
                self.is_open, self.since_s, self._pause_s = True, self._clock(), self._first_s
                self.opened += 1
            else:
                self._pause_s = min(2.0 * self._pause_s, self._longest_s)
            self._trying = False
            self._next_s = self._clock() + jittered(self._pause_s, self._draw)

    def succeeded(self) -> None:
        """The trial succeeded (or a call that began before it opened): everybody may ask again."""
        with self._lock:
            self.is_open = self._trying = False

    def hasten(self) -> None:
        """End the pause: there is reason to think that the part is well."""
        with self._lock:
            self._next_s = self._clock()


class RetryBudget:
    """Second tries are at most ``share`` of the calls so far, and at most ``most`` at once.

    A part that fails as a whole thus gets ``1 + share`` times its calls, not a multiple. ``calls`` and ``retries`` count.
    """

    def __init__(self, share: float = 0.1, most: float = 10.0) -> None:
        self.calls = self.retries = 0
        self._share, self._most, self._left = share, most, 0.0
        self._lock = threading.Lock()

    def call(self) -> None:
        """A call is made."""
        with self._lock:
            self.calls += 1
            self._left = min(self._left + self._share, self._most)

    def retry(self) -> bool:
        """Whether one may be made again; counted if so."""
        with self._lock:
            if self._left < 1.0 - 1e-9:  # ten tenths are a little less than one
                return False
            self._left -= 1.0
            self.retries += 1
            return True


@runtime_checkable
class Remote(Protocol):
    """A part behind a connection: what is counted of it."""

    @property
    def breaker(self) -> Breaker: ...
    @property
    def budget(self) -> RetryBudget: ...
