"""State in LMDB: the same bytes however it was cached, committed and interrupted; epochs; damage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import CorruptStateError, ItemTable
from headwater.features.state import KEPT_EPOCHS, LmdbState, PlanChangedError, open_for_fold
from headwater.log.commands import EraseUsers, Login
from headwater.schema.config import Config, Features
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event
from headwater.testing.events import START_MS, Step, Written, script, scripts, written
from tests.features.states import CONFIGS, PLANS, STABLE, folded, overwrite

TIGHT = PLANS["tight"]
Dump = list[tuple[str, int, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def dump_of(path: Path, plan: Plan) -> Dump:
    state = LmdbState(path, plan, writable=False)
    try:
        return list(state.dump())
    finally:
        state.close()


def straight(log: Written, plan: Plan, path: Path) -> Dump:
    """All in one go: one commit at the end, no row ever leaves memory."""
    state = LmdbState(path, plan, writable=True)
    fold = Fold(plan, state)
    for block in log.blocks():
        fold.apply(block)
    fold.commit(epoch=True)
    state.close()
    return dump_of(path, plan)


def interrupted(log: Written, plan: Plan, path: Path, cuts: list[tuple[int, bool, bool]], cache_users: int) -> Dump:
    """Blocks of the given sizes; after each perhaps a commit, perhaps the end of the process (which loses the rest)."""
    state = LmdbState(path, plan, writable=True)
    fold = Fold(plan, state, cache_users=cache_users)
    lost, k = 0, 0
    while (block := log.log.read(fold.offset, cuts[k % len(cuts)][0])) is not None:
        _, commits, crashes = cuts[k % len(cuts)]
        k += 1
        fold.apply(block)
        if commits:
            fold.commit(epoch=k % 3 == 0)
        if crashes and lost < 20:
            lost += not commits
            state.close()
            state = LmdbState(path, plan, writable=True)
            fold = Fold(plan, state, cache_users=cache_users)
    fold.commit(epoch=False)
    assert (state.offset, state.received_ms) == (log.log.last_offset, log.log.last_received_ms)
    state.close()
    return dump_of(path, plan)


CUTS = st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.booleans()), min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["default", "tight"])
@STABLE
@given(steps=scripts(), cuts=CUTS, cache_users=st.integers(0, 3))
def test_a_state_is_the_same_bytes_however_it_came_about(
    name: str, steps: list[Step], cuts: list[tuple[int, bool, bool]], cache_users: int
) -> None:
    log = written(steps, CONFIGS[name])
    with tempfile.TemporaryDirectory() as folder:
        expected = straight(log, PLANS[name], Path(folder) / "straight")
        assert interrupted(log, PLANS[name], Path(folder) / "cut", cuts, cache_users) == expected


@pytest.mark.parametrize("seed", [8, 9])
def test_a_long_log_with_a_tiny_cache_and_crashes(seed: int, tmp_path: Path) -> None:
    log = written(script(seed, 400), CONFIGS["tight"])
    expected = straight(log, TIGHT, tmp_path / "straight")
    cuts = [(7, True, False), (3, False, False), (11, True, True), (1, False, True), (40, True, False)]
    assert interrupted(log, TIGHT, tmp_path / "cut", cuts, 2) == expected
    assert {table for table, _, _ in expected} == {"users", "items", "catalogue"}


def test_stored_rows_are_the_rows_of_a_fold_in_memory(path: Path) -> None:
    log = written(script(10, 300), CONFIGS["tight"])
    straight(log, TIGHT, path)
    memory = folded(TIGHT, log)
    state = LmdbState(path, TIGHT, writable=False)
    for user in range(20):
        row = stranger(TIGHT)
        assert state.read_user(user, row) == log.log.last_offset
        assert [part.tobytes() for part in row] == [part.tobytes() for part in memory.users.row(user)]
    table = ItemTable(TIGHT.layout)
    state.load_items(table)
    assert table.count == memory.items.count
    assert [part[: table.count].tobytes() for part in table.rows] == rows_of(memory)
    for item in range(table.count):
        assert state.item_record(item) == memory.catalogue.get(item)
    state.close()


def test_an_emptied_user_that_does_nothing_countable_has_no_row(path: Path) -> None:
    """The same bytes whether the emptying and what follows share a commit or not."""
    steps = [
        Step(START_MS, [Event(user="visitor", item="a", type="click"), Event(user="known", item="a", type="click")]),
        Step(START_MS, Login("visitor", "known")),
        Step(START_MS, [Event(user="visitor", item="a", type="rumour")]),
    ]
    log = written(steps, CONFIGS["tight"])
    rows = {key for table, key, _ in straight(log, TIGHT, path) if table == "users"}
    assert rows == {log.user("known")}


def test_an_emptied_user_that_acts_again_starts_anew(path: Path, tmp_path: Path) -> None:
    click = Event(user="visitor", item="a", type="click", time=START_MS)
    steps = [Step(START_MS, [click]), Step(START_MS, Login("visitor", "known")), Step(START_MS, [click])]
    log = written([*steps, Step(START_MS, EraseUsers(["known"]))], CONFIGS["tight"])
    dump = straight(log, TIGHT, path)
    assert {key for table, key, _ in dump if table == "users"} == {1}
    assert interrupted(log, TIGHT, tmp_path / "cut", [(1, True, True)], 0) == dump


# -- epochs ----------------------------------------------------------------------------------------------


class Reader:
    """A server's copy of the item rows, moving on by epochs."""

    def __init__(self, state: LmdbState) -> None:
        self.state, self.table = state, ItemTable(state.plan.layout)
        self.epoch = -1

    def refresh(self) -> tuple[int, set[int] | None]:
        """The offset that the rows reflect now, and which changed (``None``: all)."""
        self.epoch, offset, changed = self.state.refresh_items(self.table, self.epoch)
        return offset, None if changed is None else set(changed.tolist())

    def rows(self) -> list[bytes]:
        return [part[: self.table.count].tobytes() for part in self.table.rows]


def rows_of(fold: Fold) -> list[bytes]:
    return [part[: fold.items.count].tobytes() for part in fold.items.rows]


@STABLE
@given(
    steps=scripts(),
    plan_of=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=8),
)
def test_a_reader_has_the_writers_rows_of_its_epoch(steps: list[Step], plan_of: list[tuple[int, bool, bool]]) -> None:
    log = written(steps, CONFIGS["tight"])
    with tempfile.TemporaryDirectory() as folder:
        state = LmdbState(Path(folder), TIGHT, writable=True)
        fold, reader = Fold(TIGHT, state), Reader(state)
        at: dict[int, list[bytes]] = {0: rows_of(fold)}
        reader.refresh()
        for block, (_, epoch, refreshes) in zip(
            log.blocks([size for size, _, _ in plan_of]), plan_of * 99, strict=False
        ):
            fold.apply(block)
            fold.commit(epoch=epoch)
            assert fold.epoch_pending == (not epoch) or not fold.items.dirty.any()
            at[fold.offset] = rows_of(fold)
            if refreshes:
                before = reader.epoch
                offset, _ = reader.refresh()
                if reader.epoch != before:
                    assert reader.rows() == at[offset]
        fold.commit(epoch=True)
        offset, _ = reader.refresh()
        assert offset == fold.offset
        assert reader.rows() == rows_of(fold)
        assert not fold.epoch_pending
        late = Reader(state)
        assert late.refresh() == (fold.offset, None)
        assert late.rows() == reader.rows()
        state.close()


@pytest.fixture
def state(path: Path) -> Iterator[LmdbState]:
    opened = LmdbState(path, TIGHT, writable=True)
    yield opened
    opened.close()


def test_an_epoch_names_the_rows_that_changed_since_the_one_before(state: LmdbState) -> None:
    log = Written(CONFIGS["tight"])
    fold, reader = Fold(TIGHT, state), Reader(state)
    fold.commit(epoch=True)
    reader.refresh()
    for k, epoch in enumerate([False, False, True]):
        log.add([Step(START_MS + k, [Event(user=f"u{k}", item=f"i{k}", type="click")])])
        block = log.log.read(fold.offset)
        assert block is not None
        fold.apply(block)
        fold.commit(epoch=epoch)
        offset, changed = reader.refresh()
        assert changed == ({0, *log.items("i0", "i1", "i2")} if epoch else set())
        assert offset == fold.offset
    assert reader.refresh() == (fold.offset, set())


@pytest.mark.parametrize("missed", [1, KEPT_EPOCHS - 1, KEPT_EPOCHS, KEPT_EPOCHS + 1, KEPT_EPOCHS + 30])
def test_a_reader_that_fell_behind_catches_up(state: LmdbState, missed: int) -> None:
    log = Written(CONFIGS["tight"])
    fold, reader = Fold(TIGHT, state), Reader(state)
    reader.refresh()
    for k in range(missed):
        log.add([Step(START_MS + k, [Event(user="u", item=f"i{k % 50}", type="click")])])
        block = log.log.read(fold.offset)
        assert block is not None
        fold.apply(block)
        fold.commit(epoch=True)
    offset, changed = reader.refresh()
    assert (changed is None) == (missed >= KEPT_EPOCHS)
    assert offset == fold.offset
    assert reader.rows() == rows_of(fold)


def test_the_tables_grow_on_both_sides(state: LmdbState) -> None:
    log = Written(CONFIGS["tight"])
    fold, reader = Fold(TIGHT, state), Reader(state)
    reader.refresh()
    for k in range(3):
        events = [Event(user=f"u{i}", item=f"i{i}", type="click") for i in range(900 * k, 900 * (k + 1))]
        log.add([Step(START_MS + k, events)])
        for block in iter(lambda: log.log.read(fold.offset), None):
            fold.apply(block)
        fold.commit(epoch=True)
        reader.refresh()
        assert reader.table.count == 900 * (k + 1) + 1
        assert reader.rows() == rows_of(fold)


def test_offering_everything_after_a_restart_changes_no_stored_row(path: Path, tmp_path: Path) -> None:
    """Items that only events of unconfigured types name have a number and no row; a restart must not make one."""
    log = written(
        [Step(START_MS, [Event(user="u", item="a", type="rumour"), Event(user="u", item="b", type="click")])],
        CONFIGS["tight"],
    )
    expected = straight(log, TIGHT, path)
    assert log.item("a") not in {key for table, key, _ in expected if table == "items"}
    state = LmdbState(path, TIGHT, writable=True)
    reader = Reader(state)
    reader.refresh()
    fold = Fold(TIGHT, state)
    fold.offer_everything()
    assert fold.epoch_pending
    fold.commit(epoch=True)
    assert reader.refresh() == (fold.offset, {0, *log.items("a", "b")})
    assert reader.rows() == rows_of(fold)
    state.close()
    assert dump_of(path, TIGHT) == expected


# -- plans and damage ------------------------------------------------------------------------------------


def test_a_state_of_another_plan_is_refused_and_dropped_by_the_fold(path: Path) -> None:
    log = written(script(11, 60), CONFIGS["tight"])
    expected = straight(log, TIGHT, path)
    other = compile_plan(Config(features=Features(recent=9)))
    with pytest.raises(PlanChangedError, match=f"{TIGHT.hash}.*{other.hash}"):
        LmdbState(path, other, writable=False)
    state, why = open_for_fold(path, other)
    assert why is not None
    assert TIGHT.hash in why
    assert (state.offset, list(state.dump()), state.types()) == (0, [], {})
    state.close()
    state, why = open_for_fold(path, TIGHT)
    assert why is None, "nothing was committed with the other plan, so the state is still nobody's"
    fold = Fold(TIGHT, state)
    for block in log.blocks():
        fold.apply(block)
    fold.commit(epoch=True)
    state.close()
    assert dump_of(path, TIGHT) == expected


def test_a_state_of_the_same_plan_is_kept(path: Path) -> None:
    log = written(script(12, 60), CONFIGS["tight"])
    expected = straight(log, TIGHT, path)
    state, why = open_for_fold(path, compile_plan(CONFIGS["tight"]))
    assert why is None
    assert state.offset == log.log.last_offset
    assert list(state.dump()) == expected
    state.close()


def test_a_state_that_is_not_there_yet_can_be_tried_again(path: Path) -> None:
    with pytest.raises(UnavailableError):
        LmdbState(path, TIGHT, writable=False)


def test_a_file_that_is_no_state_is_dropped(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"no state" * 4096)
    state, why = open_for_fold(path, TIGHT)
    assert why is not None
    assert "cannot be opened" in why
    assert state.offset == 0
    state.close()


def test_an_unreadable_position_is_dropped(path: Path) -> None:
    straight(written(script(13, 30), CONFIGS["tight"]), TIGHT, path)
    overwrite(path, b"meta", b"meta", b"\xc1garbage")
    with pytest.raises(CorruptStateError, match="rebuild"):
        LmdbState(path, TIGHT, writable=False)
    state, why = open_for_fold(path, TIGHT)
    assert why is not None
    assert state.offset == 0
    state.close()


@pytest.mark.parametrize("at", [0, 9, 40, -3])
def test_a_damaged_user_row_is_found(path: Path, at: int) -> None:
    log = written(script(13, 60), CONFIGS["tight"])
    straight(log, TIGHT, path)
    user = log.user("u1")
    overwrite(path, b"users", user.to_bytes(4, "big"), at)
    state = LmdbState(path, TIGHT, writable=False)
    with pytest.raises(CorruptStateError, match="user row"):
        state.read_user(user, stranger(TIGHT))
    state.read_user(log.user("u2"), stranger(TIGHT))
    state.close()


def test_a_damaged_item_row_or_epoch_is_found(path: Path) -> None:
    straight(written(script(13, 60), CONFIGS["tight"]), TIGHT, path)
    overwrite(path, b"epochs", (1).to_bytes(8, "big"), 50)
    overwrite(path, b"items", (2).to_bytes(4, "big"), 50)
    state = LmdbState(path, TIGHT, writable=False)
    with pytest.raises(CorruptStateError, match="epoch"):
        state.refresh_items(ItemTable(TIGHT.layout), 0)
    with pytest.raises(CorruptStateError, match="item row"):
        state.refresh_items(ItemTable(TIGHT.layout), -1)
    state.close()


def test_types_that_were_learnt_before_a_restart_are_known_after_it(path: Path) -> None:
    log = Written(CONFIGS["tight"]).add([Step(START_MS, [Event(user="u", item="i", type="click")])])
    straight(log, TIGHT, path)
    log.add([Step(START_MS + 1, [Event(user="u", item="j", type="click")])])
    state = LmdbState(path, TIGHT, writable=True)
    fold = Fold(TIGHT, state)
    block = log.log.read(fold.offset)
    assert block is not None
    fold.apply(block)
    fold.commit(epoch=True)
    row = stranger(TIGHT)
    state.read_user(1, row)
    state.close()
    assert [part.tobytes() for part in row] == [part.tobytes() for part in folded(TIGHT, log).users.row(1)]


def test_the_dump_tells_states_apart(tmp_path: Path) -> None:
    one = straight(written(script(14, 40), CONFIGS["tight"]), TIGHT, tmp_path / "one")
    two = straight(written(script(15, 40), CONFIGS["tight"]), TIGHT, tmp_path / "two")
    assert one != two
    assert np.all(np.diff([key for table, key, _ in one if table == "items"]) > 0)
