"""Live traffic: visitors who ask a running server for lists and respond to what it shows them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from headwater.client import Client
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import RecommendRequest
from headwater.simulator.people import COUNTRIES, DEVICES, user_id
from headwater.simulator.world import World

LIST_LENGTH = 10
_BIRTH_EVERY_MS = 30_000
_CLICKS_OF_STRANGERS = 0.15


class Visitors(Protocol):
    """Who comes, what they are offered as context, and how they respond."""

    def arrive(self, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        """The next visitor's id and the context of the request."""
        ...

    def respond(
        self, rng: np.random.Generator, user: str, shown: Sequence[str], now_ms: int, request_id: str
    ) -> list[Event]:
        """What the visitor does with the list."""
        ...

    def birth(self) -> Item | None:
        """The next new item of the catalogue; ``None`` when there are no more."""
        ...


class WorldVisitors:
    """The people of a :class:`World`: they click by their tastes, and the world's future items are born."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chances = np.cumsum(world.people.activity) / world.people.activity.sum()
        self._unborn = iter(world.items_born(world.end_ms - 1, world.end_ms * 2))

    def arrive(self, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        who = min(int(np.searchsorted(self._chances, rng.random())), len(self._chances) - 1)
        people = self._world.people
        return user_id(who), {"country": COUNTRIES[people.country[who]], "device": DEVICES[people.device[who]]}

    def respond(
        self, rng: np.random.Generator, user: str, shown: Sequence[str], now_ms: int, request_id: str
    ) -> list[Event]:
        return self._world.visit(rng, user, shown, now_ms, request_id=request_id, surface="home")

    def birth(self) -> Item | None:
        return next(self._unborn, None)


class PlainVisitors:
    """Known users without known tastes: they click any item with the same chance. For real catalogues."""

    def __init__(self, users: Sequence[str]) -> None:
        self._users = users

    def arrive(self, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        return self._users[int(rng.integers(len(self._users)))], {}

    def respond(
        self, rng: np.random.Generator, user: str, shown: Sequence[str], now_ms: int, request_id: str
    ) -> list[Event]:
        def event(kind: str, place: int, after_ms: int) -> Event:
            return Event(
                user=user,
                item=shown[place],
                type=kind,
                time=now_ms + after_ms,
                surface="home",
                request_id=request_id,
                position=place,
            )

        clicked = np.flatnonzero(rng.random(len(shown)) < _CLICKS_OF_STRANGERS)
        return [event("impression", place, 0) for place in range(len(shown))] + [
            event("click", int(place), 2_000) for place in clicked
        ]

    def birth(self) -> Item | None:
        return None


class LiveTraffic(threading.Thread):
    """A background thread that makes about ``events_per_s`` events a second until :meth:`stop`.

    ``now_ms`` is the time that events carry; ``on_error`` is told of calls that failed (traffic goes on).
    ``events`` and ``visits`` count what was sent.
    """

    def __init__(
        self,
        client: Client,
        visitors: Visitors,
        *,
        seed: int,
        now_ms: Callable[[], int],
        events_per_s: float = 10.0,
        on_error: Callable[[HeadwaterError], None],
    ) -> None:
        super().__init__(name="traffic", daemon=True)
        self._client, self._visitors = client, visitors
        self._rng = np.random.default_rng([seed, 5])
        self._now_ms, self._events_per_s, self._on_error = now_ms, events_per_s, on_error
        self._ended = threading.Event()
        self._next_birth_ms = now_ms() + _BIRTH_EVERY_MS
        self.events = self.visits = 0

    def run(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            try:
                count = self.step()
            except HeadwaterError as error:
                self._on_error(error)
                count = LIST_LENGTH
            pause_s = max(count, 1) / self._events_per_s

    def step(self) -> int:
        """One visit: ask, respond, send; now and then an item is born. Returns the number of events sent.

        Events are sent at once, so those that follow within seconds carry a time slightly ahead of the clock.
        """
        now_ms = self._now_ms()
        if now_ms >= self._next_birth_ms:
            self._next_birth_ms = now_ms + _BIRTH_EVERY_MS
            born = self._visitors.birth()
            if born is not None:
                self._client.put_items([msgspec.structs.replace(born, published=now_ms, expires=None)])
        user, context = self._visitors.arrive(self._rng)
        answer = self._client.recommend(RecommendRequest(user=user, k=LIST_LENGTH, context=dict(context) or None))
        events = self._visitors.respond(self._rng, user, [item.id for item in answer.items], now_ms, answer.request_id)
        if events:
            self._client.send_events(events)
        self.visits += 1
        self.events += len(events)
        return len(events)

    def stop(self) -> None:
        """End after the visit that is under way, and wait for it."""
        self._ended.set()
        if self.is_alive():
            self.join()
