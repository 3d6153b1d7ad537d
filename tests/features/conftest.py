"""Generated logs hold many things that the fold warns of; the tests are silent about them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs


@pytest.fixture(autouse=True, scope="package")
def quiet() -> Iterator[None]:
    """Keep log lines out of the tests' output."""
    with capture_logs():
        yield
