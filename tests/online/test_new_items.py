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

    said = server.http.get(f"{server.url}/v1/explain/{answer['request_id']}", timeout=60.0).json()["request"][
        "promised"
    ]
    assert sum(each["kept"] for each in said) == given
    assert all(0.0 < each["chance"] <= 1.0 and 1 <= each["place"] <= 10 for each in said)
    shown = CliRunner().invoke(build_app(), ["explain", answer["request_id"], "--config", str(server.config_path)])
    for each in said:
        did = "it did" if each["kept"] else "it did not"
        line = f"  place {each['place']} could go to a promised new item with probability {each['chance']:.3g}; {did}\n"
        assert line in shown.output
