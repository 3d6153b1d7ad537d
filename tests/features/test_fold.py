"""The fold kernels against the slow fold, to the bit; and against themselves, however the log is cut."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features import declare as d
from headwater.features.aggregations import FOLLOWED, Counted, Distinct, Extreme, LastTime
from headwater.features.definitions import Column
from headwater.features.fold import Fold, FoldOrderError
from headwater.features.layout import FLAG_HIDDEN, I_FLAGS, U_RECENT_LENGTH
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to, stops
from headwater.log.commands import DeleteItems, EraseUsers, Login, PutItems
from headwater.log.record import Kind
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.assembly_oracle import assemble_slowly
from headwater.testing.events import START_MS, Step, Written, script, scripts, written
from tests.features.columns import EVERYTHING, EVERYTHING_PLAN
from tests.features.states import CONFIGS, PLANS, STABLE, all_bytes, assembled, assert_same_state, folded, folded_slowly

names = pytest.mark.parametrize("name", CONFIGS)
DEFAULT = PLANS["default"]


@names
@STABLE
@given(steps=scripts())
def test_short_logs_fold_to_what_the_slow_fold_says(name: str, steps: list[Step]) -> None:
    log = written(steps, CONFIGS[name])
    assert_same_state(PLANS[name], folded(PLANS[name], log), folded_slowly(log))


@names
@pytest.mark.parametrize("seed", [1, 2])
def test_long_logs_fold_to_what_the_slow_fold_says(name: str, seed: int) -> None:
    log = written(script(seed, 700, trials=seed == 2), CONFIGS[name])
    assert_same_state(PLANS[name], folded(PLANS[name], log), folded_slowly(log))


@pytest.mark.parametrize("seed", [1, 2])
def test_every_aggregation_folds_to_what_the_slow_fold_says(seed: int) -> None:
    log = written(script(seed, 700, tables=True, trials=seed == 2), Config())
    assert_same_state(EVERYTHING_PLAN, folded(EVERYTHING_PLAN, log), folded_slowly(log, EVERYTHING))


@STABLE
@given(steps=scripts(40), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), cache=st.integers(1, 4))
def test_every_aggregation_is_the_same_however_the_log_is_cut_and_rows_are_packed_away(
    steps: list[Step], sizes: list[int], cache: int
) -> None:
    log = written(steps, Config())
    whole = folded(EVERYTHING_PLAN, log)
    assert all_bytes(whole) == all_bytes(folded(EVERYTHING_PLAN, log, sizes, cache_users=cache))


@names
@STABLE
@given(steps=scripts(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_state_does_not_depend_on_how_the_log_is_cut(name: str, steps: list[Step], sizes: list[int]) -> None:
    log = written(steps, CONFIGS[name])
    whole, cut = folded(PLANS[name], log), folded(PLANS[name], log, sizes)
    assert (whole.offset, whole.received_ms, whole.items.count) == (cut.offset, cut.received_ms, cut.items.count)
    assert all_bytes(whole) == all_bytes(cut)
    assert msgspec.json.encode(whole.catalogue) == msgspec.json.encode(cut.catalogue)
    assert whole.counts == cut.counts


@pytest.mark.parametrize("name", ["tight", "plain"])
def test_a_full_row_of_equal_partners_gives_its_first_place_to_a_newcomer(name: str) -> None:
    steps = []
    for n in range(40):  # all at one moment, so that weights are equal and only the rule decides
        first = Event(user=f"u{n}", item=f"i{n % 3}", type="click", time=START_MS)
        steps.append(Step(START_MS, [first, Event(user=f"u{n}", item=f"after {n}", type="click", time=START_MS)]))
    log = written(steps, CONFIGS[name])
    slow = folded_slowly(log)
    assert len(slow.items[log.item("i0")].partners) == CONFIGS[name].features.co_visits.neighbours
    assert_same_state(PLANS[name], folded(PLANS[name], log), slow)


def test_stopping_before_a_record_shows_what_was_known_then() -> None:
    log = written(script(3, 120), Config())
    fold = Fold(DEFAULT)
    found = []
    for block, i in stops(log.log, fold, lambda block: block.records["kind"] == Kind.EVENT, until=100):
        offset = int(block.records["offset"][i])
        assert fold.offset == offset - 1
        found.append(offset)
        if offset % 20 == 0:
            assert_same_state(DEFAULT, fold, folded_slowly(log, until=offset - 1))
    assert found == [
        int(o) for b in log.blocks(until=100) for o in b.records["offset"][b.records["kind"] == Kind.EVENT]
    ]
    assert fold.offset == 100
    fold_to(log.log, fold, 150)
    assert_same_state(DEFAULT, fold, folded_slowly(log, until=150))


def test_records_out_of_order_are_refused() -> None:
    log = written(script(4, 20), Config())
    block = next(log.blocks())
    fold = Fold(DEFAULT)
    with pytest.raises(FoldOrderError, match="stands at offset 0; cannot fold from 4"):
        fold.apply(block.tail(3))
    fold.apply(block.head(5))
    with pytest.raises(FoldOrderError):
        fold.apply(block)
    fold.apply(block.head(0))
    assert fold.offset == 5


def test_a_fold_without_a_store_has_nowhere_to_commit_to() -> None:
    with pytest.raises(HeadwaterError, match="no store"):
        Fold(DEFAULT).commit(epoch=False)


def test_types_that_are_not_configured_change_no_row_and_are_counted() -> None:
    events = [Event(user="u", item="i", type=name) for name in ("rumour", "click", "rumour", "gossip")]
    with_all = folded(DEFAULT, written([Step(START_MS, events)], Config()))
    assert with_all.counts.skipped == {"rumour": 2, "gossip": 1}
    assert with_all.counts.events == 4
    clicks = folded(DEFAULT, written([Step(START_MS, events[1:2])], Config()))
    assert all_bytes(with_all) == all_bytes(clicks)


def test_a_retraction_takes_back_all_that_its_event_had_added() -> None:
    """Counts, sequence and sums are as before. What was seen stays seen, and a visit stays a visit."""
    before = [Step(START_MS, [Event(user="u", item="a", type="click", time=START_MS)])]
    click = Event(user="u", item="b", type="purchase", time=START_MS + 5_000)
    back = msgspec.structs.replace(click, retract=True)
    plain = folded(DEFAULT, written(before, Config()))
    log = written([*before, Step(START_MS + 5_000, [click]), Step(START_MS + 5_000, [back])], Config())
    fold = folded(DEFAULT, log)
    assert fold.users.length(1) == plain.users.length(1) == 1
    assert fold.users.has_seen(1, log.item("b"))
    slow = folded_slowly(log)
    sums = {cell: value for cell, value in slow.items[2].sums.items() if FOLLOWED not in cell.types}
    assert not any(sums.values())
    assert not any(slow.items[2].counts.values())


def test_erasure_login_and_deletion_do_what_they_say() -> None:
    def click(user: str, item: str) -> Event:  # whenever it is received
        return Event(user=user, item=item, type="click")

    steps = [
        Step(START_MS, PutItems([Item(id="a"), Item(id="b")])),
        Step(START_MS + 1_000, [click("visitor", "a"), click("known", "b"), click("leaver", "a")]),
        Step(START_MS + 2_000, Login("visitor", "known")),
        Step(START_MS + 3_000, EraseUsers(["leaver"])),
        Step(START_MS + 4_000, DeleteItems(["b"])),
    ]
    log = written(steps, Config())
    fold = folded(DEFAULT, log)
    known, visitor = log.user("known"), log.user("visitor")
    assert fold.users.length(known) == 2
    assert fold.users.has_seen(known, log.item("a"))
    for user in (visitor, 3):
        assert not any(part.any() for part in fold.users.user(user))
    assert fold.items.rows.u4[log.item("b"), I_FLAGS] & FLAG_HIDDEN
    assert not fold.items.rows.u4[log.item("a"), I_FLAGS] & FLAG_HIDDEN
    log.add([Step(START_MS + 5_000, PutItems([Item(id="b")]))])
    assert not folded(DEFAULT, log).items.rows.u4[log.item("b"), I_FLAGS] & FLAG_HIDDEN


def test_the_tables_answer_for_users_they_do_not_hold() -> None:
    fold = folded(DEFAULT, written([Step(START_MS, [Event(user="u", item="i", type="click")])], Config()))
    assert fold.users.length(1) == int(fold.users.user(1).u4[U_RECENT_LENGTH]) == 1
    assert fold.users.length(10**7) == 0
    assert not fold.users.has_seen(10**7, 1)


def click(user: str, item: str, time: int, *, value: float | None = None, retract: bool = False) -> Event:
    return Event(user=user, item=item, type="click", time=time, value=value, retract=retract)


def read(log: Written, columns: list[Column], now_ms: int, *, user: str = "u", item: str = "i") -> list[float]:
    """One assembled row by the kernels, after checking it and the state against the slow ones."""
    plan = compile_plan(log.config, tuple(columns))
    fold, slow = folded(plan, log), folded_slowly(log, tuple(columns))
    assert_same_state(plan, fold, slow)
    row = assembled(plan, fold, fold.users.user(log.user(user)), [log.item(item)], (0, 0), now_ms)
    slowly = assemble_slowly(slow, slow.users.get(log.user(user)), [log.item(item)], (0, 0), now_ms)
    assert row.tobytes() == slowly.tobytes()
    return [float(value) for value in row[0]]


def test_what_happened_at_time_0_fades_and_leaves_windows_like_anything_else() -> None:
    hour = 3_600_000
    columns = [
        d.count("fading", "user", ["click"], half_life="1h"),
        d.count("item_fading", "item", ["click"], half_life="1h"),
        d.count("window", "user", ["click"], window="1h"),
        d.affinity("taste", {"click": 1.0}, half_life="1h", read="weight"),
    ]
    steps = [Step(0, PutItems([Item(id="i", categories=["c"])])), Step(0, [click("u", "i", 0)])]
    later = Step(40 * hour, [click("u", "i", 40 * hour)])
    assert read(written(steps, Config()), columns, hour) == [0.5, 0.5, 0.0, 0.5]
    assert read(written([*steps, later], Config()), columns, 40 * hour) == [1.0, 1.0, 1.0, 1.0]


def test_a_retraction_leaves_no_trace_in_an_affinity_that_it_does_not_find() -> None:
    columns = [d.affinity("w", {"click": 1.0, "hide": -2.0}, slots=2, read="weight"), d.affinity(
        "t", {"click": 1.0, "hide": -2.0}, slots=2, read="since")]  # fmt: skip
    items = Step(0, PutItems([Item(id="i", categories=["c"])]))
    hidden = Event(user="u", item="i", type="hide", time=START_MS)
    back = msgspec.structs.replace(hidden, retract=True)
    assert read(written([items, Step(START_MS, [hidden, back])], Config()), columns, START_MS) == [0.0, -1.0]
    clicked = [click("u", "i", START_MS), click("u", "i", START_MS + 7_200_000, retract=True)]
    log = written([items, Step(START_MS + 7_200_000, clicked)], Config())
    assert read(log, columns, START_MS + 7_200_000)[1] == 2.0  # hours since the click, not since it was taken back


@pytest.mark.parametrize("later_ms", [0, 5_000, 7 * 3_600_000])
def test_nothing_is_left_of_what_was_taken_back(later_ms: int) -> None:
    """Rounding leaves no rest that a share or a mean would make something of."""
    columns = [
        d.mean("mean", "item", ["click"], half_life="1d", default=-7.0),
        d.rate("rate", "item", ["click"], ["click"], prior=0.0, strength=0.0, half_life="6h", default=-7.0),
        d.affinity("share", {"click": 0.7}, half_life="3d"),
        d.segment("segment", 0, "share"),
    ]
    likes = [click("u", "i", START_MS + n * 777_777, value=0.1 * n) for n in range(7)]
    back = [msgspec.structs.replace(event, retract=True) for event in likes[3:] + likes[:3]]
    steps = [
        Step(START_MS, PutItems([Item(id="i", categories=["c"])])),
        Step(START_MS + 10_000_000, [msgspec.structs.replace(event, attributes={"country": "de"}) for event in likes]),
        Step(START_MS + 10_000_000 + later_ms, back),
    ]
    assert read(written(steps[:2], Config()), columns, START_MS + 10_000_000)[2] == 1.0
    assert read(written(steps, Config()), columns, START_MS + 10_000_000 + later_ms) == [-7.0, -7.0, 0.0, 0.0]


def test_users_count_what_they_followed_up() -> None:
    columns = [d.count("user_followed", "user", [FOLLOWED]), d.count("item_followed", "item", [FOLLOWED])]
    log = written([Step(START_MS, [click("u", "a", START_MS), click("u", "i", START_MS + 1)])], Config())
    assert read(log, columns, START_MS) == [1.0, 1.0]
    assert read(log, columns, START_MS, item="a") == [1.0, 0.0]


def test_values_count_where_they_are_given() -> None:
    columns = [
        d.mean("mean", "item", ["click"]), d.total("total", "item", ["click"]), d.count("count", "item", ["click"]),
        d.smallest("least", "item", ["click"]), d.largest("most", "item", ["click"]), d.last("last", "item", ["click"]),
    ]  # fmt: skip
    given = [click("u", "i", START_MS + 2, value=-4.0), click("u", "i", START_MS + 1, value=10.0)]
    log = written([Step(START_MS + 9, [*given, click("u", "i", START_MS + 3)])], Config())
    assert read(log, columns, START_MS + 9) == [3.0, 6.0, 3.0, -4.0, 10.0, -4.0]
    taken = Step(START_MS + 9, [click("u", "i", START_MS + 1, value=10.0, retract=True)])
    assert read(log.add([taken]), columns, START_MS + 9) == [-4.0, -4.0, 2.0, -4.0, 10.0, -4.0]
    nothing = written([Step(START_MS, [click("u", "i", START_MS)])], Config())
    assert read(nothing, columns, START_MS) == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_a_window_holds_its_tiles_and_no_more() -> None:
    columns = [d.count("six", "item", ["click"], window="1h", tiles=6)]
    start = START_MS // 3_600_000 * 3_600_000
    minutes = [0, 9, 10, 35, 59]
    log = written([Step(start + 59 * 60_000, [click("u", "i", start + m * 60_000) for m in minutes])], Config())
    for now, held in ((59, 5), (60, 3), (69, 3), (70, 2), (100, 1), (110, 0), (10_000, 0)):
        assert read(log, columns, start + now * 60_000) == [float(held)], now
    late = Step(start + 119 * 60_000, [click("u", "i", start + 119 * 60_000), click("u", "i", start + 61 * 60_000),
                                       click("u", "i", start + 59 * 60_000)])  # fmt: skip
    assert read(log.add([late]), columns, start + 119 * 60_000) == [2.0]  # the last one was outside when it came


def test_a_login_brings_everything_together() -> None:
    """Each aggregation of the joined row is that of one user who had done both parts."""
    steps = script(11, 160, users=2, tables=False, pace_ms=60_000)
    steps = [step for step in steps if isinstance(step.command, list | PutItems)]
    joined = [*steps, Step(steps[-1].at_ms, Login("u1", "u0"))]
    columns = tuple(
        column for column in EVERYTHING
        if column.reads and all(isinstance(cell, Counted | LastTime | Extreme | Distinct) for cell in column.reads)
    )  # fmt: skip
    plan = compile_plan(Config(), columns)
    both, one = written(joined, Config()), written([_as_one(step) for step in steps], Config())
    a, b = folded(plan, both).users.user(both.user("u0")), folded(plan, one).users.user(one.user("u0"))
    for cell, (at, words) in plan.positions.items():
        if cell.entity != "user" or not isinstance(cell, Counted | LastTime | Extreme | Distinct):
            continue
        counted_by = a.i8 if isinstance(cell, LastTime) else a.u4
        expected = b.i8 if isinstance(cell, LastTime) else b.u4
        if isinstance(cell, Distinct) and cell.of == "user":
            continue  # two users are not one
        if FOLLOWED not in cell.types:
            assert (counted_by[at : at + max(words, 1)] == expected[at : at + max(words, 1)]).all(), cell


def _as_one(step: Step) -> Step:
    command = step.command
    if isinstance(command, list):
        return Step(step.at_ms, [msgspec.structs.replace(event, user="u0") for event in command])
    return step


def test_a_trial_changes_the_row_of_its_user_and_no_other() -> None:
    before = [Step(START_MS, [Event(user="ann", item=item, type="click") for item in ("a", "b", "c")])]
    tried = [Event(user="ann", item="b", type="click"), Event(user="ann", item="c", type="click")]
    without, trial, real = (
        folded(DEFAULT, written([*before, *more], Config()))
        for more in ([], [Step(START_MS + 1_000, tried, trial=True)], [Step(START_MS + 1_000, tried)])
    )
    items = [fold.items.rows for fold in (without, trial, real)]
    of_items = [tuple(part.tobytes() for part in rows) for rows in items]
    assert of_items[0] == of_items[1] != of_items[2]
    length = [int(fold.users.rows.u4[fold.users.slot(1), U_RECENT_LENGTH]) for fold in (without, trial, real)]
    assert length[1] == length[2] > length[0]
