"""The last report of each plan: stored whole or not at all, and what it forbids."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headwater.evaluation.checks import MismatchError, checks_dir, last_check, mismatches, store_check
from headwater.evaluation.verify import Verification
from headwater.schema.errors import HeadwaterError

GOOD = Verification(
    requests=10, rows=80, mismatched_bytes=0, by_feature={"a": 0, "b": 0}, skipped={"not sampled": 3}, plan="p1",
    log_id="log", first_offset=5, last_offset=99, checked_ms=1_772_000_000_000, build="1", machine="x86_64",
)  # fmt: skip
BAD = msgspec.structs.replace(GOOD, mismatched_bytes=7, mismatched_requests=2, by_feature={"a": 0, "b": 7})


@pytest.fixture
def checks(tmp_path: Path) -> Path:
    return checks_dir(tmp_path / "data")


def test_the_newest_report_of_a_plan_is_kept(checks: Path) -> None:
    assert last_check(checks, "p1") is None
    other = msgspec.structs.replace(GOOD, plan="p2")
    for report in (GOOD, other, BAD):
        path = store_check(checks, report)
        assert path is not None
        assert path.parent == checks
        assert last_check(checks, report.plan) == report
    assert last_check(checks, "p2") == other
    assert sorted(path.name for path in checks.iterdir()) == ["LOCK", "p1.json", "p2.json"]


def test_a_report_about_nothing_leaves_the_one_before(checks: Path) -> None:
    store_check(checks, BAD)
    assert store_check(checks, msgspec.structs.replace(GOOD, requests=0)) is None
    assert last_check(checks, "p1") == BAD


def test_a_mismatch_is_refused_with_features_report_and_way_out(checks: Path) -> None:
    path = store_check(checks, BAD)
    with pytest.raises(MismatchError) as refused:
        mismatches(checks, "p1", ("a", "b"))
    said = str(refused.value)
    for part in ("disagree on b:", "7 bytes in 2 of 10 requests", "5 to 99", str(path), "--since 100", "--allow-mism"):
        assert part in said
    assert mismatches(checks, "p1", ("a", "b"), allowed=True) == ("b",)
    assert mismatches(checks, "p1", ("a",)) == ()  # the model does not use it
    assert mismatches(checks, "p2", ("a", "b")) == ()  # another plan
    store_check(checks, GOOD)
    assert mismatches(checks, "p1", ("a", "b")) == ()


def test_many_features_are_counted(checks: Path) -> None:
    names = tuple(f"f{n}" for n in range(20))
    store_check(checks, msgspec.structs.replace(BAD, by_feature=dict.fromkeys(names, 1)))
    with pytest.raises(MismatchError, match="f6, f7 and 12 more: "):
        mismatches(checks, "p1", names)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"requests": "many"}', b"\xff\xfe"])
def test_a_report_that_cannot_be_read_permits_nothing(checks: Path, damage: bytes) -> None:
    path = store_check(checks, GOOD)
    assert path is not None
    path.write_bytes(damage)
    with pytest.raises(HeadwaterError, match=r"p1\.json cannot be read.*features verify"):
        mismatches(checks, "p1", ("a",), allowed=True)
