"""Room on the disk: the log stops before the last of it is gone.

A disk that is full to the last byte takes down whoever writes next, and those whose files are mapped into memory without a
word. So the writer refuses to record while less than a reserve is free: what serves goes on, and recording does by itself
once there is room again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from headwater.schema.errors import UnavailableError

MB = 1_000_000


class FullError(UnavailableError):
    """The disk is too full: nothing of the command was recorded. It can be repeated once there is room."""


def room_check(path: Path, least: int) -> Callable[[], FullError | None]:
    """What to call before recording: the error to answer with while the disk of ``path`` has less than ``least`` bytes free."""

    def check() -> FullError | None:
        disk = os.statvfs(path)
        free = disk.f_bavail * disk.f_frsize
        if free >= least:
            return None
        return FullError(
            f"The disk of the data directory is full: {free / MB:.1f} MB free, log.min_free_mb keeps {least / MB:g} MB. "
            "Nothing was recorded; free some space and try again"
        )

    return check


def unlimited() -> FullError | None:
    """There is always room (a log in memory)."""
    return None
