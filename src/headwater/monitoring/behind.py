"""How far a watch that follows the log is behind its end, and what holds until it has caught up.

The first monitor of a site, or one that was away, has days of log to read beside those who serve. Such a watch reads a piece at a look
(:mod:`headwater.monitoring.paced` rests in between), and until it is near the end it says how far it is and nothing else: what it knows is of
then, and alerts are about now.
"""

from __future__ import annotations

from collections.abc import Iterable

from headwater.log.protocol import EventLog
from headwater.monitoring.samples import Sample, sample
from headwater.prometheus import Described

PIECE_S = 0.25  # of reading in a look
CAUGHT_UP_S = 60.0
BEHIND = "headwater_monitor_behind_seconds"
METRICS = (
    Described(
        BEHIND, "gauge", ("watch",), "Log that a watch has yet to read; above 60 s its other figures wait for it"
    ),
)


def behind_sample(watch: str, log: EventLog, offset: int, reached_ms: int) -> Sample:
    """What is left of ``log`` for ``watch``, in seconds of the log, when it has read up to ``offset``, which is of ``reached_ms``."""
    left_ms = max(log.last_received_ms - reached_ms, 0) if offset < log.last_offset else 0
    return sample(BEHIND, left_ms / 1e3, watch=watch)


def is_behind(one: Sample) -> bool:
    """Whether ``one`` says of its watch that it has not caught up."""
    return one.name == BEHIND and one.value > CAUGHT_UP_S


def watches_behind(samples: Iterable[Sample]) -> set[str]:
    """The watches that have not caught up."""
    return {dict(one.labels)["watch"] for one in samples if is_behind(one)}
