"""The pages of the group See in a browser, on a live system."""

from __future__ import annotations

import pytest

from tests.console.windows import DESKTOP, PHONE, Theme, Windows


@pytest.mark.parametrize(("theme", "size"), [("light", DESKTOP), ("dark", PHONE)])
def test_the_overview_is_sound(windows: Windows, theme: Theme, size: tuple[int, int]) -> None:
    page = windows.open("/console", theme=theme, size=size)
    windows.assert_sound(page, f"overview-{theme}")
