"""The visit of the demonstration, against a server that listens and one that does not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from headwater.cli import demo
from headwater.cli.main import build_app
from headwater.cli.shelf import Shelf
from headwater.client import Client
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event, IngestReply
from headwater.schema.items import Item
from headwater.schema.requests import Address, RecommendedItem, RecommendRequest, RecommendResponse

NOW_MS = 1_000_000


def catalogue() -> Shelf:
    kinds = ("film", "book", "game")
    items = {
        f"{kind}-{n}": Item(id=f"{kind}-{n}", title=f"The {kind} {n}", categories=[kind])
        for kind in kinds
        for n in range(20)
    }
    return Shelf(items, list(items), 100, NOW_MS)


class Server:
    """Shows films first; one that listens shows what was clicked last."""

    def __init__(self, listens: bool) -> None:
        self.listens = listens
        self.events: list[Event] = []
        self.tokens: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/events":
            self.events += msgspec.json.decode(request.content, type=list[Event])
            token = str(len(self.events))
            answer: object = IngestReply(accepted=1, duplicates=0, rejected=[], token=token)
        else:
            question = msgspec.json.decode(request.content, type=RecommendRequest)
            self.tokens.append(question.token)
            clicked = [event.item for event in self.events]
            kind = clicked[-1].split("-")[0] if clicked and self.listens else "film"
            items = [
                RecommendedItem(id=f"{kind}-{n}", score=1.0, source="covisit", reason=f"often together with {kind}-19")
                for n in range(19, 0, -1)
                if f"{kind}-{n}" not in clicked
            ]
            where = Address(user_offset=len(clicked), item_offset=0, now_ms=1, plan="p", bundle="b")
            answer = RecommendResponse(
                request_id="r", items=items[: question.k], tier=0, reasons=[], model="m1", address=where
            )
        return httpx.Response(200, content=msgspec.json.encode(answer))


@pytest.mark.parametrize("listens", [True, False])
def test_three_clicks_of_one_taste(listens: bool) -> None:
    server, shown = Server(listens), io.StringIO()
    with Client("http://server", transport=httpx.MockTransport(server)) as client:
        console = Console(file=shown, width=160)
        visit = demo._visit(console, client, catalogue(), {"country": "DE"}, lambda: NOW_MS)
    assert visit.taste == "book"
    assert visit.clicked == ["book-0", "book-1", "book-2"]
    assert [event.item for event in server.events] == visit.clicked
    assert all(event.event_id and event.time == NOW_MS for event in server.events)
    assert server.tokens == [None, "1", "2", "3"]
    assert (visit.before, visit.after) == (0, 10 if listens else 0)
    assert visit.listened is listens
    assert len(visit.delay_ms) == 3
    text = shown.getvalue()
    assert f"book: 0 of 10 before, {visit.after} of 10 after" in text
    assert "often together with “The film 19”" in text


def test_only_movielens_is_known() -> None:
    with pytest.raises(ConfigurationError, match='no data set kind "netflix"'):
        demo.demo(("netflix", Path()), as_json=False)


def test_help_and_options_come_without_heavy_imports() -> None:
    """``--help`` of every command imports the module, so it may not bring numba or the world with it."""
    source = "import headwater.cli.demo, headwater.cli.bench, sys; print([m for m in ('numba', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_has_an_example() -> None:
    app = typer.Typer()
    demo.register(app)
    assert "Example: headwater demo --exit" in (demo.demo.__doc__ or "")
    assert len(app.registered_commands) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenario", "viral"], "viral-item"),
        (["--scenario", "outage", "--data", "movielens", "/nowhere"], "--scenario"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_before_anything_is_made(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(build_app(), ["demo", *arguments])
    assert isinstance(result.exception, ConfigurationError)
    assert said in str(result.exception)
