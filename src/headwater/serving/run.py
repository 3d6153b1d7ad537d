"""One request on its way: its deadline, its tier, and the trace of what every stage did."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from headwater.serving.stages import TIER_FULL, TIER_RETRIEVAL, UNTIL, Outcome


class Lap(NamedTuple):
    """What a stage did: how long it took, how many items it left (0: it is not about items), and what came of it."""

    ms: float
    width: int = 0
    outcome: Outcome = "ok"


class Deadline:
    """``ms`` from now on, by ``timer`` (seconds)."""

    __slots__ = ("_start", "_timer", "ms")

    def __init__(self, timer: Callable[[], float], ms: float) -> None:
        self.ms = ms
        self._timer, self._start = timer, timer()

    def spent_ms(self) -> float:
        """What is gone."""
        return 1e3 * (self._timer() - self._start)

    def left_ms(self) -> float:
        """What is left of the whole; negative when it is over."""
        return self.ms - self.spent_ms()

    def left_for_ms(self, stage: str) -> float:
        """What is left of the time by which ``stage`` must be over."""
        return UNTIL[stage] * self.ms - self.spent_ms()


class Run:
    """Deadline, tier, notes and trace of one request.

    ``drawn`` is the tier that the request walks on purpose (0: none); ``quality`` the share of the full widths. ``missed``: sources that
    were not asked for want of time ("skipped") or failed. ``whole``: nothing was left out so far, for want of time, width or health.
    """

    __slots__ = (
        "_ended_ms", "_outcome", "deadline", "drawn", "missed", "notes", "quality", "tier", "trace", "whole", "widths",
    )  # fmt: skip

    def __init__(self, deadline: Deadline, *, quality: float = 1.0, drawn: int = 0) -> None:
        self.deadline, self.quality, self.drawn = deadline, quality, drawn
        self.tier = TIER_FULL
        self.whole = quality >= 1.0
        self.notes: list[str] = []
        self.trace: dict[str, Lap] = {}
        self.widths: dict[str, int] = {}
        self.missed: dict[str, Outcome] = {}
        self._ended_ms = 0.0
        self._outcome: Outcome = "ok"
        if drawn:
            self.degrade(drawn, f"walks tier {drawn} on purpose (ladder.walk)")

    @property
    def as_ranked(self) -> bool:
        """Whether the list is made of what the sources offer now, and no worse than it has to be: none that was made before, no walk."""
        return self.tier <= TIER_RETRIEVAL and not self.drawn

    def mark(self, outcome: Outcome) -> None:
        """What the stage at hand came to, if not "ok"."""
        self._outcome = outcome
        self.whole &= outcome == "ok"

    def lap(self, stage: str, width: int = 0) -> None:
        """``stage`` is over."""
        now_ms = self.deadline.spent_ms()
        self.trace[stage] = Lap(now_ms - self._ended_ms, width, self._outcome)
        self._ended_ms, self._outcome = now_ms, "ok"

    def skip(self, stage: str) -> None:
        """``stage`` does not take place."""
        self.trace[stage] = Lap(0.0, 0, "skipped")

    def degrade(self, tier: int, why: str) -> None:
        """Step down to ``tier``, if the request is not below it already; say why."""
        self.tier = max(self.tier, tier)
        self.whole = False
        self.notes.append(why)

    def width(self, full: int, least: int) -> int:
        """``full`` under the quality factor, but not below ``least``."""
        return full if self.quality >= 1.0 else max(round(full * self.quality), min(least, full), 1)
