"""Sessions that begin, and whether their user has been here before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.experiments.metrics import SESSION_GAP_MS
from headwater.monitoring.windows import SlidingSums

MOST_USERS = 200_000
Int64 = npt.NDArray[np.int64]
By = tuple[str, str]
"""What sessions are told apart by ("all", "variant", "bundle", "segment"), and the group."""
ALL: By = ("all", "")


class Begun(NamedTuple):
    """A session that began with an event of ``user`` at ``at_ms``; ``returning``: they were here before."""

    user: int
    at_ms: int
    returning: bool


class Sessions:
    """Counts sessions over a window: runs of a user's events without a silence of 30 minutes, as experiments count them.

    The ``most`` users who came last are remembered. One who is not is taken for somebody who is here for the first time, so the share of
    returning ones is right once the monitor has run for as long as people stay away.
    """

    def __init__(self, window_ms: int, most: int = MOST_USERS) -> None:
        self._most = most
        self._last: dict[int, int] = {}
        self._begun: SlidingSums[By] = SlidingSums(2, window_ms)

    def see(self, users: Int64, times_ms: Int64) -> list[Begun]:
        """Events of ``users`` int64[n] at ``times_ms`` int64[n], in the order of the log; returns the sessions that began with one of them."""
        last, begun = self._last, []
        for user, at_ms in zip(users.tolist(), times_ms.tolist(), strict=True):
            before = last.pop(user, None)
            last[user] = at_ms if before is None else max(before, at_ms)
            if before is None or at_ms - before > SESSION_GAP_MS:
                begun.append(Begun(user, at_ms, before is not None))
        while len(last) > self._most:
            del last[next(iter(last))]
        for one in begun:
            self.count(one, ALL)
        return begun

    def count(self, one: Begun, by: By) -> None:
        """Count a session for a group too."""
        self._begun.add(by, one.at_ms, np.array([1.0, one.returning]))

    def returning(self, now_ms: int) -> dict[By, tuple[float, float]]:
        """By group (sessions that began in the window, the share of them whose user was here before); those of which none began are not there."""
        return {by: (float(sums[0]), float(sums[1] / sums[0])) for by, sums in self._begun.read(now_ms).items()}
