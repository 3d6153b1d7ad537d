"""What the lower tiers cost: lists that walked a tier by lot, against those that did not, by what people did with them.

A list is *taken up* when its user has a positive event on one of its items within a window after it was made. The lot is drawn
from the request id, so the lists of each tier are a random sample of the requests, and the difference is the tier's doing.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.metrics import mean_interval
from headwater.evaluation.uptake import READ, Uptake, positive_types, served_in
from headwater.log.protocol import EventLog
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError


class Walked(Struct, frozen=True, kw_only=True):
    """The lists that walked one tier; ``walked`` 0 are those that walked none. ``rate`` is the share that was taken up, with a
    95% interval that takes users as what was sampled. ``served``: how many came out of which tier in the end.
    """

    walked: int
    lists: int
    users: int
    taken: int
    rate: float
    ci95: tuple[float, float]
    served: dict[str, int]


class LadderReport(Struct, frozen=True, kw_only=True):
    """``strangers``: lists without a user, of which nobody can say whether they were taken up."""

    window_ms: int
    strangers: int
    tiers: list[Walked]


def measure_ladder(event_log: EventLog, config: Config, *, window_ms: int, since: int = 1) -> LadderReport:
    """Compare the served lists of the log from offset ``since`` on.

    Raises:
        HeadwaterError: there is no list of a known user.
        CorruptLogError: a served list cannot be read.
    """
    uptake = Uptake(positive_types(event_log, config))
    lists: list[tuple[int, int, int, int, tuple[int, ...]]] = []  # user, walked, tier, when, items
    seen: set[str] = set()
    strangers = 0
    offset = max(since, event_log.first_offset, 1) - 1
    while (block := event_log.read(offset, READ)) is not None:
        uptake.add(block)
        for user, served in served_in(block, seen):
            if user == 0:
                strangers += 1
                continue
            lists.append((user, served.walked, served.tier, served.address.now_ms, tuple(served.items)))
        offset = block.last_offset
    if not lists:
        raise HeadwaterError(
            "the log holds no served list of a known user: serve some (with serving.log_served), then ask again"
        )
    taken = np.array(
        [any(uptake.within(user, item, at, window_ms) for item in items) for user, _, _, at, items in lists]
    )
    return LadderReport(window_ms=window_ms, strangers=strangers, tiers=_by_walk(lists, taken))


def _by_walk(
    lists: list[tuple[int, int, int, int, tuple[int, ...]]], taken: npt.NDArray[np.bool_]
) -> list[Walked]:  # fmt: skip
    users, walked = (np.array([line[column] for line in lists], np.int64) for column in (0, 1))
    made = []
    for tier in np.unique(walked).tolist():
        here = np.flatnonzero(walked == tier)
        rate, interval = mean_interval(taken[here].astype(np.float64), users[here])
        made.append(
            Walked(
                walked=tier, lists=len(here), users=len(np.unique(users[here])), taken=int(taken[here].sum()), rate=rate,
                ci95=interval, served={str(t): n for t, n in sorted(Counter(lists[i][2] for i in here.tolist()).items())},
            )
        )  # fmt: skip
    return made
