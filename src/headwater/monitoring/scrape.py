"""Prometheus figures of all processes of this machine, read from their shared files: no HTTP, no key, no worker's time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from prometheus_client.multiprocess import MultiProcessCollector

from headwater.monitoring.samples import Sample


class Scrape:
    """A watch over the multi-process files in those of ``folders()`` that belong to running processes.

    ``found_elsewhere``: metrics that other watches find. The monitor shows them in a file of its own; read from there, a figure that
    its watch does not find any more would stay for ever.
    """

    name = "prometheus"

    def __init__(self, folders: Callable[[], Sequence[Path]], found_elsewhere: Collection[str] = frozenset()) -> None:
        self._folders, self._found_elsewhere = folders, found_elsewhere

    def look(self, now_ms: int) -> Iterator[Sample]:  # noqa: ARG002  (they are as of now)
        """Every sample of every metric but those found elsewhere."""
        files = [str(path) for folder in self._folders() for path in folder.glob("*.db")]
        metrics = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        for metric in metrics:
            if metric.name in self._found_elsewhere:
                continue
            for sample in metric.samples:
                yield Sample(sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
