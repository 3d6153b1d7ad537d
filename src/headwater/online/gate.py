"""The gate: how many requests a worker works on, which ones wait for how long, and which are turned away at once.

A recommendation is computed in the worker's one event loop. Let in as they come, a hundred of them would be computed
in one turn of the loop, and the next arrival would not even be looked at until they are done. So requests wait *here*,
where they can be counted, and :meth:`Gate.turn` lets one go each turn. What an arrival would wait is then known::

    expected wait = (requests ahead of it + 1) x (measured time between two releases)

and it is turned away at once when that is more than its priority's share of the target, however fast or slow the machine
is. Nothing is remembered but two measured means, so the gate opens by itself when load falls.

``limit`` bounds how many of those let in are not finished, for work that is done beside the loop: by AIMD on the time
that they take (a tenth less where the mean is above the target, one more where the limit was reached and it is below).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from headwater.schema.limits import Overload

FIRST_GUESS_S = 0.002  # until something was measured
LEAST_GUESS_S = 0.0001
PATIENCE = 2.0
"""Times the target: who was let into the queue waits so long at most. Its time at the gate is part of its deadline, so one that comes late
gets a cheaper list: better than to be turned away after having waited."""
_SMOOTHING = 0.1  # weight of the newest of the times between two releases
_BACK_OFF = 0.9
_WINDOW = 20  # finished requests that decide together about the limit


class Priority(IntEnum):
    """Who goes first; lower numbers do."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Waiter:
    """A request in the queue. ``tell`` is called once: with True when it may go, with False when its time is over."""

    __slots__ = ("_tell", "answered", "until")

    def __init__(self, until: float, tell: Callable[[bool], None]) -> None:
        self.until = until
        self.answered = False
        self._tell = tell

    def answer(self, go: bool) -> None:
        self.answered = True
        self._tell(go)


class Gate:
    """Queue and limit of one kind of request; times in seconds of ``clock``, which never runs backwards.

    ``target_s``: no request is to wait longer; one that does all the same is told so at twice that. ``adapt`` False: the limit stays at ``overload.max_concurrency``.
    """

    def __init__(self, overload: Overload, target_s: float, *, clock: Callable[[], float], adapt: bool) -> None:
        self.target_s = target_s
        self.between_s = min(FIRST_GUESS_S, target_s)
        self.running = 0
        self.limit = overload.max_concurrency
        self._least, self._most = overload.min_concurrency, overload.max_concurrency
        shares = (overload.high_share, overload.normal_share, overload.low_share)
        self._may_wait_s = [share * target_s for share in shares]
        self._queues: tuple[deque[Waiter], ...] = (deque(), deque(), deque())
        self._clock = clock
        self._adapt = adapt
        self._released_at: float | None = None  # of the last release after which somebody still waited
        self._turn_taken = False
        self._held_s, self._finished, self._was_full = 0.0, 0, False

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queues[0]) + len(self._queues[1]) + len(self._queues[2])

    def full_for(self, priority: Priority) -> bool:
        """Whether a request of ``priority`` that comes now is to be turned away.

        Never when nobody is ahead of it: so there is always somebody to measure by.
        """
        ahead = 0
        for queue in self._queues[: priority + 1]:
            ahead += len(queue)
        return ahead > 0 and (ahead + 1) * self.between_s > self._may_wait_s[priority]

    def goes_at_once(self) -> bool:
        """Let a request in that finds an idle worker; False: it has to :meth:`wait`."""
        if self._turn_taken or self.running >= self.limit or self.waiting:
            self._was_full |= self.running >= self.limit
            return False
        self._turn_taken = True
        self.running += 1
        return True

    def wait(self, priority: Priority, tell: Callable[[bool], None]) -> Waiter:
        """Put a request into the queue."""
        waiter = Waiter(self._clock() + PATIENCE * self.target_s, tell)
        self._queues[priority].append(waiter)
        return waiter

    def turn(self) -> bool:
        """A turn of the loop begins: let the next one go; whether another turn has to be looked at."""
        self._turn_taken = False
        self._was_full |= self.running >= self.limit
        if self.running < self.limit and (waiter := self._next()) is not None:
            self._turn_taken = True
            self.running += 1
            waiter.answer(go=True)
        return self._turn_taken

    def expire(self, waiter: Waiter) -> None:
        """The time of ``waiter`` is over; nothing happens when it was let in before, or is the only one and comes next."""
        alone = self.waiting == 1 and self.running < self.limit  # the process was held up, not the queue long
        if not waiter.answered and not alone:
            waiter.answer(go=False)
            for queue in self._queues:
                while queue and queue[0].answered:
                    queue.popleft()

    def finish(self, held_s: float) -> None:
        """A request that was let in has ended; it kept its place for ``held_s``."""
        self.running -= 1
        if not self._adapt:
            return
        self._held_s += held_s
        self._finished += 1
        if self._finished < _WINDOW:
            return
        if self._held_s > self._finished * self.target_s:
            self.limit = max(self._least, int(self.limit * _BACK_OFF))
        elif self._was_full:
            self.limit = min(self._most, self.limit + 1)
        self._held_s, self._finished, self._was_full = 0.0, 0, False

    def _next(self) -> Waiter | None:
        now = self._clock()
        for queue in self._queues:
            while queue:
                waiter = queue.popleft()
                if waiter.answered:
                    continue
                if waiter.until <= now and self.waiting:  # somebody fresher can go instead
                    waiter.answer(go=False)
                    continue
                self._measure(now)
                return waiter
        self._released_at = None
        return None

    def _measure(self, now: float) -> None:
        """Note the time since the last release, at most as three of the usual: one hiccup must not turn the next ones away."""
        if self._released_at is not None:
            passed = min(now - self._released_at, 3.0 * self.between_s + LEAST_GUESS_S, self.target_s)
            self.between_s += _SMOOTHING * (passed - self.between_s)
        self._released_at = now
