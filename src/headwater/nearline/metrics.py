"""What the fold process counts. It answers nobody, so its figures are shown by the workers that share a folder of metrics with it."""

from __future__ import annotations

from headwater.features.fold import FoldCounts
from headwater.prometheus import Instruments

_COMMIT_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)


class FoldMetrics(Instruments):
    """The metrics of one fold process."""

    def __init__(self) -> None:
        super().__init__()
        self._records = self.counter("headwater_fold_records", "Records of the log that were folded into state")
        self._skipped = self.counter("headwater_fold_skipped", "Events of a type that nobody defines", "type")
        self._commits = self.histogram("headwater_fold_commit_seconds", "Time to store what was folded", _COMMIT_S)
        self.idle_removed = self.counter("headwater_fold_idle_users_removed", "Rows of users who did not come any more")
        self._told: dict[str, int] = {}
        self._told_records = 0

    def committed(self, counts: FoldCounts, seconds: float) -> None:
        """A commit took ``seconds``; ``counts`` is what the fold has counted since it started."""
        self._commits.observe(seconds)
        self._records.inc(counts.records - self._told_records)
        self._told_records = counts.records
        for name, count in counts.skipped.items():
            if grown := count - self._told.get(name, 0):
                self._skipped.labels(name).inc(grown)
                self._told[name] = count
