"""Limits of one API process: requests of a key, and events of a user. Each process counts on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headwater.schema.events import Event

HOUR_S = 3600
MOST_COUNTED = 500_000  # (user, type) pairs that are counted at once, about 100 bytes each

Check = Callable[[Event], tuple[str, str] | None]


class Bucket:
    """A token bucket as one number: the time at which it is full again."""

    __slots__ = ("full_s",)

    def __init__(self) -> None:
        self.full_s = 0.0


class Rate:
    """``per_s`` requests in the long run and ``burst`` at once, from a bucket that is full at first.

    With the generic cell rate algorithm: tokens that are missing are time until the bucket is full, so taking one adds
    ``1 / per_s`` and nothing has to be filled up in between.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self.burst = burst
        self._step_s = 1.0 / per_s
        self._room_s = burst * self._step_s

    def take(self, bucket: Bucket, now_s: float, tokens: int = 1) -> float:
        """Take ``tokens`` at ``now_s``: 0 when there were as many, else seconds until there are; not more than the burst."""
        full_s = max(bucket.full_s, now_s) + tokens * self._step_s
        late_s = full_s - now_s - self._room_s
        if late_s > 1e-9:  # less is rounding
            return late_s
        bucket.full_s = full_s
        return 0.0


class EventCaps:
    """At most ``caps[type]`` events of a type that count of one user in an hour, so that nobody moves rankings alone.

    Hours are those of ``timer`` (seconds), and counts start anew with each. More than ``most`` pairs of user and type
    are not counted at once: the one that came first is forgotten, and may send as many again.
    """

    def __init__(self, caps: Mapping[str, int], *, timer: Callable[[], float], most: int = MOST_COUNTED) -> None:
        self._caps = dict(caps)
        self._timer = timer
        self._most = most
        self._hour = -1
        self._counts: dict[int, int] = {}  # by hash of (type, user): no raw id is kept, and a pair costs less memory

    def take(self, event: Event) -> tuple[str, str] | None:
        """Count ``event``; (field, reason) when it is above the cap."""
        cap = self._caps.get(event.type)
        if cap is None:
            return None
        now_s = self._timer()
        hour = int(now_s // HOUR_S)
        if hour != self._hour:
            self._hour = hour
            self._counts.clear()
        who = hash((event.type, event.user))
        count = self._counts.get(who, 0)
        if count >= cap:
            left = int(HOUR_S - now_s % HOUR_S) // 60 + 1
            return (
                "user",
                f'Above the cap of {cap} "{event.type}" events of a user an hour; it starts anew in {left} min',
            )
        if count == 0 and len(self._counts) >= self._most:
            del self._counts[next(iter(self._counts))]
        self._counts[who] = count + 1
        return None


def first_of(one: Check, other: Check) -> Check:
    """What ``one`` finds wrong, else what ``other`` does; ``other`` is not asked about what ``one`` refuses."""
    return lambda event: one(event) or other(event)


def capped(check: Check, caps: EventCaps, refused: Callable[[str], None]) -> Check:
    """``check``, then the caps; ``refused`` is told the type of each event that is above one.

    It counts what it is asked about, so it is to be asked once about each event.
    """

    def checked(event: Event) -> tuple[str, str] | None:
        wrong = check(event)
        if wrong is None and (wrong := caps.take(event)) is not None:
            refused(event.type)
        return wrong

    return checked
