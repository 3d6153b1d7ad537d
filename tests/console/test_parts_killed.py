"""Every page in a browser while the system is empty, and while processes of a real server are dead and stay so."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from headwater.console.guard import ROOT
from headwater.console.pages import PAGES
from headwater.online.answering import PING_S
from tests.console.windows import DESKTOP, PHONE, Windows
from tests.online.running import CONFIG, Running, catalogue

PATHS = [entry.path for page in PAGES for entry in page.ENTRIES]
MONITORED = CONFIG.partition("[monitoring]")[0] + '[monitoring]\nevery = "1s"\n'
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A system with all its processes and nothing in it; the tests of this file come in their order."""
    with Running(tmp_path_factory.mktemp("whole"), MONITORED) as whole:
        yield whole


@pytest.fixture
def opened(whole: Running, chromium: Browser) -> Iterator[Windows]:
    """Windows on it."""
    opened = Windows(chromium, whole.url)
    yield opened
    opened.close()


def test_with_nothing_in_it_every_page_says_what_is_missing(opened: Windows) -> None:
    page = opened.open(ROOT, size=PHONE)
    said = {path: see(page, path) for path in PATHS}
    for path, words in {
        "": "Event log", "/playground": "Nothing may be shown", "/users": "Nobody has done anything yet", "/map": "No item has a vector yet",
        "/models": "There is no bundle yet", "/experiments": "There are none yet", "/audit": "Nothing was changed yet",
    }.items():  # fmt: skip
        assert words in said[ROOT + path], said[ROOT + path]
    assert not any("Not all of the system is up" in text for text in said.values())
    opened.assert_sound(page)


def test_a_writer_that_hangs_holds_up_one_page(whole: Running) -> None:
    (writer,) = whole.pids("writer")
    with httpx.Client(base_url=whole.url, timeout=30.0) as http:
        os.kill(writer, signal.SIGSTOP)
        try:
            assert "writer: no answer" in http.get(f"{ROOT}/parts/down").text
            began = time.monotonic()
            pages = [http.get(f"{ROOT}/parts/down").text for _ in range(40)]
            took_s = time.monotonic() - began
        finally:
            os.kill(writer, signal.SIGCONT)
        assert all("it hangs; pages do not wait for it" in page for page in pages)
        assert took_s < 40 * PING_S, "if each waited, it would be more"
        until = time.monotonic() + 1e-3 * PATIENCE_MS
        while "writer" in http.get(f"{ROOT}/parts/down").text:
            assert time.monotonic() < until


def test_with_processes_killed_every_page_holds_and_says_so(whole: Running, opened: Windows) -> None:
    whole.reflected(whole.ingest("/v1/items", catalogue(20)))
    whole.ingest("/v1/events", [{"user": "ada", "item": f"item-{step}", "type": "click"} for step in range(5)])
    page = opened.open(ROOT, theme="dark", size=DESKTOP)
    with nobody_starts_another(whole):
        for part in ("monitor", "fold", "writer"):
            os.kill(whole.pids(part)[0], signal.SIGKILL)
        for words in ("fold: not connected", "writer: no answer"):
            _until_noticed(page, ROOT, words)
        for path in [*PATHS, f"{ROOT}/items/item-3", f"{ROOT}/playground?number=1"]:
            text = see(page, path)
            assert "writer: no answer" in text, f"{path}: {text}"
            assert "fold: not connected" in text, f"{path}: {text}"
        _until_noticed(page, f"{ROOT}/alerts", "The monitor does not look")  # by now its last word is old
        assert "The monitor has stopped looking" in see(page, ROOT)
        for path, name in ((ROOT, "overview"), (f"{ROOT}/items/item-3", "item")):
            see(page, path)
            opened.assert_sound(page, f"{name}-parts-killed-dark")
    whole.wait_ready()
    assert "Not all of the system is up" not in see(page, f"{ROOT}/items")


@contextlib.contextmanager
def nobody_starts_another(whole: Running) -> Iterator[None]:
    """The supervisor is stopped meanwhile: what is killed stays dead."""
    os.kill(whole.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(whole.process.pid, signal.SIGCONT)


def see(page: Page, path: str) -> str:
    """What the page says once all its parts came."""
    page.goto(path)
    page.locator("html[data-ready]").wait_for(state="attached")
    for _ in range(2):  # what came may ask for more, a moment later
        expect(page.locator(".htmx-request")).to_have_count(0, timeout=PATIENCE_MS)
        page.wait_for_timeout(40)
    return page.locator("main").inner_text()


def _until_noticed(page: Page, path: str, words: str) -> None:
    """A worker notices at its next ping; whoever reads what the monitor wrote, by its age."""
    until = time.monotonic() + 1e-3 * PATIENCE_MS
    while words not in see(page, path):
        assert time.monotonic() < until, f"{path} does not say {words!r}"
