"""What the console of a worker is given of the planes, and the command line that it has run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.cli.options import Settings
from headwater.console.planes import Planes, Said
from headwater.schema.config import Config

if TYPE_CHECKING:
    from headwater.online.service import Service

NICENESS = 10
AT_ONCE = 2
TIMED_OUT = 124  # as that of timeout(1)
_LONGEST_PROBLEM = 4_000


def planes_of(chosen: Settings, service: Service, clock: Callable[[], int]) -> Planes:
    """What pages ask of ``service`` and have it do."""
    from headwater.cli.console_looks import looks_of
    from headwater.online.console_keys import ConsoleKeyRing
    from headwater.online.console_rules import ConsoleRules
    from headwater.schema.clock import wall_ms
    from headwater.serving.stages import described

    def config() -> Config:
        return service.recommender.config

    return Planes(
        rules=ConsoleRules(chosen.data, chosen.config_path, service.plan, config, clock, wall_ms),
        keys=ConsoleKeyRing(chosen.data, service.access, wall_ms),
        commands=CommandLine(chosen.config_path, chosen.data),
        plan=service.plan.hash,
        pipeline=lambda: described(config()),
        config=config,
        looks=looks_of(service, chosen.data, clock),
        config_path=chosen.config_path,
    )


class CommandLine:
    """Runs commands on the configuration file and the data directory of a server."""

    def __init__(self, config_path: Path | None, data: Path) -> None:
        where = [] if config_path is None else ["--config", str(config_path)]
        self._more = [*where, "--data", str(data), "--json"]
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self, *words: str, most_s: float) -> Said:
        """Run ``headwater WORDS``. One that takes longer than ``most_s`` is ended: code 124. A caller that goes away ends it too."""
        async with self._free:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "headwater.cli.main", *words, *self._more, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
            try:
                async with asyncio.timeout(most_s):
                    said, complained = await process.communicate()
            except TimeoutError:
                return Said(
                    TIMED_OUT, b"", f"`headwater {' '.join(words)}` was not done in {most_s:g} s; run it yourself"
                )
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            problem = complained.decode("utf-8", "replace").strip().removeprefix("headwater: ")
            lines = said.splitlines()
            return Said(process.returncode or 0, lines[-1] if lines else b"", problem[-_LONGEST_PROBLEM:])
