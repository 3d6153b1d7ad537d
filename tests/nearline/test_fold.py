"""The fold process without its process: blocks, epochs, what a restart finds, and slow listeners."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.features.fold import Fold
from headwater.features.packing import CorruptStateError
from headwater.features.paths import feed_socket, state_dir
from headwater.features.plan import Plan, compile_plan
from headwater.features.recovery import BOOT_MARK, open_state
from headwater.features.state import LmdbState, LogChangedError, StateConflictError
from headwater.log.batch import events_to_batch
from headwater.log.identity import MemoryIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.memory import MemoryLog
from headwater.log.protocol import CorruptLogError
from headwater.log.writer import LogWriter, open_writer
from headwater.nearline.feed import FeedServer
from headwater.nearline.fold import Folder, run_fold, warm_up
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError, UnavailableError
from headwater.schema.events import Event
from headwater.schema.feed import ANNOUNCEMENT_SIZE, MAX_USERS, UNNAMED, Announcement, Changes, Position, announcements
from headwater.schema.items import Item
from headwater.serving.view import LiveView

CONFIG = Config()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(CONFIG)


class World:
    """A log in memory, its writer, and a fold into a real state."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.log = MemoryLog()
        self.writer = LogWriter(self.log, MemoryIdentity(), clock=lambda: 1_000, segment_keys=CONFIG.segments.keys)
        self.now_s = 100.0
        self.published: list[Position] = []
        self.state = LmdbState(path, plan, writable=True)
        self.folder = self.open()

    def open(self) -> Folder:
        return Folder(
            self.log, Fold(self.plan, self.state), publish=lambda position, _: self.published.append(position), epoch=self.state.meta().epoch,
            epoch_s=0.5, seconds=lambda: self.now_s,
        )  # fmt: skip

    def click(self, item: str = "a") -> None:
        self.writer.append_events(events_to_batch([Event(user="u", item=item, type="click")], ()))

    def crash(self) -> Folder:
        """What was committed stays, what the process knew is gone."""
        self.state.close()
        self.state = LmdbState(self.path, self.plan, writable=True)
        self.folder = self.open()
        return self.folder


@pytest.fixture
def world(tmp_path: Path, plan: Plan) -> World:
    return World(tmp_path / "state", plan)


def test_item_changes_are_offered_at_most_every_epoch(world: World) -> None:
    world.click()
    assert not world.folder.advance()
    first = world.folder.position
    assert first == Position(world.log.last_offset, 1, world.log.last_offset)

    world.now_s += 0.25
    world.click()
    world.folder.advance()
    assert world.folder.position == first._replace(user_offset=world.log.last_offset)
    assert world.folder.epoch_in_s() == 0.25

    world.now_s += 0.25
    world.folder.advance()  # nothing new in the log: the timer's turn
    assert world.folder.position == Position(world.log.last_offset, 2, world.log.last_offset)
    assert world.folder.epoch_in_s() is None
    assert world.published[-1] == world.folder.position


def test_without_item_changes_there_is_no_epoch(world: World) -> None:
    world.click()
    world.folder.advance()
    world.now_s += 1.0
    world.folder.advance()
    assert world.folder.position.epoch == 1
    assert len(world.published) == 1


def test_each_commit_says_whose_rows_it_changed(world: World) -> None:
    said: list[Changes] = []
    folder = Folder(world.log, Fold(world.plan, world.state), publish=lambda _, changes: said.append(changes), epoch=0)

    def written(*events: Event) -> Changes:
        world.writer.append_events(events_to_batch(list(events), ()))
        folder.advance()
        return said[-1]

    click = functools.partial(Event, item="a", type="click")
    assert written(click(user="u"), click(user="v")) == Changes([1, 2], [])
    assert written(click(user="v")) == Changes([2], [])
    world.writer.put_items([Item(id="b")])
    folder.advance()
    assert said[-1] == Changes([], [])
    world.writer.login("v", "u")
    folder.advance()
    assert said[-1] == Changes([1], [2])
    world.writer.erase_users(["u"])
    folder.advance()
    assert said[-1] == Changes([], [1])
    assert len(said) == 5


def test_a_long_log_is_folded_block_by_block(world: World) -> None:
    for _ in range(3):
        events = [Event(user=f"u{n % 50}", item=f"i{n % 40}", type="click") for n in range(10_000)]
        world.writer.append_events(events_to_batch(events, ()))
    assert world.folder.advance()
    assert world.folder.advance() is False
    assert world.folder.position.user_offset == world.log.last_offset


def test_changes_that_a_dead_fold_had_not_offered_reach_the_servers(world: World, plan: Plan) -> None:
    world.click("a")
    world.folder.advance()
    reader = LiveView(plan, world.state)
    world.now_s += 0.125
    world.click("b")
    world.folder.advance()  # committed, its epoch not due
    assert not reader.refresh()
    folder = world.crash()
    reader.state = world.state
    folder.offer_everything()
    assert reader.refresh()
    assert reader.item_offset == world.log.last_offset
    mine, theirs, count = reader.table.rows, folder.fold.items.rows, folder.fold.items.count
    assert np.array_equal(mine.i8[:count], theirs.i8[:count])
    assert np.array_equal(mine.f4[:count], theirs.f4[:count])
    assert np.array_equal(mine.u4[:count], theirs.u4[:count])


def test_state_is_dropped_when_it_cannot_be_trusted(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "state"
    log = MemoryLog()

    def folded() -> None:
        """A state at the end of ``log`` plus what ``ahead`` added."""
        state = open_state(path, plan, log)
        fold = Fold(plan, state)
        while (block := log.read(fold.offset)) is not None:
            fold.apply(block)
        fold.commit(epoch=True)
        state.close()

    writer = LogWriter(log, MemoryIdentity(), clock=lambda: 1_000)
    writer.put_items([Item(id="a")])
    folded()
    state = open_state(path, plan, log)
    assert state.offset == log.last_offset, "a good one is kept"
    state.close()

    (path / BOOT_MARK).write_text("another boot")
    state = open_state(path, plan, log)
    assert state.offset == 0, "written before the machine started"
    state.close()

    folded()
    (path / BOOT_MARK).unlink()
    state = open_state(path, plan, log)
    assert state.offset == 0, "nothing says when it was written"
    state.close()

    folded()
    state = open_state(path, plan, MemoryLog())
    assert state.offset == 0, "ahead of its log"
    state.close()


def test_a_state_belongs_to_one_log(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "state"

    def turn(log: MemoryLog) -> int:
        """Open the state, fold what is new, commit; the offset at which it was found."""
        with LogWriter(log, MemoryIdentity(), clock=lambda: 1_000) as writer:
            writer.put_items([Item(id="a")])
        state = open_state(path, plan, log)
        fold = Fold(plan, state)
        fold.commit(epoch=True)
        found = fold.offset
        while (block := log.read(fold.offset)) is not None:
            fold.apply(block)
        fold.commit(epoch=True)
        state.close()
        return found

    nameless, mine, other = MemoryLog(), MemoryLog("mine"), MemoryLog("other")
    for log, puts in ((mine, 5), (other, 20)):
        for _ in range(puts):
            with LogWriter(log, MemoryIdentity(), clock=lambda: 1_000) as writer:
                writer.put_items([Item(id="b")])
    assert (turn(nameless), turn(nameless) > 0) == (0, True)
    assert turn(mine) > 0, "the state of an older release is taken over"
    assert turn(mine) > 0
    with capture_logs() as said:
        assert turn(other) == 0, "longer than the one before, but another log"
    assert [line["event"] for line in said if "mine" in line.get("reason", "")] == ["state_dropped"]
    assert turn(other) > 0
    with pytest.raises(LogChangedError, match=r"other.*mine"):
        LmdbState(path, plan, writable=False, log_id="mine")
    state = LmdbState(path, plan, writable=False, log_id="other")
    assert state.offset == other.last_offset
    state.close()


def test_warm_up_runs_on_any_configuration(plan: Plan) -> None:
    warm_up(CONFIG, plan)


def test_announcements_come_back_whole() -> None:
    said = [
        Announcement(Position(1, 2, 3), Changes((7, 8, 9), (4,))),
        Announcement(Position(4, 5, 6), Changes((), ())),
        Announcement(Position(2**40, 5, 6)),
    ]
    stream = b"".join(announcement.pack() for announcement in said)
    assert announcements(stream) == (said, b"")
    found, rest = [], b""
    for k in range(len(stream)):  # byte by byte
        more, rest = announcements(rest + stream[k : k + 1])
        found += more
    assert (found, rest) == (said, b"")
    crowd = Announcement(Position(1, 1, 1), Changes(range(MAX_USERS + 1), (3,)))
    assert announcements(crowd.pack()) == ([Announcement(Position(1, 1, 1), Changes(None, (3,)))], b"")


def test_a_slow_listener_gets_the_newest_position_and_holds_nobody_up(tmp_path: Path) -> None:
    async def check() -> None:
        server = FeedServer(tmp_path / "fold.sock", Position(0, 0, 0))
        await server.start()
        slow = socket.socket(socket.AF_UNIX)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, str(tmp_path / "fold.sock"))
        await asyncio.sleep(0.01)
        for offset in range(1, 50_001):
            server.publish(Position(offset, 0, 0), Changes((), ()))
        received, newest, rest = 0, Position(0, 0, 0), b""
        while newest.user_offset < 50_000:
            data = await asyncio.wait_for(loop.sock_recv(slow, 65_536), 5.0)
            received += len(data)
            found, rest = announcements(rest + data)
            newest = found[-1].position if found else newest
        assert received < 50_000 * ANNOUNCEMENT_SIZE, "it was spared what it was too slow for"
        assert found[-1].changes == UNNAMED, "but told that it has missed something"
        slow.close()
        await server.stop()
        assert not (tmp_path / "fold.sock").exists()

    asyncio.run(check())


def run_until(data: Path, done: Callable[[], bool]) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(run_fold(CONFIG, data, stop=stop))
        for _ in range(500):
            if running.done() or done():
                break
            await asyncio.sleep(0.02)
        stop.set()
        await running

    asyncio.run(main())


def test_the_process_waits_for_the_log_then_folds_it_all(tmp_path: Path, plan: Plan) -> None:
    with open_writer(tmp_path) as writer:
        writer.put_items([Item(id=f"i{n}") for n in range(5)])
        writer.append_events(events_to_batch([Event(user="u", item="i1", type="click")], ()))
        last = writer.last_offset
        run_until(tmp_path, lambda: feed_socket(tmp_path, plan.hash).exists())
    state = LmdbState(state_dir(tmp_path, plan.hash), plan, writable=False)
    assert state.offset == last
    state.close()


def test_a_state_from_before_there_was_one_for_each_plan_is_removed(tmp_path: Path, plan: Plan) -> None:
    old = tmp_path / "state"
    LmdbState(old, plan, writable=True).close()
    (old / "boot").write_text("some boot")
    with open_writer(tmp_path) as writer, capture_logs() as lines:
        writer.put_items([Item(id="a")])
        run_until(tmp_path, lambda: feed_socket(tmp_path, plan.hash).exists())
    assert [line["event"] for line in lines if "one plan had room" in line.get("reason", "")] == ["state_dropped"]
    assert [path.name for path in old.iterdir()] == [plan.hash]


def test_a_process_of_another_plan_than_was_asked_for_does_not_start(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(ConfigurationError, match=f"{plan.hash}.*expected was feedbeef"):
        asyncio.run(run_fold(CONFIG, tmp_path, stop=asyncio.Event(), plan_hash="feedbeef"))
    assert not (tmp_path / "state").exists()


def test_a_damaged_state_is_dropped_by_the_next_process(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(tmp_path) as writer:
        writer.put_items([Item(id="a")])
        last = writer.last_offset
        run_until(tmp_path, lambda: feed_socket(tmp_path, plan.hash).exists())

        def damaged(*_: object) -> None:
            raise CorruptStateError("a stored item row does not match its checksum")

        with monkeypatch.context() as patched:
            patched.setattr(LmdbState, "load_items", damaged)
            with pytest.raises(UnavailableError, match="checksum"):
                run_until(tmp_path, lambda: False)
        with capture_logs() as lines:
            run_until(tmp_path, lambda: feed_socket(tmp_path, plan.hash).exists())
    assert [line["reason"] for line in lines if line["event"] == "state_dropped"] == ["it was found damaged"]
    state = LmdbState(state_dir(tmp_path, plan.hash), plan, writable=False)
    assert state.offset == last
    state.close()


def test_two_processes_never_fold_into_one_state(world: World) -> None:
    world.click()
    stale = Fold(world.plan, world.state)
    block = world.log.read(0)
    assert block is not None
    stale.apply(block)
    world.state.offset = 5  # what this process believes; the store stands at 0
    with pytest.raises(StateConflictError, match="another process"):
        stale.commit(epoch=False)
    assert world.state.meta().offset == 0


def test_a_corrupt_log_stops_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_writer(tmp_path) as writer:
        writer.put_items([Item(id="a")])

        def corrupt(*_: object) -> None:
            raise CorruptLogError(1, "a record does not match its checksum")

        monkeypatch.setattr(LmdbLog, "read", corrupt)
        with pytest.raises(CorruptLogError, match="corrupt at offset 1"):
            run_until(tmp_path, lambda: False)
