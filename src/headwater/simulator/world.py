"""The world: people who like some topics, items that are about them, and what comes of it when the two meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.simulator.browsing import Browsing
from headwater.simulator.catalogue import (
    BORN_SHARE,
    FUTURE_HOURS,
    HOUR_MS,
    Catalogue,
    Describer,
    make_catalogue,
    make_makers,
)
from headwater.simulator.history import EVENT_TYPES, IMPRESSION, PURCHASE, History
from headwater.simulator.people import COUNTRIES, DEVICES, People, make_people, user_id, user_position
from headwater.simulator.response import POSITION_DECAY, Floats, Pairs, click_chance, delays, draw, respond

_BURSTS_PER_HOUR = 2
_BURST_HOURS = 6.0


class Populated(Protocol):
    """Something with people and a catalogue: a world, or a world that goes on."""

    @property
    def people(self) -> People: ...

    @property
    def catalogue(self) -> Catalogue: ...


class World:
    """A seeded world of ``users`` people and ``items`` items that runs for ``hours`` from ``start_ms``.

    ``items`` counts everything that is born until the history ends; the catalogue holds a day's births more.
    ``visits_per_day`` is the mean number of visits of a user: the default makes about 14 events a user a day.
    The same arguments give the same world, history and judgements. A world of this kind stands still: tastes stay. How it
    goes on from where its history ends, with people who change and come back or not, is :class:`~headwater.simulator.life.Life`.
    """

    def __init__(
        self,
        seed: int,
        *,
        start_ms: int,
        users: int = 5_000,
        items: int = 2_400,
        hours: int = 96,
        visits_per_day: float = 1.0,
    ) -> None:
        self.seed = seed
        self.start_ms = start_ms // HOUR_MS * HOUR_MS
        self.hours = hours
        self.visits_per_day = visits_per_day
        span = hours + FUTURE_HOURS
        self.births_per_day = items * BORN_SHARE / max(hours, 1) * 24
        future = round(self.births_per_day * FUTURE_HOURS / 24)
        rng = np.random.default_rng([seed, 1])
        self.makers = make_makers(np.random.default_rng([seed, 6]))
        self.describer = Describer(np.random.default_rng([seed, 7]))
        self.catalogue = make_catalogue(rng, self.makers, self.describer, items, future, self.start_ms, hours)
        self.people = make_people(np.random.default_rng([seed, 2]), users)
        self._bursts = _bursts(np.random.default_rng([seed, 3]), len(self.catalogue), span)
        self._position = {item.id: i for i, item in enumerate(self.catalogue.items)}

    @property
    def end_ms(self) -> int:
        """Where the history ends."""
        return self.start_ms + self.hours * HOUR_MS

    def items_born(self, after_ms: int, until_ms: int) -> list[Item]:
        """Items with ``after_ms`` < birth <= ``until_ms``, in order of birth."""
        born = self.catalogue.born_ms
        return self.catalogue.items[
            int(np.searchsorted(born, after_ms, "right")) : int(np.searchsorted(born, until_ms, "right"))
        ]

    def history(self) -> History:
        """What people did in the world's hours, sorted by time; about two thirds of the events are impressions."""
        return Browsing(self).history(np.random.default_rng([self.seed, 4]))

    def judge(self, user: int | str, items: Sequence[str], at_ms: int) -> Floats:
        """The true chance, of each item, that ``user`` would click it at ``at_ms`` if it stood first in a list.

        Raises ``KeyError`` for an item or user that is not of this world.
        """
        which = np.array([self._position[item] for item in items], np.int64)
        return self._chance(self._user(user), which, at_ms)

    def visit(
        self,
        rng: np.random.Generator,
        user: int | str,
        shown: Sequence[str],
        now_ms: int,
        *,
        request_id: str | None = None,
        surface: str | None = None,
    ) -> list[Event]:
        """What ``user`` does with a list: impressions, then the responses, in order of time.

        Items that are not of this world are come across but never clicked.
        """
        who = self._user(user)
        known = [at for at, item in enumerate(shown) if item in self._position]
        places = np.array(known, np.int64)
        which = np.array([self._position[shown[at]] for at in known], np.int64)
        chance = self._chance(who, which, now_ms) * POSITION_DECAY**places
        happened = {kind: places[mask] for kind, mask in respond(rng, chance).items()}
        return visit_events(
            rng, self.people, who, shown, happened, now_ms, price=self._price, request_id=request_id, surface=surface
        )

    def burst(self, at_ms: int) -> Floats:
        """Strength of each item's trend at ``at_ms``, float64[items]."""
        hour = int(np.clip((at_ms - self.start_ms) // HOUR_MS, 0, len(self._bursts) - 1))
        return np.asarray(self._bursts[hour], np.float64)

    def _chance(self, user: int, items: npt.NDArray[np.int64], at_ms: int) -> Floats:
        pull = draw(self.catalogue, self.burst(at_ms), at_ms)
        pairs = Pairs.of(self.catalogue, self.people, np.full(len(items), user), items)
        return click_chance(pairs, self.catalogue, pull, None, None)

    def _price(self, item: str) -> float | None:
        return self.catalogue.items[self._position[item]].price

    def _user(self, user: int | str) -> int:
        position = user_position(user)
        if not 0 <= position < len(self.people):
            raise KeyError(user)
        return position


def visit_events(
    rng: np.random.Generator, people: People, user: int, shown: Sequence[str],
    happened: dict[int, npt.NDArray[np.int64]], now_ms: int, *, price: Callable[[str], float | None],
    request_id: str | None, surface: str | None,
) -> list[Event]:  # fmt: skip
    """Events of a list that ``user`` saw at ``now_ms``, in order of time: an impression of each of ``shown``, and what happened.

    ``happened`` has the places in the list, by event type; ``price`` of an item is what a purchase of it is worth.
    """
    out = [(now_ms + 200 * at, IMPRESSION, at) for at in range(len(shown))]
    delay = delays(rng, len(shown))
    out += [(now_ms + int(delay[kind, at]), kind, int(at)) for kind, places in happened.items() for at in places]
    attributes = {"country": COUNTRIES[people.country[user]], "device": DEVICES[people.device[user]]}
    return [
        Event(
            user=user_id(user),
            item=shown[place],
            type=EVENT_TYPES[kind],
            time=time_ms,
            value=price(shown[place]) if kind == PURCHASE else None,
            surface=surface,
            request_id=request_id,
            position=place,
            attributes=dict(attributes),
        )
        for time_ms, kind, place in sorted(out)
    ]


def _bursts(rng: np.random.Generator, items: int, hours: int) -> npt.NDArray[np.float32]:
    """Strength of each item's trend by hour, (hours, items): it jumps and fades over some hours."""
    out = np.zeros((hours, items), np.float32)
    fade = np.float32(np.exp(-1 / _BURST_HOURS))
    for hour in range(hours):
        if hour:
            out[hour] = out[hour - 1] * fade
        out[hour, rng.integers(0, items, _BURSTS_PER_HOUR)] += rng.uniform(4, 16, _BURSTS_PER_HOUR).astype(np.float32)
    return out
