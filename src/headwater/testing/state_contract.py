"""The contract of a state store: inherit :class:`StateContract`, say how to open and damage one, run pytest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.features.assemble import stranger
from headwater.features.fold import Delta, Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import CorruptStateError, ItemTable
from headwater.features.state_memory import MemoryState
from headwater.features.store import (
    KEPT_EPOCHS,
    TABLES,
    LogChangedError,
    PlanChangedError,
    Row,
    State,
    StateConflictError,
)
from headwater.log.commands import EraseUsers, Login
from headwater.schema.config import Config, Features
from headwater.schema.errors import HeadwaterError, UnavailableError
from headwater.schema.events import Event
from headwater.testing.events import START_MS, Step, Written, script, scripts, written
from headwater.testing.state_folds import (
    CONFIGS,
    PLANS,
    TIGHT,
    Cut,
    Reader,
    click,
    fold_all,
    fold_interrupted,
    next_block,
    reference,
    rows_of,
)

CUTS = st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.booleans()), min_size=1, max_size=6)

# A store may need a server: the same examples everywhere, as many as the environment says.
_STABLE = settings(
    max_examples=int(os.environ.get("HEADWATER_EXAMPLES", "30")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow, HealthCheck.data_too_large],
)


class StateContract:
    """Every implementation of :class:`~headwater.features.store.State` passes these tests."""

    def open(self, place: Path, plan: Plan, *, writable: bool, log_id: str = "") -> State:
        """The store that belongs to ``place``, a path below a folder that is there; the same place, the same rows."""
        raise NotImplementedError

    def open_again(self, state: State, place: Path, *, writable: bool) -> State:
        """What another process would open while ``state`` is open here; the two are closed together."""
        return self.open(place, state.plan, writable=writable)

    def damage(self, place: Path, table: str, key: int, change: int | bytes) -> None:
        """Flip a bit of the stored byte at a position, or put other bytes there.

        ``table``: one of ``TABLES``, ``"epochs"``, or ``"meta"`` (whose key is 0).
        """
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "state"

    @pytest.fixture
    def state(self, place: Path) -> Iterator[State]:
        with closing(self.open(place, TIGHT, writable=True)) as opened:
            yield opened

    def dump_of(self, place: Path, plan: Plan = TIGHT) -> list[Row]:
        """All rows, as a reader sees them."""
        with closing(self.open(place, plan, writable=False)) as state:
            return list(state.dump())

    def folded(self, log: Written, place: Path, plan: Plan = TIGHT) -> list[Row]:
        """All of the log in one commit; what is stored then."""
        with closing(self.open(place, plan, writable=True)) as state:
            fold_all(log, state)
        return self.dump_of(place, plan)

    # -- rows and offset -----------------------------------------------------------------------------

    def test_an_empty_state(self, place: Path) -> None:
        with pytest.raises(UnavailableError):
            self.open(place, TIGHT, writable=False)
        writer = self.open(place, TIGHT, writable=True)
        with closing(writer), closing(self.open_again(writer, place, writable=False)) as state:
            for one in (writer, state):
                meta = one.meta()
                assert (one.offset, one.received_ms, one.types(), meta.plan) == (0, 0, {}, TIGHT.hash)
                assert (meta.offset, meta.epoch, meta.items, meta.log) == (0, 0, 1, "")
                assert one.user(1) is None
                assert one.item_record(1) is None
                assert list(one.dump()) == []
                row = stranger(TIGHT)
                row.u4[:] = 7
                assert one.read_user(1, row) == 0
                assert not any(part.any() for part in row)
                table = ItemTable(TIGHT.layout)
                assert one.refresh_items(table, 0)[:2] == (0, 0)
                assert (one.refresh_items(table, -1)[2], table.count) == (None, 1)

    @pytest.mark.parametrize("name", ["default", "tight"])
    @_STABLE
    @given(steps=scripts(), cuts=CUTS, cache_users=st.integers(0, 3))
    def test_a_state_is_the_same_bytes_however_it_came_about(
        self, name: str, steps: list[Step], cuts: list[Cut], cache_users: int
    ) -> None:
        log, plan = written(steps, CONFIGS[name]), PLANS[name]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "state"
            stands = fold_interrupted(log, lambda: self.open(place, plan, writable=True), cuts, cache_users)
            assert stands == (log.log.last_offset, log.log.last_received_ms)
            assert self.dump_of(place, plan) == reference(log, plan)

    @pytest.mark.parametrize("seed", [8, 9])
    def test_a_long_log_with_a_tiny_cache_and_crashes(self, seed: int, place: Path) -> None:
        log = written(script(seed, 400, users=40), CONFIGS["tight"])
        cuts = [(7, True, False), (3, False, False), (11, True, True), (1, False, True), (40, True, False)]
        fold_interrupted(log, lambda: self.open(place, TIGHT, writable=True), cuts, 2)
        dump = self.dump_of(place)
        assert dump == reference(log, TIGHT)
        assert {table for table, _, _ in dump} == set(TABLES)
        for name in TABLES:
            assert np.all(np.diff([key for table, key, _ in dump if table == name]) > 0)

    def test_stored_rows_are_the_rows_of_a_fold_in_memory(self, place: Path) -> None:
        log = written(script(10, 300), CONFIGS["tight"])
        self.folded(log, place)
        memory = Fold(TIGHT)
        for block in log.blocks():
            memory.apply(block)
        with closing(self.open(place, TIGHT, writable=False)) as state:
            for user in range(20):
                row = stranger(TIGHT)
                row.f4[:] = 5.0
                assert state.read_user(user, row) == log.log.last_offset
                assert [part.tobytes() for part in row] == [part.tobytes() for part in memory.users.user(user)]
            table = ItemTable(TIGHT.layout)
            state.load_items(table)
            assert rows_of(table) == rows_of(memory.items)
            for item in range(table.count):
                assert state.item_record(item) == memory.catalogue.get(item)

    def test_readers_see_each_commit_whole(self, place: Path) -> None:
        log = written(script(12, 60), CONFIGS["tight"])
        writer = self.open(place, TIGHT, writable=True)
        fold = Fold(TIGHT, writer)
        with closing(writer), closing(self.open_again(writer, place, writable=False)) as reader:
            for block in log.blocks([9]):
                fold.apply(block)
                assert reader.meta().offset < block.last_offset
                fold.commit(epoch=True)
                row = stranger(TIGHT)
                for user in range(8):
                    assert reader.read_user(user, row) == fold.offset
                assert (reader.meta().offset, reader.meta().received_ms) == (fold.offset, fold.received_ms)
                with reader.frozen() as frozen:
                    rows = list(frozen.rows)
                assert frozen.meta == reader.meta()
                assert frozen.counts == {name: sum(table == name for table, _, _ in rows) for name in TABLES}

    def test_an_emptied_user_that_does_nothing_countable_has_no_row(self, place: Path) -> None:
        """The same bytes whether the emptying and what follows share a commit or not."""
        both = Step(
            START_MS, [Event(user="visitor", item="a", type="click"), Event(user="known", item="a", type="click")]
        )
        steps = [both, Step(START_MS, Login("visitor", "known")), click("visitor", "a", kind="rumour")]
        log = written(steps, CONFIGS["tight"])
        assert {key for table, key, _ in self.folded(log, place) if table == "users"} == {log.user("known")}
        again = place.with_name("again")
        fold_interrupted(log, lambda: self.open(again, TIGHT, writable=True), [(1, True, True)], 0)
        assert self.dump_of(again) == self.dump_of(place)

    def test_a_user_that_is_gone_may_come_again(self, place: Path) -> None:
        steps = [click("visitor", "a"), Step(START_MS, Login("visitor", "known")), click("visitor", "a")]
        log = written([*steps, Step(START_MS, EraseUsers(["known"]))], CONFIGS["tight"])
        dump = self.folded(log, place)
        assert {key for table, key, _ in dump if table == "users"} == {1}
        again = place.with_name("again")
        fold_interrupted(log, lambda: self.open(again, TIGHT, writable=True), [(1, True, True)], 0)
        assert self.dump_of(again) == dump

    def test_types_that_were_learnt_before_a_restart_are_known_after_it(self, place: Path) -> None:
        log = Written(CONFIGS["tight"]).add([click("u", "i")])
        self.folded(log, place)
        log.add([click("u", "j", START_MS + 1)])
        assert self.folded(log, place) == reference(log, TIGHT)

    def test_a_commit_of_nothing_moves_the_offset(self, state: State) -> None:
        log = written([click("u", "a")], CONFIGS["tight"])
        fold = fold_all(log, state)
        dump = list(state.dump())
        epoch = state.meta().epoch
        fold.commit(epoch=False)
        fold.commit(epoch=True)
        assert list(state.dump()) == dump
        assert state.meta().epoch == epoch + 1
        state.commit(Delta(99, 5, [], np.zeros(0, np.int64), fold.items.rows, fold.items.count, [], {}, None))
        assert (state.offset, state.received_ms, state.meta().offset) == (99, 5, 99)
        assert list(state.dump()) == dump

    def test_a_commit_larger_than_a_message(self, place: Path) -> None:
        users = [Event(user=f"u{k}", item=f"i{k % 900}", type="click") for k in range(3_000)]
        log = written([Step(START_MS, users)], CONFIGS["default"])
        plan = PLANS["default"]
        assert self.folded(log, place, plan) == reference(log, plan)

    # -- epochs --------------------------------------------------------------------------------------

    @_STABLE
    @given(
        steps=scripts(),
        shape=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=8),
    )
    def test_a_reader_has_the_writers_rows_of_its_epoch(self, steps: list[Step], shape: list[Cut]) -> None:
        log = written(steps, CONFIGS["tight"])
        with tempfile.TemporaryDirectory() as folder:
            state = self.open(Path(folder) / "state", TIGHT, writable=True)
            fold, reader = Fold(TIGHT, state), Reader(state)
            at: dict[int, list[bytes]] = {0: rows_of(fold.items)}
            reader.refresh()
            for block, (_, epoch, refreshes) in zip(
                log.blocks([size for size, _, _ in shape]), shape * 99, strict=False
            ):
                fold.apply(block)
                fold.commit(epoch=epoch)
                at[fold.offset] = rows_of(fold.items)
                if refreshes:
                    before = reader.epoch
                    offset, _ = reader.refresh()
                    if reader.epoch != before:
                        assert reader.rows() == at[offset]
            fold.commit(epoch=True)
            offset, _ = reader.refresh()
            assert offset == fold.offset
            assert reader.rows() == rows_of(fold.items)
            assert not fold.epoch_pending
            late = Reader(state)
            assert late.refresh() == (fold.offset, None)
            assert late.rows() == reader.rows()
            state.close()

    def test_an_epoch_names_the_rows_that_changed_since_the_one_before(self, state: State) -> None:
        log = Written(CONFIGS["tight"])
        fold, reader = Fold(TIGHT, state), Reader(state)
        fold.commit(epoch=True)
        reader.refresh()
        for k, epoch in enumerate([False, False, True]):
            log.add([click(f"u{k}", f"i{k}", START_MS + k)])
            fold.apply(next_block(log, fold))
            fold.commit(epoch=epoch)
            offset, changed = reader.refresh()
            assert changed == ({0, *log.items("i0", "i1", "i2")} if epoch else set())
            assert offset == fold.offset
        assert reader.refresh() == (fold.offset, set())

    @pytest.mark.parametrize("missed", [1, KEPT_EPOCHS - 1, KEPT_EPOCHS, KEPT_EPOCHS + 1, KEPT_EPOCHS + 30])
    def test_a_reader_that_fell_behind_catches_up(self, state: State, missed: int) -> None:
        log = Written(CONFIGS["tight"])
        fold, reader = Fold(TIGHT, state), Reader(state)
        reader.refresh()
        for k in range(missed):
            log.add([click("u", f"i{k % 50}", START_MS + k)])
            fold.apply(next_block(log, fold))
            fold.commit(epoch=True)
        offset, changed = reader.refresh()
        assert (changed is None) == (missed >= KEPT_EPOCHS)
        assert offset == fold.offset
        assert reader.rows() == rows_of(fold.items)

    def test_the_tables_grow_on_both_sides(self, state: State) -> None:
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
            assert reader.rows() == rows_of(fold.items)
        late = Reader(state)
        late.refresh()
        assert late.rows() == reader.rows()

    def test_offering_everything_after_a_restart_changes_no_stored_row(self, place: Path) -> None:
        """Items that only events of unconfigured types name have a number and no row; a restart must not make one."""
        plan = PLANS["default"]  # online factors would put an entry of their ring there
        log = written([click("u", "a", kind="rumour"), click("u", "b")], CONFIGS["default"])
        expected = self.folded(log, place, plan)
        assert log.item("a") not in {key for table, key, _ in expected if table == "items"}
        with closing(self.open(place, plan, writable=True)) as state:
            reader = Reader(state)
            reader.refresh()
            fold = Fold(plan, state)
            fold.offer_everything()
            fold.commit(epoch=True)
            assert reader.refresh() == (fold.offset, {0, *log.items("a", "b")})
            assert reader.rows() == rows_of(fold.items)
        assert self.dump_of(place, plan) == expected

    # -- who may write, and what ---------------------------------------------------------------------

    def test_a_state_of_another_plan_is_refused_with_both_named(self, place: Path) -> None:
        self.folded(written(script(11, 60), CONFIGS["tight"]), place)
        other = compile_plan(Config(features=Features(recent=9)))
        for writable in (False, True):
            with pytest.raises(PlanChangedError, match=f"{TIGHT.hash}.*{other.hash}"):
                self.open(place, other, writable=writable)

    def test_a_state_of_another_log_is_refused(self, place: Path) -> None:
        log = written([click("u", "a")], CONFIGS["tight"])
        with closing(self.open(place, TIGHT, writable=True, log_id="mine")) as state:
            fold_all(log, state)
        for writable in (False, True):
            with pytest.raises(LogChangedError, match=r"mine.*other"):
                self.open(place, TIGHT, writable=writable, log_id="other")
        for log_id in ("mine", ""):
            with closing(self.open(place, TIGHT, writable=False, log_id=log_id)) as state:
                assert (state.offset, state.meta().log) == (log.log.last_offset, "mine")

    @pytest.mark.parametrize("first", [0, 1])
    def test_of_two_that_write_the_first_to_commit_goes_on(self, place: Path, first: int) -> None:
        log = written(script(16, 60), CONFIGS["tight"])
        one = self.open(place, TIGHT, writable=True)
        states = [one, self.open_again(one, place, writable=True)]
        folds = [Fold(TIGHT, state) for state in states]
        for fold in folds:
            fold.apply(next_block(log, fold, 10))
        winner, loser = folds[first], folds[1 - first]
        winner.commit(epoch=True)
        with pytest.raises(StateConflictError, match="another process"):
            loser.commit(epoch=True)
        for block in iter(lambda: log.log.read(winner.offset, 10), None):
            winner.apply(block)
            winner.commit(epoch=False)
            with pytest.raises(StateConflictError, match="another process"):
                loser.commit(epoch=False)
        for state in states:
            state.close()
        assert self.dump_of(place) == reference(log, TIGHT)

    def test_who_reads_cannot_write(self, place: Path) -> None:
        log = written([click("u", "a")], CONFIGS["tight"])
        dump = self.folded(log, place)
        with closing(self.open(place, TIGHT, writable=False)) as state:
            with pytest.raises(HeadwaterError, match="read it only"):
                Fold(TIGHT, state).commit(epoch=True)
            with pytest.raises(HeadwaterError, match="read it only"):
                state.fill(state.meta(), [])
        assert self.dump_of(place) == dump

    # -- damage --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("change", [0, 9, 40, -3, b"", b"abc"])
    def test_a_damaged_user_row_is_found(self, place: Path, change: int | bytes) -> None:
        log = written(script(13, 60), CONFIGS["tight"])
        self.folded(log, place)
        self.damage(place, "users", log.user("u1"), change)
        with closing(self.open(place, TIGHT, writable=False)) as state:
            with pytest.raises(CorruptStateError, match="user row"):
                state.read_user(log.user("u1"), stranger(TIGHT))
            state.read_user(log.user("u2"), stranger(TIGHT))
        with (
            closing(self.open(place, TIGHT, writable=True)) as state,
            pytest.raises(CorruptStateError, match="user row"),
        ):
            Fold(TIGHT, state).users.user(log.user("u1"))

    @pytest.mark.parametrize("change", [0, 50, -1, b""])
    def test_a_damaged_item_row_or_epoch_is_found(self, place: Path, change: int | bytes) -> None:
        self.folded(written(script(13, 60), CONFIGS["tight"]), place)
        self.damage(place, "epochs", 1, change)
        self.damage(place, "items", 2, change)
        with closing(self.open(place, TIGHT, writable=False)) as state:
            with pytest.raises(CorruptStateError, match="epoch"):
                state.refresh_items(ItemTable(TIGHT.layout), 0)
            with pytest.raises(CorruptStateError, match="item row"):
                state.refresh_items(ItemTable(TIGHT.layout), -1)
            with pytest.raises(CorruptStateError, match="item row"):
                state.load_items(ItemTable(TIGHT.layout))

    @pytest.mark.parametrize("change", [0, 2, -1, b""])
    def test_a_damaged_catalogue_entry_is_found(self, place: Path, change: int | bytes) -> None:
        dump = self.folded(written(script(13, 60), CONFIGS["tight"]), place)
        item = next(key for table, key, _ in dump if table == "catalogue")
        self.damage(place, "catalogue", item, change)
        with (
            closing(self.open(place, TIGHT, writable=False)) as state,
            pytest.raises(CorruptStateError, match="catalogue entry"),
        ):
            state.item_record(item)

    @pytest.mark.parametrize("change", [0, 20, -1, b"", b"\xc1garbage"])
    def test_an_unreadable_position_is_refused(self, place: Path, change: int | bytes) -> None:
        self.folded(written(script(13, 30), CONFIGS["tight"]), place)
        self.damage(place, "meta", 0, change)
        for writable in (False, True):
            with pytest.raises(CorruptStateError, match="log"):
                self.open(place, TIGHT, writable=writable)

    # -- a whole state at once -----------------------------------------------------------------------

    def test_a_state_that_is_filled_goes_on_like_the_one_it_came_from(self, place: Path) -> None:
        log = written(script(17, 200, users=40), CONFIGS["tight"])
        half = MemoryState(TIGHT, log_id="mine")
        fold = Fold(TIGHT, half)
        fold.apply(next_block(log, fold, log.log.last_offset // 2))
        fold.commit(epoch=True)
        with closing(self.open(place, TIGHT, writable=True)) as state:
            with half.frozen() as frozen:
                state.fill(frozen.meta, frozen.rows)
            assert (state.offset, state.received_ms, state.meta()) == (half.offset, half.received_ms, half.meta())
            assert list(state.dump()) == list(half.dump())
            reader = Reader(state)
            assert reader.refresh() == (half.offset, None)
            assert reader.rows() == rows_of(fold.items)
            behind = Reader(state)
            behind.epoch = 0
            assert behind.refresh() == (half.offset, None)
            with half.frozen() as frozen, pytest.raises(StateConflictError, match="not empty"):
                state.fill(frozen.meta, frozen.rows)
        with closing(self.open(place, TIGHT, writable=True, log_id="mine")) as state:
            fold_all(log, state)
        assert self.dump_of(place) == reference(log, TIGHT)

    def test_a_state_that_was_filled_half_way_is_refused(self, place: Path) -> None:
        source = MemoryState(TIGHT)
        fold_all(written(script(17, 100), CONFIGS["tight"]), source)

        def torn(rows: Iterable[Row]) -> Iterator[Row]:
            for k, row in enumerate(rows):
                if k == 20:
                    raise HeadwaterError("no more")
                yield row

        with (
            closing(self.open(place, TIGHT, writable=True)) as state,
            source.frozen() as frozen,
            pytest.raises(HeadwaterError, match="no more"),
        ):
            state.fill(frozen.meta, torn(frozen.rows))
        for writable in (False, True):
            with pytest.raises(CorruptStateError, match="did not finish"):
                self.open(place, TIGHT, writable=writable)

    def test_filling_asks_for_the_same_plan_and_log(self, place: Path) -> None:
        other = MemoryState(PLANS["plain"], log_id="other")
        with closing(self.open(place, TIGHT, writable=True, log_id="mine")) as state:
            with pytest.raises(PlanChangedError, match=f"{other.plan.hash}.*{TIGHT.hash}"):
                state.fill(other.meta(), [])
            meta = state.meta()
            meta.log = "other"
            with pytest.raises(LogChangedError, match=r"other.*mine"):
                state.fill(meta, [])
            fold_all(written([click("u", "a")], CONFIGS["tight"]), state)
