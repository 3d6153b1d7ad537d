"""Sessions that begin, and whether their user has been here before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.experiments.metrics import SESSION_GAP_MS
from headwater.monitoring.windows import SlidingSums

MOST_USERS = 200_000
Int64 = npt.NDArray[np.int64]


class Sessions:
    """Counts sessions over a window: runs of a user's events without a silence of 30 minutes, as experiments count them.

    The ``most`` users who came last are remembered. One who is not is taken for somebody who is here for the first time, so the share of
    returning ones is right once the monitor has run for as long as people stay away.
    """

    def __init__(self, window_ms: int, most: int = MOST_USERS) -> None:
        self._most = most
        self._last: dict[int, int] = {}
        self._begun: SlidingSums[str] = SlidingSums(2, window_ms)

    def see(self, users: Int64, times_ms: Int64) -> None:
        """Events of ``users`` int64[n] at ``times_ms`` int64[n], in the order of the log."""
        last = self._last
        for user, at_ms in zip(users.tolist(), times_ms.tolist(), strict=True):
            before = last.pop(user, None)
            last[user] = at_ms if before is None else max(before, at_ms)
            if before is None or at_ms - before > SESSION_GAP_MS:
                self._begun.add("", at_ms, np.array([1.0, before is not None]))
        while len(last) > self._most:
            del last[next(iter(last))]

    def returning(self, now_ms: int) -> tuple[float, float] | None:
        """(sessions that began in the window, the share of them whose user was here before); None: none began."""
        sums = self._begun.read(now_ms).get("")
        return None if sums is None else (float(sums[0]), float(sums[1] / sums[0]))
