"""Seconds and the most memory that a part of the work takes."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Self

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Meter:
    """``with Meter() as meter: …`` measures ``seconds`` and ``peak_mb``: MiB of the process at its peak meanwhile.

    Where the system cannot forget an earlier peak (all but Linux) it is the peak since the process started.
    """

    seconds = 0.0
    peak_mb = 0.0

    def __enter__(self) -> Self:
        self._forgot = False
        if _CLEAR.exists():
            try:
                _CLEAR.write_text("5")
                self._forgot = True
            except PermissionError:  # a container may forbid it: the peak since the start is said then
                self._forgot = False
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self.peak_mb = _peak_mb() if self._forgot else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _peak_mb() -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
