"""How every process defines what it counts, and shows it to Prometheus. Each metric stands in ``docs/metrics.md`` (tested).

With ``PROMETHEUS_MULTIPROC_DIR`` set (the supervisor does, before prometheus_client is imported) all processes of a machine
share their figures through files there, and any of them shows the sum. Without it a process shows its own.

A change of such a figure costs a microsecond, and an answer changes forty of them. So what is counted with each answer
is gathered in plain numbers (a tenth of a microsecond) and brought over in one go, once a second and before it is shown.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
FLUSH_S = 1.0  # what was gathered is brought over this often

Kind = Literal["counter", "gauge", "histogram"]
Mode = Literal["livemax", "livemin", "livesum", "livemostrecent"]
Key = str | tuple[str, ...]

K = TypeVar("K")
M = TypeVar("M")


class Labelled(dict[K, M]):
    """Metrics by their labels, looked up once: ``labels()`` takes a lock each time, and a request has a dozen."""

    def __init__(self, labels: Callable[[K], M]) -> None:
        super().__init__()
        self._labels = labels

    def __missing__(self, key: K) -> M:
        found = self[key] = self._labels(key)
        return found


class Described(NamedTuple):
    """What a metric is, as its page says it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    says: str


class Gathered(Protocol):
    """What waits to be brought over."""

    def flush(self) -> None:
        """Bring it over."""
        ...


class Tally:
    """Observations of one histogram and label set, gathered."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        self._child, self._bounds = child, (*bounds, float("inf"))
        self._counts, self._sum = [0] * len(self._bounds), 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self._sum += value
        self._counts[bisect_left(self._bounds, value)] += 1

    def flush(self) -> None:
        """Bring it over. The histogram's own way is one call an observation, so this reaches for its parts."""
        for bucket, count in zip(self._child._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        if any(self._counts):
            self._child._sum.inc(self._sum)
            self._counts, self._sum = [0] * len(self._bounds), 0.0


class GatheredHistogram(Labelled[Key, Tally]):
    """A histogram whose observations are gathered: ``histogram["rank"].observe(0.001)``; several labels are a tuple."""

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        super().__init__(lambda key: Tally(_child(histogram, key), bounds))

    def flush(self) -> None:
        """Bring it over."""
        for tally in self.values():
            tally.flush()


class GatheredCounter(defaultdict[Key, float]):
    """A counter whose increments are gathered: ``counter["rank"] += 20``; several labels are a tuple."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(float)
        self._children: Labelled[Key, Counter] = Labelled(lambda key: _child(counter, key))

    def flush(self) -> None:
        """Bring it over."""
        for key, count in self.items():
            if count:
                self._children[key].inc(count)
                self[key] = 0.0


_C = TypeVar("_C", Counter, Histogram)


def _child(metric: _C, key: Key) -> _C:
    return metric.labels(key) if isinstance(key, str) else metric.labels(*key)


class Instruments:
    """Defines metrics in a registry of their own. ``described`` has all of them, in their order.

    A gauge's ``mode`` says what is shown of several processes: the highest, the lowest, the sum of those that live, or what was set last.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.described: list[Described] = []
        self._gathered: list[Gathered] = []

    def counter(self, name: str, says: str, *labels: str) -> Counter:
        """A counter; it is shown as ``name_total``."""
        self._describe(name, "counter", labels, says)
        return Counter(name, says, labels, registry=self.registry)

    def gauge(self, name: str, says: str, *labels: str, mode: Mode = "livemax") -> Gauge:
        """A value that goes up and down."""
        self._describe(name, "gauge", labels, says)
        return Gauge(name, says, labels, registry=self.registry, multiprocess_mode=mode)

    def histogram(self, name: str, says: str, bounds: Sequence[float], *labels: str) -> Histogram:
        """A distribution, counted up to each of ``bounds``."""
        self._describe(name, "histogram", labels, says)
        return Histogram(name, says, labels, buckets=bounds, registry=self.registry)

    def gathered_counter(self, name: str, says: str, *labels: str) -> GatheredCounter:
        """A counter that changes with each answer."""
        made = GatheredCounter(self.counter(name, says, *labels))
        self._gathered.append(made)
        return made

    def gathered_histogram(self, name: str, says: str, bounds: Sequence[float], *labels: str) -> GatheredHistogram:
        """A distribution that grows with each answer."""
        made = GatheredHistogram(self.histogram(name, says, bounds, *labels), bounds)
        self._gathered.append(made)
        return made

    def gather_first(self, waiting: Gathered) -> None:
        """Have ``waiting`` brought over before all else, because it ends in what is gathered here."""
        self._gathered.insert(0, waiting)

    def flush(self) -> None:
        """Bring over what was gathered."""
        for gathered in self._gathered:
            gathered.flush()

    def expose(self) -> bytes:
        """The text that Prometheus scrapes: of all processes that share their figures, else of this one."""
        self.flush()
        return self.shown()

    def shown(self) -> bytes:
        """The same without what still waits to be brought over, which only the thread that counts may do."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        return shown_of(Path(folder)) if folder else generate_latest(self.registry)

    def _describe(self, name: str, kind: Kind, labels: tuple[str, ...], says: str) -> None:
        self.described.append(Described(name, kind, labels, says))


def shown_of(folder: Path) -> bytes:
    """The text that Prometheus scrapes, of all processes that share their figures in ``folder``."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class _Listing(Instruments):
    """Describes and makes nothing."""

    def counter(self, name: str, says: str, *labels: str) -> Counter:
        self._describe(name, "counter", labels, says)
        return cast(Counter, None)

    def gauge(self, name: str, says: str, *labels: str, mode: Mode = "livemax") -> Gauge:  # noqa: ARG002
        self._describe(name, "gauge", labels, says)
        return cast(Gauge, None)

    def histogram(self, name: str, says: str, bounds: Sequence[float], *labels: str) -> Histogram:  # noqa: ARG002
        self._describe(name, "histogram", labels, says)
        return cast(Histogram, None)


def described_by(*kinds: type[Instruments]) -> list[Described]:
    """What ``kinds`` define, without defining it: a gauge that is made and never set is 0 in the shared files, which is the lowest
    of all processes.
    """
    return [one for kind in kinds for one in type(kind.__name__, (_Listing, kind), {})().described]
