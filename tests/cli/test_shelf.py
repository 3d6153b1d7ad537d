"""The catalogue of a log, and the choice of a taste to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.cli.shelf import Shelf, read_shelf
from headwater.log.batch import events_to_batch
from headwater.log.writer import open_writer
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.items import Item

NOW_MS = 1_000_000


def shelf_of(**categories: list[str]) -> Shelf:
    items = {name: Item(id=name, categories=found) for name, found in categories.items()}
    return Shelf(items, list(items), 0, NOW_MS)


def test_reads_items_and_popularity_from_the_log(tmp_path: Path) -> None:
    items = [
        Item(id="a", title="First", categories=["x"]),
        Item(id="b", categories=["x", "y"]),
        Item(id="gone"),
        Item(id="hidden", available=False),
        Item(id="expired", expires=NOW_MS - 1),
    ]
    with open_writer(tmp_path, clock=lambda: NOW_MS) as writer:
        writer.put_items(items)
        events = [Event(user=f"u{n}", item=item, type="click", time=NOW_MS) for n, item in enumerate("abbx")]
        writer.append_events(events_to_batch(events, ()))
        writer.delete_items(["gone"])
    shelf = read_shelf(tmp_path)
    assert shelf.popular == ["b", "a"]
    assert set(shelf.items) == {"a", "b", "hidden", "expired"}
    assert (shelf.events, shelf.last_ms) == (4, NOW_MS)
    assert (shelf.title("a"), shelf.title("b"), shelf.title("never heard of")) == ("First", "b", "never heard of")
    assert shelf.has("b", "y")
    assert shelf.with_titles("often together with a") == "often together with “First”"


def test_a_taste_that_the_list_hardly_shows() -> None:
    shelf = shelf_of(
        a=["film"],
        b=["film"],
        c=["film"],
        d=["book"],
        e=["book"],
        f=["book"],
        g=["rare"],
        h=["rare"],
        i=["game", "film"],
    )
    assert shelf.taste_beside(["a", "b", "c"], 3) == "book"
    assert shelf.taste_beside([], 3) == "film"
    assert shelf.best_of("film", 2) == ["a", "b"]
    with pytest.raises(ConfigurationError, match="4 items"):
        shelf.taste_beside([], 4)
