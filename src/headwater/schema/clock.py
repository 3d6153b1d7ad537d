"""The wall's clock, for what is dated by it: keys, audit entries, bundles. The log's clock may stand in the past."""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
