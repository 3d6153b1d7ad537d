"""Opens every page of the console on a site of 50,000 items and a million users, with visitors: ``python -m tests.console.at_scale``.

It prepares the site (``--keep DIR``: once, and uses it again; the folder of ``headwater bench serve --ranker deep --keep DIR`` will do), starts
the server, lets somebody ask and click all the time, and prints one JSON object. The bars: first paint at most 1 s, nothing in the browser's
console, no serious finding of axe, nothing wider than the window. It ends with 1 where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import Page, expect, sync_playwright

import headwater
from headwater.cli.bench.setups import KeepBy, RankerKind, tables_of
from headwater.cli.bench.workload import Size, prepared
from headwater.cli.local import Server
from headwater.console.guard import ROOT
from headwater.console.pages import PAGES
from headwater.simulator.people import user_id
from tests.console.windows import DESKTOP, PHONE, Theme, Windows, findings, first_paint_ms, last_part_ms, too_wide
from tests.debian import program

BAR_MS = 1_000.0
LOOKS: tuple[tuple[str, tuple[int, int], Theme], ...] = (
    ("desktop-light", DESKTOP, "light"), ("desktop-dark", DESKTOP, "dark"), ("phone-light", PHONE, "light"), ("phone-dark", PHONE, "dark"),
)  # fmt: skip
ASKERS = 10_000
WARM_S = 15.0
PATIENCE_MS = 180_000.0  # an explanation is made at low priority: beside other work it takes a while


class Visitors(threading.Thread):
    """Asks for ``rate`` lists a second, and clicks on the first item of each."""

    def __init__(self, url: str, rate: float, seed: int) -> None:
        super().__init__(name="visitors", daemon=True)
        self.answered = self.failed = 0
        self._url, self._pause_s, self._random = url, 1.0 / rate, np.random.default_rng(seed)
        self._over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30.0) as http:
            while not self._over.wait(self._pause_s * self._random.exponential()):
                user = user_id(int(self._random.integers(ASKERS)))
                answer = http.post("/v1/recommend", json={"user": user, "k": 20})
                if not answer.is_success:
                    self.failed += 1
                    continue
                self.answered += 1
                said = answer.json()
                for first in said["items"][:1]:
                    event = {
                        "user": user,
                        "item": first["id"],
                        "type": "click",
                        "request_id": said["request_id"],
                        "position": 0,
                    }
                    self.failed += not http.post("/v1/events", json=event).is_success

    def stop(self) -> None:
        """End after the list that is under way."""
        self._over.set()
        self.join()


def paths_of(url: str) -> dict[str, str]:
    """Every page by its name: those of the navigation, and one of those that lead further."""
    with httpx.Client(base_url=url, timeout=30.0) as http:
        answer = http.post("/v1/recommend", json={"user": user_id(1), "k": 20}).json()
    found = {
        entry.path.removeprefix(ROOT).strip("/") or "overview": entry.path for page in PAGES for entry in page.ENTRIES
    }
    return found | {
        "item": f"{ROOT}/items/{answer['items'][0]['id']}", "list": f"{ROOT}/why/{answer['request_id']}", "bundle": f"{ROOT}/models/card/{answer['model']}",
        "items-by-clicks": f"{ROOT}/items?sort=item_click_6h", "feature": f"{ROOT}/features/item_click_30m", "user": f"{ROOT}/users",
    }  # fmt: skip


def look(windows: Windows, name: str, path: str, size: tuple[int, int], theme: Theme) -> dict[str, Any]:
    """What one page in one window comes to; a user's page is reached as people reach it."""
    page = windows.open(path, theme=theme, size=size)
    if name == "user":
        page.get_by_label("Id, as your systems send it").fill(user_id(1))
        page.get_by_role("button", name="Look").click()
        page.wait_for_url(f"**{ROOT}/users/*", timeout=PATIENCE_MS)
        page.locator("html[data-ready]").wait_for(state="attached")
    _settled(page)
    told = {
        "first_paint_ms": round(first_paint_ms(page), 1), "settled_ms": round(last_part_ms(page), 1),
        "console": windows.said(page), "axe": findings(page), "too_wide_px": too_wide(page),
    }  # fmt: skip
    page.context.close()
    return told


def _settled(page: Page) -> None:
    """Wait until what the page asked for came."""
    page.wait_for_timeout(50)
    expect(page.locator(".htmx-request")).to_have_count(0, timeout=PATIENCE_MS)


def missed(pages: dict[str, dict[str, Any]]) -> list[str]:
    """The bars that were missed, in words."""
    found = []
    for name, looks in pages.items():
        for how, told in looks.items():
            if told["first_paint_ms"] > BAR_MS:
                found.append(f"{name} {how}: first paint after {told['first_paint_ms']} ms")
            found += [f"{name} {how}: {what}" for what in (*told["console"], *told["axe"])]
            if told["too_wide_px"] > 0:
                found.append(f"{name} {how}: {told['too_wide_px']} px wider than the window")
    return found


@contextlib.contextmanager
def visited(url: str, rate: float, seed: int) -> Iterator[Visitors]:
    """The server with visitors, when they have been there for a while."""
    visitors = Visitors(url, rate, seed)
    visitors.start()
    try:
        time.sleep(WARM_S)
        yield visitors
    finally:
        visitors.stop()


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description="Open every page of the console on a large site.")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=10.0, help="lists a second that visitors ask for [default: 10]")
    parser.add_argument("--keep", type=Path, help="a folder to prepare once and use again")
    parser.add_argument("--seed", type=int, default=7)
    said = parser.parse_args()
    size = Size(seed=said.seed, users=said.users, items=said.items, events=300_000, recent=50)
    tables = tables_of(RankerKind.DEEP, 500, 300, KeepBy.MERGED)
    pages: dict[str, dict[str, Any]] = {}
    with (
        prepared(size, said.keep, tables) as ready,
        Server(ready.site, patience_s=600.0) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=program("chromium", "chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        windows = Windows(browser, server.url, patience_ms=PATIENCE_MS)
        with visited(server.url, said.rate, said.seed) as visitors:
            for name, path in paths_of(server.url).items():
                pages[name] = {how: look(windows, name, path, size, theme) for how, size, theme in LOOKS}
                sys.stderr.write(f"{name}: {[told['first_paint_ms'] for told in pages[name].values()]} ms\n")
        version = browser.version
        browser.close()
    found = missed(pages)
    figures = {
        "items": said.items, "users": said.users, "seed": said.seed, "events": ready.events, "rate": said.rate,
        "lists": visitors.answered, "failed": visitors.failed, "missed": found,
        "worst_first_paint_ms": max(told["first_paint_ms"] for looks in pages.values() for told in looks.values()), "pages": pages,
        "versions": {"headwater": headwater.__version__, "chromium": version, "python": platform.python_version()},
        "machine": platform.platform(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(figures) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
