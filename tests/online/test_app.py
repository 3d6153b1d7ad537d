"""What a caller sees when a part behind the routes fails."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
import structlog

from headwater.log.batch import EventBatch
from headwater.log.commands import Appended
from headwater.log.protocol import RefusedError
from headwater.online.access import Access
from headwater.online.app import create_app
from headwater.online.metrics import Metrics
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config
from headwater.schema.errors import UnavailableError
from headwater.schema.limits import Limits

EVENT = {"user": "very-secret", "item": "i", "type": "click"}


class FailingWriter:
    """Fails as told."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def append_events(self, batch: EventBatch) -> Appended:
        assert len(batch) == 1
        raise self.error


def post(error: Exception, *, retiring: bool = False) -> tuple[httpx.Response, Metrics]:
    """The answer to one good event when the writer fails with ``error``."""
    metrics = Metrics()
    access = Access(Path("no-such-folder"), Limits(), metrics, clock=wall_ms, timer=time.monotonic)
    stub = SimpleNamespace(
        config=Config(), metrics=metrics, writer=FailingWriter(error), retiring=retiring, access=access, role=Role.ALL
    )

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(cast(Service, stub)), raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/v1/events", json=EVENT)

    return asyncio.run(run()), metrics


def test_a_writer_that_is_away_is_503_with_retry_after() -> None:
    response, metrics = post(UnavailableError("The writer went away before it answered; try again"))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "writer" in response.json()["error"]["reason"]
    assert metrics.registry.get_sample_value("headwater_writer_unavailable_total") == 1


def test_what_the_writer_refuses_is_400() -> None:
    response, _ = post(RefusedError("No room for another item"))
    assert response.status_code == 400
    assert response.json()["error"]["reason"] == "No room for another item"


def test_a_worker_that_gives_way_ends_each_connection_with_its_next_answer() -> None:
    for error in (RefusedError("no"), UnavailableError("away")):
        assert post(error, retiring=True)[0].headers["connection"] == "close"
        assert "connection" not in post(error)[0].headers


def test_a_fault_of_ours_is_500_and_its_log_line_names_nobody() -> None:
    with structlog.testing.capture_logs() as lines:
        response, metrics = post(ZeroDivisionError("division by zero"))
    assert response.status_code == 500
    assert response.json() == {"error": {"reason": "Internal error; it is in the log"}}
    assert [line["event"] for line in lines] == ["request_failed"]
    assert "ZeroDivisionError" in lines[0]["trace"]
    assert "very-secret" not in str(lines)
    metrics.flush()
    value = metrics.registry.get_sample_value(
        "headwater_request_seconds_count", {"route": "/v1/events", "status": "500"}
    )
    assert value == 1


@pytest.mark.parametrize("size", [0, 1])
def test_every_answer_has_one_shape(size: int) -> None:
    response, _ = post(RefusedError("x" * size))
    assert set(response.json()) <= {"error", "rejected"}
