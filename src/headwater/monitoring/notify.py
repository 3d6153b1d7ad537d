"""Telling others: JSON to webhooks, from a thread of its own, so that no round waits for a far machine."""

from __future__ import annotations

import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

MOST_WAITING = 1_000
TRIES, FIRST_PAUSE_S, TIMEOUT_S = 4, 1.0, 5.0

log = structlog.get_logger()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Only the URLs of the configuration are told, not those that they lead to."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Notifier:
    """Tells every one of ``urls``. A message is tried :data:`TRIES` times; when more than :data:`MOST_WAITING` wait, new ones are dropped and
    that is said. URLs may hold secrets, so the log names hosts only.
    """

    def __init__(self, urls: Sequence[str], *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._urls = list(urls)
        self._pause_s = first_pause_s
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(MOST_WAITING)
        self._open = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({})).open
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        if urls:
            self._thread.start()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Have ``message`` sent to all, soon."""
        body = msgspec.json.encode(message)
        for url in self._urls:
            try:
                self._waiting.put_nowait((url, body))
            except queue.Full:
                log.error("notification_dropped", host=urlsplit(url).hostname, waiting=MOST_WAITING)

    def close(self, patience_s: float = TIMEOUT_S) -> None:
        """Send what waits, for at most ``patience_s``."""
        if not self._urls:
            return
        until = time.monotonic() + patience_s
        while self._waiting.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)
        self._over.set()
        if self._waiting.unfinished_tasks:
            log.error("notifications_lost", waiting=self._waiting.unfinished_tasks)

    def _run(self) -> None:
        while True:
            message = self._waiting.get()
            if message is not None:
                self._send(*message)
            self._waiting.task_done()

    def _send(self, url: str, body: bytes) -> None:
        host = urlsplit(url).hostname
        request = urllib.request.Request(url, body, {"content-type": "application/json", "user-agent": "headwater"})  # noqa: S310
        why = ""
        for number in range(TRIES):
            try:
                with self._open(request, timeout=TIMEOUT_S):
                    return
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                error.close()
                if error.code < 500 and error.code != 429:
                    break  # it would say the same again
            except (OSError, ValueError) as error:
                why = type(error).__name__
            if number + 1 < TRIES and self._over.wait(self._pause_s * 2**number):
                break
        log.error("notification_failed", host=host, reason=why)
