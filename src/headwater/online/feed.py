"""Following the fold: where state stands, what changed, and requests that wait until it stands further."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import structlog

from headwater.breaker import jittered
from headwater.schema.feed import Announcement, Changes, Position, announcements

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.2


class FoldFeed:
    """The newest position that the fold announced; reconnects for ever.

    ``on_epoch`` is called inside the loop when a new item epoch is there, ``on_connect`` whenever a fold
    process (perhaps a new one) answers, ``on_changes`` with what each announcement says (before anybody learns of its
    position), ``on_lost`` when the fold cannot be heard any more.
    """

    def __init__(
        self, path: Path, *, on_epoch: Callable[[], object], on_connect: Callable[[], object],
        on_changes: Callable[[Position, Changes], object] = lambda _position, _changes: None,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self.position = Position(0, 0, 0)
        self.connected = False
        self._path = path
        self._on_epoch = on_epoch
        self._on_connect = on_connect
        self._on_changes = on_changes
        self._on_lost = on_lost
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._abandoned = 0
        self._order = itertools.count()

    async def reached(self, offset: int, timeout_s: float) -> bool:
        """Wait until users reflect the log up to ``offset``; False when that took longer than ``timeout_s``."""
        if self.position.user_offset >= offset:
            return True
        if timeout_s <= 0.0:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (offset, next(self._order), future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            self._forget_abandoned(future)
        return True

    def _forget_abandoned(self, future: asyncio.Future[None]) -> None:
        """Drop those who wait no more, now and then: a token far ahead of the log would keep its place for ever."""
        if future.done() and not future.cancelled():
            return
        future.cancel()
        self._abandoned += 1
        if self._abandoned > max(64, len(self._waiting) // 2):
            self._waiting = [entry for entry in self._waiting if not entry[2].done()]
            heapq.heapify(self._waiting)
            self._abandoned = 0

    async def follow(self) -> None:
        """Stay connected to the fold until cancelled."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_S
        while True:
            lost: asyncio.Future[None] = loop.create_future()
            try:
                transport, _ = await loop.create_unix_connection(lambda lost=lost: _Link(self, lost), str(self._path))  # type: ignore[misc]
            except OSError:  # the fold is not there (yet)
                await asyncio.sleep(jittered(pause))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            self.connected = True
            self._on_connect()
            try:
                await lost
                log.warning("fold_lost", user_offset=self.position.user_offset)
            finally:
                self.connected = False
                self._on_lost()
                transport.close()

    def receive(self, found: Sequence[Announcement]) -> None:
        """Take in announcements: what changed and item columns first, then those who waited for their own event."""
        for announcement in found:
            self._on_changes(*announcement)
        position = found[-1].position
        before, self.position = self.position, position
        if position.epoch != before.epoch:
            self._on_epoch()
        waiting = self._waiting
        while waiting and waiting[0][0] <= position.user_offset:
            future = heapq.heappop(waiting)[2]
            if not future.done():
                future.set_result(None)


class _Link(asyncio.Protocol):
    def __init__(self, feed: FoldFeed, lost: asyncio.Future[None]) -> None:
        self._feed = feed
        self._lost = lost
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        found, self._rest = announcements(self._rest + data)
        if found:
            self._feed.receive(found)

    def connection_lost(self, _: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(None)
