"""Tables of state rows, and the packed form in which a row is stored."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import User
from headwater.features.fold_kernel import Rows
from headwater.features.plan import U_RECENT_LENGTH, U_SEEN_LENGTH, Layout
from headwater.schema.errors import HeadwaterError


class CorruptStateError(HeadwaterError):
    """A stored state row does not match its checksum."""


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


class UserTable:
    """User rows that the fold works on.

    Without ``load`` a row's position is the dense user index and everything stays in memory. With it the
    table is a cache of bounded size: missing rows come from ``load``, and ``shrink`` empties it.
    """

    def __init__(self, layout: Layout, load: Callable[[int], bytes | None] | None = None, capacity: int = 1024) -> None:
        self.layout = layout
        self.rows = new_rows(capacity, layout.user_i8, layout.user_f4, layout.user_u4)
        self.dirty = np.zeros(capacity, np.uint8)
        self.load = load
        self.slots: dict[int, int] = {}
        self.owners = np.zeros(capacity, np.uint32)

    def slots_of(self, users: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """Row positions of dense users, loading what is missing."""
        if self.load is None:
            self._reserve(int(users.max(initial=0)) + 1)
            return users.astype(np.int64)
        unique, inverse = np.unique(users, return_inverse=True)
        slots = self.slots
        missing = [user for user in unique.tolist() if user not in slots]
        self._reserve(len(slots) + len(missing))
        for user in missing:
            slot = len(slots)
            packed = self.load(user)
            row = self.row(slot)
            if packed is not None:
                unpack_user(packed, row, self.layout)
            else:
                for part in row:
                    part[:] = 0
            slots[user] = slot
            self.owners[slot] = user
        return np.array([slots[user] for user in unique.tolist()], np.int64)[inverse]

    def row(self, slot: int) -> User:
        return User(self.rows.i8[slot], self.rows.f4[slot], self.rows.u4[slot])

    def length(self, user: int) -> int:
        """Events in the recent sequence of a dense user (tables without ``load`` only)."""
        return int(self.rows.u4[user, U_RECENT_LENGTH]) if user < len(self.dirty) else 0

    def has_seen(self, user: int, item: int) -> bool:
        """Whether ``item`` stands in the seen ring of a dense user (tables without ``load`` only)."""
        if user >= len(self.dirty):
            return False
        ring = self.rows.u4[user, self.layout.seen : self.layout.seen + self.layout.seen_size]
        return bool((ring == item).any())

    def owner(self, slot: int) -> int:
        return slot if self.load is None else int(self.owners[slot])

    def shrink(self, limit: int) -> None:
        """Empty the cache when it holds more than ``limit`` rows; all of them must have been stored.

        The rows keep what they hold: a row is filled or zeroed when it is taken again.
        """
        if self.load is not None and len(self.slots) > limit:
            self.slots.clear()

    def _reserve(self, count: int) -> None:
        if count > len(self.dirty):
            capacity = max(count, 2 * len(self.dirty))
            extra = capacity - len(self.dirty)
            self.rows = _grown(self.rows, capacity)
            self.dirty = np.concatenate([self.dirty, np.zeros(extra, np.uint8)])
            self.owners = np.concatenate([self.owners, np.zeros(extra, np.uint32)])


def pack_user(row: User, layout: Layout) -> bytes:
    """A user row as stored: fixed part, then only the used part of sequence and seen ring, then CRC-32."""
    recent = int(row.u4[U_RECENT_LENGTH])
    seen = min(int(row.u4[U_SEEN_LENGTH]), layout.seen_size)
    u4 = row.u4
    body = b"".join(
        (
            row.i8.tobytes(),
            row.f4.tobytes(),
            u4[: layout.recent_keys + recent].tobytes(),
            u4[layout.recent_times : layout.recent_times + recent].tobytes(),
            u4[layout.seen : layout.seen + seen].tobytes(),
        )
    )
    return body + zlib.crc32(body).to_bytes(4, "little")


def unpack_user(packed: bytes | memoryview, into: User, layout: Layout) -> None:
    """Fill ``into`` from a packed row.

    Raises:
        CorruptStateError: the checksum does not match.
    """
    view = memoryview(packed)
    if len(view) < 4 or zlib.crc32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise CorruptStateError("a stored user row does not match its checksum; rebuild the state from the log")
    i8_end = 8 * layout.user_i8
    f4_end = i8_end + 4 * layout.user_f4
    into.i8[:] = np.frombuffer(view[:i8_end], np.int64)
    into.f4[:] = np.frombuffer(view[i8_end:f4_end], np.float32)
    words = np.frombuffer(view[f4_end:-4], np.uint32)
    into.u4[:] = 0
    recent = int(words[U_RECENT_LENGTH])
    seen = min(int(words[U_SEEN_LENGTH]), layout.seen_size)
    keys_end = layout.recent_keys + recent
    into.u4[:keys_end] = words[:keys_end]
    into.u4[layout.recent_times : layout.recent_times + recent] = words[keys_end : keys_end + recent]
    into.u4[layout.seen : layout.seen + seen] = words[keys_end + recent :]
