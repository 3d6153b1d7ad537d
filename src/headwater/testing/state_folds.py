"""Folding generated logs into a state store: in one go, in pieces, with processes that end in between."""

from __future__ import annotations

from collections.abc import Callable

from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import ItemTable
from headwater.features.state_memory import MemoryState
from headwater.features.store import Row, State
from headwater.log.record import RecordBlock
from headwater.schema.events import Event
from headwater.testing.events import START_MS, Step, Written, configurations

CONFIGS = configurations()
PLANS = {name: compile_plan(config) for name, config in CONFIGS.items()}
TIGHT = PLANS["tight"]

Cut = tuple[int, bool, bool]  # records of the next block, whether a commit follows it, whether the process then ends


def click(user: str, item: str, at_ms: int = START_MS, kind: str = "click") -> Step:
    """One event, at a moment."""
    return Step(at_ms, [Event(user=user, item=item, type=kind)])


def fold_all(log: Written, state: State, *, epoch: bool = True) -> Fold:
    """All that ``state`` lacks of the log, in one commit."""
    fold = Fold(state.plan, state)
    for block in iter(lambda: log.log.read(fold.offset), None):
        fold.apply(block)
    fold.commit(epoch=epoch)
    return fold


def reference(log: Written, plan: Plan, *, until: int | None = None) -> list[Row]:
    """What every store has to hold of a log (up to an offset): one fold, one commit, into memory."""
    state = MemoryState(plan)
    fold = Fold(plan, state)
    for block in log.blocks(until=until):
        fold.apply(block)
    fold.commit(epoch=False)
    return list(state.dump())


def rows_of(table: ItemTable) -> list[bytes]:
    return [part[: table.count].tobytes() for part in table.rows]


def next_block(log: Written, fold: Fold, limit: int = 16_384) -> RecordBlock:
    block = log.log.read(fold.offset, limit)
    assert block is not None
    return block


def fold_interrupted(log: Written, reopen: Callable[[], State], cuts: list[Cut], cache_users: int) -> tuple[int, int]:
    """Fold in pieces, with processes that end and lose what they had not committed; where the store stands then."""
    state = reopen()
    fold = Fold(state.plan, state, cache_users=cache_users)
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
            state = reopen()
            fold = Fold(state.plan, state, cache_users=cache_users)
    fold.commit(epoch=False)
    stands = state.offset, state.received_ms
    state.close()
    return stands


class Reader:
    """A server's copy of the item rows, moving on by epochs."""

    def __init__(self, state: State) -> None:
        self.state, self.table = state, ItemTable(state.plan.layout)
        self.epoch = -1

    def refresh(self) -> tuple[int, set[int] | None]:
        """The offset that the rows reflect now, and which changed (``None``: all)."""
        self.epoch, offset, changed = self.state.refresh_items(self.table, self.epoch)
        return offset, None if changed is None else set(changed.tolist())

    def rows(self) -> list[bytes]:
        return rows_of(self.table)
