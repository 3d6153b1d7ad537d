"""User rows that a worker read from a store over a network, kept for as long as nothing has changed them.

The fold says after each commit which rows the commit changed, in the message that moves the position on
(:mod:`headwater.schema.feed`). So a row that was read at one offset, and that no message has named since, is the row of
the position of the newest message; and whoever waited for the position of their own event finds the row dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, runtime_checkable

from headwater.features.plan import Plan
from headwater.features.rows import User, unpack_user
from headwater.schema.feed import Changes, Position


@runtime_checkable
class PackedRows(Protocol):
    """A store over a network: it gives rows as they are stored, so that they can be kept."""

    def packed(self, user: int) -> tuple[int, bytes | None]:
        """The offset that the row of ``user`` stands at, and the row; None: there is none."""
        ...


class UserRows:
    """At most ``most`` packed rows, the least lately used go first; of a stranger (user 0) no row is looked for.

    Nothing is kept while the fold cannot be heard: what it changes then nobody says.
    """

    def __init__(self, store: PackedRows, plan: Plan, most: int) -> None:
        self.most = most
        self.hits = self.misses = self.evictions = 0
        self._store, self._layout = store, plan.layout
        self._rows: OrderedDict[int, tuple[int, bytes | None]] = OrderedDict()
        self._offset = -1  # of the newest message; below 0: the fold cannot be heard

    def __len__(self) -> int:
        return len(self._rows)

    def read_user(self, user: int, into: User) -> int:
        """As :meth:`headwater.features.store.State.read_user`.

        Raises:
            UnavailableError: the row is not at hand, and the store cannot be reached.
        """
        found = self._rows.get(user) if user or self._offset < 0 else (self._offset, None)
        if found is None:
            self.misses += 1
            found = self._store.packed(user)
            if self._offset >= 0:
                self._rows[user] = found
                if len(self._rows) > self.most:
                    self._rows.popitem(last=False)
                    self.evictions += 1
        else:
            self.hits += 1
            if user:
                self._rows.move_to_end(user)
        offset, packed = found
        if packed is None:
            for part in into:
                part[:] = 0
        else:
            unpack_user(packed, into, self._layout)
        return max(offset, self._offset)

    def follow(self, position: Position, changes: Changes) -> None:
        """The fold has committed: drop what that changed."""
        self._offset = position.user_offset
        if changes.changed is None or changes.gone is None:
            self._rows.clear()
            return
        for users in changes:
            for user in users or ():
                self._rows.pop(user, None)

    def lose(self) -> None:
        """The fold cannot be heard any more."""
        self._offset = -1
        self._rows.clear()
