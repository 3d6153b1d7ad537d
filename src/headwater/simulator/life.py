"""A world that goes on: tastes drift, people come back or leave for good, items and creators come and go.

Whoever recommends asks :meth:`Life.advance` what is new, :meth:`Life.arrivals` who comes, confronts them with lists by
:meth:`Life.choose`, and says by :meth:`Life.finish` that visits are over. The truth is there to be asked at any moment: chances of
clicks, what they are worth, the best list. The clock is passed in and may run at any speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace

import numpy as np

from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.simulator.browsing import turned
from headwater.simulator.catalogue import HOUR_MS, NEVER, TOPICS, Catalogue
from headwater.simulator.history import CLICK, History
from headwater.simulator.people import DEVICES, People, user_position
from headwater.simulator.response import (
    POSITION_DECAY,
    Bools,
    Floats,
    Ints,
    Pairs,
    Seen,
    click_chance,
    draw,
    respond,
    utility,
)
from headwater.simulator.scenario import Scenario
from headwater.simulator.supply import DAY_MS, Supply
from headwater.simulator.tastes import drifted, jumped
from headwater.simulator.trouble import Trouble
from headwater.simulator.world import World, visit_events

_STAY, _STAY_CLICKED = 0.5, 0.72  # chance that a visit goes on after a list without, with a click
_MEMORY = 0.7  # of a person's contentment, from one visit to the next
_LEAST_RATE, _RATE = 0.25, 1.5  # visits come at (least + rate x contentment) times the person's own pace
_LEAVES, _LEAVES_FALL = 0.08, 4.0  # chance to leave for good: times exp(-fall x satisfaction) after each visit
_NEWCOMERS = 0.2  # of the people are not there yet when the world goes on ...
_NEWCOMER_DAYS = 10.0  # ... and come within so many days
_NOBODY = -1


@dataclass(frozen=True)
class Turn:
    """What is new: items ``born``, ids of items that are ``gone`` (those that expire as they said from the start go without a
    word), ``events`` that no list of ours led to (bots).
    """

    born: list[Item]
    gone: list[str]
    events: History | None


@dataclass(frozen=True)
class Visits:
    """``n`` visits in order of their start: who, when, what they are about (a topic), on what device; numbered in ``number``."""

    user: Ints
    start_ms: Ints
    about: Ints
    device: Ints
    number: Ints

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Choices:
    """What ``n`` people did with lists of ``k``.

    ``chance`` and ``worth`` are float64[n, k]: the true probability of a click at that place, and what it is worth to them;
    ``happened`` has a mask bool[n, k] for each event type, without impressions; ``about`` int64[n] is what the visits are about
    now, ``stays`` bool[n] whether they want another list.
    """

    chance: Floats
    worth: Floats
    happened: dict[int, Bools]
    about: Ints
    stays: Bools

    @property
    def gained(self) -> Floats:
        """The utility that each took from the list, float64[n]."""
        return np.asarray((self.worth * self.happened[CLICK]).sum(axis=1))

    @property
    def expected(self) -> Floats:
        """The mean of that over all that could have happened, float64[n]: what a list is judged by."""
        return np.asarray((self.worth * self.chance).sum(axis=1))


class Life:
    """``world`` from ``now_ms`` on (default: the end of its history), with what ``scenario`` has happen.

    ``births_per_day`` and the mean life of an item keep the catalogue at its size while creators are content; the default is that
    of the world's history. ``people``, ``catalogue``, ``alive`` (bool[items]), ``contentment`` (float64[users], 0 to 1) and ``left``
    (bool[users]) are the present. Five random streams, for tastes, visits, supply, choices and trouble, so that two
    policies meet the same people in the same mood. The same arguments and calls give the same life.
    """

    def __init__(
        self, world: World, *, seed: int | None = None, now_ms: int | None = None, scenario: Scenario | None = None,
        births_per_day: float | None = None, newcomers: float = _NEWCOMERS,
    ) -> None:  # fmt: skip
        self.world = world
        self.start_ms = self.now_ms = world.end_ms if now_ms is None else now_ms
        root = [world.seed if seed is None else seed, 8]
        tastes, visits, supply, self._choice, trouble = (np.random.default_rng([*root, n]) for n in range(5))
        self._tastes_rng, self._visits_rng = tastes, visits
        self.people = replace(world.people, tastes=world.people.tastes.copy())
        self.humans = len(self.people)
        self.contentment = np.full(self.humans, 0.5)
        self.left: Bools = np.zeros(self.humans, np.bool_)
        joins = np.where(visits.random(self.humans) < newcomers, visits.random(self.humans) * _NEWCOMER_DAYS, 0.0)
        self.joins_ms = self.start_ms + (joins * DAY_MS).astype(np.int64)
        self.catalogue = world.catalogue.until(self.start_ms)
        rate = world.births_per_day if births_per_day is None else births_per_day
        self._life_ms = len(self.catalogue) / max(rate, 1e-9) * DAY_MS
        self._ends_rng = supply
        self.ends_ms = self._ends(self.catalogue, self.start_ms)
        self.supply = Supply(world.makers, deepcopy(world.describer), supply, births_per_day=rate, now_ms=self.start_ms)
        self.trouble = Trouble(self, scenario, trouble)
        self.burst = world.burst(self.start_ms)[: len(self.catalogue)]
        self._seen = Seen()
        self._visits = 0
        self._last_hour_ms = self.start_ms
        self._catalogue_changed()

    def _catalogue_changed(self) -> None:
        self.alive = self.ends_ms > self.now_ms
        self._position = {item.id: i for i, item in enumerate(self.catalogue.items)}
        self.prices = np.array([item.price for item in self.catalogue.items], np.float32)
        self._pulled_ms = _NOBODY

    def _ends(self, catalogue: Catalogue, at_ms: int) -> Ints:
        """When each item goes: when it says, or by chance after the mean life of an item."""
        drawn = self._ends_rng.exponential(self._life_ms, len(catalogue))
        by_chance = np.maximum(catalogue.born_ms, at_ms) + np.minimum(drawn, 1e13).astype(np.int64)
        return np.where(catalogue.expires_ms == NEVER, by_chance, catalogue.expires_ms)

    # -- time ------------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> Turn:
        """Go on to ``now_ms``: people change, items are born and go, what the scenario says happens."""
        dt_ms = max(now_ms - self.now_ms, 0)
        before, self.now_ms = self.now_ms, max(now_ms, self.now_ms)
        self.burst = self.burst * 0.5 ** (dt_ms / self.trouble.burst_half_life_ms)
        born: list[Item] = []
        for part in (self.supply.step(now_ms, dt_ms) if dt_ms else None, self.trouble.advance(before, self.now_ms)):
            if part is not None:
                born += self._welcome(part)
        if hours := (self.now_ms - self._last_hour_ms) // HOUR_MS:
            self._last_hour_ms += hours * HOUR_MS
            self.people.tastes[: self.humans] = drifted(self._tastes_rng, self.people.tastes[: self.humans], hours / 24)
            self.people.tastes[: self.humans] = jumped(self._tastes_rng, self.people.tastes[: self.humans], hours / 24)
        ended = np.flatnonzero(self.alive & (self.ends_ms <= self.now_ms))
        self.alive[ended] = False
        self._pulled_ms = _NOBODY
        gone = [self.catalogue.items[int(i)].id for i in ended if self.catalogue.expires_ms[i] == NEVER]
        return Turn(born, gone, self.trouble.events(before, self.now_ms))

    def birth(self, now_ms: int) -> list[Item]:
        """One item more, at once: for demonstrations; none when no creator is left."""
        made = self.supply.make(1, now_ms)
        return [] if made is None else self._welcome(made)

    def _welcome(self, made: Catalogue) -> list[Item]:
        self.ends_ms = np.concatenate([self.ends_ms, self._ends(made, self.now_ms)])
        self.catalogue = self.catalogue.joined(made)
        self.burst = np.concatenate([self.burst, np.zeros(len(made))])
        alive = self.alive
        self._catalogue_changed()
        self.alive[: len(alive)] &= alive
        return made.items

    def outage(self, at_ms: int) -> str:
        """ "serving" or "events" while that part is out, else ""."""
        return self.trouble.outage(at_ms)

    # -- visits ----------------------------------------------------------------------------------------

    def arrivals(self, until_ms: int) -> Visits:
        """Visits that start between now and ``until_ms`` (an hour at the most, for the rhythm's sake), at most one a person.

        The chance of one is ``1 - exp(-rate x time)``; the rate is the person's own pace, times the rhythm of their country, times
        ``0.25 + 1.5 x contentment``; 0 for those who have left or are not there yet.
        """
        people, humans = self.people, self.humans
        span_ms = until_ms - self.now_ms
        rate = people.activity[:humans] * people.presence(self.now_ms)[people.country[:humans]]
        rate *= self.world.visits_per_day * span_ms / DAY_MS * (_LEAST_RATE + _RATE * self.contentment)
        rate[self.left | (self.joins_ms > self.now_ms)] = 0.0
        # a number for everybody, whoever comes: the draws of one policy are those of another
        rng = self._visits_rng
        comes, when, what, own, other = (rng.random(humans) for _ in range(5))
        users = np.flatnonzero(comes < -np.expm1(-rate))
        users = users[np.argsort(when[users], kind="stable")]
        cumulative = np.cumsum(people.tastes[users], axis=1)
        about = np.minimum((cumulative <= what[users, None] * cumulative[:, -1:]).sum(axis=1), TOPICS - 1)
        device = np.where(own[users] < 0.85, people.device[users], (other[users] * len(DEVICES)).astype(np.int64))
        numbers = self._visits + np.arange(len(users))
        self._visits += len(users)
        return Visits(users, self.now_ms + (when[users] * span_ms).astype(np.int64), about, device, numbers)

    def choose(self, users: Ints, shown: Ints, now_ms: int, about: Ints) -> Choices:
        """Confront ``users`` int64[n] with lists ``shown`` int64[n, k] of catalogue positions (-1: nothing stands there).

        They see the whole list; how often they have seen what is in it counts the next time, and creators hear of it.
        """
        real = shown >= 0
        items = np.where(real, shown, 0)
        keys = self._seen.keys(users[:, None], items)
        pairs = Pairs.of(self.catalogue, self.people, users[:, None], items)
        chance = self._chance(pairs, now_ms, about[:, None], keys)
        chance = np.where(real, chance * POSITION_DECAY ** np.arange(shown.shape[1]), 0.0)
        worth = utility(pairs, self.catalogue)
        happened = respond(self._choice, chance, real)
        clicked = happened[CLICK]
        self._seen.note(keys[real], clicked[real])
        self.supply.shown(self.catalogue.creator[items[real]])
        topic = turned(self._choice, self.catalogue.topic, items, clicked, about)
        stays = self._choice.random(len(users)) < np.where(clicked.any(axis=1), _STAY_CLICKED, _STAY)
        return Choices(chance, worth, happened, topic, stays)

    def finish(self, users: Ints, gained: Floats) -> Floats:
        """Visits of ``users`` (each once) are over in which they ``gained`` so much utility; returns their satisfaction, 0 to 1.

        ``1 - exp(-gained)``: it moves contentment, and decides who leaves for good.
        """
        satisfaction = -np.expm1(-gained)
        self.contentment[users] = _MEMORY * self.contentment[users] + (1 - _MEMORY) * satisfaction
        leaves = self._choice.random(len(users)) < _LEAVES * np.exp(-_LEAVES_FALL * satisfaction)
        self.left[users[leaves]] = True
        return np.asarray(satisfaction)

    # -- truth -----------------------------------------------------------------------------------------

    def positions(self, items: Sequence[str]) -> Ints:
        """Catalogue positions of ids, int64[n]; -1 for what is not of this world."""
        return np.array([self._position.get(item, -1) for item in items], np.int64)

    def click_probability(self, user: int, items: Ints, at_ms: int, about: int) -> Floats:
        """The true chance that ``user`` clicks each of ``items`` int64[n] at the first place of a list, float64[n]."""
        pairs, keys = self._pairs(user, items), self._seen.keys(np.array([user]), items)
        return self._chance(pairs, at_ms, np.array([about]), keys)

    def true_utility(self, user: int, items: Ints) -> Floats:
        """What a click of ``user`` on each of ``items`` int64[n] is worth to them, float64[n] in (0, 1)."""
        return utility(self._pairs(user, items), self.catalogue)

    def oracle(self, user: int, k: int, at_ms: int, about: int) -> tuple[Ints, float]:
        """The best list of ``k`` for ``user``, int64[<= k], and its expected utility.

        Clicks on a list do not depend on one another and places lower all chances alike, so the best list is that of the largest
        ``chance x utility``, largest first.
        """
        items = np.flatnonzero(self.alive)
        pairs, keys = self._pairs(user, items), self._seen.keys(np.array([user]), items)
        value = self._chance(pairs, at_ms, np.array([about]), keys) * utility(pairs, self.catalogue)
        best = np.argsort(-value, kind="stable")[:k]
        return items[best], float((value[best] * POSITION_DECAY ** np.arange(len(best))).sum())

    def _pairs(self, user: int, items: Ints) -> Pairs:
        return Pairs.of(self.catalogue, self.people, np.array([user]), items)

    def _chance(self, pairs: Pairs, at_ms: int, about: Ints, keys: Ints) -> Floats:
        if self._pulled_ms != at_ms:
            self._pull, self._pulled_ms = draw(self.catalogue, self.burst, at_ms), at_ms
        return click_chance(pairs, self.catalogue, self._pull, about, self._seen.times(keys))

    # -- one visitor at a time ---------------------------------------------------------------------------

    def visit(
        self, user: str, shown: Sequence[str], now_ms: int, about: int, *, request_id: str | None, surface: str | None
    ) -> tuple[list[Event], Choices]:  # fmt: skip
        """What one person does with a list of ids: the events, in order of time, and what they chose (one row).

        What is not of this world is come across but never clicked. Raises ``KeyError`` for an unknown user.
        """
        who = user_position(user)
        if not 0 <= who < self.humans:
            raise KeyError(user)
        chosen = self.choose(np.array([who]), self.positions(shown)[None, :], now_ms, np.array([about]))
        happened = {kind: np.flatnonzero(mask[0]) for kind, mask in chosen.happened.items()}
        events = visit_events(
            self._choice, self.people, who, shown, happened, now_ms, price=self._price, request_id=request_id, surface=surface
        )  # fmt: skip
        return events, chosen

    def _price(self, item: str) -> float | None:
        return self.catalogue.items[self._position[item]].price

    def add_people(self, more: People) -> Ints:
        """Bots move in; their positions. They never come to visit."""
        first = len(self.people)
        columns = (np.concatenate([getattr(self.people, f.name), getattr(more, f.name)]) for f in fields(People))
        self.people = People(*columns)
        return np.arange(first, first + len(more))
