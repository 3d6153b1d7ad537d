"""How the monitor is: whether it looks, what fires, and what of the log it has yet to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater.console.past_figures import latest
from headwater.console.words import age
from headwater.monitoring.alerts import AlertState
from headwater.monitoring.behind import BEHIND, CAUGHT_UP_S
from headwater.monitoring.standing import Standing, is_late

_ABOUT = {"online": "what people do with lists", "drift": "drift, calibration and volumes"}


@dataclass(frozen=True, slots=True)
class Watching:
    """``firing`` None: no monitor has written anything. ``late``: the one that did has stopped looking. ``behind``: seconds of the log that are left
    to each watch that catches up.
    """

    firing: list[AlertState] | None
    late: bool
    behind: Mapping[str, float]

    @property
    def looks(self) -> bool:
        """Whether there is a monitor that looks."""
        return self.firing is not None and not self.late

    @property
    def catching_up(self) -> str:
        """What is left to read and what that means for alerts, in words; "": nothing is."""
        if not self.behind:
            return ""
        left = "; ".join(
            f"{age(1e3 * seconds)} of the log are left for {_ABOUT.get(watch, watch)}"
            for watch, seconds in sorted(self.behind.items())
        )
        return f"The monitor catches up: {left}. Until then alerts about that stay as they stand, neither firing anew nor over; all others are judged."


def watching(data: Path, standing: Standing, every_ms: int, now_ms: int) -> Watching:
    """How the monitor of ``data``, which looks every ``every_ms``, is at ``now_ms`` of the wall's clock; ``standing`` is what it wrote last."""
    late = is_late(standing, every_ms, now_ms)
    left = {} if late else {labels["watch"]: seconds for labels, _, seconds in latest(data, BEHIND)}
    return Watching(firing_of(standing), late, {name: left[name] for name in left if left[name] > CAUGHT_UP_S})


def firing_of(standing: Standing) -> list[AlertState] | None:
    """The alerts that are firing, the gravest and oldest first; None: no monitor has looked yet."""
    if not standing.time_ms:
        return None
    firing = [one for one in standing.states if one.state == "firing"]
    return sorted(firing, key=lambda one: (one.severity != "critical", one.since_ms))
