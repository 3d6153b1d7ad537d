"""The backfill without a server: what it builds, what a kill leaves, when it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.features.paths import Current as CurrentPlan
from headwater.features.paths import (
    building_dir,
    drop_other_states,
    read_current,
    state_dir,
    state_dirs,
    write_current,
)
from headwater.features.plan import Plan, compile_plan
from headwater.features.recovery import BOOT_MARK
from headwater.log.batch import EventBatch, events_to_batch
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import READ_LIMIT
from headwater.log.writer import open_writer
from headwater.offline.backfill import NoBundleError, build_state, check_promoted, one_backfill, request_flip
from headwater.registry.bundle import DataRange, ManifestFields
from headwater.registry.registry import Registry
from headwater.schema.config import Config, Features
from headwater.schema.errors import ConfigurationError, HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from tests.reliability.kill import compare_state

CONFIG = Config(features=Features(recent=8, seen=16, affinity=4, content_size=8, segment_slots=4))
BLOCKS = 5


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(CONFIG)


def batch(count: int, seed: int) -> EventBatch:
    random = np.random.default_rng(seed)
    users, items, kinds = random.integers(0, 300, count), random.integers(0, 40, count), random.integers(0, 7, count)
    events = [
        Event(user=f"u{u}", item=f"i{i}", type=CONFIG.events[k].name)
        for u, i, k in zip(users.tolist(), items.tolist(), kinds.tolist(), strict=True)
    ]
    return events_to_batch(events, CONFIG.segments.keys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory whose log is some blocks long."""
    with open_writer(tmp_path) as writer:
        writer.put_items([Item(id=f"i{n}", categories=[f"c{n % 5}"]) for n in range(40)])
        for part in range(BLOCKS):
            writer.append_events(batch(READ_LIMIT, part))
    return tmp_path


def built_as_a_straight_fold(data: Path, plan: Plan) -> bool:
    log = LmdbLog(data / "log", readonly=True)
    try:
        rows, equal = compare_state(state_dir(data, plan.hash), log, plan, data / "straight")
        return equal and rows > 300
    finally:
        log.close()


def build(data: Path, plan: Plan, seconds: Callable[[], float] = lambda: 0.0) -> tuple[int, int, list[int]]:
    """(offset found, offset at the end, offsets that the progress was told)."""
    told: list[int] = []
    log = LmdbLog(data / "log", readonly=True)
    try:
        with one_backfill(data):
            done = build_state(CONFIG, data, plan, log, progress=lambda offset, _: told.append(offset), seconds=seconds)
        assert done.offset == log.last_offset
        assert done.records == done.offset - done.first
        return done.first, done.offset, told
    finally:
        log.close()


def test_the_state_is_that_of_a_straight_fold_and_is_brought_up_to_date(data: Path, plan: Plan) -> None:
    first, last, told = build(data, plan)
    assert (first, told[-1], told == sorted(told)) == (0, last, True)
    assert not building_dir(data, plan.hash).exists()
    with open_writer(data) as writer:
        writer.append_events(batch(100, 99))
    assert build(data, plan)[:2] == (last, last + 100)
    assert build(data, plan)[2] == [], "nothing is left to do"
    assert built_as_a_straight_fold(data, plan)


KILLED = """
import os, signal, sys
from pathlib import Path
from headwater.features.plan import compile_plan
from headwater.log.lmdb import LmdbLog
from headwater.offline.backfill import build_state
from tests.offline.test_backfill import CONFIG

data, blocks, now = Path(sys.argv[1]), int(sys.argv[2]), 0.0

def seconds():
    global now
    now += 0.4  # rows are stored with every third look or so
    return now

def progress(offset, last):
    global blocks
    blocks -= 1
    if blocks == 0:
        os.kill(os.getpid(), signal.SIGKILL)

log = LmdbLog(data / "log", readonly=True)
build_state(CONFIG, data, compile_plan(CONFIG), log, progress=progress, seconds=seconds)
"""


def test_a_killed_backfill_goes_on_where_it_stood(data: Path, plan: Plan) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(data), str(BLOCKS - 1)]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert not state_dir(data, plan.hash).exists(), "nobody takes half a state for a whole one"
    assert state_dirs(data) == []
    first, last, _ = build(data, plan)
    assert 0 < first < last
    assert built_as_a_straight_fold(data, plan)
    assert not building_dir(data, plan.hash).exists()


def test_what_cannot_be_trusted_is_built_anew(data: Path, plan: Plan) -> None:
    build(data, plan)
    (state_dir(data, plan.hash) / BOOT_MARK).write_text("another boot")
    with capture_logs() as said:
        assert build(data, plan)[0] == 0
    assert [line["event"] for line in said] == ["state_dropped"]
    assert built_as_a_straight_fold(data, plan)


def test_an_unfinished_state_of_another_plan_makes_room(data: Path, plan: Plan) -> None:
    other = building_dir(data, "feedbeef")
    other.mkdir(parents=True)
    (other / "data.mdb").touch()
    with capture_logs() as said:
        build(data, plan)
    assert not other.exists()
    assert ["feedbeef" in line["reason"] for line in said] == [True]


def test_one_backfill_at_a_time(tmp_path: Path) -> None:
    with one_backfill(tmp_path), pytest.raises(ConfigurationError, match="Another backfill"), one_backfill(tmp_path):
        pass
    with one_backfill(tmp_path):
        pass


def publish(models: Path, plan_hash: str) -> str:
    fields = ManifestFields(
        created_ms=1_772_000_000_000, plan_hash=plan_hash, columns=("a",), ranker="none", event_types=("click",),
        data=DataRange(first_offset=1, last_offset=1, first_ms=0, last_ms=0),
    )  # fmt: skip
    registry = Registry(models)
    version = registry.publish(fields, {}).version
    registry.put_in_service(version)
    return version


def test_a_flip_that_would_lose_the_ranker_is_refused(tmp_path: Path) -> None:
    check_promoted(tmp_path, "plan-a", "plan-b")
    version = publish(tmp_path, "plan-a")
    with pytest.raises(
        NoBundleError, match=rf"plan-a ranks with bundle {version}, plan plan-b has no.*headwater train"
    ):
        check_promoted(tmp_path, "plan-a", "plan-b")
    publish(tmp_path, "plan-b")
    check_promoted(tmp_path, "plan-a", "plan-b")


def test_a_request_names_plan_file_and_what_the_file_was(tmp_path: Path) -> None:
    write_current(tmp_path, CurrentPlan(plan="plan-a"))
    first = request_flip(tmp_path, "plan-b", tmp_path / "x" / ".." / "headwater.toml", "digest")
    wanted = CurrentPlan(
        plan="plan-b", before="plan-a", config=str(tmp_path / "headwater.toml"), digest="digest", request=first
    )
    assert read_current(tmp_path) == wanted
    assert request_flip(tmp_path, "plan-b", None, "digest") != first
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["CURRENT"]
    (tmp_path / "state" / "CURRENT").write_text("{")
    with pytest.raises(HeadwaterError, match="CURRENT cannot be read"):
        read_current(tmp_path)


def test_states_of_plans_that_nobody_serves_are_dropped(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d.building"):
        folder = tmp_path / "state" / name
        folder.mkdir(parents=True)
        (folder / "data.mdb").touch()
    assert drop_other_states(tmp_path, ("a", "c")) == ["b"]
    assert [path.name for path in state_dirs(tmp_path)] == ["a", "c"]
    assert (tmp_path / "state" / "d.building").exists()
