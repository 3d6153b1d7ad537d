"""What a disk can do to the log, in short: power cuts, damage, failing syncs. ``make reliability`` has the full forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import damage, eio, power
from tests.reliability.faults import NoCompilerError, library


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """Faults are made by a little C."""
    try:
        library()
    except NoCompilerError as error:
        pytest.skip(str(error))


def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    outcome = power.run(tmp_path, points=12, commits=60, seed=7, blind_points=6)
    print(outcome)  # noqa: T201  (the seed stands in it)
    assert outcome.good
    assert outcome.acked_events > 500
    assert outcome.unsynced_bytes > 0


def test_damaged_files_serve_nothing_wrong(tmp_path: Path) -> None:
    outcome = damage.run(tmp_path, seeds=30, seed=7)
    print(outcome)  # noqa: T201
    assert outcome.good
    assert outcome.refused > 0


def test_no_acknowledgement_follows_a_failed_sync(tmp_path: Path) -> None:
    outcome = eio.run(tmp_path, rounds=1, seed=7)
    print(outcome)  # noqa: T201
    assert (outcome.acked_after, outcome.lost) == (0, 0)
    assert outcome.exit_codes == [70], "it ends; the full form says how soon"
