"""Explaining beside a server: in a process of its own, so that a replay takes neither the worker's loop nor its memory.

``python -m headwater.online.explain`` is that process: a :class:`Job` comes in on standard input, a :class:`Reply` goes out on
standard output. It runs at low priority, and one at a time on a data directory.
"""

from __future__ import annotations

import fcntl
import math
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.experiments.store import as_served
from headwater.online.errors import RefusalError
from headwater.online.jobs import JobFailedError, ask, do_job
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.explanation import Explanation
from headwater.schema.request_ids import request_ms
from headwater.serving.explain import Question
from headwater.serving.explain_logged import Limits, OtherBundleError, explain_logged
from headwater.serving.served import CLOCKS_MS, UnknownRequestError

log = structlog.get_logger()

LIMITS = Limits(find_s=5.0, replay_s=10.0)
MOST_S = 30.0
RETRY_AFTER_S = 2
LOCK = "explain.lock"

BUSY = "Another request is being explained; one at a time, send it again after the time in Retry-After"
_NEVER = (
    "No list of this log has that id: its first 12 digits are the time of the request, which is before the log's first record or still to "
    "come. Lists of before ids had a time are found by `headwater explain`, which looks through the whole log"
)
_LONG = (
    "The explanation was not there in {:g} s; `headwater explain` takes its time, on the machine of the data directory"
)


class Job(Struct, frozen=True):
    """What the process is asked."""

    config: Config
    data: str
    request_id: str
    question: Question
    after: int | None
    most_s: float


class Reply(Struct, frozen=True, omit_defaults=True):
    """What it answers: an explanation, or the ``status`` and ``reason`` of a refusal."""

    explanation: Explanation | None = None
    status: int = 200
    reason: str = ""
    field: str = ""


class Explaining:
    """Has one request explained at a time, for one worker. ``config`` may be replaced between two. ``recorded()`` says from when to when
    requests can have been recorded; ``most_s``: a process has so long, from its start to its end.
    """

    def __init__(
        self, config: Config, data: Path, recorded: Callable[[], tuple[int, int]], *, most_s: float = MOST_S
    ) -> None:
        self.config, self._data, self._recorded, self._most_s = config, data, recorded, most_s
        self._busy = False

    async def explain(self, request_id: str, question: Question, after: int | None) -> bytes:
        """The explanation as JSON.

        Raises:
            RefusalError: 400 for a bundle that cannot be used, 404 for an unknown request, 503 while another one is explained or
                when it takes too long.
        """
        came_ms = request_ms(request_id)
        if came_ms is None:  # no process is needed for that
            raise RefusalError(404, "A request id is 32 hexadecimal digits: the request_id of an answer", "request_id")
        first_ms, now_ms = self._recorded()
        if not first_ms - CLOCKS_MS <= came_ms <= now_ms + CLOCKS_MS:
            raise RefusalError(404, _NEVER, "request_id")
        if self._busy:
            raise RefusalError(503, BUSY, retry_after_s=RETRY_AFTER_S)
        self._busy = True
        try:
            reply = await self._run(Job(self.config, str(self._data), request_id, question, after, self._most_s))
        finally:
            self._busy = False
        if reply.explanation is None:
            raise RefusalError(
                reply.status, reply.reason, reply.field, retry_after_s=RETRY_AFTER_S if reply.status == 503 else 0
            )
        return msgspec.json.encode(reply.explanation)

    async def _run(self, job: Job) -> Reply:
        try:
            said = await ask("headwater.online.explain", job, self._most_s)
        except TimeoutError:
            return Reply(status=503, reason=_LONG.format(self._most_s))
        except JobFailedError as error:
            log.error("explain_failed", code=error.code)
            return Reply(status=500, reason="Internal error; it is in the log")
        return msgspec.json.decode(said, type=Reply)


def _reply(job: Job) -> Reply:
    signal.alarm(math.ceil(job.most_s))  # the end comes when its time is up, whoever waits or not
    data = Path(job.data)
    with (data / "run" / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Reply(status=503, reason=BUSY)
        try:
            found = explain_logged(
                job.config, data, job.request_id, job.question, after=job.after, limits=LIMITS,
                arms=lambda config, variants: as_served(data, config, variants),
            )  # fmt: skip
            return Reply(found)
        except UnknownRequestError as error:
            return Reply(status=404, reason=str(error), field="request_id")
        except OtherBundleError as error:
            return Reply(status=400, reason=str(error), field="bundle")
        except HeadwaterError as error:
            log.error("explain_failed", error=str(error))
            return Reply(status=503, reason=str(error))


if __name__ == "__main__":
    do_job(Job, _reply, "explain_failed")
