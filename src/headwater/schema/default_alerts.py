"""The alerts that are on unless the configuration says otherwise. ``docs/operations.md`` says of each what to do."""

from __future__ import annotations

from headwater.schema.alerts import AlertRule

_ANSWERS, _INGESTED = "headwater_answers_total", "headwater_ingested_total"
_REQUESTS = "headwater_request_seconds_count"

DEFAULT_ALERTS: tuple[AlertRule, ...] = (
    AlertRule(
        name="slow-answers", metric="headwater_request_seconds", labels={"route": "/v1/recommend"}, of="quantile", quantile=0.95,
        at_least=50, above=0.1, clear=0.05, for_="15s", missing="ok", severity="warning", actions=("walk_down",),
        cooldown="2m", restore_after="10m", text="P95 of recommendations is above 100 ms",
    ),
    AlertRule(
        name="ranker-stalls", metric="headwater_ranker_stalls_total", of="ratio", over=_ANSWERS, at_least=50, above=0.05, clear=0.01,
        for_="10s", missing="ok", severity="warning", actions=("walk_down",), cooldown="1m", restore_after="10m",
        text="more than 5% of the answers waited in vain for the ranker",
    ),
    AlertRule(
        name="shedding", metric="headwater_shed_total", of="ratio", over=_REQUESTS, at_least=100, above=0.05, clear=0.01,
        for_="30s", missing="ok", severity="critical", actions=("walk_down",), cooldown="2m", restore_after="10m",
        text="more than 5% of the requests are turned away by load",
    ),
    AlertRule(
        name="low-tier", metric=_ANSWERS, labels={"tier": "[34]"}, of="ratio", over=_ANSWERS, at_least=100, above=0.05, clear=0.02,
        window="2m", missing="ok", severity="critical", text="more than 5% of the answers are of tier 3 or 4: popular lists, not personal ones",
    ),
    AlertRule(
        name="errors", metric=_REQUESTS, labels={"status": "5*"}, of="ratio", over=_REQUESTS, at_least=100, above=0.02, clear=0.01,
        window="2m", missing="ok", severity="critical", text="more than 2% of the requests end with a 5xx",
    ),
    AlertRule(
        name="fold-behind", metric="headwater_fold_lag_records", above=10_000, clear=1_000, for_="30s", severity="critical",
        text="state is more than 10,000 records behind the log: answers do not know the last events",
    ),
    AlertRule(
        name="bundle-refused", metric="headwater_model_refused_total", of="increase", above=0.5, window="2m", missing="ok",
        severity="critical", actions=("rollback",), text="servers refused the bundle that was promoted; they serve the one before",
    ),
    AlertRule(
        name="bundle-worse", metric="headwater_online_ctr", labels={"surface": "home", "by": "bundle"}, by="group", of="relative",
        over="headwater_online_ctr", over_labels={"surface": "home", "by": "all"}, count="headwater_online_lists", at_least=2_000,
        below=0.6, clear=0.7, for_="1m", missing="ok", severity="critical", actions=("rollback", "freeze_promotion"),
        text="people click on the lists of a bundle much less than on all lists",
    ),
    AlertRule(
        name="bundle-old", metric="headwater_bundle_age_seconds", above=7 * 86_400, for_="10m", missing="ok", severity="warning",
        actions=("retrain",), cooldown="1d", text="the bundle in service was made more than a week ago",
    ),
    AlertRule(
        name="ingest-stopped", metric=_INGESTED, labels={"kind": "event", "outcome": "accepted"}, of="ratio", over=_ANSWERS, at_least=200,
        below=0.001, window="10m", missing="ok", severity="critical", actions=("freeze_promotion",), restore_after="10m",
        text="lists are served and no events come back: a source of events is dead",
    ),
    AlertRule(
        name="ingest-duplicates", metric=_INGESTED, labels={"kind": "event", "outcome": "duplicate"}, of="ratio", over=_INGESTED,
        over_labels={"kind": "event"}, at_least=1_000, above=0.5, clear=0.2, window="2m", missing="ok", severity="warning",
        actions=("freeze_promotion",), restore_after="10m", text="more than half of the events are repeats: somebody sends them again and again",
    ),
    AlertRule(
        name="ingest-rejected", metric=_INGESTED, labels={"outcome": "rejected"}, of="ratio", over=_INGESTED, at_least=100, above=0.2,
        clear=0.1, window="5m", missing="ok", severity="warning", text="more than 20% of what is sent is refused as wrong",
    ),
    AlertRule(
        name="writer-away", metric="headwater_writer_unavailable_total", of="increase", above=0.5, missing="ok",
        severity="critical", text="ingest calls are answered with 503: the writer cannot be reached, or the disk is full",
    ),
    AlertRule(
        name="served-lost", metric="headwater_served_lost_total", of="increase", above=0.5, window="5m", missing="ok",
        severity="warning", text="served lists were dropped before they reached the log",
    ),
    AlertRule(
        name="breaker-open", metric="headwater_breaker_open", by="part", above=0.5, for_="30s", missing="ok", severity="warning",
        text="a part behind a connection is not asked because it keeps failing",
    ),
    AlertRule(
        name="feature-dead", metric="headwater_features_dead", above=0.5, missing="ok", severity="critical",
        actions=("freeze_promotion",), restore_after="10m", text="features of what is served are one value, and were not where the bundle was judged",
    ),
    AlertRule(
        name="feature-drift", metric="headwater_features_drifted", above=0.5, missing="ok", severity="warning",
        text="features of what is served are not distributed as in the first stretch that the bundle served",
    ),
    AlertRule(
        name="calibration-off", metric="headwater_calibration_off", above=0.5, missing="ok", severity="warning", actions=("retrain",),
        text="scores lead to another click rate than they did at first",
    ),
    AlertRule(
        name="label-drift", metric="headwater_label_off", by="type", above=0.5, missing="ok", severity="warning", actions=("retrain",),
        text="places lead to another share of events of a type than they did when the bundle began to serve",
    ),
    AlertRule(
        name="feedback-loop", metric="headwater_slice_off", by="of", above=0.5, missing="ok", severity="warning",
        actions=("raise_exploration",), cooldown="1d", text="lists drawn by chance do better than the policy's, or the policy crowds into ever fewer items",
    ),
    AlertRule(
        name="event-silent", metric="headwater_event_silent", by="type", above=0.5, for_="30s", missing="ok", severity="critical",
        actions=("freeze_promotion",), restore_after="10m", text="events of a type have stopped coming",
    ),
    AlertRule(
        name="event-volume", metric="headwater_event_volume_off", by="type", above=0.5, missing="ok", severity="warning",
        text="an hour brought half or twice as many events of a type as the same hour of other days",
    ),
    AlertRule(
        name="feature-skew", metric="headwater_skew_mismatched_bytes", above=0.5, missing="ok", severity="critical",
        actions=("freeze_promotion",), text="served features are not those that replaying the log gives",
    ),
    AlertRule(
        name="experiment-harm", metric="headwater_experiment_harm", by="experiment", above=0.5, missing="ok", severity="critical",
        clear_for="0s", actions=("stop_experiment",), text="an experiment violates a guardrail, makes its metric worse, or has a broken split",
    ),
)  # fmt: skip
