"""The assembled rows against the slow assembly, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.assemble import anchor_user, stranger
from headwater.features.definitions import Formula, TermOp
from headwater.features.fold import Fold
from headwater.features.plan import Plan
from headwater.schema.config import Config
from headwater.testing.assembly_oracle import assemble_slowly
from headwater.testing.events import DAY_MS, Step, Written, script, scripts, written
from headwater.testing.oracle import Entry, SlowFold
from tests.features.columns import EVERYTHING, EVERYTHING_PLAN
from tests.features.states import CONFIGS, PLANS, STABLE, assembled, folded, folded_slowly

names = pytest.mark.parametrize("name", CONFIGS)


def assert_same_columns(plan: Plan, fast: npt.NDArray[np.float32], slow: npt.NDArray[np.float32]) -> None:
    for d, column in enumerate(plan.columns):
        if fast[:, d].tobytes() != slow[:, d].tobytes():
            raise AssertionError(f"{column} is {fast[:, d].tolist()}, expected {slow[:, d].tolist()}")


def compare(plan: Plan, fold: Fold, slow: SlowFold, segments: tuple[int, int], now_ms: int, offset_ms: int = 0) -> None:
    """All items for every user and a stranger."""
    items = list(range(1, fold.items.count))
    for user in [0, *slow.users]:
        fast = assembled(plan, fold, fold.users.user(user), items, segments, now_ms, offset_ms, user % 3)
        expected = assemble_slowly(slow, slow.users.get(user), items, segments, now_ms, offset_ms, user % 3)
        assert_same_columns(plan, fast, expected)


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
    log = written(script(seed, 500, users=6, items=15), CONFIGS[name])
    fold, slow = folded(PLANS[name], log), folded_slowly(log)
    compare(PLANS[name], fold, slow, (seed, 3), log.log.last_received_ms + 40_000)


@names
def test_segments_at_the_edge_of_what_has_a_cell(name: str) -> None:
    log = written(script(5, 200, users=4, items=10), CONFIGS[name])
    fold, slow = folded(PLANS[name], log), folded_slowly(log)
    slots = CONFIGS[name].features.segment_slots
    for segments in ((slots - 1, slots - 1), (slots, slots), (slots + 1, 65_535)):
        compare(PLANS[name], fold, slow, segments, log.log.last_received_ms)


ZONES_MS = st.sampled_from([0, 3_600_000, -18_000_000, 19_800_000])


@STABLE
@given(steps=scripts(40), later_ms=st.sampled_from([0, 30_000, DAY_MS]), offset_ms=ZONES_MS)
def test_short_logs_of_everything(steps: list[Step], later_ms: int, offset_ms: int) -> None:
    log = written(steps, Config())
    now_ms = log.log.last_received_ms + later_ms
    compare(EVERYTHING_PLAN, folded(EVERYTHING_PLAN, log), folded_slowly(log, EVERYTHING), (1, 2), now_ms, offset_ms)


@pytest.mark.parametrize("seed", [5, 6])
def test_long_logs_of_everything(seed: int) -> None:
    log = written(script(seed, 400, users=5, items=12, tables=True), Config())
    now_ms = log.log.last_received_ms + 40_000
    compare(EVERYTHING_PLAN, folded(EVERYTHING_PLAN, log), folded_slowly(log, EVERYTHING), (seed, 3), now_ms)


def test_every_term_and_formula_has_a_column_that_is_not_constant() -> None:
    """The comparison above means something: each kind of column takes several values in the long log."""
    log = written(script(5, 500, tables=True, items=12), Config())
    rows = []
    for until in (150, 450, log.log.last_offset):
        slow = folded_slowly(log, EVERYTHING, until=until)
        block = log.log.read(until - 1, 1)
        assert block is not None
        now_ms = int(block.records["received_ms"][0])
        for user, row in slow.users.items():
            rows.append(assemble_slowly(slow, row, range(1, 9), (user % 5, 3), now_ms + user * 1_000_000, 0, user % 3))
    values = np.concatenate(rows)
    varied = [column for d, column in enumerate(EVERYTHING) if len(np.unique(values[:, d])) > 1]
    unmoved = {column.name for column in EVERYTHING} - {column.name for column in varied}
    assert unmoved <= {"weekday", "user_users", "item_items"}  # a user's events are about one user
    elsewhere = {op for op in TermOp if op.name.startswith("FACTORS")}  # not kept by default: test_factors
    assert {term.op for column in varied for term in column.terms} >= set(TermOp) - elsewhere - {
        TermOp.WEEKDAY,
        TermOp.CONSTANT,
    }
    assert {column.formula for column in varied} == set(Formula)


@pytest.fixture(scope="module")
def long_log() -> Written:
    return written(script(7, 400), CONFIGS["default"])


def test_a_row_does_not_depend_on_the_other_candidates(long_log: Written) -> None:
    plan = EVERYTHING_PLAN
    fold, now_ms = folded(plan, long_log), long_log.log.last_received_ms
    items = list(range(1, fold.items.count))
    for user in range(1, 6):
        row = fold.users.user(user)
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
    assembled(
        plan,
        fold,
        fold.users.row(fold.users.slot(1)),
        list(range(1, fold.items.count)),
        (1, 2),
        long_log.log.last_received_ms,
    )
    assert [part.tobytes() for part in (*fold.items.rows, *fold.users.rows)] == before


def test_an_anchored_user_is_one_whose_only_recent_item_is_the_anchor(long_log: Written) -> None:
    plan = PLANS["default"]
    fold, slow, now_ms = folded(plan, long_log), folded_slowly(long_log), long_log.log.last_received_ms
    items = list(range(1, fold.items.count))
    user = next(iter(slow.users))
    row, copy = fold.users.user(user), fold.users.user(user)
    anchor_user(copy, 3, plan.layout)
    about = slow.users[user]
    expected = replace(about, recent=[Entry(0, 3, 0)])
    fast = assembled(plan, fold, copy, items, (0, 0), now_ms)
    assert_same_columns(plan, fast, assemble_slowly(slow, expected, items, (0, 0), now_ms))
    seen = slice(plan.layout.seen, plan.layout.seen + plan.layout.seen_size)
    assert (copy.u4[seen] == row.u4[seen]).all()
