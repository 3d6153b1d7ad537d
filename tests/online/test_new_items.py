"""Promises to new items on a running system: what is counted, and what explain says of the places that went to them."""

from __future__ import annotations

import time
from typing import Any

from typer.testing import CliRunner

from headwater.cli.main import build_app
from tests.online.conftest import Site
from tests.online.running import PATIENCE_S


def value(server: Site, series: str) -> float:
    """One series of `/metrics`."""
    text = server.http.get(f"{server.url}/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))


def explained(server: Site, request_id: str) -> dict[str, Any]:
    """What the server says of a list, or the error."""
    said: dict[str, Any] = server.http.get(f"{server.url}/v1/explain/{request_id}", timeout=60.0).json()
    return said


def test_promises_are_counted_and_explained(server: Site) -> None:
    event = {"user": "promised", "item": "item-3", "type": "click", "time": time.time_ns() // 1_000_000}
    token = server.ingest("/v1/events", [event])
    places = 'headwater_new_item_places_total{surface="because"}'
    for _ in range(40):  # by lot: all of these miss every place less often than once in 10^9 runs
        before = value(server, places)
        answer = server.recommend(user="promised", surface="because", k=10, token=token)
        if given := value(server, places) - before:
            break
    assert given, "every item of the catalogue is new and was promised impressions"
    states = {
        state: value(server, f'headwater_new_items{{state="{state}"}}')
        for state in ("promised", "reached", "behind", "stopped")
    }
    assert states["promised"] >= 100.0
    assert states["reached"] + states["behind"] + states["stopped"] <= states["promised"]

    until = time.monotonic() + PATIENCE_S
    while "request" not in (why := explained(server, answer["request_id"])):  # the list is on its way into the log
        assert time.monotonic() < until, why
        time.sleep(0.1)
    said = why["request"]["promised"]
    assert sum(each["kept"] for each in said) == given
    assert all(0.0 < each["chance"] <= 1.0 and 1 <= each["place"] <= 10 for each in said)
    shown = CliRunner().invoke(build_app(), ["explain", answer["request_id"], "--config", str(server.config_path)])
    for each in said:
        did = "it did" if each["kept"] else "it did not"
        line = f"  place {each['place']} could go to a promised new item with probability {each['chance']:.3g}; {did}\n"
        assert line in shown.output
