"""The monitor process: here the watches, which planes and observers bring, are put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from headwater.cli.options import Settings
from headwater.online.roles import Role, home
from headwater.schema.alerts import AlertRule, alerts_in_force, check_metrics
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.default_alerts import DEFAULT_ALERTS
from headwater.schema.durations import parse_delay, parse_duration

if TYPE_CHECKING:
    from headwater.log.archived import ArchivedLog
    from headwater.monitoring.samples import Details, Sample, Watch
    from headwater.prometheus import Described

NICENESS = 5
GUARD_BEFORE = "7d"  # as that of `headwater experiments guard`
ONLINE_ROUNDS, DRIFT_ROUNDS = 2, 4  # rounds from one look at what people do, and at the data, to the next

log = structlog.get_logger()


def known_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Kind and labels of every metric that an alert may be about, by name as it is scraped."""
    from headwater.cli.process_metrics import ProcessMetrics
    from headwater.log.metrics import WriterMetrics
    from headwater.monitoring.metrics import MonitorMetrics
    from headwater.nearline.metrics import FoldMetrics
    from headwater.online.metrics import Metrics
    from headwater.prometheus import described_by

    counted = described_by(Metrics, FoldMetrics, WriterMetrics, ProcessMetrics, MonitorMetrics)
    described = [*counted, *observed_metrics()]
    return {f"{one.name}_total" if one.kind == "counter" else one.name: (one.kind, one.labels) for one in described}


def observed_metrics() -> list[Described]:
    """What the watches find, which no process counts."""
    from headwater.monitoring import behind, drift_metrics, experiments, online_metrics

    return [*behind.METRICS, *experiments.METRICS, *online_metrics.METRICS, *drift_metrics.METRICS]


def found_by() -> dict[str, frozenset[str]]:
    """The metrics of the watches that read the log, by their names."""
    from headwater.monitoring import drift_metrics, experiments, online_metrics

    modules = {"experiments": experiments, "online": online_metrics, "drift": drift_metrics}
    return {watch: frozenset(one.name for one in module.METRICS) for watch, module in modules.items()}


def rules_of(config: Config) -> tuple[AlertRule, ...]:
    """The alert rules that are in force.

    Raises:
        ConfigurationError: a rule is about a metric or a label that nobody writes, or of which there is no such figure.
    """
    rules = alerts_in_force(config.alerts, DEFAULT_ALERTS if config.monitoring.default_alerts else ())
    check_metrics(rules, known_metrics())
    return rules


class Following:
    """A watch over the log, which there is none of before the writer has made it. ``make`` is given the log, ``shift_ms`` what the
    log's clock is ahead of the wall's. Watches of one process share the log (``opened``), which may be opened once.
    """

    def __init__(
        self, name: str, data: Path, opened: dict[Path, ArchivedLog], make: Callable[[ArchivedLog], Watch], shift_ms: int = 0
    ) -> None:  # fmt: skip
        self.name = name
        self._data, self._opened, self._make, self._shift_ms = data, opened, make, shift_ms
        self._watch: Watch | None = None

    def look(self, now_ms: int) -> Iterable[Sample]:
        """What the watch finds; nothing as long as there is no log."""
        if self._watch is None:
            if not (self._data / "log" / "data.mdb").exists():
                return []
            from headwater.log.archived import open_log

            if self._data not in self._opened:
                self._opened[self._data] = open_log(self._data)
            self._watch = self._make(self._opened[self._data])
        return self._watch.look(now_ms + self._shift_ms)


def watches_of(chosen: Settings, shift_ms: int, details: Details) -> list[Watch]:
    """Everything that the monitor looks at, in this order: of a figure that two of them have, the later one's counts. What figures cannot
    say goes into ``details``.
    """
    from headwater.cli.drift import watch_of
    from headwater.cli.experiment_report import metrics_of
    from headwater.monitoring.behind import PIECE_S
    from headwater.monitoring.experiments import ExperimentsWatch, about_running
    from headwater.monitoring.online_metrics import OnlineMetrics
    from headwater.monitoring.paced import Paced
    from headwater.monitoring.scrape import Scrape

    config, data = chosen.config, chosen.data
    opened: dict[Path, ArchivedLog] = {}
    one_by_one = threading.Lock()

    def guard(event_log: ArchivedLog) -> Watch:
        return ExperimentsWatch(
            data, event_log, lambda: list(metrics_of(chosen, config.monitoring.experiments_window, None).values()),
            before_ms=parse_delay(GUARD_BEFORE), details=details,
        )  # fmt: skip

    guarding = Following("experiments", data, opened, guard)
    watches: list[Watch] = [
        Scrape(lambda: metrics_folders(data), {metric.name for metric in observed_metrics()}),
        Paced(
            guarding,
            parse_duration(config.monitoring.experiments_every),
            one_by_one,
            still=partial(about_running, data),
        ),
    ]
    if config.monitoring.online.enabled:
        online = Following(
            "online", data, opened, lambda event_log: OnlineMetrics(event_log, config, piece_s=PIECE_S), shift_ms
        )
        watches.append(Paced(online, ONLINE_ROUNDS * parse_duration(config.monitoring.every), one_by_one))
    drift = Following(
        "drift", data, opened,
        lambda event_log: watch_of(config, data, event_log, config.monitoring.drift, keep=True, live=config.clock == "wall", piece_s=PIECE_S),
        shift_ms,
    )  # fmt: skip
    watches.append(Paced(drift, DRIFT_ROUNDS * parse_duration(config.monitoring.every), one_by_one))
    return watches


def metrics_folders(data: Path) -> list[Path]:
    """Where the processes of the supervisors that run now share their figures."""
    from headwater.online.supervisor import serving_process

    everything = (
        serving_process(data, Role.ALL) is not None
    )  # then the folders of single roles are of others, before it
    return [
        folder for role in ((Role.ALL, Role.LEARN) if everything else Role)
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


async def monitor(chosen: Settings, stop: asyncio.Event, shift_ms: int) -> None:
    """Be the monitor of the data directory until ``stop`` is set; ``shift_ms``: what the log's clock is ahead of the wall's."""
    from headwater.monitoring.actions import Actions
    from headwater.monitoring.gauges import Gauges
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
        details: Details = {}
        watching = Monitor(
            data, watches_of(chosen, shift_ms, details), rules, details=details, history=History(data / HISTORY_FILE, max_bytes=int(said.history_mb * 1e6)),
            actions=Actions(data, config, lambda: plan_in_service(data), lambda: wall_ms() + shift_ms),
            notifier=Notifier(said.webhooks),
            notify_from=said.notify_from, gauges=Gauges(observed_metrics()), found_by=found_by(),
        )  # fmt: skip
        log.info("monitor_ready", rules=sum(rule.enabled for rule in rules), every=said.every)
        every_s, due = parse_duration(said.every) / 1e3, time.monotonic()
        try:
            while not await _stopped(stop, max(0.0, due - time.monotonic())):
                due = max(due + every_s, time.monotonic())
                await asyncio.to_thread(watching.round, wall_ms())
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
