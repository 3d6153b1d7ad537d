"""A proxy in front of a Unix socket that can be made slow and lossy, as a network is.

A lost piece is sent again after a timeout that doubles, as TCP does it, and everything behind it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from pathlib import Path

RTO_S = 0.2  # Linux's least retransmission timeout
_READ = 64 * 1024


class SlowProxy:
    """Listens on ``path``, connects to ``upstream``, in a thread with a loop of its own.

    ``delay_s`` is added to every answer; ``loss`` is the share of pieces (of both directions) that are lost; so many as ``cuts``
    of the next pieces from clients end their connection. ``asked`` counts pieces from clients.
    """

    def __init__(self, path: Path, upstream: Path, *, seed: int) -> None:
        self.delay_s, self.loss, self.asked, self.lost, self.cuts = 0.0, 0.0, 0, 0, 0
        self.url = f"unix://{path}"
        self._path, self._upstream, self._random = path, upstream, random.Random(seed)
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._ready.wait(10.0)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._serve, str(self._path)))
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end(server))
        self._loop.close()

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:  # also of who was cancelled while closing them
            writer.transport.abort()
        for _ in range(2):  # turns of the loop in which sockets are let go
            await asyncio.sleep(0)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.append(to_client)
        try:
            server, to_server = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:
            to_client.close()
            return
        self._writers.append(to_server)
        ways = [
            asyncio.create_task(self._carry(client, to_server, answers=False)),
            asyncio.create_task(self._carry(server, to_client, answers=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)  # one side went: so does the other
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (to_client, to_server):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(pieces, sink))
        due = 0.0
        try:
            while piece := await source.read(_READ):
                self.asked += not answers
                if self.cuts and not answers:
                    self.cuts -= 1
                    return
                due = max(due, self._loop.time() + self._late_s(answers))
                pieces.put_nowait((due, piece))
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending

    async def _send(self, pieces: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            sink.write(piece)
            await sink.drain()

    def _late_s(self, answers: bool) -> float:
        late_s, again_s = (self.delay_s if answers else 0.0), RTO_S + self.delay_s
        while self._random.random() < self.loss:
            self.lost += 1
            late_s, again_s = late_s + again_s, 2.0 * again_s
        return late_s
