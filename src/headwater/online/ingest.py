"""The routes that write: events, items, users, logins. An answer of 200 means that it is durable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar
from urllib.parse import unquote

import msgspec
from litestar import Request, Response, delete, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler

from headwater.log.batch import events_to_batch
from headwater.log.commands import Appended
from headwater.log.protocol import RefusedError
from headwater.log.record import Namespace
from headwater.online.access import PUBLIC_CALL
from headwater.online.bodies import MAX_BODY, BatchDecoder, Entries, decode_one, event_check
from headwater.online.body_size import check_size
from headwater.online.browser import check_public_body, check_public_events, check_public_login, public_check
from headwater.online.errors import RefusalError
from headwater.online.intake import Intake
from headwater.online.limits import EventCaps, capped, first_of
from headwater.registry.audit import record
from headwater.schema.clock import wall_ms
from headwater.schema.errors import UnavailableError
from headwater.schema.events import Event, IngestReply, Rejection
from headwater.schema.items import Item
from headwater.schema.users import Joined, UserProfile

T = TypeVar("T")

JSON = "application/json"
RETRY_AFTER_S = 1

Call = Request[None, None, State]

_encode = msgspec.json.Encoder().encode
_decode_login = msgspec.json.Decoder(Joined)


async def body_of(request: Call) -> bytes:
    """The body as sent. Raises :class:`RefusalError` 415 for a compressed one, 413 for one that holds too much."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusalError(415, "Send the body uncompressed", "content-encoding")
    body = await request.body()
    check_size(body)
    return body


async def _public_body(request: Call) -> bytes:
    body = await body_of(request)
    check_public_body(body)
    return body


def id_of(request: Call, prefix: str) -> str:
    """The id at the end of the path, decoded once, so that it may hold a slash."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    return unquote(path[path.index(prefix) + len(prefix) :])


def ingest_routes(service: Intake) -> list[HTTPRouteHandler]:
    """Routes of ``service`` that write."""
    check_size(b" " * MAX_BODY)  # compiles the kernel or loads it: no request is to wait for that
    caps = EventCaps(service.config.limits.user_events_per_hour, timer=time.monotonic)
    known = event_check([kind.name for kind in service.config.events])
    check = capped(known, caps, lambda kind: service.metrics.events_capped.labels(kind).inc())
    events = BatchDecoder(Event, check)
    public = BatchDecoder(Event, first_of(public_check(lambda: service.log.vocabulary()), check))
    items = BatchDecoder(Item)
    users = BatchDecoder(UserProfile)
    segment_keys = service.config.segments.keys

    @post("/v1/events", status_code=200)
    async def post_events(request: Call) -> Response[bytes]:
        if PUBLIC_CALL in request.scope["state"]:
            entries = _decode(service, "event", public, await _public_body(request))
            check_public_events(entries.good)
        else:
            entries = _decode(service, "event", events, await body_of(request))
        batch = events_to_batch(entries.good, segment_keys)
        return await _reply(service, "event", entries.rejected, service.writer.append_events(batch))

    @post("/v1/items", status_code=200)
    async def post_items(request: Call) -> Response[bytes]:
        entries = _decode(service, "item", items, await body_of(request))
        return await _reply(service, "item", entries.rejected, service.writer.put_items(entries.good))

    @post("/v1/users", status_code=200)
    async def post_users(request: Call) -> Response[bytes]:
        entries = _decode(service, "user", users, await body_of(request))
        return await _reply(service, "user", entries.rejected, service.writer.put_profiles(entries.good))

    @post("/v1/logins", status_code=200)
    async def post_login(request: Call) -> Response[bytes]:
        joined = decode_one(_decode_login, await body_of(request))
        if PUBLIC_CALL in request.scope["state"]:
            check_public_login(joined)
        if joined.anonymous == joined.user:
            raise RefusalError(400, "Expected two different ids", "user")
        return await _reply(service, "login", [], service.writer.login(joined.anonymous, joined.user))

    @delete("/v1/users/{user_id:path}", status_code=200)
    async def delete_user(request: Call) -> Response[bytes]:
        user = id_of(request, "/v1/users/")
        await asyncio.to_thread(  # who it was is not said: the audit log is kept
            record, service.data, time_ms=wall_ms(), by=service.access.who(request.scope["headers"]),
            action="user.erase", subject="a user", reason="asked for by DELETE /v1/users",
        )  # fmt: skip
        return await _reply(service, "user", [], service.writer.erase_users([user]))

    @delete("/v1/items/{item_id:path}", status_code=200)
    async def delete_item(request: Call) -> Response[bytes]:
        known_item(service, item := id_of(request, "/v1/items/"))
        return await _reply(service, "item", [], service.writer.delete_items([item]))

    return [post_events, post_items, post_users, post_login, delete_user, delete_item]


def known_item(service: Intake, item: str) -> int:
    """The dense number of an item. Raises :class:`RefusalError` 404."""
    dense = service.log.vocabulary().index(Namespace.ITEM, item)
    if dense == 0:
        raise RefusalError(404, "There is no item of that id", "item_id")
    return dense


def _decode(service: Intake, kind: str, decoder: BatchDecoder[T], body: bytes) -> Entries[T]:
    try:
        entries = decoder.decode(body)
    except RefusalError as refusal:
        service.metrics.ingested.labels(kind, "rejected").inc(max(1, len(refusal.rejected)))
        raise
    if entries.rejected:
        service.metrics.ingested.labels(kind, "rejected").inc(len(entries.rejected))
    return entries


async def _reply(
    service: Intake, kind: str, rejected: list[Rejection], appending: Awaitable[Appended]
) -> Response[bytes]:
    """Wait until it is durable. 503 when the writer gave no answer: it may or may not have happened."""
    try:
        appended = await appending
    except UnavailableError as error:
        service.metrics.writer_away.inc()
        raise RefusalError(503, str(error), retry_after_s=RETRY_AFTER_S) from error
    except RefusedError as error:
        raise RefusalError(400, str(error), "$", rejected=rejected) from error
    ingested = service.metrics.ingested
    ingested.labels(kind, "accepted").inc(appended.accepted)
    if appended.duplicates:
        ingested.labels(kind, "duplicate").inc(appended.duplicates)
    reply = IngestReply(appended.accepted, appended.duplicates, rejected, str(appended.offset))
    return Response(_encode(reply), media_type=JSON)
