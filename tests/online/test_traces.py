"""Traces: what is traced, what a trace holds, and that nothing is without being asked for."""

from __future__ import annotations

import ast
import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headwater.online.access import Access
from headwater.online.app import create_app
from headwater.online.metrics import Metrics
from headwater.online.roles import Role
from headwater.online.service import Service
from headwater.online.traces import Traces, note_answer, open_traces
from headwater.schema.clock import wall_ms
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.limits import Limits
from headwater.schema.requests import Address
from headwater.serving.request import Answer, Query
from headwater.serving.run import Lap

ROOT = Path(__file__).parent.parent.parent
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NONE = np.zeros((0, 0), np.float32)
ANSWER = Answer(
    np.array([4, 5]), np.zeros(2, np.float32), ["a", "a"], ["", ""], np.zeros(2, np.int64), 1, [], Address(1, 1, 1, "plan", "b1"),
    NONE, NONE, [], {"hydrate": Lap(0.5), "fetch": Lap(2.0, 80, "shortened"), "light_rank": Lap(0.0, 0, "skipped"), "respond": Lap(0.25, 2)},
    {"a": 80},
)  # fmt: skip


class Answering:
    """Answers each request with what notes one answer; fails when told to."""

    def __init__(self) -> None:
        self.config, self.metrics, self.retiring = Config(), Metrics(), False
        self.access = Access(Path("no-such-folder"), Limits(), self.metrics, clock=wall_ms, timer=time.monotonic)
        self.writer, self.role = SimpleNamespace(), Role.ALL

    async def recommend(self, body: bytes) -> bytes:
        if body == b"fail":
            raise ZeroDivisionError
        await asyncio.sleep(0)
        note_answer(Query(f"request-{body.decode()}", user=77), ANSWER)
        return b"{}"


def traced(*requests: dict[str, Any], share: float = 0.0, draw: float = 0.5) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter), share, lambda: draw, "all")
    app = create_app(cast(Service, Answering()), None, traces)

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            await asyncio.gather(*(http.post("/v1/recommend", **request) for request in requests))

    asyncio.run(run())
    traces.shut_down()
    return exporter.get_finished_spans()


def test_a_trace_has_the_request_its_answer_and_the_stages() -> None:
    spans = {span.name: span for span in traced({"content": b"1"}, share=0.6)}
    assert set(spans) == {"POST /v1/recommend", "answer", "hydrate", "fetch", "respond"}
    root, answer = spans["POST /v1/recommend"], spans["answer"]
    assert root.parent is None
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST", "http.route": "/v1/recommend", "http.response.status_code": 200,
    }  # fmt: skip
    assert answer.parent is not None
    assert root.context is not None
    assert answer.parent.span_id == root.context.span_id
    assert (answer.attributes or {})["headwater.request_id"] == "request-1"
    stages = [spans[name] for name in ("hydrate", "fetch", "respond")]
    assert [(span.end_time or 0) - (span.start_time or 0) for span in stages] == [500_000, 2_000_000, 250_000]
    assert [span.start_time for span in stages[1:]] == [span.end_time for span in stages[:-1]]
    assert stages[0].start_time == answer.start_time
    assert dict(stages[1].attributes or {}) == {"headwater.items": 80, "headwater.outcome": "shortened"}
    assert "77" not in str([span.attributes for span in spans.values()]), "a user is named"


@pytest.mark.parametrize(
    ("header", "share", "names"),
    [
        (f"00-{TRACE}-{SPAN}-01", 0.0, 5),  # the caller traces it
        (f"00-{TRACE}-{SPAN}-00", 1.0, 0),  # the caller does not
        ("no such thing", 0.0, 0),
        ("no such thing", 0.6, 5),
        (None, 0.4, 0),
    ],
)
def test_whose_requests_are_traced(header: str | None, share: float, names: int) -> None:
    spans = traced({"content": b"1", "headers": {} if header is None else {"traceparent": header}}, share=share)
    assert len(spans) == names
    if header is not None and header.startswith("00"):
        for span in spans:
            assert span.context is not None
            assert f"{span.context.trace_id:032x}" == TRACE
        parents = [span.parent for span in spans if span.name.startswith("POST")]
        assert [f"{parent.span_id:016x}" for parent in parents if parent is not None] == [SPAN] * len(parents)


def test_requests_at_the_same_time_keep_their_answers_apart() -> None:
    spans = traced(*({"content": str(number).encode()} for number in range(5)), share=1.0)
    roots = {span.context.span_id for span in spans if span.name.startswith("POST") and span.context is not None}
    answers = [span for span in spans if span.name == "answer"]
    assert {span.parent.span_id for span in answers if span.parent is not None} == roots
    assert len(answers) == len(roots) == 5


def test_a_fault_is_an_error_of_the_span() -> None:
    (span,) = traced({"content": b"fail"}, share=1.0)
    assert not span.status.is_ok
    assert (span.attributes or {})["http.response.status_code"] == 500


def test_nothing_is_traced_and_nothing_imported_unless_asked_for() -> None:
    assert open_traces(Config(), "all", lambda: 0.0) is None
    for path in (ROOT / "src").rglob("*.py"):
        at_import = ast.parse(
            path.read_text(encoding="utf-8")
        ).body  # what stands in functions or below TYPE_CHECKING is not
        names = [node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names]
        assert not [name for name in names if name.startswith("opentelemetry")], path


def test_traces_go_where_the_configuration_allows() -> None:
    table = '[monitoring.traces]\nendpoint = "%s"\n'
    config = parse_config(table % "http://127.0.0.1:1/v1/traces")
    traces = open_traces(config, "all", lambda: 0.9)
    assert traces is not None
    traces.shut_down()
    with pytest.raises(ConfigurationError, match=r"limits\.hosts"):
        parse_config(table % "https://elsewhere.example/v1/traces")
    with pytest.raises(ConfigurationError, match="starts with"):
        parse_config(table % "ftp://127.0.0.1/v1")
    parse_config('[limits]\nhosts = ["elsewhere.example"]\n' + table % "https://elsewhere.example/v1/traces")
