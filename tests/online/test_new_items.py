"""Promises to new items on a running system: what is counted, and what explain says of the places that went to them."""

from __future__ import annotations

import time

from typer.testing import CliRunner

from headwater.cli.main import build_app
from tests.online.conftest import Site


def value(server: Site, series: str) -> float:
    """One series of `/metrics`."""
    text = server.http.get(f"{server.url}/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))


def test_promises_are_counted_and_explained(server: Site) -> None:
    event = {"user": "promised", "item": "item-3", "type": "click", "time": time.time_ns() // 1_000_000}
    token = server.ingest("/v1/events", [event])
    places = 'headwater_new_item_places_total{surface="because"}'
    before = value(server, places)
    lists = [server.recommend(user="promised", surface="because", k=10, token=token) for _ in range(40)]
    given = [
        (answer["request_id"], place)
        for answer in lists
        for place, item in enumerate(answer["items"], 1)
        if item["source"] == "new_items"
    ]
    assert given, "every item of the catalogue is new and was promised impressions"
    assert value(server, places) - before >= len(given), "whichever source an item came of, a place may go to it as promised"
    states = {state: value(server, f'headwater_new_items{{state="{state}"}}') for state in ("promised", "reached", "behind", "stopped")}
    assert states["promised"] >= 100.0
    assert states["reached"] + states["behind"] + states["stopped"] <= states["promised"]

    request_id, place = given[0]
    said = server.http.get(f"{server.url}/v1/explain/{request_id}").json()["request"]["promised"]
    assert all(0.0 < each["chance"] <= 1.0 for each in said)
    assert {"place": place, "kept": True}.items() <= next(each for each in said if each["place"] == place).items()
    shown = CliRunner().invoke(build_app(), ["explain", request_id, "--config", str(server.config_path)])
    assert f"  place {place} could go to a promised new item with probability " in shown.output
