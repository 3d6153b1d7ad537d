"""The routes that write: events, items, users, logins. An answer of 200 means that it is durable."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar
from urllib.parse import unquote

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler

from headwater.features.layout import FLAG_HIDDEN, I_FLAGS
from headwater.log.batch import events_to_batch
from headwater.log.commands import Appended
from headwater.log.protocol import RefusedError
from headwater.log.record import Namespace
from headwater.online.bodies import MAX_BODY, BatchDecoder, Entries, decode_one, event_check
from headwater.online.body_size import check_size
from headwater.online.errors import RefusalError
from headwater.online.limits import EventCaps, capped
from headwater.online.service import Service
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


def id_of(request: Call, prefix: str) -> str:
    """The id at the end of the path, decoded once, so that it may hold a slash."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    return unquote(path[path.index(prefix) + len(prefix) :])


def ingest_routes(service: Service) -> list[HTTPRouteHandler]:
    """Routes of ``service`` that write."""
    check_size(b" " * MAX_BODY)  # compiles the kernel or loads it: no request is to wait for that
    caps = EventCaps(service.config.limits.user_events_per_hour, timer=time.monotonic)
    known = event_check([kind.name for kind in service.config.events])
    events = BatchDecoder(Event, capped(known, caps, lambda kind: service.metrics.events_capped.labels(kind).inc()))
    items = BatchDecoder(Item)
    users = BatchDecoder(UserProfile)
    segment_keys = service.config.segments.keys

    @post("/v1/events", status_code=200)
    async def post_events(request: Call) -> Response[bytes]:
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
        if joined.anonymous == joined.user:
            raise RefusalError(400, "Expected two different ids", "user")
        return await _reply(service, "login", [], service.writer.login(joined.anonymous, joined.user))

    @delete("/v1/users/{user_id:path}", status_code=200)
    async def delete_user(request: Call) -> Response[bytes]:
        return await _reply(service, "user", [], service.writer.erase_users([id_of(request, "/v1/users/")]))

    @delete("/v1/items/{item_id:path}", status_code=200)
    async def delete_item(request: Call) -> Response[bytes]:
        _known(service, item := id_of(request, "/v1/items/"))
        return await _reply(service, "item", [], service.writer.delete_items([item]))

    @get("/v1/items/{item_id:path}")
    async def get_item(request: Call) -> Response[bytes]:
        dense = _known(service, id_of(request, "/v1/items/"))
        record = service.stores.state.item_record(dense)
        rows = service.stores.view.table.rows.u4
        hidden = dense < len(rows) and bool(rows[dense, I_FLAGS] & FLAG_HIDDEN)
        if record is None or (hidden and record.item.available):  # hidden though available: it was deleted
            raise RefusalError(404, "There is no item of that id", "item_id")
        return Response(_encode(record.item), media_type=JSON)

    return [post_events, post_items, post_users, post_login, delete_user, delete_item, get_item]


def _known(service: Service, item: str) -> int:
    dense = service.stores.log.vocabulary().index(Namespace.ITEM, item)
    if dense == 0:
        raise RefusalError(404, "There is no item of that id", "item_id")
    return dense


def _decode(service: Service, kind: str, decoder: BatchDecoder[T], body: bytes) -> Entries[T]:
    try:
        entries = decoder.decode(body)
    except RefusalError as refusal:
        service.metrics.ingested.labels(kind, "rejected").inc(max(1, len(refusal.rejected)))
        raise
    if entries.rejected:
        service.metrics.ingested.labels(kind, "rejected").inc(len(entries.rejected))
    return entries


async def _reply(
    service: Service, kind: str, rejected: list[Rejection], appending: Awaitable[Appended]
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
