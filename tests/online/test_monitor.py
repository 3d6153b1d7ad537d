"""The monitor of a running server: it sees what workers count, acts on it, takes it back; and nothing depends on it.

The full form, seven faults with times, is ``python -m tests.reliability.acting``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from headwater.monitoring.history import HISTORY_FILE, History
from headwater.registry.audit import read_audit
from headwater.registry.controls import change_controls, read_controls
from tests.online.conftest import Site
from tests.online.running import PATIENCE_S


def wait_until(so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def test_a_flood_of_repeats_is_noticed_acted_on_and_over(server: Site) -> None:
    batch = [{"type": "view", "user": "flooding", "item": "item-1", "event_id": f"flood-{n}"} for n in range(1_000)]
    server.ingest("/v1/events", batch)

    def acted() -> bool:
        server.ingest("/v1/events", batch)
        return any(entry.by == "alert:flood" for entry in read_audit(server.data))

    wait_until(acted, "nothing was done")
    assert [entry.undo.after for entry in read_audit(server.data) if entry.by == "alert:flood" and entry.undo] == [
        {"exploration": 2.0}
    ]
    wait_until(lambda: read_controls(server.data).exploration == 1.0, "it was not taken back")
    history = History(server.data / HISTORY_FILE, readonly=True)
    rates = history.rates("headwater_ingested_total", since_ms=0, until_ms=2**53)
    history.close()
    assert any(series.labels["outcome"] == "duplicate" and max(series.values, default=0.0) > 500 for series in rates)


def test_workers_follow_the_controls_and_do_without_the_monitor(server: Site) -> None:
    pid = server.kill("monitor")
    change_controls(server.data, by="cli", reason="a test", time_ms=1, tier_floor=2)
    try:
        wait_until(lambda: server.recommend(user="held")["tier"] == 2, "the tier is not held")
        assert any(
            "controls: answers come from tier 2" in reason for reason in server.recommend(user="held")["reasons"]
        )
    finally:
        change_controls(server.data, by="cli", reason="a test", time_ms=2, tier_floor=0)
    wait_until(lambda: server.recommend(user="held")["tier"] < 2, "the tier is held for ever")
    server.wait_replaced("monitor", pid)
