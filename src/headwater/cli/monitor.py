"""The monitor process: here the watches, which planes and observers bring, are put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from headwater.cli.options import Settings
from headwater.online.roles import Role, home
from headwater.schema.alerts import AlertRule, alerts_in_force, check_metrics
from headwater.schema.config import Config
from headwater.schema.default_alerts import DEFAULT_ALERTS
from headwater.schema.durations import parse_delay, parse_duration

if TYPE_CHECKING:
    from headwater.monitoring.samples import Watch

NICENESS = 5
GUARD_WINDOW, GUARD_BEFORE = "1h", "7d"  # as those of `headwater experiments guard`
OBSERVED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "headwater_experiment_harm": ("gauge", ("experiment",)),
    "headwater_experiment_users": ("gauge", ("experiment",)),
}
"""Metrics of watches, which no process counts: kind and labels by name."""

log = structlog.get_logger()


def known_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Kind and labels of every metric that an alert may be about, by name as it is scraped."""
    from headwater.monitoring.metrics import MonitorMetrics
    from headwater.online.metrics import Metrics

    found = dict(OBSERVED)
    for made in (Metrics(), MonitorMetrics()):
        for metric in vars(made).values():
            if (described := _described(metric)) is not None:
                name, kind, labels = described
                found[f"{name}_total" if kind == "counter" else name] = (kind, labels)
    return found


def _described(metric: object) -> tuple[str, str, tuple[str, ...]] | None:
    from prometheus_client.metrics import MetricWrapperBase

    if not isinstance(metric, MetricWrapperBase):
        return None
    return metric._name, str(metric._type), tuple(metric._labelnames)  # the library has no other way to ask


def rules_of(config: Config) -> tuple[AlertRule, ...]:
    """The alert rules that are in force.

    Raises:
        ConfigurationError: a rule is about a metric or a label that nobody writes, or of which there is no such figure.
    """
    rules = alerts_in_force(config.alerts, DEFAULT_ALERTS if config.monitoring.default_alerts else ())
    check_metrics(rules, known_metrics())
    return rules


def watches_of(chosen: Settings) -> list[Watch]:
    """Everything that the monitor looks at, in this order: of a figure that two of them have, the later one's counts."""
    from headwater.cli.experiment_report import metrics_of
    from headwater.monitoring.experiments import ExperimentsWatch
    from headwater.monitoring.paced import Paced
    from headwater.monitoring.scrape import Scrape

    config, data = chosen.config, chosen.data
    guard = ExperimentsWatch(
        data, list(metrics_of(chosen, GUARD_WINDOW, None).values()), before_ms=parse_delay(GUARD_BEFORE)
    )
    return [
        Scrape(lambda: metrics_folders(data)),
        Paced(guard, parse_duration(config.monitoring.experiments_every)),
    ]


def metrics_folders(data: Path) -> list[Path]:
    """Where the processes of the supervisors that run now share their figures."""
    from headwater.online.supervisor import serving_process

    return [
        folder for role in Role
        if (folder := home(data, role) / "metrics").is_dir() and serving_process(data, role) is not None
    ]  # fmt: skip


def plan_in_service(data: Path) -> str | None:
    """The hash of the plan that serves; where no supervisor keeps it (single roles), that of the only plan with a bundle."""
    from headwater.features.paths import read_current
    from headwater.registry.registry import Registry

    if (current := read_current(data)) is not None:
        return current.plan
    plans = sorted({one.manifest.plan_hash for one in Registry(data / "models").list() if one.current and one.manifest})
    return plans[0] if len(plans) == 1 else None


async def monitor(chosen: Settings, stop: asyncio.Event) -> None:
    """Be the monitor of the data directory until ``stop`` is set."""
    from headwater.monitoring.actions import Actions
    from headwater.monitoring.history import HISTORY_FILE, History
    from headwater.monitoring.monitor import Monitor, MonitorsLock
    from headwater.monitoring.notify import Notifier

    os.nice(NICENESS)
    config, data = chosen.config, chosen.data
    said = config.monitoring
    rules = rules_of(config)
    with contextlib.ExitStack() as held:
        lock = MonitorsLock(data)
        held.callback(lock.release)
        while not lock.mine():
            if await _stopped(stop, 0.5):
                return
        watching = Monitor(
            data, watches_of(chosen), rules, history=History(data / HISTORY_FILE, max_bytes=int(said.history_mb * 1e6)),
            actions=Actions(data, config, lambda: plan_in_service(data)), notifier=Notifier(said.webhooks),
            notify_from=said.notify_from,
        )  # fmt: skip
        log.info("monitor_ready", rules=sum(rule.enabled for rule in rules), every=said.every)
        every_s, due = parse_duration(said.every) / 1e3, time.monotonic()
        try:
            while not await _stopped(stop, max(0.0, due - time.monotonic())):
                due = max(due + every_s, time.monotonic())
                await asyncio.to_thread(watching.round, time.time_ns() // 1_000_000)
        finally:
            watching.close()
        log.info("monitor_stopped")


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait for ``stop`` for so long; whether it is set."""
    try:
        await asyncio.wait_for(stop.wait(), within_s)
    except TimeoutError:
        return False
    return True
