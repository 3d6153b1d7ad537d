"""Whether the writer answers, for readiness and for pages: one that hangs is waited for once, not by every page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from headwater.schema.errors import UnavailableError

PING_S = 0.5
REMEMBERED_S = 10.0
"""Silence that was noticed longer ago says nothing of now."""


class WriterAnswers:
    """Asks the writer by ``ping`` whether it is there. ``timer`` gives seconds."""

    def __init__(self, ping: Callable[[], Awaitable[object]], timer: Callable[[], float] = time.monotonic) -> None:
        self._ping, self._timer = ping, timer
        self._silent_since: float | None = None
        self._noticed = 0.0
        self._asking: asyncio.Task[str] | None = None

    async def problem(self) -> str:
        """What keeps the writer from taking something in, "" when nothing does; asked now, which takes :data:`PING_S` when it hangs."""
        began = self._timer()
        try:
            async with asyncio.timeout(PING_S):
                await self._ping()
        except TimeoutError as error:
            self._silent_since = began if self._silent_since is None else self._silent_since
            self._noticed = self._timer()
            return f"writer: no answer ({type(error).__name__})"
        except UnavailableError as error:
            self._silent_since = None
            return f"writer: no answer ({type(error).__name__})"
        self._silent_since = None
        return ""

    async def known_problem(self) -> str:
        """As :meth:`problem`, but at once where the writer hung a moment ago: it is asked again meanwhile, so the next call knows more."""
        now = self._timer()
        if self._silent_since is None or now - self._noticed > REMEMBERED_S:
            return await self.problem()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self.problem())
        return f"writer: no answer for {now - self._silent_since:.0f} s (it hangs; pages do not wait for it)"

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
