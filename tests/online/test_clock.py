"""On the log's clock time goes on from where the log ends, in every process and across restarts of them."""

from __future__ import annotations

from pathlib import Path

from headwater.log.writer import open_writer
from headwater.schema.items import Item
from tests.online.running import CONFIG, Running

LONG_AGO_MS = 1_500_000_000_000
PATIENCE_MS = 120_000


def test_time_goes_on_from_the_end_of_the_log(tmp_path: Path) -> None:
    running = Running(tmp_path, 'clock = "log"\n' + CONFIG)
    with open_writer(running.data, clock=lambda: LONG_AGO_MS) as writer:
        writer.put_items(
            [Item(id="a"), Item(id="expired", expires=LONG_AGO_MS - 1), Item(id="b", expires=LONG_AGO_MS * 2)]
        )
    with running:
        first = running.recommend(k=5)
        assert 0 <= first["address"]["now_ms"] - LONG_AGO_MS < PATIENCE_MS
        assert {item["id"] for item in first["items"]} == {"a", "b"}
        running.kill("writer")
        running.kill("api")
        running.wait_ready()
        running.ingest("/v1/items", {"id": "c"})
        second = running.recommend(k=5)
        assert 0 < second["address"]["now_ms"] - first["address"]["now_ms"] < PATIENCE_MS
