"""A real writer process for tests: ``python writer_process.py DATA [commits until the disk fails]``."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import uvloop

from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import Commit
from headwater.log.socket import serve_writer
from headwater.log.writer import open_writer


def _fail_after(commits: int) -> None:
    done = [0]
    append = LmdbLog.append

    def failing(self: LmdbLog, commit: Commit) -> None:
        done[0] += 1
        if done[0] > commits:
            raise OSError(5, "Input/output error")
        append(self, commit)

    LmdbLog.append = failing  # type: ignore[method-assign]


async def main(data: Path) -> None:
    writer = open_writer(data, clock=lambda: int(time.time() * 1000), map_size=1 << 30, dedup_window=100_000)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve_writer(writer, data / "run" / "writer.sock", stop=stop)
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _fail_after(int(sys.argv[2]))
    uvloop.run(main(Path(sys.argv[1])))
