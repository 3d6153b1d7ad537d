"""State as it stood at the addresses of many served lists: two folds of the log that only move forward.

One stops at the user offsets and hands over the users' rows, the other follows and stops at the item offsets, where the lists are to be looked at.
What is held meanwhile are the user rows between the two folds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import stranger
from headwater.features.fold import Fold, Unseal
from headwater.features.plan import Plan
from headwater.features.rows import pack_user
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.schema.errors import HeadwaterError

Int64 = npt.NDArray[np.int64]

READ = 4_096  # records of a block: served lists are some kilobytes each


class Addresses:
    """The addresses of n lists: ``user``, ``user_offset``, ``item_offset`` int64[n] each.

    Iterating yields ``(n, row)`` in the order of item offsets: list n's user as they stood at its user offset, packed, while ``items`` stands
    at its item offset.
    """

    def __init__(
        self,
        event_log: EventLog,
        plan: Plan,
        user: Int64,
        user_offset: Int64,
        item_offset: Int64,
        unseal: Unseal | None,
    ) -> None:
        self._plan, self._user, self._user_offset, self._item_offset = plan, user, user_offset, item_offset
        self._users, self._items = (_Standing(event_log, plan, unseal) for _ in range(2))
        self._order = np.argsort(user_offset, kind="stable")
        self._captured = 0  # of ``_order``
        self._row = stranger(plan)
        self._waiting: dict[int, bytes] = {}  # packed user rows by list

    @property
    def items(self) -> Fold:
        """The fold whose items stand at the item offset of the list at hand."""
        return self._items.fold

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for n in np.argsort(self._item_offset, kind="stable").tolist():
            self._capture(int(self._user_offset[n]))
            self._items.at(int(self._item_offset[n]))
            yield n, self._waiting.pop(n)

    def _capture(self, upto: int) -> None:
        """Hand over the user's row of every list with a user offset up to ``upto``."""
        while self._captured < len(self._order):
            n = int(self._order[self._captured])
            if self._user_offset[n] > upto:
                return
            self._users.at(int(self._user_offset[n])).users.read(int(self._user[n]), self._row)
            self._waiting[n] = pack_user(self._row, self._plan.layout)
            self._captured += 1


class _Standing:
    """A fold in memory that moves forward to the offsets it is sent to."""

    def __init__(self, event_log: EventLog, plan: Plan, unseal: Unseal | None) -> None:
        self.fold = Fold(plan, unseal=unseal)
        self._log = event_log
        self._block: RecordBlock | None = None
        self._start = 0

    def at(self, offset: int) -> Fold:
        """The fold after everything up to and with ``offset``, which is never less than before."""
        while self.fold.offset < offset:
            if self._block is None or self._start == len(self._block):
                self._block, self._start = self._log.read(self.fold.offset, READ), 0
                if self._block is None:
                    raise HeadwaterError(
                        f"a served list names offset {offset}, but the log ends at {self.fold.offset}: it is not the "
                        "log that the list was served from. Restore that one from a backup"
                    )
            stop = min(len(self._block), offset - self._block.first_offset + 1)
            self.fold.apply(self._block.head(stop).tail(self._start))
            self._start = stop
        return self.fold
