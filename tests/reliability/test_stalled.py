"""A ranker that stalls, in short; ``HEADWATER_STALL_S=30`` makes it the full form."""

from __future__ import annotations

import os
from pathlib import Path

from tests.reliability import stalled


def test_a_stalled_ranker_fails_no_request_and_every_list_says_so(tmp_path: Path) -> None:
    outcome = stalled.run(tmp_path, stall_s=float(os.environ.get("HEADWATER_STALL_S", "4")), rate=60.0, seed=7)
    print(outcome)  # noqa: T201  (the seed stands in it)
    assert outcome.requests > 100
    assert (outcome.failed, outcome.unlabelled) == (0, 0)
    assert outcome.stalls >= 1
    assert set(outcome.tiers) <= {"1", "2", "3", "4"}
