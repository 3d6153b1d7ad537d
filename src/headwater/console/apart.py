"""Work that takes longer than a request may wait: in a thread, one at a time a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from litestar.exceptions import HTTPException

WAIT_S = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class BusyError(HTTPException):
    """Others have looked so long already that it is better to come again."""

    status_code = 503


class Apart:
    """Runs what looks through files. It belongs to one worker."""

    def __init__(self) -> None:
        self._one = asyncio.Semaphore(1)

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``job`` returns. Raises :class:`BusyError`: the others before it took too long."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._one.acquire()
        except TimeoutError as error:
            raise BusyError("Others look through the log just now; try again in a moment") from error
        try:
            return await asyncio.to_thread(job, *args, **kwargs)
        finally:
            self._one.release()
