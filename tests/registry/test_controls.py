"""Controls and the audit log: nothing changes without an entry, and what is wrong changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater.registry.audit import AUDIT_FILE, read_audit, record
from headwater.registry.controls import ControlsFile, change_controls, changed_controls, read_controls
from headwater.schema.controls import CONTROLS_FILE, Controls
from headwater.schema.errors import ConfigurationError, HeadwaterError


def test_a_change_is_in_force_and_in_the_audit_log(tmp_path: Path) -> None:
    assert read_controls(tmp_path) == Controls()
    followed = ControlsFile(tmp_path)
    assert not followed.poll()
    change_controls(tmp_path, by="alert:slow", reason="P95 120 ms", time_ms=5, tier_floor=1)
    assert read_controls(tmp_path) == Controls(tier_floor=1)
    assert followed.poll()
    assert followed.now.tier_floor == 1
    assert not followed.poll()
    (entry,) = read_audit(tmp_path)
    assert (entry.by, entry.action, entry.subject, entry.reason) == (
        "alert:slow", "controls.change", "tier_floor", "P95 120 ms",
    )  # fmt: skip
    assert entry.undo is not None
    assert (entry.undo.before, entry.undo.after) == ({"tier_floor": 0}, {"tier_floor": 1})
    change_controls(tmp_path, by="cli", reason="again", time_ms=6, tier_floor=1)
    assert len(read_audit(tmp_path)) == 1  # nothing changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tier_flor": 1}, 'did you mean "tier_floor"'),
        ({"tier_floor": 7}, "controls.tier_floor: Expected `int` <= 4"),
        ({"exploration": -1.0}, "controls.exploration"),
        ({"promotion_frozen": 3}, "controls.promotion_frozen"),
    ],
)
def test_a_wrong_change_changes_nothing(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        change_controls(tmp_path, by="cli", reason="", time_ms=1, **changes)
    assert read_controls(tmp_path) == Controls()
    assert read_audit(tmp_path) == []


def test_a_change_may_expect_what_stands_there(tmp_path: Path) -> None:
    change_controls(tmp_path, by="cli", reason="", time_ms=1, exploration=2.0)
    with pytest.raises(ConfigurationError, match="changed since"):
        changed_controls(tmp_path, {"exploration": 1.0}, by="cli", reason="", time_ms=2, expect={"exploration": 3.0})
    assert read_controls(tmp_path).exploration == 2.0


def test_a_file_that_is_wrong_leaves_what_was_in_force(tmp_path: Path) -> None:
    change_controls(tmp_path, by="cli", reason="", time_ms=1, tier_floor=2)
    followed = ControlsFile(tmp_path)
    (tmp_path / CONTROLS_FILE).write_text('{"tier_floor": 9}')
    assert not followed.poll()
    assert followed.now.tier_floor == 2
    with pytest.raises(ConfigurationError, match="Remove it"):
        read_controls(tmp_path)


def test_the_newest_entries_come_first_and_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    assert read_audit(tmp_path) == []
    for i in range(300):
        record(tmp_path, time_ms=i, by="cli", action="test", subject="x" * 300, reason=str(i))
    assert [entry.time_ms for entry in read_audit(tmp_path, 250)] == list(range(299, 49, -1))
    assert len(read_audit(tmp_path, 1_000)) == 300
    with (tmp_path / AUDIT_FILE).open("ab") as file:
        file.write(b'{"id": "abc')  # the power went
    record(tmp_path, time_ms=300, by="cli", action="test", subject="", reason="after", undoes="0" * 16)
    assert [entry.reason for entry in read_audit(tmp_path, 2)] == ["after", "299"]
    assert (tmp_path / AUDIT_FILE).stat().st_mode & 0o777 == 0o600
    with pytest.raises(HeadwaterError, match="audit:"):
        record(tmp_path, time_ms=1, by="", action="test", subject="", reason="")
