"""OpenTelemetry traces: a span a request, and below it one for each stage of each answer.

Without ``monitoring.traces.endpoint`` nothing here is called and nothing of OpenTelemetry is imported. With it, what a request is not chosen
for costs one draw. Spans are made after the answer is sent, from what the pipeline measured anyway. They name no user and no item.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError
from headwater.serving.request import Answer, Query

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_PARENT, _STATE = b"traceparent", b"tracestate"


class _Given(NamedTuple):
    """An answer, and when its pipeline was through (Unix ns)."""

    query: Query
    answer: Answer
    at_ns: int


_ANSWERS: ContextVar[list[_Given] | None] = ContextVar("answers", default=None)


def note_answer(query: Query, answer: Answer) -> None:
    """If the request at hand is traced, ``answer`` becomes part of its trace."""
    answers = _ANSWERS.get()
    if answers is not None:
        answers.append(_Given(query, answer, time.time_ns()))


class Traces:
    """Traces a ``share`` of requests, and those that come with a W3C ``traceparent`` that says so (one that says no is not traced).

    ``draw`` returns a number in [0, 1). ``processor`` takes what is ended.
    """

    def __init__(self, processor: SpanProcessor, share: float, draw: Callable[[], float], role: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # what is traced is decided here, before anything is made for it
        named = Resource({"service.name": "headwater", "headwater.role": role})
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("headwater")
        self._extract = TraceContextTextMapPropagator().extract
        self._share, self._draw, self._kind = share, draw, SpanKind.SERVER

    def around(self, app: ASGIApp, route_of: Callable[[str], str]) -> ASGIApp:
        """``app``, traced; ``route_of`` gives a path's template."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP or (parent := self._parent(scope)) is None:
                await app(scope, receive, send)
                return
            status, answers, began_ns = 500, list[_Given](), time.time_ns()

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            token = _ANSWERS.set(answers)
            try:
                await app(scope, receive, noting)
            finally:
                _ANSWERS.reset(token)
                self._record(
                    scope["method"],
                    route_of(scope["path"]),
                    status,
                    answers,
                    (began_ns, time.time_ns()),
                    parent,
                )

        return traced

    def shut_down(self) -> None:
        """Send what is waiting, and end."""
        self._provider.shutdown()

    def _parent(self, scope: Scope) -> Context | None:
        """The context that the request's span belongs into; None: it is not traced."""
        from opentelemetry.context import Context
        from opentelemetry.trace import get_current_span

        carrier = {
            name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in (_PARENT, _STATE)
        }
        if _PARENT.decode() in carrier:
            found = self._extract(carrier, Context())
            said = get_current_span(found).get_span_context()
            if said.is_valid:  # a header that is none is taken for no header, as the standard wants it
                return found if said.trace_flags.sampled else None
        return Context() if self._draw() < self._share else None

    def _record(
        self, method: str, route: str, status: int, answers: list[_Given], span_ns: tuple[int, int], parent: Context
    ) -> None:  # fmt: skip
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        root = self._tracer.start_span(f"{method} {route}", parent, self._kind, attributes, start_time=span_ns[0])
        for given in answers:
            self._record_answer(given, set_span_in_context(root, parent))
        if status >= 500:
            root.set_status(Status(StatusCode.ERROR))
        root.end(span_ns[1])

    def _record_answer(self, given: _Given, within: Context) -> None:
        from opentelemetry.trace import set_span_in_context

        query, answer, at_ns = given
        began_ns = at_ns - int(1e6 * answer.took_ms)
        attributes: dict[str, str | int] = {
            "headwater.request_id": query.request_id, "headwater.surface": query.surface, "headwater.tier": answer.tier,
            "headwater.bundle": answer.address.bundle, "headwater.items": len(answer.items),
        }  # fmt: skip
        span: Span = self._tracer.start_span("answer", within, attributes=attributes, start_time=began_ns)
        inside = set_span_in_context(span, within)
        for stage, (ms, width, outcome) in answer.trace.items():
            if outcome == "skipped":
                continue
            said: dict[str, str | int] = {"headwater.items": width, "headwater.outcome": outcome}
            part = self._tracer.start_span(stage, inside, attributes=said, start_time=began_ns)
            began_ns += int(1e6 * ms)
            part.end(began_ns)
        span.end(at_ns)


def open_traces(config: Config, role: str, draw: Callable[[], float]) -> Traces | None:
    """What ``[monitoring.traces]`` asks for; None: nothing.

    Raises:
        ConfigurationError: the exporter is not installed.
    """
    said = config.monitoring.traces
    if not said.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"monitoring.traces.endpoint: Traces need the exporter of OpenTelemetry ({error}): pip install 'headwater[otel]'"
        ) from error
    return Traces(BatchSpanProcessor(OTLPSpanExporter(endpoint=said.endpoint)), said.share, draw, role)
