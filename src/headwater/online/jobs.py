"""A job in a process of its own, so that it takes neither the worker's loop nor its memory.

It comes in on standard input, which no list of processes shows; the reply goes out on standard output. It runs at low priority.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog
import structlog.tracebacks
from msgspec import Struct

from headwater.online.library_logs import take_library_logs

log = structlog.get_logger()

_NICE = 10

J = TypeVar("J", bound=Struct)


class JobFailedError(Exception):
    """The process ended with ``code`` and without a reply; its own log line says why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with code {code}")
        self.code = code


async def ask(module: str, job: Struct, most_s: float) -> bytes:
    """The reply (JSON) of ``python -m MODULE`` to ``job``. The process is ended when time is up and when the caller goes away.

    Raises:
        TimeoutError: it was not there in ``most_s`` seconds.
        JobFailedError: there is none.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(most_s):
            said, _ = await process.communicate(msgspec.json.encode(job))
    finally:
        if process.returncode is None:  # time was up, or the worker ends
            process.kill()
            await process.wait()
    if process.returncode:
        raise JobFailedError(process.returncode)
    return said


def do_job(kind: type[J], reply: Callable[[J], Struct], failed: str) -> None:
    """Be that process: answer one job, politely to everything else on the machine. ``failed`` is the event of a defect in the log."""
    os.nice(_NICE)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # without the values of variables: those name people
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.ERROR
        ),  # what a fold warns of, the fold itself has said
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # standard output is for the reply
    )
    take_library_logs()
    try:
        answer = reply(msgspec.json.decode(sys.stdin.buffer.read(), type=kind))
    except Exception as error:  # a defect: a line in the log in place of a traceback
        log.exception(failed, error=type(error).__name__)
        sys.exit(1)
    sys.stdout.buffer.write(msgspec.json.encode(answer))
