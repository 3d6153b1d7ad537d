"""Takes the screenshots of the README: ``python -m tests.console.screenshots`` from the repository's root.

It starts ``headwater demo`` with visitors, lets it run for a minute, and looks at the console; with ``--url`` it looks at a server that runs
already. The pictures go to ``docs/images``.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.console.windows import Theme
from tests.debian import program

FOLDER = Path(__file__).parents[2] / "docs" / "images"
MOST_BYTES = 200_000
SIZE = (1280, 820)
TRAFFIC_S = 60.0
START_S = 600.0
PATIENCE_MS = 60_000.0


def overview(page: Page) -> None:
    """The planes, a few seconds after somebody began to look: then there are rates."""
    page.goto("/console")
    page.wait_for_timeout(12_000)


def playground(page: Page) -> None:
    """A new visitor after three clicks."""
    page.goto("/console/playground?k=10")
    for _ in range(3):
        page.wait_for_timeout(500)
        tile = page.locator(".tile:not(:has(.move.down))").nth(1)
        tile.get_by_role("button", name="click").click(timeout=PATIENCE_MS)
        page.wait_for_timeout(2_000)
    page.evaluate("window.scrollTo(0, 0)")


def why(page: Page) -> None:
    """The newest list of the log."""
    page.goto("/console/why")
    page.locator("#newest a.button").first.click(timeout=PATIENCE_MS)
    page.locator(".whylist").wait_for(timeout=PATIENCE_MS)
    page.wait_for_timeout(1_000)
    page.evaluate("document.querySelector('.whylist').closest('section').scrollIntoView()")
    page.evaluate("window.scrollBy(0, -75)")  # the bar above stays where it is


SHOTS: tuple[tuple[str, Theme, Callable[[Page], None]], ...] = (
    ("console-overview", "light", overview),
    ("console-playground", "light", playground),
    ("console-why", "dark", why),
)


def take(url: str, folder: Path) -> None:
    """Take all of them of the server at ``url``.

    Raises:
        RuntimeError: one is larger than the README should load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium", "chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, theme, look in SHOTS:
            context = browser.new_context(
                viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme=theme, base_url=url
            )
            page = context.new_page()
            look(page)
            path = folder / f"{name}.png"
            page.mouse.move(1, 1)
            page.screenshot(path=str(path))
            context.close()
            size = path.stat().st_size
            sys.stdout.write(f"{path}: {size:,} bytes\n")
            if size > MOST_BYTES:
                raise RuntimeError(f"{path} has {size:,} bytes, more than {MOST_BYTES:,}")
        browser.close()


@contextlib.contextmanager
def demo() -> Iterator[str]:
    """``headwater demo`` with visitors, from when it serves on; gives its address."""
    command = [sys.executable, "-m", "headwater.cli.main", "demo", "--scenario", "viral-item"]
    with tempfile.TemporaryDirectory(prefix="headwater-shots-") as folder, subprocess.Popen(
        [*command, "--keep", folder], stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            until = time.monotonic() + START_S
            for line in process.stdout:
                if (found := re.search(r"Serving at (http://\S+)", line)) is not None:
                    time.sleep(TRAFFIC_S)
                    yield found[1]
                    return
                if time.monotonic() > until:
                    break
            raise RuntimeError("the demo did not come to serve")
        finally:
            process.terminate()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Take the screenshots of the README.")
    parser.add_argument("--url", help="a server that runs already [default: start the demo]")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they go [default: docs/images]")
    said = parser.parse_args()
    if said.url:
        take(said.url, said.folder)
        return
    with demo() as url:
        take(url, said.folder)


if __name__ == "__main__":
    main()
