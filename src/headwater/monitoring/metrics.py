"""What the monitor says of itself, and how alerts and controls stand, for an outer Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from headwater.monitoring.alerts import AlertState
from headwater.prometheus import Instruments
from headwater.schema.controls import Controls


class MonitorMetrics(Instruments):
    """The metrics of the monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = self.counter("headwater_monitor_rounds", "Rounds of the monitor")
        self.cpu = self.counter("headwater_monitor_cpu_seconds", "Processor time of the monitor")
        self.failures = self.counter(
            "headwater_watch_failures", "Rounds in which a watch could not be looked at", "watch"
        )
        self.actions = self.counter(
            "headwater_alert_actions",
            "Actions of alerts: done, nothing (it was so already), failed",
            "action",
            "outcome",
        )
        self.firing = self.gauge("headwater_alert_firing", "1 while an alert fires", "alert", "group", "severity")
        self.missing = self.gauge(
            "headwater_alert_missing", "1 while an alert has no figure to judge", "alert", "group"
        )
        self.tier_floor = self.gauge("headwater_control_tier_floor", "Answers come from this tier or a lower one")
        self.exploration = self.gauge("headwater_control_exploration", "Factor on the exploration rates")
        self.frozen = self.gauge("headwater_control_promotion_frozen", "1 while no bundle may be promoted")

    def tell(self, states: Iterable[AlertState], controls: Controls) -> None:
        """Show how all stands."""
        for state in states:
            self.firing.labels(state.alert, state.group, state.severity).set(state.state == "firing")
            self.missing.labels(state.alert, state.group).set(state.state == "missing")
        self.tier_floor.set(controls.tier_floor)
        self.exploration.set(controls.exploration)
        self.frozen.set(bool(controls.promotion_frozen))
