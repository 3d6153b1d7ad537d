"""How the planes are, from the same figures that Prometheus is told: rates and quantiles over the last half minute."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from headwater.features.layout import FLAG_HIDDEN, FLAG_KNOWN, I_FLAGS
from headwater.online.service import Service
from headwater.registry.registry import Registry
from headwater.schema.seen import Pulse
from headwater.serving.stages import STAGES, TIERS

WINDOW_S = 30.0
SHARED_S = 1.0  # visitors who look within so long see the same figures
ROUTE = "/v1/recommend"

_LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]


class _Moment(NamedTuple):
    at_s: float
    figures: Figures
    offset: int


class ConsolePulse:
    """The pulse of a worker's ``service``. It counts only while somebody looks."""

    def __init__(self, service: Service, data: Path) -> None:
        self._service, self._data = service, data
        self._registry = Registry(data / "models")
        self._moments: deque[_Moment] = deque()
        self._one = asyncio.Lock()
        self._last: Pulse | None = None

    async def pulse(self) -> Pulse:
        """The figures of the moment; visitors who look at the same time share them."""
        async with self._one:
            moments = self._moments
            if self._last is None or not moments or time.monotonic() - moments[-1].at_s >= SHARED_S:
                self._service.tell()
                figures = await asyncio.to_thread(lambda: parsed(self._service.metrics.shown().decode()))
                moments.append(_Moment(time.monotonic(), figures, self._service.stores.log.last_offset))
                while len(moments) > 2 and moments[1].at_s <= moments[-1].at_s - WINDOW_S:
                    moments.popleft()
                self._last = await asyncio.to_thread(self._made, moments[0], moments[-1])
            return self._last

    def _made(self, before: _Moment, now: _Moment) -> Pulse:
        service, gained = self._service, Gain(before.figures, now.figures, now.at_s - before.at_s)
        answers = gained.of("headwater_answers_total")
        p50, p95, p99 = gained.quantiles("headwater_request_seconds", (0.5, 0.95, 0.99), route=ROUTE)
        fresh = gained.quantiles("headwater_event_to_recommendation_seconds", (0.95,))[0]
        if fresh is None:
            fresh = gained.quantiles("headwater_token_wait_seconds", (0.95,))[0]
        model = service.recommender.model
        version = "" if model is None else model.version
        made_ms = self._made_ms(version) if version else None
        flags = service.recommender.view.table.rows.u4[1 : service.recommender.view.table.count, I_FLAGS]
        hits = gained.sum("headwater_cache_lookups_total", outcome="hit") + gained.sum(
            "headwater_cache_lookups_total", outcome="stale"
        )
        lookups = gained.sum("headwater_cache_lookups_total")
        return Pulse(
            time_ms=service.clock(),
            window_s=gained.seconds,
            events_s=gained.rate("headwater_ingested_total", kind="event", outcome="accepted"),
            other_s=_added(
                gained.rate("headwater_ingested_total", kind=kind, outcome="accepted") for kind in ("item", "user", "login")
            ),
            rejected_s=gained.rate("headwater_ingested_total", outcome="rejected"),
            answers_s=None if answers is None else answers / gained.seconds,
            served_s=gained.rate("headwater_served_logged_total"),
            request_ms=(p50, p95, p99),
            fresh_ms=fresh,
            stages=[(stage.name, stage.does, self._stage_ms(gained, stage.name)) for stage in STAGES],
            sources=[
                (name, gained.sum("headwater_source_candidates_total", source=name) / answers if answers else None)
                for name in self._source_names()
            ],
            tiers=[
                gained.sum("headwater_answers_total", tier=str(tier.number)) / answers if answers else 0.0 for tier in TIERS
            ],
            shed_s=gained.rate("headwater_shed_total"),
            log_offset=now.offset,
            lag=service.fold_lag(),
            epoch_age_s=next(iter(now.figures.get("headwater_epoch_age_seconds", {}).values()), 0.0),
            items=int(((flags & FLAG_KNOWN != 0) & (flags & FLAG_HIDDEN == 0)).sum()),
            quality=next(iter(now.figures.get("headwater_quality", {}).values()), 1.0),
            model=version,
            model_ms=made_ms,
            hits=hits / lookups if lookups else None,
        )  # fmt: skip

    def _source_names(self) -> list[str]:
        model = self._service.recommender.model
        fitted = () if model is None else model.sources
        return [source.name for source in (*self._service.recommender.pipeline.sources, *fitted)]

    def _stage_ms(self, gained: Gain, stage: str) -> float | None:
        count = gained.sum("headwater_stage_seconds_count", stage=stage)
        return 1e3 * gained.sum("headwater_stage_seconds_sum", stage=stage) / count if count else None

    def _made_ms(self, version: str) -> int | None:
        """When a bundle was made; None: the registry does not say."""
        found = next((listed for listed in self._registry.list() if listed.version == version), None)
        return None if found is None or found.manifest is None else found.manifest.created_ms


class Gain:
    """What counters gained between two moments ``seconds`` apart; of one that began anew what it stands at."""

    def __init__(self, before: Figures, now: Figures, seconds: float) -> None:
        self._before, self._now, self.seconds = before, now, seconds

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of ``name`` with these labels together."""
        before = self._before.get(name, {})
        return sum(
            value - (earlier if (earlier := before.get(key, 0.0)) <= value else 0.0)
            for key, value in self._now.get(name, {}).items()
            if labels.items() <= dict(key).items()
        )

    def of(self, name: str) -> float | None:
        """:meth:`sum`; None while there is one moment only."""
        return self.sum(name) if self.seconds > 0.0 else None

    def rate(self, name: str, **labels: str) -> float | None:
        """A second; None while there is one moment only."""
        return self.sum(name, **labels) / self.seconds if self.seconds > 0.0 else None

    def quantiles(self, name: str, wanted: Sequence[float], **labels: str) -> list[float | None]:
        """Of a histogram, in ms, linear inside a bucket; None: nothing came. Above the last finite bound they are that bound."""
        before, bounds = self._before.get(f"{name}_bucket", {}), dict[float, float]()
        for key, value in self._now.get(f"{name}_bucket", {}).items():
            said = dict(key)
            if labels.items() <= said.items():
                bound, earlier = float(said["le"]), before.get(key, 0.0)
                bounds[bound] = bounds.get(bound, 0.0) + value - (earlier if earlier <= value else 0.0)
        ordered = sorted(bounds.items())
        if self.seconds <= 0.0 or not ordered or ordered[-1][1] <= 0.0:
            return [None for _ in wanted]
        return [1e3 * _quantile(ordered, q * ordered[-1][1]) for q in wanted]


def parsed(text: str) -> Figures:
    """The samples of Prometheus' text format, by name and labels."""
    figures: Figures = {}
    for name, labels, value in _LINE.findall(text):
        key = tuple(sorted(_LABEL.findall(labels)))
        figures.setdefault(name, {})[key] = float(value)
    return figures


def _quantile(bounds: list[tuple[float, float]], wanted: float) -> float:
    low = below = 0.0
    for bound, count in bounds:
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


def _added(rates: Iterator[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
