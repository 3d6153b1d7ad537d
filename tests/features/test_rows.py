"""Packed user rows: what is unpacked is what was packed, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.assemble import stranger
from headwater.features.rows import CorruptStateError, ItemTable, UserTable, pack_user, unpack_user
from headwater.testing.events import script, written
from tests.features.states import CONFIGS, PLANS, STABLE, folded

FOLDS = {name: folded(PLANS[name], written(script(20, 250), CONFIGS[name])) for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_survives_packing(name: str) -> None:
    layout, table = PLANS[name].layout, FOLDS[name].users
    for user in range(16):
        row = table.row(user)
        packed = pack_user(row, layout)
        back = stranger(PLANS[name])
        for part in back:
            part[:] = 7  # what stood there before must not shine through
        unpack_user(packed, back, layout)
        assert [part.tobytes() for part in back] == [part.tobytes() for part in row]
        assert pack_user(back, layout) == packed


def test_a_short_history_is_stored_short() -> None:
    plan = PLANS["default"]
    busy = max(len(pack_user(FOLDS["default"].users.row(user), plan.layout)) for user in range(1, 13))
    empty = len(pack_user(stranger(plan), plan.layout))
    assert empty < busy < 4 * plan.layout.user_u4 + 4 * plan.layout.user_f4 + 8 * plan.layout.user_i8
    assert empty == 8 * plan.layout.user_i8 + 4 * plan.layout.user_f4 + 4 * plan.layout.recent_keys + 4


@STABLE
@given(st.integers(1, 12), st.integers(0, 10**6), st.integers(0, 7))
def test_any_flipped_bit_is_found(user: int, at: int, bit: int) -> None:
    layout = PLANS["tight"].layout
    packed = bytearray(pack_user(FOLDS["tight"].users.row(user), layout))
    packed[at % len(packed)] ^= 1 << bit
    with pytest.raises(CorruptStateError, match="rebuild the state"):
        unpack_user(bytes(packed), stranger(PLANS["tight"]), layout)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 50])
def test_a_row_that_was_cut_short_is_found(size: int) -> None:
    packed = pack_user(FOLDS["tight"].users.row(1), PLANS["tight"].layout)
    with pytest.raises(CorruptStateError):
        unpack_user(packed[:size], stranger(PLANS["tight"]), PLANS["tight"].layout)


def test_a_cached_table_loads_each_row_once_and_forgets_it_when_told() -> None:
    layout, source = PLANS["tight"].layout, FOLDS["tight"].users
    asked: list[int] = []

    def load(user: int) -> bytes | None:
        asked.append(user)
        return pack_user(source.row(user), layout) if user < 10 else None

    table = UserTable(layout, load, capacity=2)
    users = np.array([3, 5, 3, 12, 5], np.uint32)
    slots = table.slots_of(users)
    assert sorted(asked) == [3, 5, 12]
    assert [table.owner(slot) for slot in slots.tolist()] == users.tolist()
    for user, slot in zip(users.tolist(), slots.tolist(), strict=True):
        expected = source.row(user) if user < 10 else stranger(PLANS["tight"])
        assert [part.tobytes() for part in table.row(slot)] == [part.tobytes() for part in expected]
    table.shrink(3)
    table.slots_of(users)
    assert len(asked) == 3
    table.shrink(2)
    # the places still hold the old rows; whoever takes one next must not see them
    again = np.array([13, 12, 3], np.uint32)
    for user, slot in zip(again.tolist(), table.slots_of(again).tolist(), strict=True):
        expected = source.row(user) if user < 10 else stranger(PLANS["tight"])
        assert [part.tobytes() for part in table.row(slot)] == [part.tobytes() for part in expected]
    assert sorted(asked[3:]) == [3, 12, 13]


def test_an_item_table_grows_and_keeps_its_rows() -> None:
    table = ItemTable(PLANS["tight"].layout, capacity=4)
    table.reserve(4)
    table.rows.u4[3], table.rows.f4[3], table.dirty[3] = 9, 2.5, 1
    table.reserve(1000)
    assert table.count == 1000
    assert (table.rows.u4[3] == 9).all()
    assert (table.rows.f4[3] == 2.5).all()
    assert np.flatnonzero(table.dirty).tolist() == [3]
    assert not table.rows.u4[4:].any()
    table.reserve(2)
    assert table.count == 1000
