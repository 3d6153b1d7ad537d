"""A round of monitoring: watches → samples → history → alert rules → actions → audit log."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from headwater.monitoring.actions import Actions
from headwater.monitoring.alerts import Alerts, AlertState, Event
from headwater.monitoring.gauges import Gauges
from headwater.monitoring.history import History, HistoryError
from headwater.monitoring.metrics import MonitorMetrics
from headwater.monitoring.notify import Notifier
from headwater.monitoring.samples import Sample, Watch
from headwater.monitoring.standing import drop_ack, read_ack, read_standing, write_standing
from headwater.registry.controls import ControlsFile
from headwater.schema.alerts import SEVERITIES, AlertRule, Severity
from headwater.schema.errors import HeadwaterError

PRUNE_MS = 60_000
MOST_ENTRIES = 20
_SAID = {
    "fires": "firing",
    "resolves": "resolved",
    "goes_missing": "missing",
    "again": "firing",
    "restores": "restored",
}

log = structlog.get_logger()


class Monitor:
    """Looks at ``watches``, keeps what they find in ``history``, holds it against ``rules``, does what fires and tells ``notifier`` of alerts
    from ``notify_from`` up and of every action. ``gauges`` show what watches found to an outer Prometheus.

    One that raises, whatever it is, is left out of the round, and that is said: monitoring goes on with the rest.
    """

    def __init__(
        self, data: Path, watches: Sequence[Watch], rules: Sequence[AlertRule], *, history: History, actions: Actions,
        notifier: Notifier, notify_from: Severity = "warning", metrics: MonitorMetrics | None = None,
        gauges: Gauges | None = None, cpu: Callable[[], float] = time.process_time,
    ) -> None:  # fmt: skip
        self._data, self._watches = data, list(watches)
        self._history, self._actions, self._notifier = history, actions, notifier
        self._told = SEVERITIES[SEVERITIES.index(notify_from) :]
        self._metrics = MonitorMetrics() if metrics is None else metrics
        self._gauges = gauges
        self._cpu, self._spent = cpu, cpu()
        self._controls = ControlsFile(data)
        self.alerts = Alerts(rules, read_standing(data).states)
        self._problems: dict[str, str] = {}
        self._pruned_ms = 0

    def round(self, now_ms: int) -> list[Event]:
        """Look at everything once, at ``now_ms``; returns what happened to the rules."""
        found: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
        for watch in self._watches:
            try:
                found.update(((sample.name, sample.labels), sample) for sample in watch.look(now_ms))
            except Exception as error:  # noqa: BLE001  (a watch that fails must not blind the others)
                self._metrics.failures.labels(watch.name).inc()
                self._problem(watch.name, f"{type(error).__name__}: {error}")
            else:
                self._problems.pop(watch.name, None)
        try:
            self._history.append(now_ms, found.values())
            if now_ms - self._pruned_ms >= PRUNE_MS:
                self._history.prune(now_ms)
                self._pruned_ms = now_ms
            self._problems.pop("history", None)
        except HistoryError as error:
            self._problem("history", str(error))
        if self._gauges is not None:
            self._gauges.show(found.values())
        events = self.alerts.judge(now_ms, found.values())
        for event in events:
            self._follow(event, now_ms)
        self._controls.poll()
        self._metrics.tell(self.alerts.states, self._controls.now)
        try:
            write_standing(self._data, now_ms, self.alerts.states)
        except OSError as error:
            self._problem("standing", str(error))
        spent, self._spent = self._spent, self._cpu()
        self._metrics.cpu.inc(max(0.0, self._spent - spent))
        self._metrics.rounds.inc()
        return events

    def close(self) -> None:
        """Send what is to be sent, and let go of the history."""
        self._notifier.close()
        self._history.close()

    # -- what follows from an event --------------------------------------------------------------------

    def _follow(self, event: Event, now_ms: int) -> None:
        rule, state = event.rule, event.state
        why = describe(rule, state)
        level = log.info if event.change in ("resolves", "restores") else log.warning
        level("alert", alert=rule.name, group=state.group, change=event.change, severity=rule.severity, why=why)
        done: list[dict[str, Any]] = []
        if event.change in ("fires", "again"):
            state, done = self._act(event, why, now_ms)
        elif event.change == "restores":
            state, done = self._restore(rule, state, now_ms)
        self.alerts.note(state)
        acked = event.change in ("again", "resolves") and read_ack(self._data, state.incident) is not None
        if event.change == "resolves":
            drop_ack(self._data, state.incident)
        if done or (rule.severity in self._told and not acked):
            self._notifier.tell(message(event, why, done, now_ms))

    def _act(self, event: Event, why: str, now_ms: int) -> tuple[AlertState, list[dict[str, Any]]]:
        rule, state = event.rule, event.state
        if not rule.actions:
            return state, []
        if event.change == "fires" and state.acted_ms and now_ms - state.acted_ms < rule.cooldown_ms:
            log.warning("alert_cools_down", alert=rule.name, group=state.group, cooldown=rule.cooldown)
            return state, []
        wanted = rule.actions if event.change == "fires" else tuple(a for a in rule.actions if a == "walk_down")
        done, entries = list[dict[str, Any]](), list(state.entries)
        for action in wanted:
            try:
                entry = self._actions.act(action, rule, state.group, why, now_ms)
            except (HeadwaterError, OSError) as error:
                self._metrics.actions.labels(action, "failed").inc()
                log.error("alert_action_failed", alert=rule.name, action=action, reason=str(error))
                done.append({"action": action, "outcome": "failed", "reason": str(error)})
                continue
            self._metrics.actions.labels(action, "done" if entry is not None else "nothing").inc()
            if entry is not None:
                entries.append(entry.id)
                done.append({"action": action, "outcome": "done", "entry": entry.id})
        return replace(state, acted_ms=now_ms, entries=tuple(entries[-MOST_ENTRIES:])), done

    def _restore(self, rule: AlertRule, state: AlertState, now_ms: int) -> tuple[AlertState, list[dict[str, Any]]]:
        done = []
        for entry in reversed(state.entries):
            try:
                undone = self._actions.undo(
                    entry, by=f"alert:{rule.name}", reason=f"{state.incident} is over", now_ms=now_ms
                )
            except (HeadwaterError, OSError) as error:  # somebody else has changed it since: it is theirs now
                log.warning("alert_not_restored", alert=rule.name, entry=entry, reason=str(error))
                done.append({"action": "restore", "outcome": "failed", "entry": entry, "reason": str(error)})
            else:
                self._metrics.actions.labels("restore", "done").inc()
                done.append({"action": "restore", "outcome": "done", "entry": undone.id})
        return replace(state, entries=(), restored_ms=now_ms), done

    def _problem(self, name: str, why: str) -> None:
        if self._problems.get(name) != why:
            self._problems[name] = why
            log.error("watch_failed", watch=name, reason=why)


def describe(rule: AlertRule, state: AlertState) -> str:
    """What is wrong, in words: what the rule is for, its figure, and the threshold."""
    figure = "there is no figure" if state.value is None else f"it is {state.value:.4g}"
    bound = f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}"
    what = f"p{100 * rule.quantile:g}" if rule.of == "quantile" else rule.of
    over = f"/{rule.over}" if rule.over else ""
    of_group = f", {rule.by} {state.group}" if state.group else ""
    text = f"{rule.text}: " if rule.text else ""
    return f"{text}{what} of {rule.metric}{over}{of_group}: {figure}, wrong is {bound}"


def message(event: Event, why: str, done: Sequence[dict[str, Any]], now_ms: int) -> dict[str, Any]:
    """What webhooks are sent."""
    rule, state = event.rule, event.state
    return {
        "alert": rule.name, "group": state.group, "state": _SAID[event.change], "severity": rule.severity, "value": state.value,
        "why": why, "incident": state.incident, "since_ms": state.since_ms, "time_ms": now_ms, "actions": list(done),
        "server": socket.gethostname(),
    }  # fmt: skip


class MonitorsLock:
    """The lock of the one monitor of ``data``. There are two for a moment when plans change: the new one waits."""

    def __init__(self, data: Path) -> None:
        path = data / "run" / "monitor.lock"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def mine(self) -> bool:
        """Take it, if nobody has it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let another one have it."""
        os.close(self._handle)
