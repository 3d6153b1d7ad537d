"""What alerts do is done once, whenever the monitor dies, and two alerts over one cause do it once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headwater.experiments import store
from headwater.monitoring.actions import ActionError, Actions
from headwater.monitoring.history import History
from headwater.monitoring.monitor import Monitor
from headwater.monitoring.notify import Notifier
from headwater.monitoring.samples import sample
from headwater.monitoring.standing import read_standing
from headwater.registry.audit import pass_by, read_audit
from headwater.registry.controls import read_controls
from headwater.registry.registry import Registry
from headwater.schema.alerts import Action, AlertRule
from headwater.schema.config import Config
from tests.monitoring.test_monitor import EVERY_MS, EXPERIMENT, Site, published
from tests.registry.conftest import FIELDS

ALL: tuple[Action, ...] = ("rollback", "walk_down", "stop_experiment")  # a change of each kind of file
PLAN = FIELDS.plan_hash


class DiedError(BaseException):
    """The process is gone: nothing catches it."""


class Dying:
    """A looker-on that lets the process die at the point of this number; ``for_real``: by the signal that nobody can catch."""

    def __init__(self, at: int, *, for_real: bool = False) -> None:
        self.at, self.points, self._for_real = at, list[str](), for_real

    def __call__(self, point: str) -> None:
        self.points.append(point)
        if len(self.points) - 1 == self.at:
            if self._for_real:
                signal.raise_signal(signal.SIGKILL)
            raise DiedError(point)


class Watched:
    """A server that three bundles served, with an experiment, and monitors of it, one after the other."""

    def __init__(self, data: Path, now_ms: int = 1_000_000_000) -> None:
        self.data, self.now_ms = data, now_ms
        self.rule = AlertRule(
            name="hot", metric="heat", by="experiment", above=10.0, clear_for="0s", actions=ALL, restore_after="10s"
        )

    def prepared(self) -> Watched:
        for created in range(3):
            published(self.data, created=created)
        store.create(self.data, EXPERIMENT)
        store.start(self.data, "wide", Config(), now_ms=5)
        return self

    def rounds(self, values: list[float], passing: Any = pass_by) -> None:
        """Rounds of a new monitor with these figures."""
        actions = Actions(self.data, Config(), lambda: PLAN, passing=passing)
        with_figures = iter(values)

        class Heat:
            name = "heat"

            def look(self, now_ms: int) -> list[Any]:  # noqa: ARG002
                return [sample("heat", next(with_figures), experiment="wide")]

        monitor = Monitor(
            self.data, [Heat()], [self.rule], history=History(self.data / "monitoring" / "history.sqlite"), actions=actions,
            notifier=Notifier(()), passing=passing,
        )  # fmt: skip
        try:
            for _ in values:
                self.now_ms += EVERY_MS
                monitor.round(self.now_ms)
        finally:
            monitor.close()

    def found(self) -> dict[str, Any]:
        """All that alerts can change, and what the audit log tells of it."""
        return {
            "audit": [(entry.action, entry.subject, bool(entry.undoes)) for entry in read_audit(self.data)],
            "bundle": Registry(self.data / "models").current(PLAN), "tier": read_controls(self.data).tier_floor, "experiment": store.read_experiment(self.data, "wide").status,
        }  # fmt: skip


FIRES, ENDS = [11.0], [1.0, 1.0, 1.0, 1.0]


def copied(site: Watched, to: Path) -> Watched:
    """The same server in another folder."""
    shutil.copytree(site.data, to)
    return Watched(to, site.now_ms)


def test_a_monitor_that_dies_anywhere_acts_once(tmp_path: Path) -> None:
    first, counting = Watched(tmp_path / "first").prepared(), Dying(-1)
    whole = copied(first, tmp_path / "whole")
    whole.rounds(FIRES, counting)
    acted = whole.found()
    assert [action for action, _, _ in acted["audit"]] == ["experiment.stop", "controls.change", "bundle.rollback"]
    assert (acted["tier"], acted["experiment"]) == (1, "stopped")
    assert counting.points == ["intended", *["entry", "changed"] * len(ALL), "followed"]
    for point in range(len(counting.points)):
        one = copied(first, tmp_path / str(point))
        with pytest.raises(DiedError):
            one.rounds(FIRES, Dying(point))
        one.rounds(FIRES * 2)
        assert one.found() == acted, counting.points[: point + 1]
        (state,) = read_standing(one.data).states
        assert (len(state.entries), state.due) == (len(ALL), ())


def test_what_is_taken_back_is_taken_back_once(tmp_path: Path) -> None:
    first, counting = Watched(tmp_path / "first").prepared(), Dying(-1)
    first.rounds(FIRES)
    acted = first.found()
    whole = copied(first, tmp_path / "whole")
    whole.rounds(ENDS, counting)
    restored = whole.found()
    assert (restored["tier"], restored["experiment"]) == (0, "running")
    assert restored["bundle"] == acted["bundle"]  # a bundle that an alert rolled back does not come back by itself
    changes = [at for at, point in enumerate(counting.points) if point in ("entry", "changed")]
    assert len(changes) == 2 * 2 + 1
    for point in changes:
        one = copied(first, tmp_path / str(point))
        with pytest.raises(DiedError):
            one.rounds(ENDS, Dying(point))
        one.rounds(ENDS[:1])
        assert one.found() == restored


def test_a_monitor_that_is_killed_acts_once(tmp_path: Path) -> None:
    site = Watched(tmp_path).prepared()
    entry_of_the_second = 3  # after "intended" and the whole of the first
    code = (
        "from pathlib import Path; from tests.monitoring.test_once import *; "
        f"Watched(Path({str(tmp_path)!r})).rounds(FIRES, Dying({entry_of_the_second}, for_real=True))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert read_controls(tmp_path).tier_floor == 0  # its entry is there, and it is not
    assert [entry.subject for entry in read_audit(tmp_path, 1)] == ["tier_floor"]
    site.now_ms += EVERY_MS
    site.rounds(FIRES * 2)
    found = site.found()
    assert len(found["audit"]) == len(ALL)
    assert (found["tier"], found["experiment"]) == (1, "stopped")


def test_what_somebody_took_back_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    site = Watched(tmp_path).prepared()
    with pytest.raises(DiedError):
        site.rounds(FIRES, Dying(2))  # rolled back, and died
    entry = read_audit(tmp_path)[0]
    Actions(tmp_path, Config(), lambda: PLAN).undo(entry.id, by="cli", reason="it was good", now_ms=site.now_ms)
    site.rounds(FIRES)
    assert Registry(tmp_path / "models").current(PLAN) == entry.subject


# -- rolling back ----------------------------------------------------------------------------------------


def test_two_alerts_over_one_cause_roll_back_once(tmp_path: Path) -> None:
    first, good, bad = (published(tmp_path, created=created) for created in range(3))
    one, other = Site(tmp_path, "rollback"), Site(tmp_path, "rollback", for_="20s")
    other.rule = AlertRule(name="worse", metric="heat", above=10.0, for_="20s", clear_for="0s", actions=("rollback",))
    other.monitor = other.made()
    assert other.round(11.0) == []  # it began under the bad one
    assert one.round(11.0) == ["fires"]
    registry = Registry(tmp_path / "models")
    assert registry.current(PLAN) == good
    assert other.round(11.0, 6) == ["fires"]
    assert registry.current(PLAN) == good
    kept, rolled_back = read_audit(tmp_path)
    assert (rolled_back.action, rolled_back.subject, rolled_back.by) == ("bundle.rollback", bad, "alert:hot")
    assert (kept.action, kept.subject, kept.by, kept.undo) == ("bundle.keep", good, "alert:worse", None)
    assert kept.reason.startswith(f"not rolled back: {bad}, that was in service when this began, serves no more")
    assert first in registry.history(PLAN)
    with pytest.raises(ActionError, match="cannot be taken back"):
        other.actions.undo(kept.id, by="cli", reason="", now_ms=other.now_ms)


def test_a_figure_that_is_still_of_the_bundle_before_rolls_nothing_back(tmp_path: Path) -> None:
    _, good, bad = (published(tmp_path, created=created) for created in range(3))
    one, other = Site(tmp_path, "rollback"), Site(tmp_path, "rollback", window="1m")
    other.rule = AlertRule(name="late", metric="heat", above=10.0, clear_for="0s", cooldown="1s", actions=("rollback",))
    other.monitor = other.made()
    one.round(11.0)
    other.round(1.0)
    assert other.round(11.0) == ["fires"]  # its window reaches back to the bad one
    registry = Registry(tmp_path / "models")
    assert registry.current(PLAN) == good
    assert f"alert:hot had rolled back {bad} in the 1m that the figure is of" in read_audit(tmp_path, 1)[0].reason
    assert other.round(1.0, 20) == ["resolves"]
    assert other.round(11.0) == ["fires"]  # now it is the good one that is bad
    assert registry.current(PLAN) != good


def test_no_alert_goes_back_to_a_bundle_that_one_rolled_back(tmp_path: Path) -> None:
    first, bad = (published(tmp_path, created=created) for created in range(2))
    registry, site = Registry(tmp_path / "models"), Site(tmp_path, "rollback", cooldown="1s")
    site.round(11.0)
    site.actions.undo(read_audit(tmp_path)[0].id, by="cli", reason="it was the world", now_ms=site.now_ms)
    next_one = published(tmp_path, created=2)
    assert registry.history(PLAN) == [first, bad]
    site.round(1.0, 20)
    assert site.round(11.0) == ["fires"]
    assert (read_audit(tmp_path, 1)[0].subject, registry.current(PLAN)) == (next_one, first)
    registry.put_in_service(bad)
    registry.put_in_service(published(tmp_path, created=3))
    registry.prune(0, history=1)  # behind it there is now the bad one alone
    site.round(1.0, 20)
    assert site.round(11.0) == ["fires"]
    assert read_audit(tmp_path, 1)[0].subject == next_one  # nothing was done
