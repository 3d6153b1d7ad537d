"""State as it stood at the address of a served list: one fold of the log that hands over the user's row and the item columns."""

from __future__ import annotations

import time
from collections.abc import Callable

from headwater.features.assemble import stranger
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.rows import ItemTable, User
from headwater.features.store import State
from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.retrieval.index import ItemIndex
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import Address

Progress = Callable[[int, int], None]

_FIRST_LOOK_S = 0.5  # before that the pace of a replay says nothing


class TooFarError(HeadwaterError):
    """The replay to an address would take longer than it may."""


class StandingView:
    """What a request at an address saw (a ``View``): item columns at one offset, the row of one user at another.

    Whoever else is asked for is a stranger.
    """

    def __init__(self, plan: Plan, table: ItemTable, item_offset: int, user: int, row: User, user_offset: int) -> None:
        self.table, self.item_offset = table, item_offset
        self.index = ItemIndex(plan, table)
        self.user_offset = user_offset
        self._user, self._row = user, row

    def read_user(self, user: int, into: User) -> int:
        if user == self._user:
            into.i8[:], into.f4[:], into.u4[:] = self._row
        else:
            for part in into:
                part[:] = 0
        return self.user_offset


def stand_at(
    log: EventLog, plan: Plan, user: int, address: Address, *, start: State | None = None, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> StandingView:  # fmt: skip
    """Fold ``log`` to ``address``: from its beginning, or from the state ``start``, which is only read. ``progress(offset, last)`` may
    raise to give up.

    Raises:
        TrimmedError: the beginning of the log is gone.
        HeadwaterError: the address is behind the log's end or before ``start``, or the log does not read as it was written.
    """
    last = max(address.user_offset, address.item_offset)
    if last > log.last_offset:
        raise HeadwaterError(
            f"the list stands at offset {last}, but the log ends at {log.last_offset}: it is not the log that the list was "
            "served from. Restore that one from a backup"
        )
    if start is not None and start.offset > min(address.user_offset, address.item_offset):
        raise HeadwaterError(
            f"the state to begin with stands at offset {start.offset}, the list before that, at {address.user_offset} (users) and "
            f"{address.item_offset} (items): take an older one"
        )
    fold = Fold(plan, start, unseal=unseal)
    row, table = stranger(plan), fold.items
    for stop in sorted({address.user_offset, address.item_offset}):
        while fold.offset < stop:
            block = log.read(fold.offset, min(READ_LIMIT, stop - fold.offset))
            if block is None:
                raise HeadwaterError(f"the log ends at offset {fold.offset}, the list stands at {last}")
            fold.apply(block)
            if progress is not None:
                progress(fold.offset, last)
        if stop == address.user_offset:
            fold.users.read(user, row)
        if stop == address.item_offset:
            table = fold.items.copy()
    return StandingView(plan, table, address.item_offset, user, row, address.user_offset)


class Patience:
    """A ``progress`` that gives up as soon as it is clear that the replay will take longer than ``limit_s`` seconds."""

    def __init__(self, limit_s: float, timer: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._timer = limit_s, timer
        self._began = timer()

    def __call__(self, offset: int, last: int) -> None:
        """Raises :class:`TooFarError`."""
        spent = self._timer() - self._began
        expected = spent * last / offset
        if min(expected, spent) > self._limit_s or (spent > _FIRST_LOOK_S and expected > self._limit_s):
            raise TooFarError(
                f"replaying {last} records to the address would take about {expected:.0f} s, more than the {self._limit_s:g} s "
                "that there are"
            )
