"""How wide requests may be: the pipeline watches its own latency and narrows when it nears the deadline."""

from __future__ import annotations

import math

BUSY = 0.5  # the mean share of the deadline that a request may take before widths shrink
LEAST_QUALITY = 0.1
RANK_MS = 3.0  # what assembling, ranking and answering are given before anything was measured
LIGHT_SHARE = 0.25  # of the candidates that the tier below the full one looks at

_SMOOTHING = 0.05  # a single slow request must not narrow the next ones
_NARROW, _WIDEN = 0.97, 1.01


class Pace:
    """A fixed pace: full width, and the time that ranking is given. Evaluation and training use it: it reads no clock."""

    quality = 1.0
    rank_ms = RANK_MS

    def took(self, ms: float, deadline_ms: float) -> None:
        """A request took ``ms`` of ``deadline_ms``."""

    def ranked(self, ms: float) -> None:
        """Assembling and ranking in full took ``ms``."""


class MeasuredPace(Pace):
    """``quality`` in [0.1, 1]: falls by 3% a request while the mean latency is above half of the deadline, and rises by 1%
    a request while it is below. ``rank_ms``: twice the mean time of full ranking, at least 1 ms.
    """

    def __init__(self) -> None:
        self.quality = 1.0
        self.rank_ms = RANK_MS
        self.load = 0.0
        self._rank_mean = RANK_MS / 2.0

    def took(self, ms: float, deadline_ms: float) -> None:
        if not (math.isfinite(deadline_ms) and deadline_ms > 0.0):
            return
        self.load += _SMOOTHING * (min(ms / deadline_ms, 2.0) - self.load)
        step = _NARROW if self.load > BUSY else _WIDEN
        self.quality = min(1.0, max(LEAST_QUALITY, self.quality * step))

    def ranked(self, ms: float) -> None:
        # a slow one is taken at most as three of the usual: one hiccup must not keep the next requests from ranking
        self._rank_mean += _SMOOTHING * (min(ms, 3.0 * self._rank_mean + 0.1) - self._rank_mean)
        self.rank_ms = max(1.0, 2.0 * self._rank_mean)
