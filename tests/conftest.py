"""What every test shares: a home of its own, so that no test reads or writes a developer's files."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA_SETS = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the shell do not reach the tests."""
    for name in ("HEADWATER_CONFIG", "HEADWATER_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def data_sets() -> Path:
    """The folder of real data sets; where it is absent, the test is skipped and says so."""
    if not DATA_SETS.is_dir():
        pytest.skip(f"no real data at {DATA_SETS}")
    return DATA_SETS
