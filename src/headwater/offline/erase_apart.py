"""Erasing beside a server: in a process of its own, for the search of every file takes as long as it takes.

``python -m headwater.offline.erase_apart`` is that process: a :class:`Job` comes in on standard input, which no list of processes
shows, a :class:`Reply` goes out on standard output.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import msgspec
import structlog
import structlog.tracebacks
from msgspec import Struct

from headwater.offline.erase import Certificate, erase
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

_NICE = 10

log = structlog.get_logger()


class Job(Struct, frozen=True):
    """Whom to erase: ids as clients send them."""

    config: Config
    data: str
    users: list[str]
    at_ms: int


class Reply(Struct, frozen=True, omit_defaults=True):
    """The certificate, or why there is none."""

    certificate: Certificate | None = None
    reason: str = ""


def main() -> None:
    """Do one job, politely to everything else on the machine."""
    os.nice(_NICE)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # without the values of variables: those name people
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # standard output is for the reply
    )
    try:
        job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
        try:
            reply = Reply(erase(Path(job.data), job.config, job.users, at_ms=job.at_ms))
        except HeadwaterError as error:
            reply = Reply(reason=str(error))
    except Exception as error:  # a defect: a line in the log in place of a traceback
        log.exception("erase_failed", error=type(error).__name__)
        sys.exit(1)
    sys.stdout.buffer.write(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
