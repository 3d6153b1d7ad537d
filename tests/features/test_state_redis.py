"""State in Redis keeps the contract of state stores, and is at one offset wherever a commit is cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.plan import Plan
from headwater.features.redis_wire import Command, shown
from headwater.features.rows import CorruptStateError, ItemTable
from headwater.features.state import open_store
from headwater.features.state_redis import RedisState, Wire, drop_redis_state
from headwater.features.store import StateConflictError, StateMovedError
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError, HeadwaterError, UnavailableError
from headwater.schema.stores import State
from headwater.testing.events import Written, script, written
from headwater.testing.state_contract import StateContract
from headwater.testing.state_folds import fold_all, next_block, reference
from tests.debian import program
from tests.features.redis_server import RedisCluster, RedisServer, shared_server
from tests.features.states import CONFIGS, PLANS, flipped

TIGHT = PLANS["tight"]
OPENING = 6  # commands that opening an empty state takes


class TestRedisState(StateContract):
    def open(self, place: Path, plan: Plan, *, writable: bool, log_id: str = "") -> RedisState:
        wire = Wire(shared_server().url)
        return RedisState(wire, plan, writable=writable, log_id=log_id, partitions=3, place=name_of(place))

    def damage(self, place: Path, table: str, key: int, change: int | bytes) -> None:
        with client() as raw:
            if table == "epochs":
                epoch = key_of(place, "m", f"e{key}")
                raw.lset(epoch, 0, flipped(raw.lindex(epoch, 0), change))
                return
            p = key % 3 if table == "users" else "m"
            bucket = key_of(place, p, f"{table[0]}{key // (768 if table == 'users' else 256)}")
            name = key.to_bytes(4, "big")
            if table == "meta":
                bucket, name = key_of(place, "m", "head"), b"body"
            raw.hset(bucket, name, flipped(raw.hget(bucket, name), change))

    @pytest.fixture(autouse=True)
    def empty(self) -> Iterator[None]:
        yield
        flush(shared_server().url)


def name_of(place: Path) -> str:
    return str(place).replace("/", "-")


def key_of(place: Path, p: int | str, name: str) -> str:
    return f"{{hw:{name_of(place)}:{p}}}:{name}"


def flush(url: str) -> None:
    with redis.Redis.from_url(url) as raw:
        raw.flushall()


def client() -> redis.Redis:
    return redis.Redis.from_url(shared_server().url)


@pytest.fixture
def empty() -> Iterator[str]:
    """The URL of an empty server."""
    flush(shared_server().url)
    yield shared_server().url
    flush(shared_server().url)


# -- cut commits -----------------------------------------------------------------------------------------


class CutWire(Wire):
    """Breaks when ``left`` commands have arrived, also in the middle of a round trip, and stays broken.

    ``scattered``: of the round trip that breaks any command may arrive, as on a cluster, whose nodes each get a part.
    ``kills``: the process ends at that moment.
    """

    def __init__(
        self, url: str, left: int, *, scattered: np.random.Generator | None = None, kills: bool = False
    ) -> None:
        super().__init__(url)
        self.left, self.scattered, self.kills = left, scattered, kills

    def trip(self, commands: Sequence[Command], *, together: bool = False, patient: bool = False) -> list[Any]:
        if len(commands) <= self.left:
            self.left -= len(commands)
            return super().trip(commands, together=together, patient=patient)
        arrived = list(commands[: self.left])
        if self.scattered is not None and self.left:
            arrived = [command for command in commands if self.scattered.random() < 0.5]
        self.left = 0
        super().trip(arrived)
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise UnavailableError("cut")


def opened(wire: Wire) -> RedisState:
    return RedisState(wire, TIGHT, writable=True, partitions=3)


def some_log() -> Written:
    return written(script(21, 36, users=20), CONFIGS["tight"])


def fold_on(state: RedisState, log: Written, *, limit: int = 24) -> None:
    """Fold to the end, with an epoch at every second commit."""
    fold = Fold(TIGHT, state)
    k = 0
    while (block := log.log.read(fold.offset, limit)) is not None:
        fold.apply(block)
        k += 1
        fold.commit(epoch=k % 2 == 0)


def commands_of_a_fold(url: str, log: Written) -> int:
    wire = CutWire(url, 1 << 40)
    with closing(wire):
        fold_on(opened(wire), log)
    flush(url)
    return (1 << 40) - wire.left


def check_what_is_there(url: str, log: Written, *, at_least: int = 0) -> None:
    """What the next process finds: all rows at one offset, from which it goes on to the right bytes."""
    with closing(opened(Wire(url))) as state:
        assert state.offset >= at_least
        assert list(state.dump()) == reference(log, TIGHT, until=state.offset)
        row = stranger(TIGHT)
        assert {state.read_user(user, row) for user in range(12)} == {state.offset}
        fold_on(state, log)
        assert list(state.dump()) == reference(log, TIGHT)


def test_a_fold_that_is_cut_anywhere_leaves_a_state_at_one_offset(empty: str) -> None:
    log = some_log()
    total = commands_of_a_fold(empty, log)
    assert total > 60
    offsets = set()
    for n in range(total):
        with closing(CutWire(empty, n)) as wire, pytest.raises(UnavailableError, match="cut"):
            fold_on(opened(wire), log)
        with client() as raw:
            offsets.add(raw.hget(f"{{hw:{TIGHT.hash}:m}}:head", "at"))
        check_what_is_there(empty, log)
        flush(shared_server().url)
    assert len(offsets) > 3


def test_a_fold_that_is_cut_while_only_some_partitions_get_their_commands(empty: str) -> None:
    log = some_log()
    total = commands_of_a_fold(empty, log)
    rng = np.random.default_rng(77)
    for n in rng.integers(1, total, 40).tolist():
        with closing(CutWire(empty, n, scattered=rng)) as wire, pytest.raises(UnavailableError, match="cut"):
            fold_on(opened(wire), log)
        check_what_is_there(empty, log)
        flush(shared_server().url)


def test_a_process_that_is_killed_anywhere(empty: str) -> None:
    log = some_log()
    total = commands_of_a_fold(empty, log)
    for n in np.random.default_rng(5).integers(1, total, 4).tolist():
        code = f"from tests.features.test_state_redis import die; die({empty!r}, {n})"
        ended = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        check_what_is_there(empty, log)
        flush(shared_server().url)


def die(url: str, n: int) -> None:
    """What that process does."""
    fold_on(opened(CutWire(url, n, kills=True)), some_log())


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_commit_whose_answer_was_lost_may_be_tried_again(empty: str, goes_on: bool) -> None:
    """By the same process, with the same rows or with more, wherever it broke."""
    log = some_log()
    broke = 0
    for n in range(60):
        wire = CutWire(empty, 1 << 40)
        with closing(opened(wire)) as state:
            fold = Fold(TIGHT, state)
            fold.apply(next_block(log, fold, 40))
            fold.commit(epoch=True)
            fold.apply(next_block(log, fold, 10))
            wire.left = n
            try:
                fold.commit(epoch=True)
            except UnavailableError:
                broke += 1
            wire.left = 1 << 40
            if goes_on:
                fold.apply(next_block(log, fold, 10))
            fold.commit(epoch=True)
            assert list(state.dump()) == reference(log, TIGHT, until=fold.offset)
            assert state.meta().offset == fold.offset
            fold_on(state, log)
            assert list(state.dump()) == reference(log, TIGHT)
        flush(shared_server().url)
        if broke <= n:
            break
    assert 6 < broke < 60


class CrossedWire(Wire):
    """Something else happens before the n-th round trip from when ``left`` was set."""

    left = 1 << 40

    def __init__(self, url: str, other: Callable[[], None]) -> None:
        super().__init__(url)
        self.other = other

    def trip(self, commands: Sequence[Command], *, together: bool = False, patient: bool = False) -> list[Any]:
        if self.left == 0:
            self.other()
        self.left -= 1
        return super().trip(commands, together=together, patient=patient)


def step(fold: Fold, log: Written, records: int) -> str:
    """Fold so many more and commit; what became of it."""
    try:
        if (block := log.log.read(fold.offset, records)) is not None:
            fold.apply(block)
        fold.commit(epoch=True)
    except StateConflictError:
        return "refused"
    return "through"


def crossed(url: str, log: Written, n: int, *, early: bool) -> list[str]:
    """A commit that another fold's commit crosses before the n-th round trip: what became of the other's, and of it."""
    done: list[str] = []
    rivals: list[Fold] = []

    def other() -> None:
        rival = rivals[0] if rivals else Fold(TIGHT, opened(Wire(url)))
        done.append(step(rival, log, 15))

    wire = CrossedWire(url, other)
    fold = Fold(TIGHT, opened(wire))
    assert step(fold, log, 20) == "through"
    if early:
        rivals.append(Fold(TIGHT, opened(Wire(url))))
    fold.apply(next_block(log, fold, 10))
    wire.left = n
    done.append(step(fold, log, 0))
    wire.left = 1 << 40
    check_what_is_there(url, log, at_least=fold.offset if done[-1] == "through" else 0)
    return done


@pytest.mark.parametrize("early", [True, False])
def test_another_fold_that_steps_in_anywhere(empty: str, early: bool) -> None:
    """Opened before the commit that it crosses, or in the middle of it: at one offset, and one of them goes on."""
    outcomes = []
    for n in range(8):
        outcomes.append(crossed(empty, some_log(), n, early=early))
        flush(empty)
        if len(outcomes[-1]) == 1:
            break
    assert ["through", "refused"] in outcomes
    assert ["through"] in outcomes
    assert ["refused", "refused"] not in outcomes


# -- the server's own end --------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_a_server_that_is_killed_and_started_again(fsync: str) -> None:
    log = some_log()
    server = RedisServer("--appendonly", "yes", "--appendfsync", fsync)
    try:
        total = commands_of_a_fold(server.url, log)
        for n in np.random.default_rng(9).integers(0, total - OPENING, 6).tolist():
            with closing(CutWire(server.url, n + OPENING)) as wire:
                state = opened(wire)
                with pytest.raises(UnavailableError, match="cut"):
                    fold_on(state, log)
            server.kill()
            with pytest.raises(UnavailableError, match="cannot be used"):
                Wire(server.url)
            server.start()
            check_what_is_there(server.url, log, at_least=state.offset if fsync == "always" else 0)
            flush(server.url)
    finally:
        server.stop()


def test_a_server_that_lost_the_end_of_its_file(tmp_path: Path) -> None:
    """Whatever part of its log of commands a server comes back with: one offset, and on from there."""
    log = some_log()
    server = RedisServer("--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes")
    try:
        with closing(opened(Wire(server.url))) as state:
            fold_on(state, log)
        server.kill()
        (file,) = server.folder.glob("appendonlydir/*.incr.aof")
        whole = file.read_bytes()
        offsets = set()
        for cut in np.random.default_rng(4).integers(0, len(whole), 25).tolist():
            file.write_bytes(whole[:cut])
            server.start()
            with redis.Redis.from_url(server.url) as raw:
                offsets.add(raw.hget(f"{{hw:{TIGHT.hash}:m}}:head", "at"))
            check_what_is_there(server.url, log)
            server.kill()
        assert len(offsets) > 3
    finally:
        server.stop()


def test_a_fold_goes_on_only_where_it_left_the_state(empty: str) -> None:
    """A server that comes back older than the fold that is still running, or empty."""
    log = some_log()
    for key in ("head", "*"):
        with closing(opened(Wire(empty))) as state, client() as raw:
            fold = Fold(TIGHT, state)
            fold.apply(next_block(log, fold, 20))
            fold.commit(epoch=True)
            for found in raw.keys(f"{{hw:{TIGHT.hash}:*}}:{key}"):
                raw.delete(found)
            fold.apply(next_block(log, fold, 20))
            with pytest.raises(StateConflictError):
                fold.commit(epoch=True)
            raw.flushall()


@pytest.mark.parametrize("lost", ["0", "2", "m"])
def test_a_state_of_which_one_node_lost_writes_is_refused(empty: str, lost: str) -> None:
    log = some_log()
    with closing(opened(Wire(empty))) as state, client() as raw:
        fold = Fold(TIGHT, state)
        fold.apply(next_block(log, fold, 20))
        fold.commit(epoch=True)
        kept = {key: raw.dump(key) for key in raw.keys(f"{{hw:{TIGHT.hash}:{lost}}}:*")}
        fold.apply(next_block(log, fold, 20))
        fold.commit(epoch=True)
        for key, value in kept.items():
            raw.restore(key, 0, value, replace=True)
        with pytest.raises(StateMovedError, match="moved"):
            list(state.dump())
        fold.apply(next_block(log, fold, 20))
        with pytest.raises(StateConflictError, match="another process"):
            fold.commit(epoch=True)
        with closing(Wire(empty)) as wire:
            with pytest.raises(CorruptStateError, match="lost writes"):
                opened(wire)
            drop_redis_state(wire, TIGHT.hash)
        check_what_is_there(empty, log)


# -- many readers, dropping, clusters --------------------------------------------------------------------


def test_readers_start_while_the_fold_commits(empty: str) -> None:
    """Item rows of one commit, though every look at them finds another one."""
    log = some_log()
    with closing(opened(Wire(empty))) as writer:
        fold = Fold(TIGHT, writer)

        class Busy(Wire):
            """The fold commits whenever the reader looks at the head."""

            def trip(self, commands: Sequence[Command], *, together: bool = False, patient: bool = False) -> list[Any]:
                answers = super().trip(commands, together=together, patient=patient)
                if commands[0][0] == "HMGET" and (block := log.log.read(fold.offset, 5)) is not None:
                    fold.apply(block)
                    fold.commit(epoch=True)
                return answers

        fold.apply(next_block(log, fold, 20))
        fold.commit(epoch=True)
        with closing(RedisState(Busy(empty), TIGHT, writable=False, partitions=3)) as reader:
            for _ in range(4):
                table = writer_table()
                epoch, offset, changed = reader.refresh_items(table, -1)
                assert changed is None
                at = Fold(TIGHT)
                for block in log.blocks(until=offset):
                    at.apply(block)
                assert [part[: at.items.count].tobytes() for part in table.rows] == [
                    part[: at.items.count].tobytes() for part in at.items.rows
                ]
                assert epoch <= writer.meta().epoch


def test_a_reader_of_a_dropped_state_is_told(empty: str) -> None:
    log = some_log()
    with closing(opened(Wire(empty))) as state:
        fold_on(state, log)
    with closing(RedisState(Wire(empty), TIGHT, writable=False, partitions=3)) as reader, closing(Wire(empty)) as wire:
        drop_redis_state(wire, TIGHT.hash)
        assert list(wire.keys("*")) == []
        with pytest.raises(UnavailableError, match="open it again"):
            reader.meta()
        with closing(opened(Wire(empty))) as state:
            fold_on(state, log)
            with pytest.raises(UnavailableError, match="open it again"):
                reader.meta()


def test_a_state_that_was_dropped_half_way_is_refused_until_it_is_dropped(empty: str) -> None:
    log = some_log()
    with closing(opened(Wire(empty))) as state:
        fold_on(state, log)
    with closing(CutWire(empty, 4)) as wire, pytest.raises(UnavailableError, match="cut"):
        drop_redis_state(wire, TIGHT.hash)
    with closing(Wire(empty)) as wire:
        with pytest.raises(CorruptStateError, match="did not finish"):
            opened(wire)
        drop_redis_state(wire, TIGHT.hash)
    check_what_is_there(empty, log)


def test_states_of_two_plans_lie_side_by_side(empty: str) -> None:
    log = some_log()
    with closing(opened(Wire(empty))) as one, closing(RedisState(Wire(empty), PLANS["plain"], writable=True)) as two:
        fold_on(one, log)
        fold_all(log, two)
        assert list(one.dump()) == reference(log, TIGHT)
        assert list(two.dump()) == reference(log, PLANS["plain"])


def test_on_a_cluster_of_three_nodes() -> None:
    log = some_log()
    with closing(RedisCluster()) as cluster:
        with closing(RedisState(Wire(cluster.url), TIGHT, writable=True, partitions=16)) as state:
            fold_on(state, log)
            with closing(RedisState(Wire(cluster.url), TIGHT, writable=False, partitions=16)) as reader:
                assert list(reader.dump()) == reference(log, TIGHT)
                table = writer_table()
                reader.load_items(table)
                row = stranger(TIGHT)
                assert {reader.read_user(user, row) for user in range(12)} == {log.log.last_offset}
        assert all(node.keys("*") for node in cluster.nodes())
        with closing(Wire(cluster.url)) as wire:
            drop_redis_state(wire, TIGHT.hash)
            assert list(wire.keys("*")) == []


# -- configuration ---------------------------------------------------------------------------------------


def test_the_configuration_opens_it(empty: str) -> None:
    log = some_log()
    config = Config(state=State(store="redis", url=empty, partitions=5))
    with closing(open_store(config, Path("unused"), TIGHT, writable=True, log_id="mine")) as state:
        assert isinstance(state, RedisState)
        fold_all(log, state)
    with pytest.raises(HeadwaterError, match=r"5 partitions, the configuration says 8"):
        open_store(Config(state=State(store="redis", url=empty)), Path("unused"), TIGHT, writable=True)


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "file:///etc/passwd", "localhost:6379", "redis:/x:secret@y", ""])
def test_other_addresses_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"my\.toml: state\.url: Expected") as caught:
        parse_config(f'[state]\nurl = "{url}"', "my.toml")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://me:secret@cache:6379/0", "redis://cache:6379/0"),
        ("rediss://:secret@cache/2?password=secret", "rediss://cache/2"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
        ("redis://me:sec@ret@cache", "redis://cache"),
    ],
)
def test_messages_name_redis_without_its_password(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_a_password_is_asked_for_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer("--requirepass", "hush-hush")
    try:
        for url in (server.url, server.url.replace("unix://", "unix://:wrong-secret@")):
            with pytest.raises(UnavailableError, match=server.socket.name) as caught:
                Wire(url)
            assert "secret" not in str(caught.value)
            assert "hush" not in str(caught.value)
        monkeypatch.setenv("HEADWATER_STATE_PASSWORD", "hush-hush")
        config = Config(state=State(store="redis", url=server.url))
        open_store(config, Path("unused"), TIGHT, writable=True).close()
    finally:
        server.stop()


def test_a_server_that_drops_rows_when_it_is_full_is_refused(empty: str) -> None:
    with client() as raw:
        raw.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigurationError, match="noeviction"):
            Wire(empty)
        raw.config_set("maxmemory-policy", "noeviction")


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"nowhere\.sock"):
        Wire(f"unix://{tmp_path}/nowhere.sock")


def test_without_a_server_the_tests_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="apt-get install redis-server"):
        program.__wrapped__("redis-server", "redis-server")


def writer_table() -> ItemTable:
    return ItemTable(TIGHT.layout)
