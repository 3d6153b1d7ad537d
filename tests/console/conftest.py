"""One live system for all browser tests of the console, with people who use it, and one browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.console.windows import Windows
from tests.debian import program
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue, publish_ranker

USERS, ITEMS = 12, 60
GATE = "\n[gate]\nslower = 100.0  # the machine that runs tests is busy with other things\n"
_HIDDEN = ({"id": "item-hidden", "title": "Taken down", "categories": ["topic-1"], "available": False},)


class Site(Running):
    """The running system. ``current`` and ``former`` are its bundles, ``lists`` the ids of the requests that were answered."""

    current: str
    former: str
    lists: list[str]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A system with two bundles, 60 items, 12 users with profiles and histories, and the lists that they got."""
    with Site(tmp_path_factory.mktemp("console"), CONFIG + GATE) as site:
        site.former = publish_ranker(site.data, site.config, seed=1, created_ms=1_772_000_000_000)
        site.current = publish_ranker(site.data, site.config, seed=2, created_ms=1_772_100_000_000)
        site.ingest("/v1/items", [*catalogue(ITEMS), *_HIDDEN])
        site.ingest("/v1/users", [_profile(user) for user in range(USERS)])
        token = site.ingest("/v1/events", [event for user in range(USERS) for event in _history(user)])
        site.reflected(token, patience_s=PATIENCE_S)
        site.lists = [
            site.recommend(user=f"user-{user}", k=8, token=token, context={"country": "DE"})["request_id"]
            for user in range(USERS)
        ]
        yield site


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, for one file of tests: while it is open a loop runs in this thread, which tests of other files have no use for."""
    expect.set_options(timeout=1e3 * PATIENCE_S)  # five seconds are little where other tests run beside
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium", "chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def windows(chromium: Browser, site: Site) -> Iterator[Windows]:
    """Windows on the live system: ``windows.open("/console", theme="dark", size=PHONE)``, ``windows.assert_sound(page)``."""
    windows = Windows(chromium, site.url)
    yield windows
    windows.close()


@pytest.fixture
def browser(windows: Windows) -> Page:
    """A window on the overview of the live system."""
    return windows.open("/console")


def _profile(user: int) -> dict[str, Any]:
    return {"id": f"user-{user}", "attributes": {"country": "DE" if user % 2 else "FR"}}


def _history(user: int) -> list[dict[str, Any]]:
    """Ten things that a user did; each likes a topic of their own."""
    return [
        {"user": f"user-{user}", "item": f"item-{(user + 10 * step) % ITEMS}", "type": kind}
        for step, kind in enumerate(("impression", "click", "impression", "click", "purchase"))
    ]
