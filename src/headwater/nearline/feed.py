"""The fold's own door: every server that connects is told where the state stands, now and after each commit, and what changed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import structlog

from headwater.schema.feed import UNNAMED, Announcement, Changes, Position

log = structlog.get_logger()


class FeedServer:
    """Pushes an :class:`Announcement` to all who are connected to the Unix socket ``path`` (mode 0600).

    Nobody can hold it up: one who does not read gets the newest position once there is room again, none of those
    between, and is told that any user may have changed.
    """

    def __init__(self, path: Path, position: Position) -> None:
        self.position = position
        self._path = path
        self._readers: set[_Reader] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket that is there already belongs to a process that died."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: _Reader(self), path=str(self._path))
        finally:
            os.umask(before)

    def publish(self, position: Position, changes: Changes = UNNAMED) -> None:
        """Tell everyone."""
        self.position = position
        data = Announcement(position, changes).pack()
        for reader in self._readers:
            reader.send(data)

    def connected(self, reader: _Reader) -> None:
        self._readers.add(reader)
        reader.send(Announcement(self.position).pack())

    def lost(self, reader: _Reader) -> None:
        self._readers.discard(reader)

    async def stop(self) -> None:
        """Hang up on everyone."""
        if self._server is not None:
            self._server.close()
        for reader in list(self._readers):
            reader.close()
        self._path.unlink(missing_ok=True)


class _Reader(asyncio.Protocol):
    def __init__(self, server: FeedServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._blocked = False
        self._missed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # the first byte that does not fit says "slow"
        self._server.connected(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._server.lost(self)

    def send(self, data: bytes) -> None:
        if self._blocked:
            self._missed = True
        elif self._transport is not None:
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._missed:
            self._missed = False
            self.send(Announcement(self._server.position).pack())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
