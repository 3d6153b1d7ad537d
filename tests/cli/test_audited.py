"""Whatever changes a running system leaves the same entry in the audit log, from the command line and from the console, with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from typer.testing import CliRunner

import headwater
from headwater.cli.main import build_app
from headwater.experiments import store
from headwater.features.plan import compile_plan
from headwater.monitoring.actions import UNDOABLE, Actions
from headwater.online.keys import add_key, read_keys
from headwater.registry.audit import read_audit
from headwater.registry.controls import read_controls
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.keys import Scope
from tests.console.inside import Console
from tests.console.test_changes import DRAFT
from tests.registry.conftest import FIELDS

PLAN = compile_plan(Config()).hash
WHY = "somebody asked for it"
NEW = DRAFT.replace('"wide"', '"next"')


class Change(NamedTuple):
    """A change: how it is typed, the console's path and form (none: it has no such change), and what the audit log is to say."""

    typed: Sequence[str]
    path: str
    form: dict[str, Any]
    action: str
    subject: str


CHANGES = {
    "promote": Change(("models", "promote", "{third}", "--no-gate"), "models/promote", {"version": "{third}", "gate": "skip"}, "bundle.promote", "{third}"),
    "rollback": Change(("models", "rollback"), "models/rollback", {}, "bundle.rollback", "{second}"),
    "prune": Change(("models", "prune", "--keep", "3"), "models/prune", {"keep": "3"}, "bundle.prune", "keep 3"),
    "new": Change(("experiments", "new", "next", "--from", "{data}/next.toml"), "experiments", {"text": NEW}, "experiment.create", "next"),
    "start": Change(("experiments", "start", "wide", "--share", "0.2"), "experiments/run/wide/start", {"share": "20"}, "experiment.start", "wide with 20.00%"),
    "stop": Change(("experiments", "stop", "runs"), "experiments/run/runs/stop", {}, "experiment.stop", "runs"),
    "stop all": Change(("experiments", "stop", "--all"), "experiments/switch", {"on": "no"}, "experiments.off", "all"),
    "start all": Change(("experiments", "start", "--all"), "experiments/switch", {"on": "yes"}, "experiments.on", "all"),
    "override": Change(("experiments", "override", "wide", "ada-the-tester", "wide"), "", {}, "experiment.override", "wide: a tester gets wide"),
    "key": Change(("keys", "add", "robot", "--scope", "ingest"), "keys", {"name": "robot", "scope": "ingest"}, "key.add", "robot (ingest)"),
    "revoke": Change(("keys", "revoke", "shop"), "keys/revoke", {"id": "{shop}"}, "key.revoke", "shop ({shop})"),
    "controls": Change(("controls", "set", "--tier-floor", "2"), "alerts/controls", {"tier_floor": "2"}, "controls.change", "tier_floor"),
    "rules": Change(("rules", "publish"), "", {}, "rules.publish", "0 rules, version {rules}"),
}  # fmt: skip


class Prepared:
    """A data directory with three bundles (the second serves), two experiments and two keys."""

    def __init__(self, data: Path) -> None:
        self.data, registry = data, Registry(data / "models")
        versions = []
        for number in range(3):
            fields = msgspec.structs.replace(FIELDS, created_ms=FIELDS.created_ms + number, plan_hash=PLAN)
            versions.append(registry.publish(fields, {}).version)
        for version in versions[:2]:
            registry.put_in_service(version)
        for name in ("wide", "runs"):
            store.create(data, DRAFT.replace('name = "wide"\nshare = 0.5', f'name = "{name}"\nshare = 0.3'))
        store.start(data, "runs", Config(), now_ms=5)
        (data / "next.toml").write_text(NEW)
        self.console = Console(data)
        self.key = self.console.key("ada", Scope.READ, Scope.ADMIN)
        _, shop = add_key(data, "shop", [Scope.INGEST], now_ms=self.console.clock(), expires_ms=None)
        self.console.follow()
        self.words = {"third": versions[2], "second": versions[1], "shop": shop.id, "data": str(data)}

    def said(self, text: str) -> str:
        """``text`` with the names of this directory."""
        for word, value in self.words.items():
            text = text.replace(f"{{{word}}}", value)
        return text

    def standing(self) -> dict[str, Any]:
        """What can be taken back."""
        return {
            "bundle": Registry(self.data / "models").current(PLAN), "controls": read_controls(self.data),
            "runs": store.read_experiment(self.data, "runs").status,
        }  # fmt: skip


@pytest.mark.parametrize("way", ["command line", "console"])
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_in_the_audit_log(tmp_path: Path, name: str, way: str) -> None:
    change, prepared = CHANGES[name], Prepared(tmp_path)
    before = prepared.standing()
    if way == "console":
        if not change.path:
            pytest.skip("the console has no such change, or needs a server for it")
        form = {key: prepared.said(value) for key, value in change.form.items()}
        cookie = prepared.console.log_in(prepared.key, host="localhost")
        answer = prepared.console.change(f"/console/{change.path}", cookie, reason=WHY, **form)
        assert answer.status_code == 200, answer.text
        by = f"key:{prepared.key.split('_')[1]}"
    else:
        typed = [*(prepared.said(word) for word in change.typed), "--reason", WHY, "--data", str(tmp_path)]
        done = CliRunner().invoke(build_app(), typed)
        assert done.exit_code == (1 if name == "rules" else 0), done.output  # no server takes rules up here
        by = "cli"
    (entry,) = read_audit(tmp_path)
    assert (entry.by, entry.action, entry.reason) == (by, change.action, WHY)
    assert entry.subject.startswith(prepared.said(change.subject).partition("{")[0])
    assert "ada-the-tester" not in msgspec.json.encode(entry).decode()
    assert (entry.undo is not None) == (entry.action in UNDOABLE)
    if entry.undo is not None:
        assert prepared.standing() != before
        undone = Actions(tmp_path, Config(), lambda: PLAN).undo(entry.id, by="cli", reason="no", now_ms=9)
        assert prepared.standing() == before
        if entry.action in ("bundle.promote", "bundle.rollback"):  # and forth again
            Actions(tmp_path, Config(), lambda: PLAN).undo(undone.id, by="cli", reason="yes", now_ms=10)
            assert prepared.standing() != before


def test_nobody_promotes_past_the_audit_log() -> None:
    """``put_in_service`` leaves no entry: it is for taking back what has one."""
    package = Path(headwater.__file__).parent
    calls = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "put_in_service(" in path.read_text()
    }
    assert calls == {"registry/registry.py", "monitoring/actions.py"}


def test_what_is_refused_leaves_no_entry(tmp_path: Path) -> None:
    Prepared(tmp_path)
    for typed in (
        ("models", "promote", "2031", "--no-gate"), ("experiments", "start", "nobody"), ("experiments", "stop", "wide"),
        ("keys", "revoke", "nobody"), ("keys", "add", "robot", "--scope", "root"),
    ):  # fmt: skip
        CliRunner().invoke(build_app(), [*typed, "--data", str(tmp_path)])
    assert read_audit(tmp_path) == []
    assert len(read_keys(tmp_path) or ()) == 2


def test_an_experiment_goes_on_at_the_time_of_the_log(tmp_path: Path) -> None:
    Prepared(tmp_path)
    actions = Actions(tmp_path, Config(), lambda: PLAN, lambda: 77_000)
    entry = actions.stop_experiment("runs", by="alert:harm", reason="it harms", now_ms=1_772_000_000_000)
    assert entry is not None
    assert (entry.time_ms, store.read_experiment(tmp_path, "runs").stopped_ms) == (1_772_000_000_000, 77_000)
    actions.undo(entry.id, by="cli", reason="a false alarm", now_ms=1_772_000_000_001)
    assert store.read_experiment(tmp_path, "runs").started_ms == 77_000
