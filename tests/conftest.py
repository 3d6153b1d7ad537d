"""What every test shares: a home of its own, so that no test reads or writes a developer's files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from headwater.online.library_logs import LibraryLines

# What a run finds must not depend on luck or on how busy the machine is. Other examples: `--hypothesis-profile default`.
settings.register_profile(
    "stable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("stable")

DATA_SETS = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the shell do not reach the tests."""
    for name in ("HEADWATER_CONFIG", "HEADWATER_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that a test runs in process configures logging; the next test does not inherit that."""
    yield
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LibraryLines)]:
        root.removeHandler(handler)
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def data_sets() -> Path:
    """The folder of real data sets; where it is absent, the test is skipped and says so."""
    if not DATA_SETS.is_dir():
        pytest.skip(f"no real data at {DATA_SETS}")
    return DATA_SETS
