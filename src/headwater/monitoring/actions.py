"""What an alert does, and how it is taken back: through the files that everything else follows, each change in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.experiments import store
from headwater.monitoring.alerts import AlertState
from headwater.registry.audit import AuditEntry, Undo, pass_by, read_audit, record
from headwater.registry.bundle import VERSION_PATTERN
from headwater.registry.controls import changed_controls, finish_controls, read_controls
from headwater.registry.files import writers_lock
from headwater.registry.registry import Registry
from headwater.schema.alerts import Action, AlertRule
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Scalar

LOWEST_BY_ALERT = 3
"""An alert walks the ladder down to this tier: the lists that are kept. Below it everybody gets the same, which a person may want."""
MORE_EXPLORATION, MOST_EXPLORATION = 2.0, 8.0
AUDIT_REACH = 100_000  # entries among which one is looked for
UNDOABLE = frozenset({"controls.change", "bundle.rollback", "bundle.promote", "experiment.stop"})
"""What :meth:`Actions.undo` takes back, where the entry says what stood there."""
_CONVERSE = {
    "bundle.rollback": "bundle.promote",
    "bundle.promote": "bundle.rollback",
    "experiment.stop": "experiment.start",
}


class ActionError(HeadwaterError):
    """It cannot be done, or not be taken back; nothing was changed."""


class Actions:
    """Does things to the server of ``data``. ``plan`` gives the hash of the plan in service (None: nobody knows it yet), whose bundles
    a rollback is about; ``clock`` the log's time in ms, by which experiments start and end (None: it is the wall's). ``passing`` is called at
    each point where dying must do no harm.
    """

    def __init__(
        self, data: Path, config: Config, plan: Callable[[], str | None], clock: Callable[[], int] | None = None, *,
        passing: Callable[[str], None] = pass_by,
    ) -> None:  # fmt: skip
        self._data, self._config, self._plan, self._clock, self._passing = data, config, plan, clock, passing
        self._registry = Registry(data / "models")

    def in_service(self) -> str:
        """The bundle in service; "": there is none, or nobody knows the plan."""
        plan = self._plan()
        return "" if plan is None else self._registry.current(plan) or ""

    def act(self, action: Action, rule: AlertRule, state: AlertState, why: str, now_ms: int) -> AuditEntry | None:
        """Do what an alert in ``state`` calls for; returns its entry in the audit log, None when all was so already.

        Raises:
            HeadwaterError: it cannot be done; the message says why.
        """
        by, intent = f"alert:{rule.name}", state.intent(action)
        if action == "rollback":
            return self._roll_back_from(rule, state, by, why, now_ms, intent)
        if action == "stop_experiment":
            return self.stop_experiment(state.group, by=by, reason=why, now_ms=now_ms, intent=intent)
        return changed_controls(
            self._data, self._changes(action, by, now_ms), by=by, reason=why, time_ms=now_ms, intent=intent,
            passing=self._passing,
        )[1]  # fmt: skip

    def finish(self, intent: str) -> AuditEntry | None:
        """The entry of what an alert meant to do, when somebody wrote it and died; made true if it is not yet, and nobody has changed the same
        since. None: nobody came so far.
        """
        entries = read_audit(self._data, AUDIT_REACH)
        found = next((entry for entry in entries if entry.intent == intent), None)
        if found is not None:
            self._finish(found, entries)
        return found

    def roll_back(
        self, *, by: str, reason: str, now_ms: int, of: str = "", spared: Collection[str] = (), intent: str | None = None
    ) -> AuditEntry:  # fmt: skip
        """Have the bundle serve that served before; with ``of`` only in the place of that one, and never one of ``spared``. Two at once are done one
        after the other.

        Raises:
            ActionError: there is none, another one than ``of`` serves, or the plan in service is not known.
        """
        plan = self._plan()
        with self._one_at_a_time():
            current = self._registry.current(plan) if plan is not None else None
            if plan is None or current is None:
                raise ActionError("no bundle is in service, so there is nothing to roll back")
            if of and current != of:
                raise ActionError(f"the bundle was changed since: {current} serves, not {of}")
            history = self._registry.history(plan)
            if not history:
                raise ActionError(f"bundle {current} is the first of its plan: there is none to roll back to")
            fit = [version for version in history if version not in spared]
            if not fit:
                raise ActionError(
                    f"alerts have rolled back every bundle that served before {current}: promote another one"
                )
            to = fit[-1]
            self._registry.load(to, plan_hash=plan)  # what is not fit to serve leaves no entry
            entry = record(
                self._data, time_ms=now_ms, by=by, action="bundle.rollback", subject=current, reason=reason,
                before={"plan": plan, "version": current}, after={"plan": plan, "version": to}, intent=intent,
            )  # fmt: skip
            self._passing("entry")
            self._registry.rollback(plan, to)
        return entry

    def stop_experiment(
        self, name: str, *, by: str, reason: str, now_ms: int, intent: str | None = None
    ) -> AuditEntry | None:
        """Give everybody the control again; None: it does not run. ``now_ms`` is the wall's time, as of all entries.

        Raises:
            ExperimentError: there is none of that name, or its file is wrong.
        """
        if not store.read_experiment(self._data, name).is_running:
            return None
        entry = record(
            self._data, time_ms=now_ms, by=by, action="experiment.stop", subject=name, reason=reason,
            before={"status": "running"}, after={"status": "stopped"}, intent=intent,
        )  # fmt: skip
        self._passing("entry")
        self._put(entry, {"status": "stopped"}, now_ms)
        return entry

    def undo(self, entry_id: str, *, by: str, reason: str, now_ms: int) -> AuditEntry:
        """Put back what stood there before the change of ``entry_id`` (or of the one entry whose id begins so).

        Raises:
            ActionError: there is no such entry, it was taken back already, cannot be, or somebody changed the same since.
        """
        with self._one_at_a_time():
            entries = read_audit(self._data, AUDIT_REACH)
            entry = _found(entries, entry_id)
            if any(other.undoes == entry.id for other in entries):
                raise ActionError(f"{entry.id} was taken back already")
            return self._undone(entry, by, reason, now_ms)

    def restore(self, entry_id: str, *, by: str, reason: str, now_ms: int) -> AuditEntry | None:
        """As :meth:`undo`, by the alert that did it: once, also when the monitor died over it. A bundle that an alert rolled back does not come back by
        itself (None).
        """
        with self._one_at_a_time():
            entries = read_audit(self._data, AUDIT_REACH)
            entry = _found(entries, entry_id)
            if entry.action == "bundle.rollback":
                return None
            back = next((other for other in entries if other.undoes == entry.id), None)
            if back is None:
                return self._undone(entry, by, reason, now_ms)
            if back.by != by:
                raise ActionError(f"{entry.id} was taken back already by {back.by}")
            self._finish(back, entries)
            return back

    # -- inside ----------------------------------------------------------------------------------------

    def _roll_back_from(
        self, rule: AlertRule, state: AlertState, by: str, why: str, now_ms: int, intent: str
    ) -> AuditEntry:  # fmt: skip
        """Roll back the bundle that an alert is about: the one in its group, or the one that was in service when its condition began. Where that
        serves no more, or the figure may be of one that was rolled back meanwhile, nothing is done, and the audit log says why.
        """
        named = VERSION_PATTERN.fullmatch(state.group) is not None
        about, current = state.group if named else state.bundle, self.in_service()
        entries = [entry for entry in read_audit(self._data, AUDIT_REACH) if entry.action == "bundle.rollback"]
        kept = ""
        if about and about != current:
            when = "that this is about" if named else "that was in service when this began"
            kept = f"{about}, {when}, serves no more"
        elif not named:
            since_ms = state.wrong_ms - rule.window_ms
            last = next((entry for entry in entries if since_ms <= entry.time_ms <= state.wrong_ms), None)
            if last is not None:
                kept = f"{last.by} had rolled back {last.subject} in the {rule.window} that the figure is of"
        if kept:
            return record(
                self._data, time_ms=now_ms, by=by, action="bundle.keep", subject=current, reason=f"not rolled back: {kept}; {why}",
                intent=intent,
            )  # fmt: skip
        by_alerts = {entry.subject for entry in entries if entry.by.startswith("alert:")}
        return self.roll_back(by=by, reason=why, now_ms=now_ms, of=about, spared=by_alerts, intent=intent)

    def _undone(self, entry: AuditEntry, by: str, reason: str, now_ms: int) -> AuditEntry:
        if entry.undo is None or entry.action not in UNDOABLE:
            raise ActionError(f"{entry.action} {entry.subject} cannot be taken back")
        before, after = entry.undo.before, entry.undo.after
        if entry.action == "controls.change":
            _, done = changed_controls(
                self._data,
                before,
                by=by,
                reason=reason,
                time_ms=now_ms,
                undoes=entry.id,
                expect=after,
                passing=self._passing,
            )
            if done is None:
                raise ActionError(f"all stands as it was before {entry.id}")
            return done
        if (stands := self._stands(entry, after)) != after:
            if "version" in after:
                raise ActionError(f"the bundle was changed since: {stands['version']} serves, not {after['version']}")
            raise ActionError(f"experiment {entry.subject} was changed since: it is {stands['status']}")
        subject = entry.subject
        if "version" in after:
            version = str(before["version"])
            self._registry.load(version, plan_hash=str(before["plan"]))  # what is not fit to serve leaves no entry
            subject = version if entry.action == "bundle.rollback" else str(after["version"])
        done = record(
            self._data, time_ms=now_ms, by=by, action=_CONVERSE[entry.action], subject=subject, reason=reason,
            undoes=entry.id, before=after, after=before,
        )  # fmt: skip
        self._passing("entry")
        self._put(done, before, now_ms)
        return done

    def _finish(self, entry: AuditEntry, entries: Sequence[AuditEntry]) -> None:
        """Make true what ``entry`` tells of, where what stood before it still stands and no later one of ``entries`` is about the same."""
        if entry.undo is None:
            return
        later = entries[: next(at for at, other in enumerate(entries) if other.id == entry.id)]
        if any(_same(entry, entry.undo, other) for other in later):
            return
        if entry.action == "controls.change":
            finish_controls(self._data, entry.undo.before, entry.undo.after)
        elif self._stands(entry, entry.undo.before) == entry.undo.before:
            self._put(entry, entry.undo.after, entry.time_ms)

    def _stands(self, entry: AuditEntry, like: dict[str, Scalar]) -> dict[str, Scalar | None]:
        """What stands there now of what a change of a bundle or an experiment puts there."""
        if "version" in like:
            return {"plan": like["plan"], "version": self._registry.current(str(like["plan"]))}
        return {"status": store.read_experiment(self._data, entry.subject).status}

    def _put(self, entry: AuditEntry, wanted: dict[str, Scalar], now_ms: int) -> None:
        """Make ``wanted`` stand there."""
        if "version" in wanted:
            plan, version = str(wanted["plan"]), str(wanted["version"])
            if entry.action == "bundle.rollback" and version in self._registry.history(plan):
                self._registry.rollback(plan, version)
            else:
                self._registry.put_in_service(version, plan_hash=plan)
            return
        log_ms = now_ms if self._clock is None else self._clock()
        if wanted["status"] == "stopped":
            store.stop(self._data, entry.subject, now_ms=log_ms, why=f"{entry.by}: {entry.reason}")
        else:
            store.start(self._data, entry.subject, self._config, now_ms=log_ms)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """An alert and a person may find the same thing to do at the same moment."""
        (self._data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        with writers_lock(self._data / "run" / "actions.lock"):
            yield

    def _changes(self, action: Action, by: str, now_ms: int) -> dict[str, Any]:
        now = read_controls(self._data)
        match action:
            case "freeze_promotion":
                return {"promotion_frozen": now.promotion_frozen or by}
            case "retrain":
                return {"retrain_asked_ms": now_ms}
            case "walk_down":
                return {"tier_floor": max(now.tier_floor, min(now.tier_floor + 1, LOWEST_BY_ALERT))}
            case "walk_up":
                return {"tier_floor": max(now.tier_floor - 1, 0)}
            case "raise_exploration":
                return {"exploration": max(now.exploration, min(now.exploration * MORE_EXPLORATION, MOST_EXPLORATION))}
        raise ActionError(f"there is no action {action}")


def _found(entries: Sequence[AuditEntry], entry_id: str) -> AuditEntry:
    found = [entry for entry in entries if entry_id and entry.id.startswith(entry_id)]
    if len(found) != 1:
        what = "no entry begins" if not found else f"{len(found)} entries begin"
        raise ActionError(f"{what} with {entry_id!r} in the audit log: `headwater alerts show` lists them")
    return found[0]


def _same(entry: AuditEntry, undo: Undo, other: AuditEntry) -> bool:
    """Whether ``other`` may have changed what ``entry`` changed."""
    kind = entry.action.partition(".")[0]
    if other.action.partition(".")[0] != kind or other.action == "bundle.keep":
        return False
    if kind == "experiment":
        return other.subject == entry.subject
    return other.undo is None or kind == "bundle" or bool(undo.after.keys() & other.undo.after.keys())
