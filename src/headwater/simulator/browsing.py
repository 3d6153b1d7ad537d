"""What people did before anybody recommended anything to them: they came across items, list by list, and responded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headwater.simulator.catalogue import HOUR_MS, TOPICS
from headwater.simulator.history import CLICK, IMPRESSION, PURCHASE, VIEW, History, in_order
from headwater.simulator.people import DEVICES
from headwater.simulator.response import POSITION_DECAY, Pairs, Seen, click_chance, delays, draw, drawn_topics, respond

if TYPE_CHECKING:
    from headwater.simulator.world import World

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LIST_LENGTH = 5
_MOST_LISTS = 7  # of one visit
_STAY = 0.62  # chance that a visit goes on after a list
TURNS = 0.8  # chance that a visit turns to what was clicked


class Browsing:
    """People of ``world`` come across its items by popularity, newness and taste; see :meth:`history`."""

    def __init__(self, world: World) -> None:
        self.world = world
        topic = world.catalogue.topic
        self._order = np.argsort(topic, kind="stable")
        self._bounds = np.searchsorted(topic[self._order], np.arange(TOPICS + 1))
        self._prices = np.array([item.price for item in world.catalogue.items], np.float32)
        self._seen = Seen()
        self._sessions = self._listings = 0

    def history(self, rng: np.random.Generator) -> History:
        """All hours of the world, sorted by time."""
        parts: list[History] = []
        for hour in range(self.world.hours):
            parts.extend(self._hour(rng, self.world.start_ms + hour * HOUR_MS))
        return in_order(parts)

    def _hour(self, rng: np.random.Generator, at_ms: int) -> list[History]:
        """The visits that start in one hour."""
        catalogue, people = self.world.catalogue, self.world.people
        rate = people.activity * people.presence(at_ms)[people.country] * self.world.visits_per_day / 24
        users = np.flatnonzero(rng.random(len(people)) < -np.expm1(-rate))
        starts = at_ms + (rng.random(len(users)) * HOUR_MS).astype(np.int64)
        about = drawn_topics(rng, np.cumsum(people.tastes[users], axis=1))
        device = np.where(
            rng.random(len(users)) < 0.85, people.device[users], rng.integers(0, len(DEVICES), len(users))
        )
        burst = self.world.burst(at_ms)
        pull, exposure = draw(catalogue, burst, at_ms), np.cumsum(self._exposure(burst, at_ms)[self._order])
        numbers = self._sessions + np.arange(len(users))
        self._sessions += len(users)
        clock = starts
        parts: list[History] = []
        for _ in range(_MOST_LISTS):
            if len(users) == 0:
                break
            shown, fresh, keys = self._shown(rng, users, about, exposure)
            chance = click_chance(
                Pairs.of(catalogue, people, users[:, None], shown), catalogue, pull, about[:, None], None
            )
            happened = respond(rng, np.where(fresh, chance * POSITION_DECAY ** np.arange(LIST_LENGTH), 0.0), fresh)
            lists = self._listings + np.arange(len(users))
            self._listings += len(users)
            parts.extend(
                self._columns(rng, happened | {IMPRESSION: fresh}, users, shown, clock, device, numbers, lists)
            )
            clicked = happened[CLICK]
            self._seen.note(keys[clicked], clicked[clicked])
            about = turned(rng, catalogue.topic, shown, clicked, about)
            stays = rng.random(len(users)) < _STAY
            clock = clock + (20_000 + rng.exponential(40_000, len(users))).astype(np.int64)
            users, about, device, numbers, clock = (a[stays] for a in (users, about, device, numbers, clock))
        return parts

    def _exposure(self, burst: Floats, at_ms: int) -> Floats:
        """How often each item is come across at ``at_ms``: long tail, newness, trend; 0 when it is not alive."""
        catalogue = self.world.catalogue
        age_days = np.maximum(at_ms - catalogue.born_ms, 0) / (24 * HOUR_MS)
        newness = 0.5 + np.exp(-age_days / 2)
        return np.asarray(catalogue.popularity * newness * (1.0 + burst) * catalogue.alive(at_ms))

    def _shown(
        self, rng: np.random.Generator, users: Ints, about: Ints, exposure: Floats
    ) -> tuple[Ints, Bools, Ints]:  # fmt: skip
        """Items (visits, LIST_LENGTH) that are come across, which of them really stand there, and their keys as seen.

        Six of ten are of the visit's topic, two of the user's tastes, two of anything; repeats in a list
        and items that the user has already clicked are taken out.
        """
        shape = (len(users), LIST_LENGTH)
        tastes = np.cumsum(self.world.people.tastes[users], axis=1)
        own = np.stack([drawn_topics(rng, tastes) for _ in range(LIST_LENGTH)], axis=1)
        kind = rng.random(shape)
        topic = np.where(kind < 0.6, np.broadcast_to(about[:, None], shape), own)
        below = np.concatenate([[0.0], exposure])
        low = np.where(kind < 0.8, below[self._bounds[topic]], 0.0)
        high = np.where(kind < 0.8, below[self._bounds[topic + 1]], exposure[-1])
        drawn = low + rng.random(shape) * (high - low)
        shown = self._order[np.minimum(np.searchsorted(exposure, drawn, "right"), len(exposure) - 1)]
        keys = self._seen.keys(users[:, None], shown)
        fresh = (high > low) & (self._seen.times(keys) == 0)
        for place in range(1, LIST_LENGTH):
            fresh[:, place] &= ~(shown[:, place, None] == shown[:, :place]).any(axis=1)
        return shown, fresh, keys

    def _columns(
        self,
        rng: np.random.Generator,
        happened: dict[int, Bools],
        users: Ints,
        shown: Ints,
        clock: Ints,
        device: Ints,
        sessions: Ints,
        listings: Ints,
    ) -> list[History]:
        return columns(rng, happened, users, shown, clock, device, sessions, listings, self._prices)


def turned(rng: np.random.Generator, topic: Ints, shown: Ints, clicked: Bools, about: Ints) -> Ints:
    """What visits int64[n] are about once ``clicked`` (n, k) of ``shown`` were: mostly the first of these."""
    if not shown.shape[1]:
        return about
    rows = np.arange(len(shown))
    first = topic[shown[rows, np.argmax(clicked, axis=1)]]
    return np.asarray(np.where(clicked.any(axis=1) & (rng.random(len(shown)) < TURNS), first, about))


def columns(
    rng: np.random.Generator,
    happened: dict[int, Bools],
    users: Ints,
    shown: Ints,
    clock: Ints,
    device: Ints,
    sessions: Ints,
    listings: Ints,
    prices: npt.NDArray[np.float32],
) -> list[History]:
    """Events of ``n`` lists: ``happened`` has a mask (n, k) for each event type, ``shown`` the items (n, k), the rest is [n]."""
    parts = []
    for kind, mask in sorted(happened.items()):
        row, place = np.nonzero(mask)
        item = shown[row, place]
        value = np.full(len(row), np.nan, np.float32)
        if kind == PURCHASE:
            value = prices[item]
        elif kind == VIEW:
            value = (5 + rng.exponential(40, len(row))).astype(np.float32)
        after = 200 * place if kind == IMPRESSION else delays(rng, len(row))[kind]
        parts.append(
            History(
                time_ms=clock[row] + after,
                user=users[row].astype(np.int32),
                item=item.astype(np.int32),
                type=np.full(len(row), kind, np.uint8),
                value=value,
                device=device[row].astype(np.uint8),
                session=sessions[row].astype(np.int32),
                listing=listings[row].astype(np.int32),
                position=place.astype(np.uint8),
            )
        )
    return parts
