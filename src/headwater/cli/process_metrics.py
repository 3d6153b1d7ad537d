"""What is known of every process below a supervisor, whatever it does."""

from __future__ import annotations

import time

from headwater.online.roles import Part
from headwater.prometheus import Instruments


class ProcessMetrics(Instruments):
    """The metrics that each process has. One that starts again and again shows in a start time that changes."""

    def __init__(self) -> None:
        super().__init__()
        self._started = self.gauge(
            "headwater_process_start_time_seconds", "When the newest process of a part started, Unix time", "part"
        )

    def started(self, part: Part) -> None:
        """This process does ``part`` from now on."""
        self._started.labels(part.value).set(time.time())
