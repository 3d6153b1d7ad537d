"""What the fold tells the servers after each commit, 24 bytes on a Unix socket, newest only."""

from __future__ import annotations

import struct
from typing import NamedTuple

_LAYOUT = struct.Struct("<QQQ")
POSITION_SIZE = _LAYOUT.size


class Position(NamedTuple):
    """Where the state stands: users reflect the log up to ``user_offset``, item epoch ``epoch`` up to ``item_offset``."""

    user_offset: int
    epoch: int
    item_offset: int

    def pack(self) -> bytes:
        """24 bytes: three u64, little-endian."""
        return _LAYOUT.pack(*self)


def newest_position(data: bytes) -> tuple[Position | None, bytes]:
    """The last whole position in ``data`` (None: not one whole) and the bytes that begin the next one."""
    whole = len(data) // POSITION_SIZE * POSITION_SIZE
    if whole == 0:
        return None, data
    return Position(*_LAYOUT.unpack_from(data, whole - POSITION_SIZE)), data[whole:]
