"""What the writer process counts. It answers no scrapes, so its figures are shown by the workers that share a folder of metrics with it."""

from __future__ import annotations

from headwater.prometheus import Instruments

_WAIT_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


class WriterMetrics(Instruments):
    """The metrics of one writer process."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = self.histogram("headwater_writer_commit_seconds", "Time to make a group durable", _WAIT_S)
        self.waits = self.histogram(
            "headwater_writer_lag_seconds",
            "From a command's arrival to its being durable, the oldest of a group",
            _WAIT_S,
        )
        self.full = self.counter("headwater_writer_full", "Commands that were refused because the disk is full")
        self.offset = self.gauge("headwater_log_offset", "Offset of the newest durable record")
