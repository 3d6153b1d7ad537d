"""What a server counts. Every metric is listed in ``docs/api.md``; a test holds the two together.

With ``PROMETHEUS_MULTIPROC_DIR`` set (the supervisor does, before prometheus_client is imported) all workers
of a machine share their figures through files there, and ``/metrics`` of any of them shows the sum.
Without it a worker shows its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_REQUEST_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)
_STAGE_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_WAIT_S = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


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


class Metrics:
    """The metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Histogram(
            "headwater_request_seconds", "Time to answer", ("route", "status"), buckets=_REQUEST_S, registry=registry
        )
        self.stages = Histogram(
            "headwater_stage_seconds",
            "Time of a stage of the pipeline",
            ("stage",),
            buckets=_STAGE_S,
            registry=registry,
        )
        self.stage_outcomes = Counter(
            "headwater_stage_outcomes",
            "Stages that were not ok: shortened, skipped, failed",
            ("stage", "outcome"),
            registry=registry,
        )
        self.stage_items = Counter("headwater_stage_items", "Items that a stage left", ("stage",), registry=registry)
        self.quality = Gauge(
            "headwater_quality", "Share of the full widths, the lowest of the workers", registry=registry,
            multiprocess_mode="livemin",
        )  # fmt: skip
        self.stalls = Counter(
            "headwater_ranker_stalls", "Calls of a ranker that did not end in time", registry=registry
        )
        self.remote_calls = Counter(
            "headwater_remote_calls",
            "Calls of a part behind a connection: state, writer, ranker",
            ("part",),
            registry=registry,
        )
        self.remote_retries = Counter(
            "headwater_remote_retries", "Calls that were made a second time", ("part",), registry=registry
        )
        self.breaker_open = Gauge(
            "headwater_breaker_open", "1 while a part is not asked because it failed", ("part",), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.walked = Counter(
            "headwater_walked", "Answers that walked a lower tier on purpose", ("tier",), registry=registry
        )
        self.explored = Counter("headwater_explored", "Answers that were drawn by lot", ("surface",), registry=registry)
        self.new_items = Gauge(
            "headwater_new_items", "Items that are new, by what became of what they were promised", ("state",), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.new_item_places = Counter(
            "headwater_new_item_places", "Places that went to a promised item", ("surface",), registry=registry
        )
        self.rules = Counter(
            "headwater_rule_items", "Items that a rule removed, moved, placed or kept out", ("rule",), registry=registry
        )
        self.rules_in_force = Gauge(
            "headwater_rules_info", "1 for the rules in service", ("version",), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.candidates = Counter(
            "headwater_source_candidates", "Candidates that a source offered", ("source",), registry=registry
        )
        self.tiers = Counter("headwater_answers", "Answers by tier and surface", ("tier", "surface"), registry=registry)
        self.ingested = Counter(
            "headwater_ingested",
            "Entries of ingest calls: accepted, duplicate, rejected",
            ("kind", "outcome"),
            registry=registry,
        )
        self.events_capped = Counter(
            "headwater_events_capped", "Events refused above the cap of a user", ("type",), registry=registry
        )
        self.refused = Counter(
            "headwater_access_refused", "Requests refused: key, scope, rate, origin", ("reason",), registry=registry
        )
        self.writer_away = Counter("headwater_writer_unavailable", "Ingest calls answered with 503", registry=registry)
        self.token_wait = Histogram(
            "headwater_token_wait_seconds", "Wait until a token was reflected", buckets=_WAIT_S, registry=registry
        )
        self.token_missed = Counter("headwater_token_missed", "Tokens not reached in time", registry=registry)
        self.shed = Counter(
            "headwater_shed", "Requests turned away with 503 by load", ("priority", "reason"), registry=registry
        )
        self.admission_wait = Histogram(
            "headwater_admission_wait_seconds",
            "Wait of queued requests for their turn",
            buckets=_WAIT_S,
            registry=registry,
        )
        self.concurrency_limit = Gauge(
            "headwater_concurrency_limit",
            "Recommendations that may be at work at the same time",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.slow_bodies = Counter("headwater_slow_bodies", "Bodies that came too slowly (408)", registry=registry)
        self.cache_lookups = Counter(
            "headwater_cache_lookups", "Lookups in a cache: hit, stale, miss, refused", ("cache", "outcome"),
            registry=registry,
        )  # fmt: skip
        self.cache_evictions = Counter(
            "headwater_cache_evictions", "Entries that made room for others", ("cache",), registry=registry
        )
        self.cache_entries = Gauge(
            "headwater_cache_entries", "Entries of a cache", ("cache",), registry=registry, multiprocess_mode="livesum"
        )
        self.fold_lag = Gauge(
            "headwater_fold_lag_records",
            "Records the log is ahead of state",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.epoch_age = Gauge(
            "headwater_epoch_age_seconds",
            "Time since the item columns last moved on",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.epoch_rows = Histogram(
            "headwater_epoch_apply_seconds", "Time to apply item epochs", buckets=_STAGE_S, registry=registry
        )
        self.model = Gauge(
            "headwater_model_info",
            "1 for the bundle in service",
            ("version",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.model_refused = Counter("headwater_model_refused", "Bundles that were refused", registry=registry)
        self.served_logged = Counter("headwater_served_logged", "Served lists in the log", registry=registry)
        self.served_lost = Counter(
            "headwater_served_lost", "Served lists dropped because the writer was away too long", registry=registry
        )
        self.served_waiting = Gauge(
            "headwater_served_waiting",
            "Served lists not yet in the log",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.experiment_answers = Counter(
            "headwater_experiment_answers", "Answers to users who take part in an experiment", ("experiment", "variant"),
            registry=registry,
        )  # fmt: skip
        self.experiments_refused = Gauge(
            "headwater_experiments_refused", "Experiments that are not served as their files say", registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.shadow_lists = Counter(
            "headwater_shadow_lists", "Copies of requests for a variant that answers nobody: full, degraded, failed, dropped",
            ("experiment", "variant", "outcome"), registry=registry,
        )  # fmt: skip
        self.shadow_overlap = Histogram(
            "headwater_shadow_overlap", "Share of a list that was given that the variant would have given too",
            ("experiment", "variant"), buckets=_TENTHS, registry=registry,
        )  # fmt: skip
        self.shadow_seconds = Histogram(
            "headwater_shadow_seconds",
            "Time of such a copy",
            ("experiment", "variant"),
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.exposures_logged = Counter("headwater_exposures_logged", "Exposures in the log", registry=registry)
        self.exposures_lost = Counter(
            "headwater_exposures_lost", "Exposures dropped because the writer was away too long", registry=registry
        )
        self.exposures_waiting = Gauge(
            "headwater_exposures_waiting",
            "Exposures not yet in the log",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def expose(self) -> bytes:
        """The text that Prometheus scrapes."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
