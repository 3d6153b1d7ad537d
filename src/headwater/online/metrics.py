"""What a server counts. Every metric stands in ``docs/metrics.md``; a test holds the two together."""

from __future__ import annotations

from headwater.prometheus import Instruments

_REQUEST_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)
_STAGE_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_WAIT_S = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
_DELAY_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Metrics(Instruments):
    """The metrics of one worker. Those that change with each answer are gathered (:mod:`headwater.prometheus`)."""

    def __init__(self) -> None:
        super().__init__()
        # answers
        self.requests = self.gathered_histogram(
            "headwater_request_seconds", "Time to answer", _REQUEST_S, "route", "status"
        )
        self.answer_seconds = self.gathered_histogram(
            "headwater_answer_seconds", "Time of all stages of an answer", _REQUEST_S, "tier"
        )
        self.tiers = self.gathered_counter("headwater_answers", "Answers by tier and surface", "tier", "surface")
        self.stages = self.gathered_histogram(
            "headwater_stage_seconds", "Time of a stage of the pipeline", _STAGE_S, "stage"
        )
        self.stage_outcomes = self.gathered_counter(
            "headwater_stage_outcomes", "Stages that were not ok: shortened, skipped, failed", "stage", "outcome"
        )
        self.stage_items = self.gathered_counter("headwater_stage_items", "Items that a stage left", "stage")
        self.candidates = self.gathered_counter(
            "headwater_source_candidates", "Candidates that a source offered", "source"
        )
        self.source_outcomes = self.gathered_counter(
            "headwater_source_outcomes", "Sources that had nothing: empty, skipped, failed", "source", "outcome"
        )
        self.quality = self.gauge(
            "headwater_quality", "Share of the full widths, the lowest of the workers", mode="livemin"
        )
        self.walked = self.gathered_counter("headwater_walked", "Answers that walked a lower tier on purpose", "tier")
        self.rules = self.gathered_counter(
            "headwater_rule_items", "Items that a rule removed, moved, placed or kept out", "rule"
        )
        self.rules_in_force = self.gauge("headwater_rules_info", "1 for the rules in service", "version")
        # exploration and new items
        self.explored = self.gathered_counter("headwater_explored", "Answers that were drawn by lot", "surface")
        self.explored_places = self.gathered_counter(
            "headwater_explored_places", "Places that the lot gave to an item that was not among the best", "surface"
        )
        self.new_item_places = self.gathered_counter(
            "headwater_new_item_places", "Places that went to a promised item", "surface"
        )
        self.new_items = self.gauge(
            "headwater_new_items", "Items that are new, by what became of what they were promised", "state"
        )
        # remote parts and breakers
        self.stalls = self.counter("headwater_ranker_stalls", "Calls of a ranker that did not end in time")
        self.remote_calls = self.counter(
            "headwater_remote_calls", "Calls of a part behind a connection: state, writer, ranker", "part"
        )
        self.remote_retries = self.counter("headwater_remote_retries", "Calls that were made a second time", "part")
        self.breaker_open = self.gauge(
            "headwater_breaker_open", "1 while a part is not asked because it failed", "part"
        )
        # what comes in
        self.ingested = self.counter(
            "headwater_ingested", "Entries of ingest calls: accepted, duplicate, rejected", "kind", "outcome"
        )
        self.events_capped = self.counter("headwater_events_capped", "Events refused above the cap of a user", "type")
        self.writer_away = self.counter("headwater_writer_unavailable", "Ingest calls answered with 503")
        # access and load
        self.refused = self.counter("headwater_access_refused", "Requests refused: key, scope, rate, origin", "reason")
        self.shed = self.counter("headwater_shed", "Requests turned away with 503 by load", "priority", "reason")
        self.admission_wait = self.histogram(
            "headwater_admission_wait_seconds", "Wait of queued requests for their turn", _WAIT_S
        )
        self.concurrency_limit = self.gauge(
            "headwater_concurrency_limit", "Recommendations that may be at work at the same time", mode="livesum"
        )
        self.slow_bodies = self.counter("headwater_slow_bodies", "Bodies that came too slowly (408)")
        # caches
        self.cache_lookups = self.counter(
            "headwater_cache_lookups", "Lookups in a cache: hit, stale, miss, refused", "cache", "outcome"
        )
        self.cache_age = self.counter(
            "headwater_cache_given_age_seconds", "Ages of the entries that were given, added up", "cache"
        )
        self.cache_evictions = self.counter("headwater_cache_evictions", "Entries that made room for others", "cache")
        self.cache_entries = self.gauge("headwater_cache_entries", "Entries of a cache", "cache", mode="livesum")
        # how fresh it all is
        self.token_wait = self.histogram("headwater_token_wait_seconds", "Wait until a token was reflected", _WAIT_S)
        self.token_missed = self.counter("headwater_token_missed", "Tokens not reached in time")
        self.event_delay = self.histogram(
            "headwater_event_to_recommendation_seconds",
            "From the log to lists that reflect it, of the oldest record of a commit",
            _DELAY_S,
        )
        self.fold_lag = self.gauge("headwater_fold_lag_records", "Records the log is ahead of state")
        self.staleness = self.gauge(
            "headwater_feature_staleness_seconds",
            "Age of the oldest record that user rows or item columns do not reflect",
            "entity",
        )
        self.epoch_age = self.gauge("headwater_epoch_age_seconds", "Time since the item columns last moved on")
        self.epoch_rows = self.histogram("headwater_epoch_apply_seconds", "Time to apply item epochs", _STAGE_S)
        self.model = self.gauge("headwater_model_info", "1 for the bundle in service", "version")
        self.model_age = self.gauge("headwater_bundle_age_seconds", "Time since the bundle in service was made")
        self.model_refused = self.counter("headwater_model_refused", "Bundles that were refused")
        # what goes to the log
        self.served_logged = self.counter("headwater_served_logged", "Served lists in the log")
        self.served_lost = self.counter(
            "headwater_served_lost", "Served lists dropped because the writer was away too long"
        )
        self.served_waiting = self.gauge("headwater_served_waiting", "Served lists not yet in the log", mode="livesum")
        self.exposures_logged = self.counter("headwater_exposures_logged", "Exposures in the log")
        self.exposures_lost = self.counter(
            "headwater_exposures_lost", "Exposures dropped because the writer was away too long"
        )
        self.exposures_waiting = self.gauge(
            "headwater_exposures_waiting", "Exposures not yet in the log", mode="livesum"
        )
        self.shadows_logged = self.counter("headwater_shadows_logged", "Lists of shadows in the log")
        self.shadows_lost = self.counter(
            "headwater_shadows_lost", "Lists of shadows dropped because the writer was away too long"
        )
        self.shadows_waiting = self.gauge(
            "headwater_shadows_waiting", "Lists of shadows not yet in the log", mode="livesum"
        )
        # experiments
        self.experiment_answers = self.gathered_counter(
            "headwater_experiment_answers", "Answers to users who take part in an experiment", "experiment", "variant"
        )
        self.experiments_refused = self.gauge(
            "headwater_experiments_refused", "Experiments that are not served as their files say"
        )
        variant = ("experiment", "variant")
        self.shadow_lists = self.counter(
            "headwater_shadow_lists",
            "Copies of requests for a variant that answers nobody: full, degraded, failed, dropped", *variant, "outcome",
        )  # fmt: skip
        self.shadow_overlap = self.histogram(
            "headwater_shadow_overlap",
            "Share of a list that was given that the variant would have given too",
            _TENTHS,
            *variant,
        )
        self.shadow_seconds = self.histogram("headwater_shadow_seconds", "Time of such a copy", _REQUEST_S, *variant)
