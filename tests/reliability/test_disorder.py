"""The short form of :mod:`tests.reliability.disorder`."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.disorder import run


def test_each_event_counts_once_in_whatever_order_it_comes(tmp_path: Path) -> None:
    outcome = run(tmp_path, events=1_500, duplicates=0.2, restarts=4, seed=3)
    assert (outcome.doubled, outcome.lost, outcome.state_equal) == (0, 0, True)
    assert outcome.duplicates_refused == outcome.sent - outcome.unique == 300
    assert outcome.late > 300
    assert outcome.rows > 300
