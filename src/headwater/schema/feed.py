"""What the fold tells the servers after each commit, on a Unix socket: where the state stands, and which user rows moved."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_LAYOUT = struct.Struct("<QQQII")
ANNOUNCEMENT_SIZE = _LAYOUT.size  # without the numbers of users
MAX_USERS = 4_096  # of an announcement; more changed ones are not named, more that are gone neither
_UNNAMED = 0xFFFFFFFF


class Position(NamedTuple):
    """Where the state stands: users reflect the log up to ``user_offset``, item epoch ``epoch`` up to ``item_offset``."""

    user_offset: int
    epoch: int
    item_offset: int


class Changes(NamedTuple):
    """Dense users whose rows changed with a commit, and those whose rows are gone (erased, idle, merged into another one).

    None: not said which, so any may have.
    """

    changed: Sequence[int] | None
    gone: Sequence[int] | None


UNNAMED = Changes(None, None)


class Announcement(NamedTuple):
    """The position after a commit, and what changed since the announcement before it."""

    position: Position
    changes: Changes = UNNAMED

    def pack(self) -> bytes:
        """Little-endian: three u64, two u32 (how many users changed, how many are gone), and a u32 for each of them."""
        named: list[int] = []
        counts = []
        for users in self.changes:
            if users is None or len(users) > MAX_USERS:
                counts.append(_UNNAMED)
            else:
                counts.append(len(users))
                named += users
        return _LAYOUT.pack(*self.position, *counts) + struct.pack(f"<{len(named)}I", *named)


def announcements(data: bytes) -> tuple[list[Announcement], bytes]:
    """The whole announcements in ``data``, and the bytes that begin the next one."""
    found: list[Announcement] = []
    at = 0
    while len(data) - at >= ANNOUNCEMENT_SIZE:
        *position, changed, gone = _LAYOUT.unpack_from(data, at)
        users: list[Sequence[int] | None] = []
        end = at + ANNOUNCEMENT_SIZE
        for count in (changed, gone):
            named = 0 if count == _UNNAMED else count
            if len(data) - end < 4 * named:
                return found, data[at:]
            users.append(None if count == _UNNAMED else struct.unpack_from(f"<{named}I", data, end))
            end += 4 * named
        found.append(Announcement(Position(*position), Changes(*users)))
        at = end
    return found, data[at:]
