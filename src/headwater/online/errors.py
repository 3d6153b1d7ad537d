"""Refusals: what a caller did wrong or cannot have now, as one JSON shape for every route."""

from __future__ import annotations

import traceback

import msgspec
import structlog
from msgspec import Struct

from headwater.schema.events import Rejection

log = structlog.get_logger()


class ErrorDetail(Struct, frozen=True, omit_defaults=True):
    """``reason`` says what is wrong; ``field`` is the JSON path or parameter at fault (``$``: the whole body)."""

    reason: str
    field: str = ""


class ErrorReply(Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is not 2xx. ``rejected``: all entries of a batch that nothing was kept of."""

    error: ErrorDetail
    rejected: list[Rejection] = []


class RefusalError(Exception):
    """A request that is answered with ``status`` and an :class:`ErrorReply`. ``headers`` are all that the answer has beside its
    type and length.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        field: str = "",
        *,
        rejected: list[Rejection] | None = None,
        retry_after_s: int = 0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.field = field
        self.rejected = rejected or []
        self.retry_after_s = retry_after_s
        self.headers = {**(headers or {}), **({"retry-after": str(retry_after_s)} if retry_after_s else {})}

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(ErrorReply(ErrorDetail(str(self), self.field), self.rejected))


def internal(route: str, error: Exception) -> RefusalError:
    """The answer to a request that failed by a fault of ours; what it was goes into the log."""
    # the trace without the values of its variables: those may name a user
    trace = "".join(traceback.format_exception(error))
    log.error("request_failed", route=route, error=type(error).__name__, trace=trace)
    return RefusalError(500, "Internal error; it is in the log")
