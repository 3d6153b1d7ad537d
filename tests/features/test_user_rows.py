"""User rows that are kept of a store far away: never older than what the fold has announced."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.rows import pack_user
from headwater.features.state_memory import MemoryState
from headwater.features.user_rows import UserRows
from headwater.log.commands import EraseUsers
from headwater.schema.config import Config
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event
from headwater.schema.feed import UNNAMED, Changes, Position
from headwater.testing.events import START_MS, Step, Written
from tests.features.states import STABLE

CONFIG = Config()
PLAN = compile_plan(CONFIG)


class Site:
    """A fold, the store that it commits to, and what it has announced but the reader has not heard yet."""

    def __init__(self, most: int = 2) -> None:
        self.log, self.state = Written(CONFIG), MemoryState(PLAN)
        self.fold = Fold(PLAN, self.state)
        self.heard, self.following = 0, False
        self.unheard: deque[tuple[Position, Changes]] = deque()
        self.away, self.reads = False, 0
        self.history: dict[int, dict[int, bytes]] = {0: {}}
        self.rows = UserRows(self, PLAN, most)

    def packed(self, user: int) -> tuple[int, bytes | None]:
        if self.away:
            raise UnavailableError("no store")
        self.reads += 1
        return self.state.offset, self.state.user(user)

    def commit(self, command: list[Event] | EraseUsers) -> None:
        self.log.add([Step(START_MS, command)])
        for block in [self.log.log.read(self.fold.offset)]:
            if block is not None:
                self.fold.apply(block)
        changes = self.fold.commit(epoch=False)
        users = range(1, 7)
        self.history[self.state.offset] = {
            user: packed for user in users if (packed := self.state.user(user)) is not None
        }
        if self.following:
            self.unheard.append((Position(self.state.offset, 0, 0), changes))

    def hear(self) -> None:
        if self.unheard:
            position, changes = self.unheard.popleft()
            self.rows.follow(position, changes)
            self.heard = position.user_offset

    def connect(self) -> None:
        self.unheard.clear()
        self.unheard.append((Position(self.state.offset, 0, 0), UNNAMED))
        self.following = True

    def lose(self) -> None:
        self.unheard.clear()
        self.rows.lose()
        self.following = False

    def read(self, user: int) -> int:
        """Read, and check that what came is the row of the offset that it is said to have."""
        row = stranger(PLAN)
        at = self.rows.read_user(user, row)
        assert at >= self.heard, "somebody who waited for this offset must find its row"
        committed = max(offset for offset in self.history if offset <= at)
        expected = self.history[committed].get(user)
        found = pack_user(row, PLAN.layout)
        assert found == (pack_user(stranger(PLAN), PLAN.layout) if expected is None else expected)
        assert len(self.rows) <= self.rows.most
        return at


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("click"), st.integers(0, 3)),
        st.tuples(st.just("erase"), st.integers(0, 3)),
        st.tuples(st.just("read"), st.integers(0, 5)),
        st.tuples(st.just("read"), st.integers(0, 3)),
        st.tuples(st.just("hear"), st.just(0)),
        st.tuples(st.just("hear"), st.just(0)),
        st.tuples(st.sampled_from(["lose", "connect"]), st.just(0)),
    ),
    max_size=40,
)


@STABLE
@given(operations=OPERATIONS)
def test_a_kept_row_is_the_row_of_its_offset(operations: list[tuple[str, int]]) -> None:
    """Whatever is written, announced late, or missed while nobody listened."""
    site = Site()
    site.connect()
    for turn, (operation, number) in enumerate(operations):
        if operation == "click":
            site.commit([Event(user=f"u{number}", item=f"i{turn}", type="click")])
        elif operation == "erase":
            site.commit(EraseUsers([f"u{number}"]))
        elif operation == "read":
            site.read(number)
        else:
            getattr(site, operation)()


def test_a_row_is_read_once_until_something_changes_it() -> None:
    site = Site()
    site.commit([Event(user="a", item="i", type="click"), Event(user="b", item="i", type="click")])
    site.connect()
    site.read(1)
    site.read(1)
    assert site.reads == 2, "nobody says yet what changes: nothing is kept"
    site.hear()
    assert [site.read(user) for user in (1, 1, 2, 0)] == [site.state.offset] * 4
    assert site.reads == 4, "a stranger has no row to read"
    site.commit([Event(user="b", item="j", type="click")])
    site.hear()
    assert site.read(1) == site.state.offset, "the row of `a` is the same at the new offset"
    assert site.reads == 4
    site.read(2)
    assert site.reads == 5
    site.away = True
    site.read(1)
    with pytest.raises(UnavailableError):
        site.read(3)
    site.away = False
    site.read(3)
    assert (len(site.rows), site.rows.evictions) == (2, 1)
    site.lose()
    assert len(site.rows) == 0
