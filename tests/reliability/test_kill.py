"""The short form of :mod:`tests.reliability.kill`; ``HEADWATER_KILLS=30`` makes it the full one."""

from __future__ import annotations

import os
from pathlib import Path

from tests.reliability.kill import run


def test_kills_lose_nothing(tmp_path: Path) -> None:
    outcome = run(tmp_path, kills=int(os.environ.get("HEADWATER_KILLS", "6")), seed=7)
    print(outcome)  # noqa: T201  (the seed stands in it)
    assert outcome.acked > 0
    assert outcome.lost == 0
    assert outcome.doubled == 0
    assert outcome.state_equal
    assert outcome.requests_failed == 0
