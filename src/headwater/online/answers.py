"""The routes that answer: recommend, similar."""

from __future__ import annotations

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from headwater.online.errors import RefusalError
from headwater.online.ingest import JSON, Call, body_of, id_of
from headwater.online.service import Service

_SIMILAR = "/v1/similar/"


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
        asked = _parameters(request)
        k = _whole_number(asked["k"], "k") if "k" in asked else None
        return Response(service.similar(id_of(request, _SIMILAR), k, asked.get("user")), media_type=JSON)

    return [recommend, recommend_many, similar]


def _parameters(request: Call) -> dict[str, str]:
    """The query parameters, each known and given once."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in ("k", "user"):
            raise RefusalError(400, "Unknown parameter; there are k and user", name)
        if name in found:
            raise RefusalError(400, "Given twice", name)
        found[name] = value
    if "user" in found and not 1 <= len(found["user"]) <= 128:
        raise RefusalError(400, "Expected a text of 1 to 128 characters", "user")
    return found


def _whole_number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RefusalError(400, "Expected a whole number", field)
    return int(text)
