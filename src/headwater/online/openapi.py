"""The OpenAPI document: schemas from the msgspec types that check the bodies, and an example for every request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from headwater import __version__
from headwater.online.access import SCOPES
from headwater.online.bodies import MAX_BODY
from headwater.online.errors import ErrorDetail, ErrorReply
from headwater.schema.config import Config
from headwater.schema.events import MAX_BATCH, Event, IngestReply, Rejection
from headwater.schema.explanation import (
    MAX_EXPLAINED,
    Candidate,
    ExplainedItem,
    ExplainedRequest,
    ExplainedSource,
    Explanation,
    Fate,
    FeatureValue,
    Filter,
    Placed,
    Replay,
    SourceRank,
)
from headwater.schema.items import Item
from headwater.schema.requests import MAX_K, MAX_REQUESTS, Address, RecommendedItem, RecommendRequest, RecommendResponse
from headwater.schema.users import Joined, UserProfile

_REF = "#/components/schemas/{name}"
_KINDS: tuple[type[Struct], ...] = (
    Event, Item, UserProfile, Joined, RecommendRequest, RecommendResponse, Explanation, IngestReply, ErrorReply,
)  # fmt: skip

SCHEMA_TYPE = "application/vnd.oai.openapi+json"
_KEY = "apiKey"
_TEXT = {"type": "string"}
_ITEM_ID = {"name": "item_id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "article-17"}
_USER_ID = {"name": "user_id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "ada"}
_REQUEST_ID = {
    "name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "019a5c7e9b1d2f4a6c8e0a2b4c6d8e0f",
}  # fmt: skip
_COUNT = {"type": "integer", "minimum": 0, "maximum": MAX_EXPLAINED}
_EXPLAINED = (
    {
        "name": "item", "in": "query", "schema": {**_TEXT, "minLength": 1, "maxLength": 128},
        "description": "Say why this item is where it is, or is not there", "example": "article-17",
    },
    {
        "name": "bundle", "in": "query", "schema": {**_TEXT, "minLength": 1, "maxLength": 128},
        "description": "Compare with the list that this bundle of the registry gives",
    },
    {
        "name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
        "description": "Look for the list behind this offset, the `user_offset` of the answer's address; from the newest back otherwise",
    },
    {"name": "candidates", "in": "query", "schema": {**_COUNT, "default": 10}, "description": "So many of each source"},
    {"name": "features", "in": "query", "schema": {**_COUNT, "default": 8}, "description": "So many of each item"},
)  # fmt: skip
_PRIORITY = {
    "name": "x-priority", "in": "header", "schema": {"enum": ["high", "normal", "low"], "default": "normal"},
    "description": "Under load, who is answered first; `low` is turned away first", "example": "normal",
}  # fmt: skip
_TEXTS = {"/metrics": "text/plain", "/v1/headwater.js": "text/javascript"}
_ERRORS = {
    400: "Bad input; names field and reason",
    404: "There is nothing of that id",
    408: "The body came too slowly; the connection is closed",
    413: f"More than {MAX_BODY} bytes or {MAX_BATCH} entries",
    401: "No API key, or one that is not good",
    403: "The key lacks the scope",
    415: "A compressed body",
    421: "Without API keys the server answers to localhost and to `serving.allowed_hosts` only",
    429: "More requests than the key may send; try again after `Retry-After` seconds",
    503: "Too many requests to answer in time, or the writer is away: nothing was done, try again after `Retry-After` seconds",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route: ``takes`` is its body (``batch``: one or an array; ``most``: an array of at most so many, and so is the
    answer), ``gives`` the body of a 200.
    """

    method: str
    path: str
    summary: str
    takes: type[Struct] | None = None
    batch: bool = False
    gives: type[Struct] | None = None
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    examples: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    most: int = 0


def document(config: Config) -> dict[str, Any]:
    """The document, as JSON-ready values; examples use the event types and surfaces of ``config``."""
    _, components = msgspec.json.schema_components(_KINDS, ref_template=_REF)
    components[Event.__name__]["properties"]["type"] = {"enum": [kind.name for kind in config.events]}
    surfaces = [surface.name for surface in config.surfaces]
    default = RecommendRequest().surface
    components[RecommendRequest.__name__]["properties"]["surface"] = {"enum": surfaces} | (
        {"default": default} if default in surfaces else {}
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations(config):
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headwater",
            "version": __version__,
            "description": "Send what people do, ask what they should see now. Times are Unix milliseconds.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                _KEY: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key from `headwater keys add`. Operations name the scope that it must have. "
                    "A server without keys answers everybody on its own machine.",
                }
            },
        },
    }


def operations(config: Config) -> list[Operation]:
    """Every route of the server."""
    positive = next(kind.name for kind in config.events if kind.positive)
    surface = config.surfaces[0].name if config.surfaces else "home"
    event = Event(user="ada", item="article-17", type=positive, event_id="e-1", surface=surface)
    item = Item(id="article-17", title="Rivers in spring", categories=["nature"], published=1_772_409_600_000)
    user = UserProfile(id="ada", country="DE", language="de")
    request = RecommendRequest(user="ada", surface=surface, k=10, token="42", context={"country": "DE"})  # noqa: S106
    ingested = IngestReply(1, 0, [], "42")
    partly = IngestReply(1, 0, [Rejection(1, "item", "Object missing required field `item`")], "42")
    answer = RecommendResponse(
        request_id="019a5c7e9b1d2f4a6c8e0a2b4c6d8e0f",
        items=[RecommendedItem("article-23", 1.25, "covisit", "people who liked article-17 also liked this")],
        tier=0,
        reasons=[],
        model="20260302T101500000Z-1a2b3c4d5e6f",
        address=Address(42, 40, 1_772_413_200_000, "5f6e7d8c9b0a1f2e", "20260302T101500000Z-1a2b3c4d5e6f"),
    )
    writes = (400, 408, 413, 415, 503)
    return [
        Operation(
            "post", "/v1/events", "Record what people did; durable once answered", Event, True, IngestReply, writes,
            examples={"one": event, "batch": [event, Event(user="bob", item="article-17", type=positive)]},
            answer=partly,
        ),
        Operation(
            "post", "/v1/items", "Add items or replace them whole", Item, True, IngestReply, writes,
            examples={"one": item, "batch": [item]}, answer=ingested,
        ),
        Operation(
            "delete", "/v1/items/{item_id}", "Take an item out of the catalogue", gives=IngestReply,
            errors=(404, 503), parameters=(_ITEM_ID,), answer=ingested,
        ),
        Operation(
            "get", "/v1/items/{item_id}", "What the catalogue says of an item", gives=Item, errors=(404,),
            parameters=(_ITEM_ID,), answer=item,
        ),
        Operation(
            "post", "/v1/users", "Add user profiles or replace them whole", UserProfile, True, IngestReply, writes,
            examples={"one": user, "batch": [user]}, answer=ingested,
        ),
        Operation(
            "delete", "/v1/users/{user_id}", "Erase a user: key, mapping and state row are destroyed", gives=IngestReply,
            errors=(400, 503), parameters=(_USER_ID,), answer=IngestReply(1, 0, [], "43"),
        ),
        Operation(
            "post", "/v1/logins", "Join what an anonymous id did to the user who logged in", Joined, gives=IngestReply, errors=writes,
            examples={"login": Joined(anonymous="visit-93", user="ada")}, answer=IngestReply(1, 0, [], "44"),
        ),
        Operation(
            "post", "/v1/recommend", "What should this person see now?", RecommendRequest, False, RecommendResponse,
            (400, 408, 413, 415, 503), parameters=(_PRIORITY,), examples={"after an event": request, "stranger": RecommendRequest(surface=surface, k=10)},
            answer=answer,
        ),
        Operation(
            "post", "/v1/recommend/batch", "Many requests at once; each is answered as if it had come alone", RecommendRequest,
            most=MAX_REQUESTS, gives=RecommendResponse, errors=(400, 408, 413, 415, 503), parameters=(_PRIORITY,),
            examples={"two surfaces": [request, RecommendRequest(user="ada", surface=surface, k=5)]}, answer=[answer],
        ),
        Operation(
            "get", "/v1/similar/{item_id}", "Items like this one", gives=RecommendResponse, errors=(400, 404, 503),
            parameters=(
                _ITEM_ID, _PRIORITY,
                {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MAX_K}, "example": 5},
                {
                    "name": "user", "in": "query", "schema": {**_TEXT, "minLength": 1, "maxLength": 128},
                    "description": "What this user has seen does not come back", "example": "ada",
                },
            ),
            answer=answer,
        ),
        Operation("get", "/v1/headwater.js", "The script of pages: collects events and asks for recommendations"),
        Operation(
            "get", "/v1/explain/{request_id}", "Why a list was as it was, replayed from the log", gives=Explanation,
            errors=(400, 404, 503), parameters=(_REQUEST_ID, *_EXPLAINED), answer=_explanation(answer, surface),
        ),
        Operation(
            "get", "/healthz", "The worker is alive, and which plan and rules it serves",
            answer={"status": "ok", "plan": "5f6e7d8c9b0a1f2e", "rules": "0c1d2e3f4a5b6c7d"},
        ),
        Operation(
            "get", "/readyz", "The worker can answer: 503 with reasons when it cannot",
            answer={"status": "ready", "reasons": []},
        ),
        Operation("get", "/metrics", "Metrics in Prometheus' text format"),
        Operation("get", "/schema", "This document"),
    ]  # fmt: skip


def _explanation(answer: RecommendResponse, surface: str) -> Explanation:
    """Why ``answer`` holds article-23 and not article-17."""
    address = answer.address
    ranks = SourceRank("covisit", 2, 0.75)
    rate = FeatureValue(
        name="item_click_rate", value=0.125, unit="rate", effect=0.5, age_ms=3_600_000, age_of="event"
    )  # fmt: skip
    shown = ExplainedItem(
        item="article-23", source="covisit", sources=[ranks], merged=2, merged_score=0.0625, ranked=1, score=1.25, heads={},
        place=1, rules=[], features=[rate],
    )  # fmt: skip
    seen = ExplainedItem(
        item="article-17", source="", sources=[SourceRank("covisit", 1, 1.5)], merged=None, merged_score=None, ranked=None,
        score=None, heads={}, place=None, rules=[], features=[],
    )  # fmt: skip
    refused = Candidate(
        item="article-17", rank=1, score=1.5, refused="seen by this user", merged=None, ranked=None, place=None
    )  # fmt: skip
    return Explanation(
        request=ExplainedRequest(
            request_id=answer.request_id, surface=surface, known_user=True, k=10, segments=["country=DE"], region="DE", about=[],
            candidates=None, excluded=0, paged=False, tier=0, reasons=[], address=address, walked=0, quality=1.0, rules="", whole=True,
        ),
        served=[Placed("article-23", 1.25)],
        replay=Replay(
            exact=True, state="as-of", user_offset=address.user_offset, item_offset=address.item_offset, now_ms=address.now_ms,
            bundle=address.bundle, rules="", same_list=True, same_features=True, notes=[],
        ),
        sources=[
            ExplainedSource(
                source="covisit", weight=1.0, width=200, offered=2, kept=1, listed=1, why_empty="", candidates=[refused]
            )
        ],
        filters=[Filter("eligibility", "seen by this user", 1, ["article-17"])],
        items=[shown],
        item=Fate(stage="eligibility", reason="seen by this user (place 1 of covisit)", of=seen),
    )  # fmt: skip


def _described(operation: Operation) -> dict[str, Any]:
    scope = SCOPES[operation.method.upper(), operation.path]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "security": [] if scope is None else [{_KEY: [scope.value]}],
        "responses": _responses(operation),
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.takes is not None:
        one = {"$ref": _REF.format(name=operation.takes.__name__)}
        many = {"type": "array", "items": one, "minItems": 1, "maxItems": operation.most or MAX_BATCH}
        described["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [one, many]} if operation.batch else many if operation.most else one,
                    "examples": {name: {"value": _plain(value)} for name, value in operation.examples.items()},
                }
            },
        }
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    if (media := _TEXTS.get(operation.path)) is not None:
        return {"200": {"description": "Done", "content": {media: {"schema": _TEXT}}}} | _refusals(operation)
    if operation.path == "/schema":
        document = {"description": "This document", "content": {SCHEMA_TYPE: {"schema": {"type": "object"}}}}
        return {"200": document} | _refusals(operation)
    content: dict[str, Any] = {"schema": {"type": "object"}}
    if operation.gives is not None:
        given: dict[str, Any] = {"$ref": _REF.format(name=operation.gives.__name__)}
        content = {"schema": {"type": "array", "items": given} if operation.most else given}
    if operation.answer is not None:
        content["example"] = _plain(operation.answer)
    found: dict[str, Any] = {"200": {"description": "Done", "content": {"application/json": content}}}
    if operation.path == "/readyz":
        found["503"] = {"description": "Not ready", "content": {"application/json": {"schema": {"type": "object"}}}}
    return found | _refusals(operation)


def _refusals(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    refused = {"application/json": {"schema": {"$ref": _REF.format(name=ErrorReply.__name__)}}}
    closed = (401, 403, 429) if SCOPES[operation.method.upper(), operation.path] is not None else ()
    for status in sorted({*operation.errors, *closed, 421}):
        content = dict(refused["application/json"])
        if status == 400:
            content["example"] = _plain(ErrorReply(ErrorDetail("Expected `int` <= 200", "k")))
        found[str(status)] = {"description": _ERRORS[status], "content": {"application/json": content}}
    return found


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
