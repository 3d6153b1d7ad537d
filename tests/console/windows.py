"""A browser that looks at the console, and what is expected of every page it sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page

Theme = Literal["light", "dark"]
DESKTOP, PHONE = (1280, 900), (390, 844)
SCREENSHOTS = "HEADWATER_SCREENSHOTS"
"""The environment variable that names a folder for screenshots; without it none are taken."""


class Windows:
    """Opens windows of one browser on one server, and closes them; whatever they wait for may take ``patience_ms``."""

    def __init__(self, browser: Browser, url: str, *, patience_ms: float = 120_000.0) -> None:
        self._browser, self._url, self._patience_ms = browser, url, patience_ms
        self._said: dict[int, list[str]] = {}

    def open(self, path: str, *, theme: Theme = "light", size: tuple[int, int] = DESKTOP) -> Page:
        """A window of a fresh visitor, gone to ``path``."""
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=theme,
            base_url=self._url,
            reduced_motion="reduce",  # colours that are on their way from one theme to the other are no finding
        )
        context.set_default_timeout(self._patience_ms)
        page = context.new_page()
        said = self._said[id(page)] = []

        def hear(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                said.append(f"{message.type}: {message.text}")

        page.on("console", hear)
        page.on("pageerror", lambda error: said.append(f"pageerror: {error}"))
        page.goto(path)
        page.locator("html[data-ready]").wait_for(state="attached")
        page.wait_for_load_state("networkidle") if _is_still(page) else page.wait_for_timeout(300)
        return page

    def close(self) -> None:
        """Close all windows."""
        for context in self._browser.contexts:
            context.close()

    def said(self, page: Page) -> list[str]:
        """The errors and warnings in the browser's console."""
        return self._said[id(page)]

    def assert_sound(self, page: Page, name: str = "") -> None:
        """Nothing is in the browser's console, nothing stands out of the page's width, and axe finds nothing serious.

        ``name``: what a screenshot is called, where screenshots are wanted.
        """
        assert self.said(page) == []
        found = findings(page)
        assert found == [], "\n".join(found)
        wide = too_wide(page)
        assert wide <= 0, f"{page.url} is {wide} px wider than the window"
        folder = os.environ.get(SCREENSHOTS)
        if folder and name:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def findings(page: Page) -> list[str]:
    """What axe finds that is serious."""
    return [
        f"{violation['id']} ({violation['impact']}): {[node['target'] for node in violation['nodes']][:4]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def too_wide(page: Page) -> int:
    """Pixels that the page is wider than its window."""
    found: Any = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return int(found)


def first_paint_ms(page: Page) -> float:
    """Milliseconds from the start of the navigation to the first contentful paint."""
    found: Any = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)[0] ?? 0"
    )
    return float(found)


def last_part_ms(page: Page) -> float:
    """Milliseconds from the start of the navigation to the end of the last answer that the page has got."""
    found: Any = page.evaluate(
        "Math.max(...['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind)).map((entry) => entry.responseEnd))"
    )
    return float(found)


def _is_still(page: Page) -> bool:
    """Whether the page asks for nothing by itself: one that refreshes all the time never falls idle."""
    return page.locator("[hx-trigger*=every], [data-every]").count() == 0
