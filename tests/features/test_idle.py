"""Users who were idle for too long are as good as new ones: at the fold, at a read, and when their rows are removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.assemble import forget_idle, stranger
from headwater.features.fold import Fold
from headwater.features.layout import U_CLOCK
from headwater.features.plan import compile_plan
from headwater.features.rows import pack_user
from headwater.features.state import LmdbState
from headwater.features.state_memory import MemoryState
from headwater.log.commands import Login, PutProfiles
from headwater.schema.config import Config, Features
from headwater.schema.events import Event
from headwater.schema.users import UserProfile
from headwater.testing.events import DAY_MS, START_MS, Step, TableRow, Written, scripts, written
from tests.features.columns import EVERYTHING
from tests.features.states import STABLE, all_bytes, assembled, assert_same_state, folded, folded_slowly

CONFIG = Config(features=Features(idle_after="10d"))
PLAN = compile_plan(CONFIG, EVERYTHING)
NEVER = compile_plan(Config(features=Features(idle_after="never")), EVERYTHING)
LATER = START_MS + 10 * DAY_MS  # a user of START_MS is not idle yet


def click(user: str = "u", item: str = "i", **more: Any) -> Event:
    return Event(user=user, item=item, type="click", **more)


def length(steps: list[Step], user: str = "u") -> int:
    log = written(steps, CONFIG)
    fold = folded(PLAN, log)
    assert_same_state(PLAN, fold, folded_slowly(log, EVERYTHING))
    return fold.users.length(log.user(user))


FIRST = Step(START_MS, [click(item="old")])
SPEAKS = {
    "an event": lambda at: Step(at, [click()]),
    "a profile": lambda at: Step(at, PutProfiles([UserProfile(id="u", country="de")])),
    "a table": lambda at: Step(at, TableRow("user", "u", "credit", {"score": 1.0})),
    "a login": lambda at: Step(at, Login("visitor", "u")),
    "being joined": lambda at: Step(at, Login("u", "other")),
}


@pytest.mark.parametrize("what", SPEAKS)
def test_what_is_said_of_an_idle_user_begins_a_new_row(what: str) -> None:
    user = "other" if what == "being joined" else "u"
    added = int(what == "an event")
    assert length([FIRST, SPEAKS[what](LATER)], user) == 1 + added
    assert length([FIRST, SPEAKS[what](LATER + 1)], user) == added


@pytest.mark.parametrize("what", ["a profile", "a table"])
def test_whoever_is_spoken_of_is_not_idle(what: str) -> None:
    between = SPEAKS[what](START_MS + 9 * DAY_MS)
    assert length([FIRST, between, Step(START_MS + 18 * DAY_MS, [click()])]) == 2


def test_idleness_is_measured_when_things_are_received() -> None:
    late = Step(LATER + 1, [click(item="late", time=START_MS + 1)])
    assert length([FIRST, late]) == 1
    assert length([FIRST, late, Step(LATER + 2, [click()])]) == 1  # the clock stands where that event happened


def test_an_idle_user_is_a_stranger_to_a_request() -> None:
    log = written([FIRST], CONFIG)
    for plan, at, known in ((PLAN, LATER, True), (PLAN, LATER + 1, False), (NEVER, LATER + 10**12, True)):
        fold = folded(plan, log)
        row = fold.users.user(1)
        forget_idle(row, at, plan)
        assert bool(row.u4.any()) == known
        ours = assembled(plan, fold, fold.users.user(1), [1], (0, 0), at)
        assert (ours.tobytes() == assembled(plan, fold, stranger(plan), [1], (0, 0), at).tobytes()) != known


def removed(fold: Fold, received_ms: int) -> None:
    """Remove the rows of idle users, as tidying up does."""
    for user in fold.users.known():
        clock = int(fold.users.user(user).i8[U_CLOCK])
        if 0 < clock < received_ms - PLAN.layout.idle_ms:
            slot = fold.users.slot(user)
            for part in fold.users.rows:
                part[slot] = 0


@STABLE
@given(steps=scripts(40), pause=st.integers(1, 10), at=st.integers(0, 200))
def test_removing_idle_rows_cannot_be_noticed(steps: list[Step], pause: int, at: int) -> None:
    moved = [msgspec.structs.replace(event, time=None) for step in steps if isinstance(step.command, list)
             for event in step.command]  # fmt: skip
    spread = [Step(step.at_ms + k * pause * DAY_MS, step.command) for k, step in enumerate(steps)]
    log = written([*spread, *(Step((len(steps) + k) * DAY_MS, [event]) for k, event in enumerate(moved[:5]))], CONFIG)
    plain, tidied = folded(PLAN, log), _tidied(log, at)
    now_ms = log.log.last_received_ms
    for fold in (plain, tidied):
        removed(fold, now_ms)
    assert all_bytes(plain) == all_bytes(tidied)


def _tidied(log: Written, at: int) -> Fold:
    fold = Fold(PLAN, unseal=log.identity.decrypt)
    for block in log.blocks([7]):
        fold.apply(block)
        if (int(block.records["offset"][0]) + at) % 3 == 0:
            removed(fold, fold.received_ms)
    return fold


def test_row_zero_and_items_are_never_idle() -> None:
    log = written([FIRST, Step(START_MS + 3_000 * DAY_MS, [click("w")])], CONFIG)
    fold = folded(PLAN, log)
    assert fold.items.rows.i8[log.item("old")].any()
    assert np.count_nonzero(fold.items.rows.u4[0]) > 0


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_the_fold_removes_idle_rows_from_its_store_and_nobody_notices(kind: str, tmp_path: Path) -> None:
    people = [f"u{n}" for n in range(20)]
    steps = [Step(START_MS + n * 1_000, [click(user, f"i{n % 3}")]) for n, user in enumerate(people)]
    later = [Step(START_MS + 12 * DAY_MS, [click(user, "late")]) for user in ("u3", "somebody new")]
    store = MemoryState(PLAN) if kind == "memory" else LmdbState(tmp_path, PLAN, writable=True)
    log = written([*steps, *later], CONFIG)
    fold = Fold(PLAN, store, cache_users=1, unseal=log.identity.decrypt)
    for block in log.blocks([7]):
        fold.apply(block)
        fold.commit(epoch=False)
    looked = [fold.remove_idle(6) for _ in range(5)]
    assert sum(looked) == 19  # all but the two who came later
    fold.commit(epoch=False)
    left = [user for user, _ in store.clocks(0, 100)]
    assert left == [log.user("u3"), log.user("somebody new")]
    log.add([Step(START_MS + 13 * DAY_MS, [click("u5", "again")])])
    news = log.log.read(fold.offset)
    assert news is not None
    fold.apply(news)
    fold.commit(epoch=False)
    assert_same_state(PLAN, folded(PLAN, log), folded_slowly(log, EVERYTHING))
    again = folded(PLAN, log)
    for user in ("u3", "u5", "somebody new"):
        assert store.user(log.user(user)) == pack_user(again.users.user(log.user(user)), PLAN.layout)
    store.close()
