"""The routes for those who run the system: health, readiness, metrics, the OpenAPI document."""

from __future__ import annotations

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from headwater.online.ingest import JSON
from headwater.online.intake import Intake
from headwater.online.openapi import SCHEMA_TYPE, document
from headwater.prometheus import CONTENT_TYPE


def health_routes(service: Intake) -> list[HTTPRouteHandler]:
    """Routes of ``service`` that say how it is."""
    described = msgspec.json.encode(document(service.config))

    @get("/healthz")
    async def healthz() -> Response[bytes]:
        return Response(msgspec.json.encode({"status": "ok", **service.health()}), media_type=JSON)

    @get("/readyz")
    async def readyz() -> Response[bytes]:
        reasons = await service.why_not_ready()
        body = msgspec.json.encode({"status": "waiting" if reasons else "ready", "reasons": reasons})
        return Response(body, media_type=JSON, status_code=503 if reasons else 200)

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(service.expose_metrics(), headers={"content-type": CONTENT_TYPE})

    @get(["/schema", "/schema/openapi.json"])
    async def schema() -> Response[bytes]:
        return Response(described, media_type=SCHEMA_TYPE)

    return [healthz, readyz, metrics, schema]
