"""Live traffic against a scripted server."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from headwater.client import Client, Retries
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event, IngestReply
from headwater.schema.items import Item
from headwater.schema.requests import Address, RecommendedItem, RecommendRequest, RecommendResponse
from headwater.simulator import World
from headwater.simulator.traffic import LIST_LENGTH, LiveTraffic, PlainVisitors, Visitors, WorldVisitors

START_MS = 1_760_313_600_000


class Server:
    """Recommends the same items to everybody and keeps what it is sent."""

    def __init__(self, shown: list[str]) -> None:
        self.shown = shown
        self.events: list[Event] = []
        self.items: list[Item] = []
        self.down = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            return httpx.Response(503)
        if request.url.path == "/v1/recommend":
            k = msgspec.json.decode(request.content, type=RecommendRequest).k
            items = [RecommendedItem(id=i, score=1.0, source="popular", reason="") for i in self.shown[:k]]
            address = Address(user_offset=1, item_offset=1, now_ms=1, plan="p", bundle="b")
            answer: object = RecommendResponse(
                request_id="r1", items=items, tier=0, reasons=[], model="m", address=address
            )
        elif request.url.path == "/v1/events":
            self.events += msgspec.json.decode(request.content, type=list[Event])
            answer = IngestReply(accepted=1, duplicates=0, rejected=[], token="1")  # noqa: S106  (a log position)
        else:
            self.items += msgspec.json.decode(request.content, type=list[Item])
            answer = IngestReply(accepted=1, duplicates=0, rejected=[], token="1")  # noqa: S106
        return httpx.Response(200, content=msgspec.json.encode(answer))


@pytest.fixture(scope="module")
def world() -> World:
    return World(7, start_ms=START_MS, users=200, items=300, hours=24)


def client_of(server: Server) -> Client:
    return Client("http://server", transport=httpx.MockTransport(server), retries=Retries(attempts=1))


def fail(error: HeadwaterError) -> None:
    raise error


def test_visitors_respond_to_what_they_are_shown(world: World) -> None:
    shown = [item.id for item in world.catalogue.items[:LIST_LENGTH]]
    server = Server(shown)
    now = [world.end_ms]
    with client_of(server) as client:
        traffic = LiveTraffic(client, WorldVisitors(world), seed=1, now_ms=lambda: now[0], on_error=fail)
        for _ in range(30):
            traffic.step()
        now[0] += 60_000
        traffic.step()
    assert traffic.visits == 31
    assert traffic.events == len(server.events)
    assert len({event.user for event in server.events}) > 10
    assert {event.item for event in server.events} == set(shown)
    assert "click" in {event.type for event in server.events}
    assert all(event.event_id and event.request_id == "r1" for event in server.events)
    assert [item.published for item in server.items] == [now[0]]
    assert server.items[0].id not in {item.id for item in world.items_born(0, world.end_ms - 1)}


@pytest.mark.parametrize("plain", [False, True])
def test_the_thread_goes_on_after_errors_and_stops(world: World, plain: bool) -> None:
    server = Server([world.catalogue.items[0].id])
    server.down = True
    visitors: Visitors = PlainVisitors(["a", "b"]) if plain else WorldVisitors(world)
    errors: list[HeadwaterError] = []

    def on_error(error: HeadwaterError) -> None:
        errors.append(error)
        server.down = len(errors) < 3

    with client_of(server) as client:
        traffic = LiveTraffic(
            client, visitors, seed=1, now_ms=lambda: world.end_ms, events_per_s=2_000, on_error=on_error
        )
        traffic.start()
        while not server.events:
            traffic.join(0.001)
            assert traffic.is_alive()
        traffic.stop()
    assert len(errors) >= 3
    assert not traffic.is_alive()
