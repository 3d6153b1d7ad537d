"""The state that a request sees: the user row of the moment, and item columns of one epoch."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from headwater.features.fold import Fold
from headwater.features.plan import Plan
from headwater.features.rows import ItemTable, User
from headwater.features.store import State
from headwater.features.user_rows import UserRows
from headwater.retrieval.index import ItemIndex, Ranked
from headwater.retrieval.kept import KeptLists


class View(Protocol):
    """What the pipeline reads. ``item_offset`` is the log offset of the item columns."""

    item_offset: int
    table: ItemTable
    index: ItemIndex

    def read_user(self, user: int, into: User) -> int:
        """Fill ``into`` with the row of a dense user (zeros when unknown); returns the offset it stands at."""
        ...


class LiveView:
    """State as the fold process publishes it. Item columns move on only in :meth:`refresh`, between requests.

    ``rows`` are user rows that are kept of a store that is far away (None: each is read where it lies), ``lists`` as in
    :class:`ItemIndex`.
    """

    def __init__(
        self, plan: Plan, state: State, *, rows: UserRows | None = None, lists: KeptLists[Ranked] | None = None
    ) -> None:
        self.state, self.rows = state, rows
        self._users = state if rows is None else rows
        self.table = ItemTable(plan.layout)
        self.epoch = -1
        self.item_offset = 0
        self.index = ItemIndex(plan, self.table, lists)
        self.refresh()

    def refresh(self) -> bool:
        """Apply the epochs since the last call; returns whether there were any."""
        epoch, offset, changed = self.state.refresh_items(self.table, self.epoch)
        if epoch == self.epoch:
            return False
        self.epoch, self.item_offset = epoch, offset
        self.index.update(changed)
        return True

    def read_user(self, user: int, into: User) -> int:
        return self._users.read_user(user, into)


class FoldView:
    """State inside this process: training, evaluation and replay ask the fold itself."""

    def __init__(self, plan: Plan, fold: Fold, *, ttl_ms: int = 1000) -> None:
        self.fold = fold
        self.table = fold.items
        self.index = ItemIndex(plan, fold.items, KeptLists(ttl_ms))
        self.item_offset = fold.offset

    def refresh(self) -> None:
        """Take over what was folded since the last call."""
        self.item_offset = self.fold.offset
        changed = np.flatnonzero(self.table.dirty)
        self.index.update(changed)
        self.table.dirty[changed] = 0

    def read_user(self, user: int, into: User) -> int:
        self.fold.users.read(user, into)
        return self.fold.offset
