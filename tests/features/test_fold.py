"""The fold kernels against the slow fold, to the bit; and against themselves, however the log is cut."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.definitions import FOLLOWED
from headwater.features.fold import Fold, FoldOrderError
from headwater.features.plan import FLAG_HIDDEN, I_FLAGS, U_RECENT_LENGTH
from headwater.features.replay import fold_to, stops
from headwater.log.commands import DeleteItems, EraseUsers, Login, PutItems
from headwater.log.record import Kind
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.events import START_MS, Step, script, scripts, written
from tests.features.states import CONFIGS, PLANS, STABLE, assert_same_state, folded, folded_slowly

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
    log = written(script(seed, 700), CONFIGS[name])
    assert_same_state(PLANS[name], folded(PLANS[name], log), folded_slowly(log))


@names
@STABLE
@given(steps=scripts(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_state_does_not_depend_on_how_the_log_is_cut(name: str, steps: list[Step], sizes: list[int]) -> None:
    log = written(steps, CONFIGS[name])
    whole, cut = folded(PLANS[name], log), folded(PLANS[name], log, sizes)
    assert (whole.offset, whole.received_ms, whole.items.count) == (cut.offset, cut.received_ms, cut.items.count)
    for a, b in ((whole.items.rows, cut.items.rows), (whole.users.rows, cut.users.rows)):
        assert [part.tobytes() for part in a] == [part.tobytes() for part in b]
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
    assert with_all.users.rows.f4[1].tobytes() == clicks.users.rows.f4[1].tobytes()


def test_a_retraction_takes_back_all_that_its_event_had_added() -> None:
    """Counts, sequence and (to rounding) sums are as before. What was seen stays seen, and a visit stays a visit."""
    before = [Step(START_MS, [Event(user="u", item="a", type="click", time=START_MS)])]
    click = Event(user="u", item="b", type="purchase", time=START_MS + 5_000)
    back = msgspec.structs.replace(click, retract=True)
    plain = folded(DEFAULT, written(before, Config()))
    log = written([*before, Step(START_MS + 5_000, [click]), Step(START_MS + 5_000, [back])], Config())
    fold = folded(DEFAULT, log)
    assert fold.users.length(1) == plain.users.length(1) == 1
    assert fold.users.has_seen(1, log.item("b"))
    slow = folded_slowly(log)
    sums = {cell: value for cell, value in slow.items[2].decayed.items() if FOLLOWED not in cell.types}
    assert max(sums.values()) == pytest.approx(0.0, abs=1e-6)
    assert not any(slow.items[2].counts.values())


def test_erasure_login_and_deletion_do_what_they_say() -> None:
    def click(user: str, item: str) -> Event:
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
        assert not any(part[user].any() for part in fold.users.rows)
    assert fold.items.rows.u4[log.item("b"), I_FLAGS] & FLAG_HIDDEN
    assert not fold.items.rows.u4[log.item("a"), I_FLAGS] & FLAG_HIDDEN
    log.add([Step(START_MS + 5_000, PutItems([Item(id="b")]))])
    assert not folded(DEFAULT, log).items.rows.u4[log.item("b"), I_FLAGS] & FLAG_HIDDEN


def test_the_tables_answer_for_users_they_do_not_hold() -> None:
    fold = folded(DEFAULT, written([Step(START_MS, [Event(user="u", item="i", type="click")])], Config()))
    assert fold.users.length(1) == int(fold.users.rows.u4[1, U_RECENT_LENGTH]) == 1
    assert fold.users.length(10**7) == 0
    assert not fold.users.has_seen(10**7, 1)
