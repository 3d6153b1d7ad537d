"""Erasing beside a server: in a process of its own, for the search of every file takes as long as it takes.

``python -m headwater.cli.erase_apart`` is that process: a :class:`Job` comes in on standard input, which no list of processes
shows, a :class:`Reply` goes out on standard output.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from headwater.offline.erase import Certificate, erase
from headwater.online.jobs import do_job
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError


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


def _erased(job: Job) -> Reply:
    try:
        return Reply(erase(Path(job.data), job.config, job.users, at_ms=job.at_ms))
    except HeadwaterError as error:
        return Reply(reason=str(error))


if __name__ == "__main__":
    do_job(Job, _erased, "erase_failed")
