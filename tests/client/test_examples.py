"""Every example runs, against a small server that keeps to the API's types."""

from __future__ import annotations

import asyncio
import io
import runpy
from pathlib import Path

import httpx
import msgspec
from rich.console import Console

from headwater.client import AsyncClient, Client
from headwater.schema.events import Event, IngestReply
from headwater.schema.items import Item
from headwater.schema.requests import Address, RecommendedItem, RecommendRequest, RecommendResponse
from headwater.simulator import World

EXAMPLES = Path(__file__).parents[2] / "examples"


class Server:
    """Recommends its items but those that the user has clicked."""

    def __init__(self, items: list[str]) -> None:
        self.items = items
        self.clicked: set[tuple[str, str]] = set()
        self.offset = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/events":
            events = msgspec.json.decode(request.content, type=list[Event])
            self.clicked |= {(event.user, event.item) for event in events if event.type == "click"}
            return self._ingested(len(events))
        if path == "/v1/items":
            items = msgspec.json.decode(request.content, type=list[Item])
            self.items += [item.id for item in items]
            return self._ingested(len(items))
        if request.method == "DELETE":
            self.items.remove(path.rpartition("/")[2])
            return self._ingested(1)
        if path == "/v1/recommend":
            question = msgspec.json.decode(request.content, type=RecommendRequest)
            return self._list([i for i in self.items if (question.user, i) not in self.clicked][: question.k])
        return self._list(self.items[:3])

    def _ingested(self, count: int) -> httpx.Response:
        self.offset += count
        reply = IngestReply(accepted=count, duplicates=0, rejected=[], token=str(self.offset))
        return httpx.Response(200, content=msgspec.json.encode(reply))

    def _list(self, items: list[str]) -> httpx.Response:
        found = [RecommendedItem(id=i, score=1.0, source="popular", reason="Popular now") for i in items]
        where = Address(user_offset=self.offset, item_offset=self.offset, now_ms=1, plan="p", bundle="b")
        answer = RecommendResponse(request_id="r", items=found, tier=0, reasons=[], model="m", address=where)
        return httpx.Response(200, content=msgspec.json.encode(answer))


def test_first_calls() -> None:
    example = runpy.run_path(str(EXAMPLES / "first_calls.py"))
    shown = io.StringIO()
    with Client("http://server", transport=httpx.MockTransport(Server(["old"]))) as client:
        example["tour"](client, Console(file=shown, width=200))
    assert "3 items are in the catalogue" in shown.getvalue()
    assert "reflects the log up to 4" in shown.getvalue()


def test_visitors() -> None:
    example = runpy.run_path(str(EXAMPLES / "visitors.py"))
    world = World(7, start_ms=example["DEMO_START_MS"], users=100, items=200, hours=24)
    server = Server([item.id for item in world.catalogue.items[:50]])
    shown = io.StringIO()

    async def run() -> float:
        async with AsyncClient("http://server", transport=httpx.MockTransport(server)) as client:
            rate: float = await example["many"](client, world, 40, Console(file=shown, width=200))
            return rate

    assert 0.0 < asyncio.run(run()) < 1.0
    assert "popular" in shown.getvalue()
    assert server.clicked


def test_every_example_is_named_in_the_readme() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"]({path.name})" in readme
