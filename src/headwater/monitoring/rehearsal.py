"""A rule played with the history that was kept: when would it have fired?"""

from __future__ import annotations

from collections import defaultdict

from msgspec import Struct

from headwater.monitoring.alerts import Alerts, Change
from headwater.monitoring.history import History
from headwater.monitoring.samples import Sample
from headwater.schema.alerts import AlertRule


class Rehearsed(Struct, frozen=True, kw_only=True):
    """What would have happened at ``time_ms``, at which ``value``."""

    time_ms: int
    change: Change
    group: str
    value: float | None


def rehearsed(rule: AlertRule, history: History, since_ms: int, until_ms: int) -> tuple[int, list[Rehearsed]]:
    """(rounds, what would have happened) from ``since_ms`` to ``until_ms``. It does nothing, so nothing is restored either."""
    rounds: defaultdict[int, list[Sample]] = defaultdict(list)
    for name in dict.fromkeys(rule.names):
        for series in history.series(name, since_ms=since_ms, until_ms=until_ms):
            labels = tuple(sorted(series.labels.items()))
            for time_ms, value in zip(series.times_ms, series.values, strict=True):
                rounds[time_ms].append(Sample(name, labels, value))
    alerts, found = Alerts([rule]), list[Rehearsed]()
    for time_ms in sorted(rounds):
        for event in alerts.judge(time_ms, rounds[time_ms]):
            state = event.state
            found.append(Rehearsed(time_ms=time_ms, change=event.change, group=state.group, value=state.value))
    return len(rounds), found
