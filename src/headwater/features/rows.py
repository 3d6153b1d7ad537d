"""Tables of state rows: all items as columns, and the user rows that are worked on, with packed ones behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.layout import U_RECENT_LENGTH, U_SEEN_LENGTH, Layout
from headwater.features.packing import (
    CorruptStateError,
    clear_row,
    most_words,
    pack_row,
    pack_users,
    unpack_row,
    unpack_users,
)
from headwater.features.rowset import Rows
from headwater.jit import kernel

__all__ = ["CorruptStateError", "ItemTable", "Rows", "User", "UserTable", "new_rows", "pack_user", "unpack_user"]

UInt32 = npt.NDArray[np.uint32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


LoadMany = Callable[[list[int]], list[bytes | None]]


class User(NamedTuple):
    """One user row (``int64[a]``, ``float32[b]``, ``uint32[c]``); all zeros: a stranger."""

    i8: npt.NDArray[np.int64]
    f4: npt.NDArray[np.float32]
    u4: npt.NDArray[np.uint32]


def new_rows(n: int, i8: int, f4: int, u4: int) -> Rows:
    return Rows(np.zeros((n, i8), np.int64), np.zeros((n, f4), np.float32), np.zeros((n, u4), np.uint32))


def _grown(rows: Rows, n: int) -> Rows:
    bigger = new_rows(n, rows.i8.shape[1], rows.f4.shape[1], rows.u4.shape[1])
    count = len(rows.i8)
    bigger.i8[:count], bigger.f4[:count], bigger.u4[:count] = rows.i8, rows.f4, rows.u4
    return bigger


class ItemTable:
    """All item rows, indexed by dense item; row 0 stands for all items together."""

    def __init__(self, layout: Layout, capacity: int = 1024) -> None:
        self.rows = new_rows(capacity, layout.item_i8, layout.item_f4, layout.item_u4)
        self.count = 1
        self.dirty = np.zeros(capacity, np.uint8)

    def reserve(self, count: int) -> None:
        """Make rows ``0 … count - 1`` exist."""
        if count > len(self.dirty):
            capacity = max(count, 2 * len(self.dirty))
            self.rows = _grown(self.rows, capacity)
            self.dirty = np.concatenate([self.dirty, np.zeros(capacity - len(self.dirty), np.uint8)])
        self.count = max(self.count, count)

    def copy(self) -> ItemTable:
        """An equal table that changes on its own."""
        made = object.__new__(ItemTable)
        made.rows = Rows(self.rows.i8.copy(), self.rows.f4.copy(), self.rows.u4.copy())
        made.count, made.dirty = self.count, self.dirty.copy()
        return made


class _Arena(NamedTuple):
    """Packed rows one behind the other; ``at[user]`` is -1 where there is none."""

    words: UInt32
    at: Int64  # (users,)
    size: Int32  # (users,)


@kernel
def _fetch(
    missing: Int64, first_slot: int, rows: Rows, layout: Layout, words: UInt32, at: Int64, size: Int32, slot_of: Int32,
    owners: UInt32,
) -> None:  # fmt: skip
    for k in range(len(missing)):
        user, slot = missing[k], first_slot + k
        if at[user] >= 0:
            unpack_row(words[at[user] : at[user] + size[user]], rows, slot, layout)
        else:
            clear_row(rows, slot)
        slot_of[user] = slot
        owners[slot] = user


@kernel
def _put(
    slots: Int64, rows: Rows, layout: Layout, words: UInt32, end: int, at: Int64, size: Int32, owners: UInt32
) -> int:
    for k in range(len(slots)):
        user = owners[slots[k]]
        stop = pack_row(rows, slots[k], layout, words, end)
        at[user], size[user] = end, stop - end
        end = stop
    return end


@kernel
def _compact(words: UInt32, at: Int64, size: Int32, out: UInt32) -> int:
    end = 0
    for user in range(len(at)):
        if at[user] >= 0:
            for k in range(size[user]):
                out[end + k] = words[at[user] + k]
            at[user] = end
            end += size[user]
    return end


@kernel
def _missing(users: UInt32, slot_of: Int32, out: Int64) -> int:
    """The users without a slot, each once; they are marked -2 meanwhile."""
    count = 0
    for k in range(len(users)):
        if slot_of[users[k]] == -1:
            slot_of[users[k]] = -2
            out[count] = users[k]
            count += 1
    return count


class UserTable:
    """User rows that the fold works on, ``hot``, and behind them packed rows: in ``load``'s store, or in an arena here.

    Positions of hot rows are slots. With a store the owner commits dirty rows and then calls :meth:`shrink`; without one
    the table packs rows away by itself when more than ``hot`` are in use. ``load_many``, if there is one, loads what a
    block needs at once. Memory is the hot rows at full width plus what is in use of all others.
    """

    def __init__(self, layout: Layout, load: Callable[[int], bytes | None] | None = None, *, hot: int = 32_768,
                 capacity: int = 1024, load_many: LoadMany | None = None) -> None:  # fmt: skip
        self.layout, self.load, self.load_many, self.hot = layout, load, load_many, hot
        self.rows = new_rows(capacity, layout.user_i8, layout.user_f4, layout.user_u4)
        self.dirty = np.zeros(capacity, np.uint8)
        self.owners = np.zeros(capacity, np.uint32)
        self.used = 0  # slots that are taken: 0 … used - 1
        self.slot_of: Int32 = np.full(1024, -1, np.int32)
        self._arena = _Arena(np.zeros(1 << 12, np.uint32), np.full(1024, -1, np.int64), np.zeros(1024, np.int32))
        self._end = 0  # words of the arena that are taken
        self._most = most_words(layout)

    def slots_of(self, users: UInt32) -> Int64:
        """Row positions of dense users, fetching what is not hot. Slots handed out before may be void afterwards."""
        self._know(int(users.max(initial=0)) + 1)
        missing = np.empty(len(users), np.int64)
        count = _missing(users, self.slot_of, missing)
        if self.load is None and self.used + count > self.hot and self.used:
            self.slot_of[missing[:count]] = -1
            self.pack_away()
            count = _missing(users, self.slot_of, missing)
        if count:
            self._fetch(missing[:count])
        slots: Int64 = self.slot_of[users].astype(np.int64)
        return slots

    def row(self, slot: int) -> User:
        return User(self.rows.i8[slot], self.rows.f4[slot], self.rows.u4[slot])

    def slot(self, user: int) -> int:
        """The position of one dense user's row."""
        return int(self.slots_of(np.array([user], np.uint32))[0])

    def read(self, user: int, into: User) -> None:
        """Fill ``into`` with the row of a dense user (zeros when there is none); nothing is moved."""
        slot = int(self.slot_of[user]) if 0 < user < len(self.slot_of) else -1
        if slot >= 0:
            row = self.row(slot)
            into.i8[:], into.f4[:], into.u4[:] = row.i8, row.f4, row.u4
            return
        for part in into:
            part[:] = 0
        single = _table_of(into)
        if self.load is not None:
            packed = self.load(user) if user > 0 else None
            if packed is not None:
                unpack_users(packed, single, 0, self.layout)
        elif 0 < user < len(self.slot_of) and self._arena.at[user] >= 0:
            at, size = int(self._arena.at[user]), int(self._arena.size[user])
            unpack_row(self._arena.words[at : at + size], single, 0, self.layout)

    def user(self, user: int) -> User:
        """A copy of the row of a dense user."""
        layout = self.layout
        rows = new_rows(1, layout.user_i8, layout.user_f4, layout.user_u4)
        into = User(rows.i8[0], rows.f4[0], rows.u4[0])
        self.read(user, into)
        return into

    def length(self, user: int) -> int:
        """Events in the recent sequence of a dense user."""
        return int(self.user(user).u4[U_RECENT_LENGTH])

    def has_seen(self, user: int, item: int) -> bool:
        """Whether ``item`` stands in the seen ring of a dense user."""
        row = self.user(user)
        seen = min(int(row.u4[U_SEEN_LENGTH]), self.layout.seen_size)
        return bool((row.u4[self.layout.seen : self.layout.seen + seen] == item).any())

    def is_hot(self, user: int) -> bool:
        """Whether the row of a dense user is being worked on."""
        return user < len(self.slot_of) and bool(self.slot_of[user] >= 0)

    def owner(self, slot: int) -> int:
        return int(self.owners[slot])

    def known(self) -> list[int]:
        """Dense users that have a row here, in order."""
        return np.flatnonzero((self.slot_of >= 0) | (self._arena.at >= 0)).tolist()

    def shrink(self, limit: int) -> None:
        """Forget all hot rows when there are more than ``limit``; all of them must have been stored."""
        if self.load is not None and self.used > limit:
            self.slot_of[self.owners[: self.used]] = -1
            self.used = 0

    def pack_away(self) -> None:
        """Pack all hot rows into the arena (tables without a store)."""
        slots = np.arange(self.used)
        arena = self._arena
        # the most that they can take; what is not written costs address space only
        need = self._end + self.used * self._most
        if need > len(arena.words):
            words = np.zeros(max(need, 2 * self._end), np.uint32)
            self._end = _compact(arena.words, arena.at, arena.size, words)
            self._arena = arena = arena._replace(words=words)
        self._end = _put(slots, self.rows, self.layout, arena.words, self._end, arena.at, arena.size, self.owners)
        self.slot_of[self.owners[: self.used]] = -1
        self.used = 0

    def copy(self) -> UserTable:
        """An equal table (without a store) that changes on its own. Hot rows are packed away first."""
        self.pack_away()
        made = UserTable(self.layout, hot=self.hot)
        made._know(len(self.slot_of))
        words = np.zeros(max(self._end, 1), np.uint32)
        at, size = self._arena.at.copy(), self._arena.size.copy()
        made._end = _compact(self._arena.words, at, size, words)
        made._arena = _Arena(words, at, size)
        return made

    def memory(self) -> dict[str, int]:
        """Bytes in use: ``packed`` rows, ``hot`` rows, and the ``index`` by user."""
        hot = sum(part[: self.used].nbytes for part in self.rows)
        return {"packed": 4 * self._end, "hot": hot, "index": self.slot_of.nbytes + 12 * len(self._arena.at)}

    def _fetch(self, missing: Int64) -> None:
        first, last = self.used, self.used + len(missing)
        self._reserve(last)
        arena = self._arena
        if self.load is None:
            _fetch(missing, first, self.rows, self.layout, arena.words, arena.at, arena.size, self.slot_of, self.owners)
        else:
            users = missing.tolist()
            rows: Iterable[bytes | None] = map(self.load, users) if self.load_many is None else self.load_many(users)
            for slot, (user, packed) in enumerate(zip(users, rows, strict=True), first):
                if packed is None:
                    clear_row(self.rows, slot)
                else:
                    unpack_users(packed, self.rows, slot, self.layout)
                self.slot_of[user] = slot
                self.owners[slot] = user
        self.dirty[first:last] = 0
        self.used = last

    def _know(self, users: int) -> None:
        if users > len(self.slot_of):
            count = max(users, 2 * len(self.slot_of))
            extra = count - len(self.slot_of)
            self.slot_of = np.concatenate([self.slot_of, np.full(extra, -1, np.int32)])
            self._arena = self._arena._replace(
                at=np.concatenate([self._arena.at, np.full(extra, -1, np.int64)]),
                size=np.concatenate([self._arena.size, np.zeros(extra, np.int32)]),
            )

    def _reserve(self, count: int) -> None:
        if count > len(self.dirty):
            capacity = max(count, 2 * len(self.dirty))
            extra = capacity - len(self.dirty)
            self.rows = _grown(self.rows, capacity)
            self.dirty = np.concatenate([self.dirty, np.zeros(extra, np.uint8)])
            self.owners = np.concatenate([self.owners, np.zeros(extra, np.uint32)])


def _table_of(row: User) -> Rows:
    return Rows(row.i8[None, :], row.f4[None, :], row.u4[None, :])


def pack_user(row: User, layout: Layout) -> bytes:
    """A user row as it is stored."""
    return pack_users(_table_of(row), np.zeros(1, np.int64), layout)[0]


def unpack_user(packed: bytes | memoryview, into: User, layout: Layout) -> None:
    """Fill ``into`` from a packed row.

    Raises:
        CorruptStateError: the checksum does not match.
    """
    unpack_users(packed, _table_of(into), 0, layout)
