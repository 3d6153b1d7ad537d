"""A round of monitoring: watches → samples → history → alert rules → actions → audit log."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from headwater.monitoring.actions import Actions
from headwater.monitoring.alerts import Alerts, AlertState, Event
from headwater.monitoring.behind import watches_behind
from headwater.monitoring.gauges import Gauges
from headwater.monitoring.history import History, HistoryError
from headwater.monitoring.metrics import MonitorMetrics
from headwater.monitoring.notify import Notifier
from headwater.monitoring.paced import beginning
from headwater.monitoring.samples import Details, Sample, Watch
from headwater.monitoring.standing import drop_ack, read_ack, read_standing, write_standing
from headwater.registry.audit import pass_by
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

    ``found_by`` names the metrics of the watches that read the log: while such a one is behind, or in its first look, rules about what it does not say are not
    judged.

    ``details`` say why a figure is what it is, where a watch knows it.

    One that raises, whatever it is, is left out of the round, and that is said: monitoring goes on with the rest.
    """

    def __init__(
        self, data: Path, watches: Sequence[Watch], rules: Sequence[AlertRule], *, history: History, actions: Actions,
        notifier: Notifier, notify_from: Severity = "warning", metrics: MonitorMetrics | None = None,
        gauges: Gauges | None = None, cpu: Callable[[], float] = time.process_time, details: Details | None = None,
        passing: Callable[[str], None] = pass_by, found_by: Mapping[str, frozenset[str]] | None = None,
    ) -> None:  # fmt: skip
        self._data, self._watches = data, list(watches)
        self._history, self._actions, self._notifier = history, actions, notifier
        self._told = SEVERITIES[SEVERITIES.index(notify_from) :]
        self._metrics = MonitorMetrics() if metrics is None else metrics
        self._gauges, self._details = gauges, {} if details is None else details
        self._cpu, self._spent, self._passing = cpu, cpu(), passing
        self._found_by = {} if found_by is None else found_by
        self._controls = ControlsFile(data)
        self.alerts = Alerts(rules, read_standing(data).states)
        self._problems: dict[str, str] = {}
        self._pruned_ms = 0
        self._left = self.alerts.due  # what the monitor before this one meant to do, and died

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
        for event in self._left:
            self._follow(event, now_ms, again=True)
        self._left = []
        reading = watches_behind(found.values()) | beginning(self._watches)
        waiting = {name for watch in reading for name in self._found_by.get(watch, ())}
        waiting -= {name for name, _ in found}  # how far behind it is, it says
        events = self._intended(
            self.alerts.judge(now_ms, found.values(), self._actions.in_service, frozenset(waiting)), now_ms
        )
        for event in events:
            self._follow(event, now_ms)
        self._passing("followed")
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

    def _intended(self, events: list[Event], now_ms: int) -> list[Event]:
        """``events``, with what is due of each; that is on the disk before anything is done, so that it is done once whenever this dies."""
        events = [replace(event, state=replace(event.state, **_due(event, now_ms))) for event in events]
        meant = [event.state for event in events if event.state.due]
        for state in meant:
            self.alerts.note(state)
        if meant:
            try:
                write_standing(self._data, now_ms, self.alerts.states, durably=True)
            except OSError as error:  # it is done all the same, if the audit log can be written
                self._problem("standing", str(error))
            self._passing("intended")
        return events

    def _follow(self, event: Event, now_ms: int, *, again: bool = False) -> None:
        rule, state = event.rule, event.state
        why = describe(rule, state)
        if detail := self._details.get((rule.metric, state.group)):
            why = f"{why}: {detail}"
        level = log.info if event.change in ("resolves", "restores") else log.warning
        level("alert", alert=rule.name, group=state.group, change=event.change, severity=rule.severity, why=why)
        done: list[dict[str, Any]] = []
        if event.change in ("fires", "again"):
            state, done = self._act(event, why, now_ms, again=again)
        elif event.change == "restores":
            state, done = self._restore(rule, state, now_ms)
        self.alerts.note(state)
        acked = event.change in ("again", "resolves") and read_ack(self._data, state.incident) is not None
        if event.change == "resolves":
            drop_ack(self._data, state.incident)
        if done or (rule.severity in self._told and not acked):
            self._notifier.tell(message(event, why, done, now_ms))

    def _act(self, event: Event, why: str, now_ms: int, *, again: bool) -> tuple[AlertState, list[dict[str, Any]]]:
        """Do what is due; ``again``: another monitor may have done it, or a part of it."""
        rule, state = event.rule, event.state
        if rule.actions and not state.due and event.change == "fires":
            log.warning("alert_cools_down", alert=rule.name, group=state.group, cooldown=rule.cooldown)
        done, entries = list[dict[str, Any]](), list(state.entries)
        for action in state.due:
            try:
                entry = self._actions.finish(state.intent(action)) if again else None
                if entry is None:
                    entry = self._actions.act(action, rule, state, why, now_ms)
            except (HeadwaterError, OSError) as error:
                self._metrics.actions.labels(action, "failed").inc()
                log.error("alert_action_failed", alert=rule.name, action=action, reason=str(error))
                done.append({"action": action, "outcome": "failed", "reason": str(error)})
                continue
            self._passing("changed")
            changed = entry is not None and entry.undo is not None
            self._metrics.actions.labels(action, "done" if changed else "nothing").inc()
            if entry is not None:
                done.append({"action": action, "outcome": "done" if changed else "nothing", "entry": entry.id})
            if entry is not None and changed:
                entries.append(entry.id)
        return replace(state, due=(), entries=tuple(entries[-MOST_ENTRIES:])), done

    def _restore(self, rule: AlertRule, state: AlertState, now_ms: int) -> tuple[AlertState, list[dict[str, Any]]]:
        done, reason = list[dict[str, Any]](), f"{state.incident} is over"
        for entry in reversed(state.entries):
            try:
                undone = self._actions.restore(entry, by=f"alert:{rule.name}", reason=reason, now_ms=now_ms)
            except (HeadwaterError, OSError) as error:  # somebody else has changed it since: it is theirs now
                log.warning("alert_not_restored", alert=rule.name, entry=entry, reason=str(error))
                done.append({"action": "restore", "outcome": "failed", "entry": entry, "reason": str(error)})
                continue
            self._passing("changed")
            if undone is not None:
                self._metrics.actions.labels("restore", "done").inc()
                done.append({"action": "restore", "outcome": "done", "entry": undone.id})
        return replace(state, entries=(), restored_ms=now_ms), done

    def _problem(self, name: str, why: str) -> None:
        if self._problems.get(name) != why:
            self._problems[name] = why
            log.error("watch_failed", watch=name, reason=why)


def _due(event: Event, now_ms: int) -> dict[str, Any]:
    """What an event calls for, as fields of its state."""
    rule, state = event.rule, event.state
    if event.change == "again":
        return {"due": tuple(action for action in rule.actions if action == "walk_down"), "acted_ms": now_ms}
    cooling = state.acted_ms and now_ms - state.acted_ms < rule.cooldown_ms
    if event.change != "fires" or cooling or not rule.actions:
        return {}
    return {"due": rule.actions, "acted_ms": now_ms}


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
