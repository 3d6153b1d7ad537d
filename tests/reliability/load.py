"""Load on a running system: threads that post events and ask for lists until told to stop."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import httpx

CLIENT_TIMEOUT_S = 60.0  # what answers may be a process that is being started, beside other work
RETRY_S = 0.02


class Poster:
    """Posts batches of events with ids of their own; a batch that was not acknowledged is sent again.

    ``acked`` are the ids of events that a 200 was received for. ``pause_s``: between two batches.
    """

    def __init__(self, url: str, name: str, *, seed: int, users: int, items: int, batch: int, pause_s: float) -> None:
        self.acked: list[str] = []
        self.retries = 0
        self._url = url
        self._name = name
        self._random = random.Random(seed)
        self._users, self._items, self._batch, self._pause_s = users, items, batch, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._sent = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the batch that is under way was acknowledged."""
        self._stop.set()
        self._thread.join()

    def _next(self) -> list[dict[str, Any]]:
        draw, events = self._random, []
        for _ in range(self._batch):
            self._sent += 1
            events.append(
                {
                    "user": f"user-{draw.randrange(self._users)}",
                    "item": f"item-{int(self._items * draw.random() ** 2)}",
                    "type": draw.choice(("impression", "view", "click", "click", "like", "purchase", "skip")),
                    "event_id": f"{self._name}-{self._sent}",
                    "attributes": {"country": draw.choice(("DE", "FR")), "device": draw.choice(("tv", "phone"))},
                }
            )
        return events

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=CLIENT_TIMEOUT_S) as http:
            while not self._stop.is_set():
                events = self._next()
                until = time.monotonic() + 2.0 * CLIENT_TIMEOUT_S
                while not self._post(http, events):
                    self.retries += 1
                    if time.monotonic() > until:
                        return  # the system is gone: what was not acknowledged is not counted
                    time.sleep(RETRY_S)
                self.acked.extend(event["event_id"] for event in events)
                time.sleep(self._pause_s)

    def _post(self, http: httpx.Client, events: list[dict[str, Any]]) -> bool:
        try:
            response = http.post("/v1/events", json=events)
        except httpx.TransportError:
            return False
        if response.status_code != 200:
            return False
        reply = response.json()
        return bool(reply["accepted"] + reply["duplicates"] == len(events))


class Asker:
    """Asks for lists, each failed request once more; ``failed`` counts those that failed twice."""

    def __init__(self, url: str, *, seed: int, users: int, k: int, pause_s: float) -> None:
        self.answered = 0
        self.retried = 0
        self.failed = 0
        self._url = url
        self._random = random.Random(seed)
        self._users, self._k, self._pause_s = users, k, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asker")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=CLIENT_TIMEOUT_S) as http:
            while not self._stop.is_set():
                user = f"user-{self._random.randrange(self._users)}"
                context = {"country": self._random.choice(("DE", "FR"))} if self._random.random() < 0.5 else None
                request = {"user": user, "k": self._k, "context": context}
                if not self._ask(http, request):
                    self.retried += 1
                    if not self._ask(http, request):
                        self.failed += 1
                time.sleep(self._pause_s)

    def _ask(self, http: httpx.Client, request: dict[str, Any]) -> bool:
        try:
            response = http.post("/v1/recommend", json=request)
        except httpx.TransportError:
            return False
        self.answered += response.status_code == 200
        return response.status_code == 200
