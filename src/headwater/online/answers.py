"""The routes that answer: recommend, similar, an item, and why an answer was as it was."""

from __future__ import annotations

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.features.layout import FLAG_HIDDEN, I_FLAGS
from headwater.online.errors import RefusalError
from headwater.online.ingest import JSON, Call, body_of, id_of, known_item
from headwater.online.service import Service
from headwater.schema.explanation import MAX_EXPLAINED
from headwater.serving.explain import Question

_SIMILAR, _EXPLAIN, _ITEMS = "/v1/similar/", "/v1/explain/", "/v1/items/"

_encode = msgspec.json.Encoder().encode


def answer_routes(service: Service) -> list[HTTPRouteHandler]:
    """Routes of ``service`` that recommend."""

    @post("/v1/recommend", status_code=200)
    async def recommend(request: Call) -> Response[bytes]:
        return Response(await service.recommend(await body_of(request)), media_type=JSON)

    @post("/v1/recommend/batch", status_code=200)
    async def recommend_many(request: Call) -> Response[bytes]:
        answers = await service.recommend_many(await body_of(request), lambda more: service.access.take(request, more))
        return Response(answers, media_type=JSON)

    @get(_SIMILAR + "{item_id:path}")
    async def similar(request: Call) -> Response[bytes]:
        asked = _parameters(request, ("k", "user"))
        k = _whole_number(asked["k"], "k") if "k" in asked else None
        return Response(service.similar(id_of(request, _SIMILAR), k, asked.get("user")), media_type=JSON)

    @get(_EXPLAIN + "{request_id:path}")
    async def explain(request: Call) -> Response[bytes]:
        asked = _parameters(request, ("item", "bundle", "after", "candidates", "features"))
        after = _whole_number(asked["after"], "after", digits=18) if "after" in asked else None
        counts = {
            name: _whole_number(asked[name], name, most=MAX_EXPLAINED)
            for name in ("candidates", "features")
            if name in asked
        }
        question = Question(item=asked.get("item"), bundle=asked.get("bundle"), **counts)
        return Response(await service.explain(id_of(request, _EXPLAIN), question, after), media_type=JSON)

    @get(_ITEMS + "{item_id:path}")
    async def get_item(request: Call) -> Response[bytes]:
        dense = known_item(service, id_of(request, _ITEMS))
        record = service.stores.state.item_record(dense)
        rows = service.stores.view.table.rows.u4
        hidden = dense < len(rows) and bool(rows[dense, I_FLAGS] & FLAG_HIDDEN)
        if record is None or (hidden and record.item.available):  # hidden though available: it was deleted
            raise RefusalError(404, "There is no item of that id", "item_id")
        return Response(_encode(record.item), media_type=JSON)

    return [recommend, recommend_many, similar, explain, get_item]


def _parameters(request: Call, names: tuple[str, ...]) -> dict[str, str]:
    """The query parameters, each known and given once."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise RefusalError(400, f"Unknown parameter; there are {', '.join(names[:-1])} and {names[-1]}", name)
        if name in found:
            raise RefusalError(400, "Given twice", name)
        found[name] = value
    for name in ("user", "item", "bundle"):
        if name in found and not 1 <= len(found[name]) <= 128:
            raise RefusalError(400, "Expected a text of 1 to 128 characters", name)
    return found


def _whole_number(text: str, field: str, *, digits: int = 9, most: int | None = None) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise RefusalError(400, "Expected a whole number", field)
    if most is not None and int(text) > most:
        raise RefusalError(400, f"Expected at most {most}, got {int(text)}", field)
    return int(text)
