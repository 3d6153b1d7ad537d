"""Live traffic: visitors who ask a running server for lists and respond to what it shows them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from headwater.client import Client
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import RecommendRequest
from headwater.simulator.history import EVENT_TYPES, History
from headwater.simulator.life import Life
from headwater.simulator.people import COUNTRIES, DEVICES, user_id, user_position
from headwater.simulator.response import drawn_topics
from headwater.simulator.scenario import Scenario
from headwater.simulator.world import World

LIST_LENGTH = 10
_BIRTH_EVERY_MS = 30_000
_CLICKS_OF_STRANGERS = 0.15
_MOST_EVENTS = 500  # of one call


class Shown(NamedTuple):
    """A list that somebody saw: how many places it had, and how many of them were clicked."""

    user: str
    places: int
    clicks: int


@dataclass(frozen=True)
class News:
    """What a server is to hear of: new items, ids of items that are gone, events that none of its lists led to."""

    items: list[Item]
    gone: list[str]
    events: list[Event]


class Visitors(Protocol):
    """Who comes, what they are offered as context, how they respond, and what happens meanwhile."""

    def arrive(self, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        """The next visitor's id and the context of the request."""
        ...

    def respond(
        self, rng: np.random.Generator, user: str, shown: Sequence[str], now_ms: int, request_id: str
    ) -> list[Event]:
        """What the visitor does with the list."""
        ...

    def news(self, now_ms: int) -> News:
        """What has happened since the last time."""
        ...


class WorldVisitors:
    """The people of a :class:`World` that goes on from ``now_ms`` (default: the end of its history).

    They click by their tastes, go on while they like it, and come back the sooner the more they liked it; an item is born every
    30 seconds. ``scenario``: what happens to them.
    """

    def __init__(self, world: World, *, now_ms: int | None = None, scenario: Scenario | None = None) -> None:
        self.life = Life(world, now_ms=now_ms, scenario=scenario, births_per_day=0.0, newcomers=0.0)
        self._visits: dict[str, _Visit] = {}  # under way
        self._waiting: list[str] = []  # who wants another list
        self._held: list[Event] = []  # events that cannot arrive
        self._next_birth_ms = self.life.now_ms + _BIRTH_EVERY_MS

    def arrive(self, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        life, people = self.life, self.life.people
        if self._waiting:
            user = self._waiting.pop(0)
            who = user_position(user)
        else:
            rate = np.cumsum(people.activity[: life.humans] * (0.1 + life.contentment) * ~life.left)
            who = min(int(np.searchsorted(rate, rng.random() * rate[-1], "right")), life.humans - 1)
            user = user_id(who)
            about = int(drawn_topics(rng, np.cumsum(people.tastes[who : who + 1], axis=1))[0])
            self._visits[user] = _Visit(about)
        return user, {"country": COUNTRIES[people.country[who]], "device": DEVICES[people.device[who]]}

    def respond(
        self, rng: np.random.Generator, user: str, shown: Sequence[str], now_ms: int, request_id: str
    ) -> list[Event]:  # fmt: skip
        visit = self._visits.pop(user, None) or self._unasked(rng, user)
        outage = self.life.outage(now_ms)
        seen = [] if outage == "serving" else shown  # the list does not reach them
        events, chosen = self.life.visit(user, seen, now_ms, visit.about, request_id=request_id, surface="home")
        gained = visit.gained + float(chosen.gained[0])
        if seen and chosen.stays[0]:
            self._visits[user] = _Visit(int(chosen.about[0]), gained)
            self._waiting.append(user)
        else:
            self.life.finish(np.array([user_position(user)]), np.array([gained]))
        self._held += events
        if outage == "events":
            return []
        held, self._held = self._held, []
        return held

    def _unasked(self, rng: np.random.Generator, user: str) -> _Visit:
        """The visit of somebody who came by themselves."""
        who = user_position(user)
        return _Visit(int(drawn_topics(rng, np.cumsum(self.life.people.tastes[who : who + 1], axis=1))[0]))

    def news(self, now_ms: int) -> News:
        turn = self.life.advance(now_ms)
        born = turn.born
        if now_ms >= self._next_birth_ms:
            self._next_birth_ms = now_ms + _BIRTH_EVERY_MS
            born = born + self.life.birth(now_ms)
        return News(born, turn.gone, [] if turn.events is None else self._as_events(turn.events))

    def _as_events(self, happened: History) -> list[Event]:
        items = self.life.catalogue.items
        columns = zip(*(getattr(happened, name).tolist() for name in ("user", "item", "type", "time_ms")), strict=True)
        return [
            Event(user=user_id(user), item=items[item].id, type=EVENT_TYPES[kind], time=at_ms)
            for user, item, kind, at_ms in columns
        ]


@dataclass(frozen=True)
class _Visit:
    """A visit under way: what it is about, and the utility that it has brought so far."""

    about: int
    gained: float = 0.0


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

    def news(self, now_ms: int) -> News:  # noqa: ARG002
        return News([], [], [])


class LiveTraffic(threading.Thread):
    """A background thread that makes about ``events_per_s`` events a second until :meth:`stop`.

    ``now_ms`` is the time that events carry; ``on_error`` is told of calls that failed (traffic goes on).
    ``events`` and ``visits`` count what was sent, ``lists`` are what was shown, in order.
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
        self._now_ms, self.events_per_s, self._on_error = now_ms, events_per_s, on_error
        self._ended = threading.Event()
        self.events = self.visits = 0
        self.lists: list[Shown] = []

    def run(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            try:
                count = self.step()
            except HeadwaterError as error:
                self._on_error(error)
                count = LIST_LENGTH
            pause_s = max(count, 1) / self.events_per_s

    def step(self) -> int:
        """One list: ask, respond, send, with the news before it. Returns the number of events sent.

        Events are sent at once, so those that follow within seconds carry a time slightly ahead of the clock.
        """
        now_ms = self._now_ms()
        news = self._visitors.news(now_ms)
        if news.items:
            self._client.put_items(news.items)
        for item in news.gone:
            self._client.delete_item(item)
        for start in range(0, len(news.events), _MOST_EVENTS):
            self._client.send_events(news.events[start : start + _MOST_EVENTS])
        user, context = self._visitors.arrive(self._rng)
        answer = self._client.recommend(RecommendRequest(user=user, k=LIST_LENGTH, context=dict(context) or None))
        events = self._visitors.respond(self._rng, user, [item.id for item in answer.items], now_ms, answer.request_id)
        if events:
            self._client.send_events(events)
        self.visits += 1
        self.lists.append(Shown(user, len(answer.items), sum(event.type == "click" for event in events)))
        self.events += len(events) + len(news.events)
        return len(events)

    def stop(self) -> None:
        """End after the visit that is under way, and wait for it."""
        self._ended.set()
        if self.is_alive():
            self.join()
