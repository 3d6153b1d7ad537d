"""A worker's caches: made as ``[cache]`` says, told what changed, renewed between two requests, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from headwater.features.user_rows import UserRows
from headwater.online.metrics import Metrics
from headwater.retrieval.index import Ranked
from headwater.retrieval.kept import KeptLists
from headwater.schema.caches import Cache
from headwater.schema.durations import parse_delay, parse_duration
from headwater.schema.feed import Changes, Position
from headwater.serving.lists import LastLists
from headwater.serving.results import ResultLists

LOOK_S = 1.0  # what is too old goes this often
_OUTCOMES = {"hits": "hit", "stale": "stale", "misses": "miss", "refused": "refused"}


class _Counted(Protocol):
    """What every cache has; some also count ``stale`` and ``refused``, and add up the ages of what they give (``age_ms``)."""

    hits: int
    misses: int
    evictions: int

    def __len__(self) -> int: ...


class Caches(NamedTuple):
    """The caches of a worker. ``results`` None: answers are not given again; ``rows`` None: user rows are read where they lie."""

    results: ResultLists | None
    last: LastLists
    popular: KeptLists[Ranked]
    snapshot: _Counted
    rows: UserRows | None


def result_lists(config: Cache) -> ResultLists | None:
    """The cache of answers that ``config`` asks for."""
    ttl_ms = parse_delay(config.result_ttl)
    return ResultLists(ttl_ms, config.result_lists) if ttl_ms else None


def popular_lists(config: Cache) -> KeptLists[Ranked]:
    """The cache of popular lists that ``config`` asks for."""
    return KeptLists(parse_duration(config.popular_ttl), parse_delay(config.popular_stale), config.popular_lists)


class CacheKeeper:
    """Looks after ``caches`` inside the worker's loop; ``clock`` is that of requests."""

    def __init__(self, caches: Caches, metrics: Metrics, clock: Callable[[], int]) -> None:
        self._caches, self._clock = caches, clock
        self._named: dict[str, _Counted] = {
            name: cache for name, cache in caches._asdict().items() if cache is not None
        }
        self._told: dict[tuple[str, str], int] = {}
        self._metrics = metrics
        self._lists = [cache for cache in self._named.values() if isinstance(cache, KeptLists)]
        for lists in self._lists:
            lists.on_stale = self._renew_soon
        self._renewing = False

    def follow(self, position: Position, changes: Changes) -> None:
        """The fold has committed. What was kept of users whose rows are gone is let go of."""
        results, last, rows, gone = self._caches.results, self._caches.last, self._caches.rows, changes.gone
        if rows is not None:
            rows.follow(position, changes)
        if gone is None or gone:
            last.forget(gone)
            if results is not None:
                results.forget(gone)

    def lose(self) -> None:
        """The fold cannot be heard any more."""
        if self._caches.rows is not None:
            self._caches.rows.lose()

    async def run(self) -> None:
        """Drop what is too old, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._caches.results is not None:
                self._caches.results.drop_old(self._clock())
            self._caches.last.drop_old(self._clock())

    def tell(self) -> None:
        """Bring the figures into the metrics."""
        metrics = self._metrics
        for name, cache in self._named.items():
            for counted, outcome in _OUTCOMES.items():
                if grown := self._growth(name, counted, getattr(cache, counted, 0)):
                    metrics.cache_lookups.labels(name, outcome).inc(grown)
            if grown := self._growth(name, "age_ms", getattr(cache, "age_ms", 0)):
                metrics.cache_age.labels(name).inc(grown / 1e3)
            if grown := self._growth(name, "evictions", cache.evictions):
                metrics.cache_evictions.labels(name).inc(grown)
            metrics.cache_entries.labels(name).set(len(cache))

    def _growth(self, name: str, counted: str, count: int) -> int:
        before = self._told.get((name, counted), 0)
        self._told[name, counted] = count
        return count - before

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        """Make a list that is due; the next one in another turn of the loop, so that requests come between."""
        self._renewing = False
        now_ms = self._clock()
        if any(lists.renew(now_ms) for lists in self._lists):
            self._renew_soon()
