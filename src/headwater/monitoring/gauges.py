"""Samples of watches as gauges, so that an outer Prometheus sees what the monitor sees."""

from __future__ import annotations

from collections.abc import Iterable
from math import nan

from prometheus_client import Gauge

from headwater.monitoring.samples import Sample
from headwater.prometheus import Described, Instruments, Labelled


class Gauges(Instruments):
    """A gauge for each of ``metrics`` (tuples ``METRICS`` of the modules of watches).

    What was not found any more (a variant that ended, an item that is gone) shows as not a number: the files that processes share
    cannot take a series back, and no comparison holds for it.
    """

    def __init__(self, metrics: Iterable[Described]) -> None:
        super().__init__()
        self._gauges = {one.name: self.gauge(one.name, one.says, *one.labels, mode="livemostrecent") for one in metrics}
        self._series: Labelled[tuple[str, tuple[tuple[str, str], ...]], Gauge] = Labelled(self._child)
        self._shown: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def show(self, samples: Iterable[Sample]) -> None:
        """Set the gauges to ``samples``, which are all that a round found; those of other names are somebody else's and left out."""
        found = {(one.name, one.labels): one.value for one in samples if one.name in self._gauges}
        for key in self._shown - found.keys():
            self._series[key].set(nan)
        for key, value in found.items():
            self._series[key].set(value)
        self._shown = set(found)

    def _child(self, key: tuple[str, tuple[tuple[str, str], ...]]) -> Gauge:
        gauge = self._gauges[key[0]]
        return gauge.labels(**dict(key[1])) if key[1] else gauge
