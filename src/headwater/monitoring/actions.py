"""What an alert does, and how it is taken back: through the files that everything else follows, each change in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.experiments import store
from headwater.registry.audit import AuditEntry, read_audit, record
from headwater.registry.bundle import VERSION_PATTERN
from headwater.registry.controls import changed_controls, read_controls
from headwater.registry.files import writers_lock
from headwater.registry.registry import Registry
from headwater.schema.alerts import Action, AlertRule
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

LOWEST_BY_ALERT = 3
"""An alert walks the ladder down to this tier: the lists that are kept. Below it everybody gets the same, which a person may want."""
MORE_EXPLORATION, MOST_EXPLORATION = 2.0, 8.0
AUDIT_REACH = 100_000  # entries among which one is looked for


class ActionError(HeadwaterError):
    """It cannot be done, or not be taken back; nothing was changed."""


class Actions:
    """Does things to the server of ``data``. ``plan`` gives the hash of the plan in service (None: nobody knows it yet), whose bundles
    a rollback is about.
    """

    def __init__(self, data: Path, config: Config, plan: Callable[[], str | None]) -> None:
        self._data, self._config, self._plan = data, config, plan
        self._registry = Registry(data / "models")

    def act(self, action: Action, rule: AlertRule, group: str, why: str, now_ms: int) -> AuditEntry | None:
        """Do it; returns its entry in the audit log, None when all was so already.

        Raises:
            HeadwaterError: it cannot be done; the message says why.
        """
        by = f"alert:{rule.name}"
        if action == "rollback":
            about = group if VERSION_PATTERN.fullmatch(group) else ""
            if about and about != self._in_service():  # it is about one that is gone already
                return None
            return self.roll_back(by=by, reason=why, now_ms=now_ms, of=about)
        if action == "stop_experiment":
            return self.stop_experiment(group, by=by, reason=why, now_ms=now_ms)
        return changed_controls(self._data, self._changes(action, by, now_ms), by=by, reason=why, time_ms=now_ms)[1]

    def roll_back(self, *, by: str, reason: str, now_ms: int, of: str = "") -> AuditEntry:
        """Have the bundle serve that served before; with ``of`` only in the place of that one. Two at once are done one after the other.

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
            self._registry.load(history[-1], plan_hash=plan)  # what is not fit to serve leaves no entry
            entry = record(
                self._data, time_ms=now_ms, by=by, action="bundle.rollback", subject=current, reason=reason,
                before={"plan": plan, "version": current}, after={"plan": plan, "version": history[-1]},
            )  # fmt: skip
            self._registry.rollback(plan)
        return entry

    def stop_experiment(
        self, name: str, *, by: str, reason: str, now_ms: int, stopped_ms: int | None = None
    ) -> AuditEntry | None:
        """Give everybody the control again; None: it does not run. ``now_ms`` is the wall's time, as of all entries; ``stopped_ms`` the log's (None: the same).

        Raises:
            ExperimentError: there is none of that name, or its file is wrong.
        """
        if not store.read_experiment(self._data, name).is_running:
            return None
        entry = record(
            self._data, time_ms=now_ms, by=by, action="experiment.stop", subject=name, reason=reason,
            before={"status": "running"}, after={"status": "stopped"},
        )  # fmt: skip
        store.stop(self._data, name, now_ms=now_ms if stopped_ms is None else stopped_ms, why=f"{by}: {reason}")
        return entry

    def undo(self, entry_id: str, *, by: str, reason: str, now_ms: int) -> AuditEntry:
        """Put back what stood there before the change of ``entry_id`` (or of the one entry whose id begins so).

        Raises:
            ActionError: there is no such entry, it was taken back already, cannot be, or somebody changed the same since.
        """
        with self._one_at_a_time():
            return self._undone(self._found(entry_id), by, reason, now_ms)

    # -- inside ----------------------------------------------------------------------------------------

    def _undone(self, entry: AuditEntry, by: str, reason: str, now_ms: int) -> AuditEntry:
        if entry.undo is None:
            raise ActionError(f"{entry.action} {entry.subject} cannot be taken back")
        before, after = entry.undo.before, entry.undo.after
        if entry.action == "controls.change":
            _, done = changed_controls(
                self._data, before, by=by, reason=reason, time_ms=now_ms, undoes=entry.id, expect=after
            )
            if done is None:
                raise ActionError(f"all stands as it was before {entry.id}")
            return done
        if entry.action == "bundle.rollback":
            plan, version = str(before["plan"]), str(before["version"])
            if (stands := self._registry.current(plan)) != after["version"]:
                raise ActionError(f"the bundle was changed since: {stands} serves, not {after['version']}")
            done = self._record_undo(entry, "bundle.promote", version, by=by, reason=reason, now_ms=now_ms)
            self._registry.promote(version, plan_hash=plan)
            return done
        if entry.action == "experiment.stop":
            if (status := store.read_experiment(self._data, entry.subject).status) != "stopped":
                raise ActionError(f"experiment {entry.subject} was changed since: it is {status}")
            done = self._record_undo(entry, "experiment.start", entry.subject, by=by, reason=reason, now_ms=now_ms)
            store.start(self._data, entry.subject, self._config, now_ms=now_ms)
            return done
        raise ActionError(f"{entry.action} {entry.subject} cannot be taken back")

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """An alert and a person may find the same thing to do at the same moment."""
        (self._data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        with writers_lock(self._data / "run" / "actions.lock"):
            yield

    def _in_service(self) -> str | None:
        plan = self._plan()
        return None if plan is None else self._registry.current(plan)

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

    def _record_undo(
        self, entry: AuditEntry, action: str, subject: str, *, by: str, reason: str, now_ms: int
    ) -> AuditEntry:
        assert entry.undo is not None  # noqa: S101  (looked at by the caller)
        return record(
            self._data, time_ms=now_ms, by=by, action=action, subject=subject, reason=reason, undoes=entry.id,
            before=entry.undo.after, after=entry.undo.before,
        )  # fmt: skip

    def _found(self, entry_id: str) -> AuditEntry:
        entries = read_audit(self._data, AUDIT_REACH)
        found = [entry for entry in entries if entry_id and entry.id.startswith(entry_id)]
        if len(found) != 1:
            what = "no entry begins" if not found else f"{len(found)} entries begin"
            raise ActionError(f"{what} with {entry_id!r} in the audit log: `headwater alerts show` lists them")
        if any(other.undoes == found[0].id for other in entries):
            raise ActionError(f"{found[0].id} was taken back already")
        return found[0]
