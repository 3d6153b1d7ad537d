"""A site of one's own: the configuration that it writes, and a world in its log as it happened."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headwater.cli.local import Server, free_port, make_site, write_world
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind, Namespace
from headwater.schema.config import load_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import EventDetail
from headwater.simulator import EVENT_TYPES, World
from headwater.simulator.people import user_id


def test_a_site_is_a_valid_configuration_and_never_an_old_one(tmp_path: Path) -> None:
    site = make_site(
        tmp_path / "new", {"ranker": {"trees": 30, "learning_rate": 0.2}, "serving": {"log_served": False}}
    )
    config = load_config(site.config)
    assert (config.clock, config.ranker.trees, config.serving.log_served) == ("log", 30, False)
    site.data.mkdir()
    with pytest.raises(ConfigurationError, match="empty folder"):
        make_site(tmp_path / "new", {})
    with pytest.raises(ConfigurationError, match="tress"):
        make_site(tmp_path / "other", {"ranker": {"tress": 30}})


def test_a_world_in_the_log_is_the_history(tmp_path: Path) -> None:
    world = World(3, start_ms=1_760_313_600_000, users=120, items=200, hours=6, visits_per_day=4.0)
    site = make_site(tmp_path, {})
    hours: list[int] = []
    events, items = write_world(site, world, hours.append)
    history = world.history()
    assert hours == list(range(1, 7))
    assert (events, items) == (len(history), len(world.items_born(0, world.end_ms - 1)))

    log = LmdbLog(site.data / "log", readonly=True)
    block = log.read(0, 10**9)
    assert block is not None
    terms = log.vocabulary()
    rows = np.flatnonzero(block.records["kind"] == Kind.EVENT)
    found = block.records[rows]
    assert len(found) == events
    assert np.array_equal(found["time_ms"], history.time_ms)
    assert np.array_equal(found["received_ms"], history.time_ms)
    assert np.all(np.diff(block.records["received_ms"]) >= 0)
    assert np.array_equal(found["value"], history.value, equal_nan=True)
    some = range(0, len(found), 97)
    assert [terms.text(Namespace.ITEM, int(found["item"][i])) for i in some] == [
        world.catalogue.items[history.item[i]].id for i in some
    ]
    assert [terms.text(Namespace.EVENT_TYPE, int(found["type"][i])) for i in some] == [
        EVENT_TYPES[history.type[i]] for i in some
    ]
    country = terms.text(Namespace.SEGMENT, int(found["segments"][0, 0]))
    assert country is not None
    assert country.startswith("country=")
    detail = msgspec.msgpack.decode(block.payload(int(rows[5])), type=EventDetail)
    assert detail == EventDetail(
        request_id=f"list-{history.listing[5]}",
        position=int(history.position[5]),
        session=f"visit-{history.session[5]}",
    )
    # An item is known before anybody meets it.
    first_item = {int(r["item"]): int(r["offset"]) for r in block.records[::-1] if r["kind"] == Kind.ITEM}
    assert all(first_item[int(r["item"])] < int(r["offset"]) for r in found)
    log.close()
    assert user_id(7) == "user-00007"


def test_a_free_port_is_the_wanted_one_or_another(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        assert free_port(port) != port
        assert Server(make_site(tmp_path, {}), port).port != port
