"""The assembled rows against the slow assembly, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.assemble import Context, User, anchor_user, assemble, new_scratch, stranger
from headwater.features.definitions import Op
from headwater.features.fold import Fold
from headwater.features.plan import Plan
from headwater.testing.assembly_oracle import assemble_slowly
from headwater.testing.events import DAY_MS, Step, Written, script, scripts, written
from headwater.testing.oracle import Entry, SlowFold, SlowUser
from tests.features.states import CONFIGS, PLANS, STABLE, folded, folded_slowly

names = pytest.mark.parametrize("name", CONFIGS)


def assembled(
    plan: Plan, fold: Fold, user: User, items: list[int], segments: tuple[int, int], now_ms: int
) -> npt.NDArray[np.float32]:
    scratch = new_scratch(len(fold.items.dirty), max(len(items), 1), plan)
    out = np.full((max(len(items), 1), len(plan.columns)), np.nan, np.float32)
    rows = assemble(plan, user, fold.items.rows, np.array(items, np.int64), Context(segments), now_ms, scratch, out)
    assert (scratch.where == -1).all(), "the scratch is not clean for the next request"
    return rows.copy()


def assert_same_columns(plan: Plan, fast: npt.NDArray[np.float32], slow: npt.NDArray[np.float32]) -> None:
    for d, column in enumerate(plan.columns):
        if fast[:, d].tobytes() != slow[:, d].tobytes():
            raise AssertionError(f"{column} is {fast[:, d].tolist()}, expected {slow[:, d].tolist()}")


def compare(plan: Plan, fold: Fold, slow: SlowFold, segments: tuple[int, int], now_ms: int) -> None:
    """All items for every user and a stranger."""
    items = list(range(1, fold.items.count))
    for user in [0, *slow.users]:
        row = fold.users.row(user) if user else stranger(plan)
        fast = assembled(plan, fold, row, items, segments, now_ms)
        assert_same_columns(plan, fast, assemble_slowly(slow, slow.users.get(user), items, segments, now_ms))


@names
@STABLE
@given(
    steps=scripts(),
    segments=st.tuples(st.integers(0, 6), st.integers(0, 70)),
    later_ms=st.sampled_from([0, 1, 60_000, DAY_MS, 400 * DAY_MS, -5_000]),
)
def test_short_logs(name: str, steps: list[Step], segments: tuple[int, int], later_ms: int) -> None:
    log = written(steps, CONFIGS[name])
    now_ms = max(log.log.last_received_ms + later_ms, 0)
    compare(PLANS[name], folded(PLANS[name], log), folded_slowly(log), segments, now_ms)


@names
@pytest.mark.parametrize("seed", [5, 6])
def test_long_logs(name: str, seed: int) -> None:
    log = written(script(seed, 500), CONFIGS[name])
    fold, slow = folded(PLANS[name], log), folded_slowly(log)
    compare(PLANS[name], fold, slow, (seed, 3), log.log.last_received_ms + 40_000)


@names
def test_segments_at_the_edge_of_what_has_a_cell(name: str) -> None:
    log = written(script(5, 200), CONFIGS[name])
    fold, slow = folded(PLANS[name], log), folded_slowly(log)
    slots = CONFIGS[name].features.segment_slots
    for segments in ((slots - 1, slots - 1), (slots, slots), (slots + 1, 65_535)):
        compare(PLANS[name], fold, slow, segments, log.log.last_received_ms)


def test_every_op_has_a_column_that_is_not_constant() -> None:
    """The comparison above means something: each kind of column takes several values in the long log."""
    log = written(script(5, 500), CONFIGS["default"])
    plan, slow = PLANS["default"], folded_slowly(log)
    items = list(range(1, max(slow.items) + 1))
    now_ms = log.log.last_received_ms
    rows = np.concatenate(
        [assemble_slowly(slow, slow.users[u], items, (1, 3), now_ms + u * 7_200_000) for u in slow.users]
    )
    varied = {column.op for d, column in enumerate(plan.declared) if len(np.unique(rows[:, d])) > 1}
    assert varied == set(Op) - {Op.WEEKDAY} or varied == set(Op)


@pytest.fixture(scope="module")
def long_log() -> Written:
    return written(script(7, 400), CONFIGS["default"])


def test_a_row_does_not_depend_on_the_other_candidates(long_log: Written) -> None:
    plan = PLANS["default"]
    fold, now_ms = folded(plan, long_log), long_log.log.last_received_ms
    items = list(range(1, fold.items.count))
    for user in range(1, 6):
        row = fold.users.row(user)
        together = assembled(plan, fold, row, items, (1, 2), now_ms)
        backwards = assembled(plan, fold, row, items[::-1], (1, 2), now_ms)[::-1]
        alone = np.concatenate([assembled(plan, fold, row, [item], (1, 2), now_ms) for item in items])
        assert together.tobytes() == backwards.tobytes() == alone.tobytes()


def test_no_candidates_give_no_rows(long_log: Written) -> None:
    plan = PLANS["default"]
    assert assembled(plan, folded(plan, long_log), stranger(plan), [], (0, 0), 0).shape == (0, len(plan.columns))


def test_assembly_reads_and_never_writes(long_log: Written) -> None:
    plan = PLANS["default"]
    fold = folded(plan, long_log)
    before = [part.tobytes() for part in (*fold.items.rows, *fold.users.rows)]
    assembled(plan, fold, fold.users.row(1), list(range(1, fold.items.count)), (1, 2), long_log.log.last_received_ms)
    assert [part.tobytes() for part in (*fold.items.rows, *fold.users.rows)] == before


def test_an_anchored_user_is_one_whose_only_recent_item_is_the_anchor(long_log: Written) -> None:
    plan = PLANS["default"]
    fold, slow, now_ms = folded(plan, long_log), folded_slowly(long_log), long_log.log.last_received_ms
    items = list(range(1, fold.items.count))
    user = next(iter(slow.users))
    row = fold.users.row(user)
    copy = User(row.i8.copy(), row.f4.copy(), row.u4.copy())
    anchor_user(copy, 3, plan.layout)
    about = slow.users[user]
    expected = SlowUser(about.clock, about.first, about.decayed, about.counts, about.latest, affinity=about.affinity,
                        recent=[Entry(0, 3, 0)])  # fmt: skip
    fast = assembled(plan, fold, copy, items, (0, 0), now_ms)
    assert_same_columns(plan, fast, assemble_slowly(slow, expected, items, (0, 0), now_ms))
    seen = slice(plan.layout.seen, plan.layout.seen + plan.layout.seen_size)
    assert (copy.u4[seen] == row.u4[seen]).all()
