"""States in Redis in the care of the commands: built beside one that serves, backed up, restored, kept, forgotten."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headwater.features.fold import Fold
from headwater.features.paths import SNAPSHOT, Current, building_dir, snapshot_file, state_dirs, write_current
from headwater.features.plan import Plan, compile_plan
from headwater.features.recovery import open_fold_state
from headwater.features.redis_scripts import APPLY
from headwater.features.redis_states import (
    drop_other_states_in_redis,
    drop_state_in_redis,
    forget_in_redis,
    has_state_in_redis,
    redis_of,
    restored_mark,
    states_in_redis,
)
from headwater.features.redis_wire import Command
from headwater.features.replay import fold_to
from headwater.features.state_redis import RedisState
from headwater.features.store import Row, StateConflictError
from headwater.log.archived import open_log
from headwater.log.identity import LmdbIdentity
from headwater.log.writer import open_writer
from headwater.offline.archive import Archiver
from headwater.offline.backfill import build_state
from headwater.offline.backup import backup, restore
from headwater.offline.erase import erase
from headwater.offline.retain import NotCoveredError, retain
from headwater.schema.config import Config, Features
from headwater.schema.errors import UnavailableError
from headwater.schema.stores import Log, State
from tests.features.redis_server import shared_server
from tests.features.test_state_redis import flush
from tests.offline.sites import DAY_MS, MAP, Clock, fill, folded, user, writer_of

LOG = Log(map_size_gib=1.0, dedup_window=1_000)
EDITED = Features(user_half_lives=("1d", "3d", "14d"))
OLD, NEW = compile_plan(Config()), compile_plan(Config(features=EDITED))


def before() -> Config:
    """With its states in the Redis of the tests."""
    return Config(log=LOG, state=State(store="redis", url=shared_server().url, partitions=3))


def after() -> Config:
    """The same, edited: another plan."""
    return msgspec.structs.replace(before(), features=EDITED)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    flush(before().state.url)
    yield
    flush(before().state.url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def data(tmp_path: Path, clock: Clock) -> Path:
    """Some 1,400 records of four days."""
    path = tmp_path / "data"
    with writer_of(path, clock) as writer:
        fill(writer, clock, commits=200, seed=1, step_ms=4 * DAY_MS // 200)
    return path


def more(data: Path, clock: Clock, seed: int, commits: int = 20) -> None:
    with writer_of(data, clock) as writer:
        fill(writer, clock, commits=commits, seed=seed)


def build(config: Config, data: Path, plan: Plan) -> tuple[int, int]:
    """(offset found, offset at the end)."""
    with contextlib.closing(open_log(data)) as log:
        built = build_state(config, data, plan, log)
        assert built.offset == log.last_offset
    return built.first, built.offset


def fold_on(config: Config, data: Path, plan: Plan, until: int | None = None) -> int:
    """What the fold process does; returns where it found the state."""
    with (
        contextlib.closing(open_log(data)) as log,
        contextlib.closing(open_fold_state(config, data, plan, log)) as state,
    ):
        fold = Fold(plan, state)
        first = fold.offset
        fold_to(log, fold, log.last_offset if until is None else until)
        fold.commit(epoch=True)
        return first


def rows_of(config: Config, data: Path, plan: Plan) -> list[Row]:
    with (
        contextlib.closing(open_log(data)) as log,
        contextlib.closing(open_fold_state(config, data, plan, log)) as state,
    ):
        return list(state.dump())


def straight(data: Path, tmp_path: Path, until: int | None = None) -> list[Row]:
    """The rows of a fold from the start, with the plan of :func:`before`."""
    shutil.rmtree(tmp_path / "straight", ignore_errors=True)
    with contextlib.closing(open_log(data)) as log:
        return folded(log, tmp_path / "straight", until)[:-1]


def states(data: Path) -> dict[str, int]:
    with contextlib.closing(open_log(data)) as log:
        return states_in_redis(before(), data, log.log_id)


# -- backfill ------------------------------------------------------------------------------------------


def test_a_new_plans_state_is_built_beside_the_one_that_serves(data: Path, clock: Clock, tmp_path: Path) -> None:
    last = build(before(), data, OLD)[1]
    there = rows_of(before(), data, OLD)
    assert there == straight(data, tmp_path)
    assert build(after(), data, NEW) == (0, last)
    assert states(data) == {OLD.hash: last, NEW.hash: last}
    assert rows_of(before(), data, OLD) == there
    assert not building_dir(data, NEW.hash).exists()
    assert state_dirs(data) == [], "nothing of it is in LMDB"
    more(data, clock, 2)
    assert build(after(), data, NEW)[0] == last, "it is brought up to date in place"
    assert fold_on(before(), data, OLD) == last
    assert drop_other_states_in_redis(after(), [NEW.hash]) == [OLD.hash]
    assert list(states(data)) == [NEW.hash]
    assert not has_state_in_redis(after(), OLD.hash)


KILLED = """
import os, signal, sys
from pathlib import Path
from headwater.log.archived import open_log
from headwater.offline.backfill import build_state
from tests.offline.test_redis_states import LOG, OLD
from headwater.schema.config import Config
from headwater.schema.stores import State

config = Config(log=LOG, state=State(store="redis", url=sys.argv[2], partitions=3))
now = 0.0

def seconds():
    global now
    now += 10.0  # rows are stored with every block
    return now

def progress(offset, last):
    if offset > 600:
        os.kill(os.getpid(), signal.SIGKILL)

class Slow:
    def __init__(self, log): self.log = log
    def read(self, after, limit=200): return self.log.read(after, 200)
    def __getattr__(self, name): return getattr(self.log, name)

data = Path(sys.argv[1])
build_state(config, data, OLD, Slow(open_log(data)), progress=progress, seconds=seconds)
"""


def test_a_killed_backfill_goes_on_and_is_not_taken_for_a_finished_one(data: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(data), before().state.url]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert building_dir(data, OLD.hash).is_dir()
    (offset,) = states(data).values()
    assert 600 < offset < 1_000
    first, last = build(before(), data, OLD)
    assert (first, states(data)) == (offset, {OLD.hash: last})
    assert not building_dir(data, OLD.hash).exists()
    assert rows_of(before(), data, OLD) == straight(data, tmp_path)


def test_an_unfinished_state_of_another_plan_makes_room_unless_it_serves(data: Path) -> None:
    for served in (True, False):
        build(before(), data, OLD)
        building_dir(data, OLD.hash).mkdir()  # as if it had not come to its end, or a server had taken it over then
        write_current(data, Current(plan=OLD.hash if served else "another"))
        build(after(), data, NEW)
        assert (OLD.hash in states(data)) == served
        assert not building_dir(data, OLD.hash).exists()
        drop_state_in_redis(before(), NEW.hash)


def test_a_server_that_folds_the_plan_meanwhile_has_the_state(data: Path, clock: Clock) -> None:
    build(before(), data, OLD)
    more(data, clock, 2, commits=200)

    def steps_in(offset: int, last: int) -> None:
        fold_on(before(), data, OLD)

    with contextlib.closing(open_log(data)) as log, pytest.raises(StateConflictError, match="another process folds"):
        build_state(before(), data, OLD, log, progress=steps_in)
    with contextlib.closing(open_log(data)) as log:
        assert states(data) == {OLD.hash: log.last_offset}


# -- backup and restore --------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["redis", "lmdb"])
def test_a_backup_holds_the_states_and_a_fold_begins_with_them(
    data: Path, clock: Clock, tmp_path: Path, store: str
) -> None:
    """Into Redis, where a state of after the backup still lies, or into LMDB: the same rows, without the log's beginning."""
    build(before(), data, OLD)
    last = build(after(), data, NEW)[1]
    more(data, clock, 2)
    made = backup(data, tmp_path / "b", created_ms=1, config=before(), with_state=True)
    assert made.states == {OLD.hash: last, NEW.hash: last}
    assert made.last_offset > last
    assert backup(data, tmp_path / "c", created_ms=1, config=before()).states == {}
    more(data, clock, 3)
    fold_on(before(), data, OLD)
    assert states(data)[OLD.hash] > made.last_offset
    restored = tmp_path / "restored"
    assert restore(tmp_path / "b", restored, map_size=MAP).states == made.states
    assert states(restored) == {}, "whatever is in Redis is not known to be of this log"
    more(restored, clock, 4, commits=60)  # by now the log goes past where the old state stands, along another way
    config = msgspec.structs.replace(before(), state=msgspec.structs.replace(before().state, store=store))
    assert fold_on(config, restored, OLD) == last
    assert rows_of(config, restored, OLD) == straight(restored, tmp_path)
    assert not snapshot_file(restored, OLD.hash).exists()
    assert snapshot_file(restored, NEW.hash).exists(), "until that plan is folded again"
    assert build(config if store == "lmdb" else after(), restored, NEW)[0] == last
    assert restored_mark(restored).exists() == (store == "lmdb")
    assert list((restored / "state").glob(f"*{SNAPSHOT}")) == []


def test_a_snapshot_of_what_the_log_does_not_reach_is_not_used(data: Path, clock: Clock, tmp_path: Path) -> None:
    build(before(), data, OLD)
    backup(data, tmp_path / "b", created_ms=1, config=before(), with_state=True)
    restore(tmp_path / "b", tmp_path / "restored", map_size=MAP)
    other = tmp_path / "other"
    with writer_of(other, clock) as writer:
        fill(writer, clock, commits=3, seed=9)
    snapshot_file(other, OLD.hash).parent.mkdir()
    shutil.copyfile(snapshot_file(tmp_path / "restored", OLD.hash), snapshot_file(other, OLD.hash))
    flush(before().state.url)
    assert fold_on(before(), other, OLD) == 0
    assert rows_of(before(), other, OLD) == straight(other, tmp_path)


def test_a_state_that_is_needed_and_cannot_be_had_is_an_error(data: Path, tmp_path: Path) -> None:
    away = msgspec.structs.replace(before(), state=State(store="redis", url=f"unix://{tmp_path}/nowhere.sock"))
    with pytest.raises(UnavailableError, match="cannot be used"):
        backup(data, tmp_path / "b", created_ms=1, config=away, with_state=True)


# -- retention and erasure -----------------------------------------------------------------------------


def test_what_a_state_in_redis_has_not_folded_stays(data: Path, clock: Clock) -> None:
    archiver = Archiver(data, commit_bytes=12_000)
    archiver.run()
    archiver.close()
    config = msgspec.structs.replace(before(), log=Log(map_size_gib=1.0, dedup_window=10))
    fold_on(config, data, OLD, until=300)

    def kept(log_ms: int | None, lake_ms: int | None = None) -> str:
        return retain(data, config, log_ms=log_ms, lake_ms=lake_ms, now_ms=clock.now_ms).held_by

    assert kept(DAY_MS) == f"the state {OLD.hash} in Redis stands at offset 300"
    fold_on(config, data, OLD)
    assert kept(DAY_MS) == ""
    drop_state_in_redis(config, OLD.hash)
    with pytest.raises(NotCoveredError, match="there is no state at all"):
        kept(None, DAY_MS)
    fold_on(config, data, OLD, until=100)
    with pytest.raises(NotCoveredError, match=f"{OLD.hash} in Redis at offset 100"):
        kept(None, DAY_MS)
    fold_on(config, data, OLD)
    assert kept(None, DAY_MS) == ""
    with contextlib.closing(open_log(data)) as log:
        assert log.first_offset > 300


def test_the_erased_are_gone_from_states_that_nobody_folds(data: Path) -> None:
    names = [user(3), user(5)]
    for config, plan in ((before(), OLD), (after(), NEW)):
        build(config, data, plan)
    with contextlib.closing(LmdbIdentity(data / "identity", readonly=True)) as identity:
        keys = [key.user for name in names if (key := identity.lookup(name)) is not None]
    assert len(keys) == 2
    held = [row for row in rows_of(before(), data, OLD) if row[0] == "users" and row[1] in keys]
    assert held, "otherwise there is nothing to forget"
    done = erase(data, after(), names, at_ms=1, search=False)
    assert (done.erased, done.state_rows) == (2, 0)
    assert set(done.states) == {f"{OLD.hash} in Redis", f"{NEW.hash} in Redis"}
    for config, plan in ((before(), OLD), (after(), NEW)):
        rows = rows_of(config, data, plan)
        assert rows
        assert not [row for row in rows if row[0] == "users" and row[1] in keys]
        fold_on(config, data, plan)
        assert not [row for row in rows_of(config, data, plan) if row[0] == "users" and row[1] in keys]


def test_rows_that_a_commit_has_yet_to_take_out_are_waited_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit moves the position, then the rows: whoever looks in between must not say that somebody was left."""
    build(before(), data, OLD)
    with contextlib.closing(LmdbIdentity(data / "identity", readonly=True)) as identity:
        key = identity.lookup(user(3))
    assert key is not None
    with open_writer(data, map_size=MAP, dedup_window=1_000) as writer:
        offset = writer.erase_users([user(3)]).offset
    with (
        contextlib.closing(open_log(data)) as log,
        contextlib.closing(open_fold_state(before(), data, OLD, log)) as state,
        redis_of(before()) as wire,
    ):
        assert isinstance(state, RedisState)
        assert wire is not None
        run, held = state._run, list[list[Command]]()

        def until_rows(commands: list[Command]) -> None:
            """The last round trip of a commit does not come through yet."""
            held.append(commands) if commands[0][1] == APPLY else run(commands)

        fold = Fold(OLD, state)
        fold_to(log, fold, offset)
        monkeypatch.setattr(state, "_run", until_rows)
        fold.commit(epoch=False)
        assert len(held) == 1
        offsets, left = forget_in_redis(wire, log.log_id, [key.user], offset, lambda: False, lambda _: None)
        assert (offsets, left) == ({OLD.hash: offset}, 1), "without time to wait it says what it finds"
        offsets, left = forget_in_redis(wire, log.log_id, [key.user], offset, lambda: True, lambda _: run(held[0]))
        assert (offsets, left) == ({OLD.hash: offset}, 0)
