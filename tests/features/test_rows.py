"""Packed user rows: what is unpacked is what was packed, and damage is found; tables that pack rows away and fetch them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features import declare as d
from headwater.features.assemble import stranger
from headwater.features.layout import U_RECENT_LENGTH, U_SEEN_LENGTH
from headwater.features.packing import CorruptStateError, packed_clock
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import ItemTable, User, UserTable, pack_user, unpack_user
from headwater.schema.config import Config, Features
from headwater.testing.events import script, written
from tests.features.columns import EVERYTHING_PLAN
from tests.features.states import CONFIGS, PLANS, STABLE, all_bytes, folded

FOLDS = {name: folded(PLANS[name], written(script(20, 250), CONFIGS[name])) for name in CONFIGS}
ALL_PLANS = {**PLANS, "everything": EVERYTHING_PLAN}


def same(a: User, b: User) -> bool:
    return [part.tobytes() for part in a] == [part.tobytes() for part in b]


def put(row: User, into: User) -> None:
    into.i8[:], into.f4[:], into.u4[:] = row


def survives(plan: Plan, row: User) -> bytes:
    """The packed row, after checking that it comes back whole."""
    packed = pack_user(row, plan.layout)
    back = stranger(plan)
    for part in back:
        part[:] = 7  # what stood there before must not shine through
    unpack_user(packed, back, plan.layout)
    assert same(back, row)
    assert pack_user(back, plan.layout) == packed
    assert packed_clock(packed) == row.i8[0]
    return packed


def random_row(plan: Plan, seed: int, share: float, recent: float, seen: float) -> User:
    """A row with this share of its words set, and rings that are so full."""
    rng, row, layout = np.random.default_rng(seed), stranger(plan), plan.layout
    for part in row:
        words = part.view(np.uint32)
        chosen = rng.random(len(words)) < share
        words[chosen] = rng.integers(0, 1 << 32, int(chosen.sum()), np.uint32)
    row.i8[0] = rng.integers(0, 1 << 42)
    length, added = round(recent * layout.recent_size), round(seen * 2 * layout.seen_size)
    row.u4[U_RECENT_LENGTH] = length
    row.u4[U_SEEN_LENGTH] = min(added, 2 * layout.seen_size - 1)
    row.u4[layout.recent_keys : layout.seen + layout.seen_size] = 0
    for start, used in (
        (layout.recent_keys, length), (layout.recent_times, length), (layout.seen, min(added, layout.seen_size)),
    ):  # fmt: skip
        row.u4[start : start + used] = rng.integers(1, 1 << 32, used, np.uint32)
    return row


FULL = st.sampled_from([0.0, 0.01, 0.3, 1.0])


@pytest.mark.parametrize("name", ALL_PLANS)
@STABLE
@given(seed=st.integers(0, 1 << 30), share=FULL, recent=FULL | st.floats(0, 1), seen=FULL | st.floats(0, 1))
def test_any_row_survives_packing(name: str, seed: int, share: float, recent: float, seen: float) -> None:
    survives(ALL_PLANS[name], random_row(ALL_PLANS[name], seed, share, recent, seen))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folded_row_survives_packing(name: str) -> None:
    for user in range(16):
        survives(PLANS[name], FOLDS[name].users.user(user))


def test_a_short_history_is_stored_short() -> None:
    plan = PLANS["default"]
    sizes = [len(pack_user(FOLDS["default"].users.user(user), plan.layout)) for user in range(1, 13)]
    layout = plan.layout
    fixed = 2 * (layout.user_i8 - 1) + layout.user_f4 + layout.recent_keys
    empty = len(survives(plan, stranger(plan)))
    assert empty == 4 * (2 + (fixed + 31) // 32 + 1)
    assert empty < max(sizes) < 4 * layout.user_u4 + 4 * layout.user_f4 + 8 * layout.user_i8


def test_a_thousand_flipped_bits_are_all_found() -> None:
    layout, rng = PLANS["tight"].layout, np.random.default_rng(3)
    rows = [pack_user(FOLDS["tight"].users.user(user), layout) for user in range(1, 13)]
    into = stranger(PLANS["tight"])
    for _ in range(1_000):
        packed = bytearray(rows[rng.integers(len(rows))])
        packed[rng.integers(len(packed))] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptStateError, match="rebuild the state"):
            unpack_user(bytes(packed), into, layout)
    assert not any(part.any() for part in into)  # nothing of a damaged row gets through


@pytest.mark.parametrize("size", [0, 1, 3, 4, 50])
def test_a_row_that_was_cut_short_is_found(size: int) -> None:
    packed = pack_user(FOLDS["tight"].users.user(1), PLANS["tight"].layout)
    with pytest.raises(CorruptStateError):
        unpack_user(packed[:size], stranger(PLANS["tight"]), PLANS["tight"].layout)


def test_a_cached_table_loads_each_row_once_and_forgets_it_when_told() -> None:
    layout, source = PLANS["tight"].layout, FOLDS["tight"].users
    asked: list[int] = []

    def load(user: int) -> bytes | None:
        asked.append(user)
        return pack_user(source.user(user), layout) if user < 10 else None

    def expected(user: int) -> User:
        return source.user(user) if user < 10 else stranger(PLANS["tight"])

    table = UserTable(layout, load, capacity=2)
    users = np.array([3, 5, 3, 12, 5], np.uint32)
    slots = table.slots_of(users)
    assert sorted(asked) == [3, 5, 12]
    assert [table.owner(slot) for slot in slots.tolist()] == users.tolist()
    for user, slot in zip(users.tolist(), slots.tolist(), strict=True):
        assert same(table.row(slot), expected(user))
    table.shrink(3)
    table.slots_of(users)
    assert len(asked) == 3
    table.shrink(2)
    # the places still hold the old rows; whoever takes one next must not see them
    again = np.array([13, 12, 3], np.uint32)
    for user, slot in zip(again.tolist(), table.slots_of(again).tolist(), strict=True):
        assert same(table.row(slot), expected(user))
    assert sorted(asked[3:]) == [3, 12, 13]
    assert same(table.user(5), source.user(5))  # read past the hot rows, moving nothing
    assert table.known() == [3, 12, 13]
    assert not table.has_seen(10**7, 1)
    assert table.length(10**7) == 0


@pytest.mark.parametrize("name", ALL_PLANS)
@STABLE
@given(
    steps=st.lists(st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1 << 30), FULL), max_size=25),
    hot=st.integers(1, 6),
)  # fmt: skip
def test_a_table_that_packs_rows_away_holds_what_was_written(
    name: str, steps: list[tuple[list[int], int, float]], hot: int
) -> None:
    """Rows of any size are written, packed away, compacted and fetched again, as a dict would keep them."""
    plan = ALL_PLANS[name]
    table, kept = UserTable(plan.layout, hot=hot, capacity=1), dict[int, User]()
    for users, seed, share in steps:
        for user, slot in zip(users, table.slots_of(np.array(users, np.uint32)).tolist(), strict=True):
            assert table.owner(slot) == user
            assert same(table.row(slot), kept.get(user, stranger(plan)))
            kept[user] = random_row(plan, seed + user, share, share, share)
            put(kept[user], table.row(slot))
    assert table.known() == sorted(kept)
    copy = table.copy()
    for user, row in kept.items():
        assert same(table.user(user), row)
        assert same(copy.user(user), row)
    memory = table.memory()
    assert memory["hot"] == 0  # a copy is taken of packed rows
    assert memory["packed"] >= 4 * sum(len(pack_user(row, plan.layout)) // 4 - 1 for row in kept.values())


def test_full_rows_of_wide_sketches_have_room() -> None:
    """The bitmap of a row with thousands of registers is as long as a narrow plan's whole row."""
    columns = tuple(
        d.distinct(f"d{p}", "user", [name], "item", precision=12) for p, name in enumerate(("click", "view"))
    )
    plan = compile_plan(Config(features=Features(recent=1, seen=1)), columns)
    table, kept = UserTable(plan.layout, hot=4, capacity=1), {}
    for user in range(1, 40):
        kept[user] = random_row(plan, user, 1.0, 1.0, 1.0)
        put(kept[user], table.row(table.slot(user)))
    assert all(same(table.user(user), row) for user, row in kept.items())


def test_a_copy_changes_on_its_own() -> None:
    fold = folded(EVERYTHING_PLAN, written(script(21, 150, tables=True), Config()), cache_users=3)
    before, copy = all_bytes(fold), fold.users.copy()
    for user in range(1, 60):
        for part in copy.row(copy.slot(user)):
            part[:] = 1
    assert all_bytes(fold) == before
    other = fold.users.copy()
    for user in range(1, 60):
        for part in fold.users.row(fold.users.slot(user)):
            part[:] = 2
    assert [other.user(user).u4[0] for user in range(1, 60)] == [
        np.frombuffer(before[f"user {user}"][2], np.uint32)[0] if f"user {user}" in before else 0
        for user in range(1, 60)
    ]


@pytest.mark.parametrize("cache", [2, 3, 4, 5])
def test_a_small_cache_changes_no_row(cache: int) -> None:
    log = written(script(22, 250, tables=True), Config())
    assert all_bytes(folded(EVERYTHING_PLAN, log, cache_users=cache)) == all_bytes(folded(EVERYTHING_PLAN, log))


def test_an_item_table_grows_and_keeps_its_rows() -> None:
    table = ItemTable(PLANS["tight"].layout, capacity=4)
    table.reserve(4)
    table.rows.u4[3], table.rows.f4[3], table.dirty[3] = 9, 2.5, 1
    copy = table.copy()
    table.reserve(1000)
    assert table.count == 1000
    assert (table.rows.u4[3] == 9).all()
    assert (table.rows.f4[3] == 2.5).all()
    assert np.flatnonzero(table.dirty).tolist() == [3]
    assert not table.rows.u4[4:].any()
    table.reserve(2)
    assert table.count == 1000
    table.rows.u4[3] = 1
    assert (copy.count, copy.rows.u4[3].tolist()) == (4, [9] * table.rows.u4.shape[1])
