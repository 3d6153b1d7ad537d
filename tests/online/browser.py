"""A real browser for tests: Debian's Chromium, driven by its chromedriver over plain HTTP (W3C WebDriver)."""

from __future__ import annotations

import re
import subprocess
import tempfile
from types import TracebackType
from typing import Any, Self

import httpx

from tests.debian import program

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, by the standard
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=800,600",
)  # fmt: skip


class Browser:
    """One window of a fresh profile, from ``__enter__`` to ``__exit__``."""

    def __enter__(self) -> Self:
        driver = program("chromedriver", "chromium-driver")
        self._profile = tempfile.TemporaryDirectory(prefix="headwater-chromium-", ignore_cleanup_errors=True)
        self._http = httpx.Client(timeout=60.0)
        self._process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            self._http.base_url = httpx.URL(f"http://127.0.0.1:{self._port()}")
            options = {
                "binary": program("chromium", "chromium"),
                "args": [*_FLAGS, f"--user-data-dir={self._profile.name}"],
            }
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._ask("DELETE", self._session)
        finally:
            self._end()

    def open(self, url: str) -> None:
        """Go to ``url``; returns when the page has loaded."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of the body of an async function; a promise is waited for."""
        body = f"const done = arguments[arguments.length - 1]; (async (...args) => {{ {script} }})(...arguments)"
        body += ".then((value) => done({value}), (error) => done({error: String(error)}))"
        answer = self._ask("POST", f"{self._session}/execute/async", {"script": body, "args": list(arguments)})
        assert "error" not in answer, answer
        return answer.get("value")

    def click(self, selector: str) -> None:
        """A click as of a mouse in the middle of the element."""
        found = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"{self._session}/element/{found[_ELEMENT]}/click", {})

    def said(self) -> list[str]:
        """What stood in the console since the last call."""
        return [line["message"] for line in self._ask("POST", f"{self._session}/se/log", {"type": "browser"})]

    def _port(self) -> int:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if (found := re.search(r"started successfully on port (\d+)", line)) is not None:
                return int(found[1])
        raise RuntimeError("chromedriver did not start:\n" + "".join(said))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        response = self._http.request(method, path, json=body)
        value = response.json()["value"]
        assert response.status_code == 200, f"{method} {path}: {value}"
        return value

    def _end(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._profile.cleanup()
