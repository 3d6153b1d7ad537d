"""Wires what the console shows of users, items and features to the worker that has it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.schema.errors import HeadwaterError, UnavailableError

if TYPE_CHECKING:
    from headwater.console.looks import Erase, Looks
    from headwater.online.service import Service
    from headwater.schema.config import Config


def looks_of(service: Service, data: Path, clock: Callable[[], int]) -> Looks:
    """What the pages about users, items and features are given of ``service``."""
    from headwater.console.looks import Looks
    from headwater.online.console_features import ConsoleFeatures
    from headwater.online.console_items import ConsoleItems
    from headwater.online.console_map import ConsoleMap
    from headwater.online.console_users import ConsoleUsers

    return Looks(
        log=service.stores.log,
        users=ConsoleUsers(service),
        items=ConsoleItems(service),
        map=ConsoleMap(service),
        features=ConsoleFeatures(service),
        erase=_eraser(service.config, data, clock),
    )


def _eraser(config: Config, data: Path, clock: Callable[[], int]) -> Erase:
    import msgspec

    from headwater.cli.erase_apart import Job, Reply

    async def erase(user: str) -> Mapping[str, Any]:
        """Erase ``user`` as ``headwater erase`` does. It goes on when whoever asked goes away.

        Raises:
            UnavailableError, HeadwaterError: nobody was erased, or the search did not come to its end; the message says why.
        """
        return await asyncio.shield(asyncio.create_task(run(Job(config, str(data), [user], clock()))))

    async def run(job: Job) -> Mapping[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headwater.cli.erase_apart", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )  # fmt: skip
        said, _ = await process.communicate(msgspec.json.encode(job))
        if process.returncode:
            raise UnavailableError(
                "Erasing failed; the reason is in the server's log. Do it again: what is done stays done"
            )
        reply = msgspec.json.decode(said, type=Reply)
        if reply.certificate is None:
            raise HeadwaterError(reply.reason)
        found: Mapping[str, Any] = msgspec.to_builtins(reply.certificate)
        return found

    return erase
