"""What the monitor says of itself, and how alerts and controls stand, for an outer Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from headwater.monitoring.alerts import AlertState
from headwater.schema.controls import Controls


class MonitorMetrics:
    """The metrics of the monitor, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rounds = Counter("headwater_monitor_rounds", "Rounds of the monitor", registry=registry)
        self.cpu = Counter("headwater_monitor_cpu_seconds", "Processor time of the monitor", registry=registry)
        self.failures = Counter(
            "headwater_watch_failures", "Rounds in which a watch could not be looked at", ("watch",), registry=registry
        )
        self.actions = Counter(
            "headwater_alert_actions", "Actions of alerts: done, nothing (it was so already), failed", ("action", "outcome"),
            registry=registry,
        )  # fmt: skip
        self.firing = Gauge(
            "headwater_alert_firing", "1 while an alert fires", ("alert", "group", "severity"), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.missing = Gauge(
            "headwater_alert_missing", "1 while an alert has no figure to judge", ("alert", "group"), registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.tier_floor = Gauge(
            "headwater_control_tier_floor", "Answers come from this tier or a lower one", registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.exploration = Gauge(
            "headwater_control_exploration", "Factor on the exploration rates", registry=registry, multiprocess_mode="livemax"
        )  # fmt: skip
        self.frozen = Gauge(
            "headwater_control_promotion_frozen", "1 while no bundle may be promoted", registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip

    def tell(self, states: Iterable[AlertState], controls: Controls) -> None:
        """Show how all stands."""
        for state in states:
            self.firing.labels(state.alert, state.group, state.severity).set(state.state == "firing")
            self.missing.labels(state.alert, state.group).set(state.state == "missing")
        self.tier_floor.set(controls.tier_floor)
        self.exploration.set(controls.exploration)
        self.frozen.set(bool(controls.promotion_frozen))
