"""What every test shares: a home of its own, so that no test reads or writes a developer's files."""

from __future__ import annotations

import logging
from collections import Counter
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

# Few tests, each of them long: started last, one of these would run for a minute while the other processes wait.
LONG_FILES = [
    f"tests/{name}.py"
    for name in (
        "test_walkthrough", "online/test_flip", "online/test_learn", "reliability/test_site", "reliability/test_bundles", "reliability/test_kill",
        "online/test_serve_redis", "console/test_parts_killed", "online/test_rules", "online/test_roles", "reliability/test_stalled",
        "online/test_commands", "online/test_tables", "online/test_clock", "reliability/test_replay", "reliability/test_overload", "test_howtos",
    )
]  # fmt: skip

DATA_SETS = Path(__file__).parent.parent.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, then those with many tests: `make test` gives each process the next file of this order."""

    def file_of(item: pytest.Item) -> str:
        return item.nodeid.partition("::")[0]

    tests = Counter(map(file_of, items))
    first = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (first.get(file_of(item), len(first)), -tests[file_of(item)]))


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
