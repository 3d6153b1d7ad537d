"""Served lists in the log: the newest ones, and the one of a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from headwater.log.protocol import READ_LIMIT, EventLog, decoded
from headwater.log.record import Kind, RecordBlock
from headwater.log.seek import last_before
from headwater.schema.errors import HeadwaterError
from headwater.schema.request_ids import request_ms
from headwater.schema.requests import ServedList, ShadowList

CLOCKS_MS = 60_000  # by so much the clocks of worker and writer may differ
RECORDED_WITHIN_MS = 600_000  # lists reach the log within seconds, unless the writer is away
SHADOWS_WITHIN_MS = 60_000
"""A worker asks shadows later than this only where one copy takes seconds."""

_decode_shadow = msgspec.msgpack.Decoder(ShadowList).decode
_decode = msgspec.msgpack.Decoder(ServedList).decode
_HEAD = 160  # bytes of a payload among which its request id stands


@dataclass(frozen=True, slots=True)
class Served:
    """A served list and its dense user."""

    user: int
    answer: ServedList


class UnknownRequestError(HeadwaterError):
    """No list of that request was found where it was looked for."""


def newest_served(event_log: EventLog, limit: int) -> list[Served]:
    """The newest ``limit`` served lists of a log, in their order; a list that was recorded twice counts once."""
    found: dict[str, Served] = {}
    end, first = event_log.last_offset, event_log.first_offset
    while end >= first and len(found) < limit:
        begin = after = max(end - READ_LIMIT, first - 1)
        part: list[Served] = []
        while after < end and (block := event_log.read(after, end - after)) is not None:
            rows = np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist()
            part += [served_at(block, row) for row in rows]
            after = block.last_offset
        for served in part[::-1]:
            if len(found) < limit:
                found.setdefault(served.answer.request_id, served)
        end = begin
    return list(found.values())[::-1]


def find_served(
    event_log: EventLog, request_id: str, *, after: int | None = None, limit_s: float | None = None,
    timer: Callable[[], float] = time.monotonic,
) -> Served:  # fmt: skip
    """The served list of ``request_id``: looked for behind the time that the id says, then from the newest record back; or from behind
    offset ``after`` on (an answer's ``address.user_offset`` stands shortly before its record).

    Raises:
        UnknownRequestError: there is none, or not among what could be read in ``limit_s`` seconds; says how far that was.
        CorruptLogError: the log does not read as it was written.
    """
    until = float("inf") if limit_s is None else timer() + limit_s
    first, last = event_log.first_offset, event_log.last_offset
    at = min(last, max(first - 1, after)) if after is not None else last
    if after is None and (came_ms := request_ms(request_id)) is not None:
        at_ms, position = came_ms, last_before(event_log, came_ms - CLOCKS_MS)[0]
        while position < last and at_ms <= came_ms + RECORDED_WITHIN_MS and timer() < until:
            end = min(position + READ_LIMIT, last)
            found, at_ms = _between(event_log, request_id, position, end)
            if found is not None:
                return found
            position = end
    while (first - 1 < at) if after is None else (at < last):
        begin = max(at - READ_LIMIT, first - 1) if after is None else at
        end = at if after is None else min(at + READ_LIMIT, last)
        found, _ = _between(event_log, request_id, begin, end)
        if found is not None:
            return found
        at = begin if after is None else end
        if timer() >= until:
            break
    raise UnknownRequestError(_not_found(request_id, after, at, first, last))


def _between(event_log: EventLog, request_id: str, after: int, until: int) -> tuple[Served | None, int]:
    """The served list of ``request_id`` behind offset ``after`` up to ``until``; and when the last record was received that was looked at."""
    wanted, at_ms = msgspec.msgpack.encode(request_id), 0
    while after < until and (block := event_log.read(after, until - after)) is not None:
        for row in np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist():
            if wanted in _head(block, row):
                served = served_at(block, row)
                if served.answer.request_id == request_id:
                    return served, at_ms
        after, at_ms = block.last_offset, int(block.records["received_ms"][-1])
    return None, at_ms


def find_shadows(
    event_log: EventLog, served: Served, *, limit_s: float | None = None, timer: Callable[[], float] = time.monotonic
) -> list[ShadowList]:
    """What shadows would have given to the request of ``served``: looked for in the minute after it, as far as ``limit_s`` seconds reach."""
    address, wanted = served.answer.address, msgspec.msgpack.encode(served.answer.request_id)
    until = float("inf") if limit_s is None else timer() + limit_s
    at, found = (
        max(event_log.first_offset - 1, address.user_offset, address.item_offset),
        dict[tuple[str, str], ShadowList](),
    )
    while at < event_log.last_offset and timer() < until and (block := event_log.read(at, READ_LIMIT)) is not None:
        at = block.last_offset
        near = block.records["received_ms"] <= address.now_ms + SHADOWS_WITHIN_MS
        for row in np.flatnonzero(near & (block.records["kind"] == Kind.SHADOW)).tolist():
            payload = block.payload(row)
            if wanted not in payload:
                continue
            one = decoded(_decode_shadow, payload, int(block.records["offset"][row]), "a list of a shadow")
            if one.answer.request_id == served.answer.request_id:
                found.setdefault((one.experiment, one.variant), one)
        if not near.all():
            break
    return list(found.values())


def _not_found(request_id: str, after: int | None, at: int, first: int, last: int) -> str:
    looked = f"offsets {at + 1} to {last}" if after is None else f"offsets {after + 1} to {at}"
    whole = at < first if after is None else at >= last
    if whole and after is None:
        hint = (
            "lists reach the log in the background, so a new one may take a moment; they are recorded with serving.log_served"
            if first == 1
            else f"the log begins at offset {first}: what is older was retained away, or lies in the lake"
        )
    elif whole:
        hint = "search without `after`, or with a smaller one: the user_offset of the answer's address"
    else:
        hint = "time was up: say `after`, the user_offset of the answer's address, or use `headwater explain`, which takes its time"
    return f"There is no served list of request {request_id} in {looked}; {hint}"


def _head(block: RecordBlock, row: int) -> bytes:
    record = block.records[row]
    at = int(record["payload_at"])
    return block.heap[at : at + min(int(record["payload_size"]), _HEAD)].tobytes()


def served_at(block: RecordBlock, row: int) -> Served:
    """The served list in ``row`` of ``block``.

    Raises:
        CorruptLogError: it cannot be read.
    """
    record = block.records[row]
    answer = decoded(_decode, block.payload(row), int(record["offset"]), "a served list")
    return Served(int(record["user"]), answer)
