"""The world: who visits when, what they come across, and how they respond to it.

One response model makes the history, judges lists (the ground truth that a recommender is measured
against) and answers live traffic. A click is more likely the more a user's tastes meet the item's
topics, the better the item, the newer, the more it trends, when its hidden style is the user's, when
it belongs to what this visit is about, and the higher it stands in the list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.simulator.catalogue import BORN_SHARE, FUTURE_HOURS, HOUR_MS, TOPICS, make_catalogue
from headwater.simulator.history import (
    CLICK,
    EVENT_TYPES,
    IMPRESSION,
    LIKE,
    PURCHASE,
    SKIP,
    VIEW,
    History,
    in_order,
)
from headwater.simulator.people import COUNTRIES, DEVICES, make_people, user_id

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LIST_LENGTH = 5
_MOST_LISTS = 7  # of one visit
_STAY = 0.62  # chance that a visit goes on after a list

# The response model, on the logit scale.
_BIAS = -4.1
_TASTE = 5.2  # times the square root of the affinity
_QUALITY = 0.45
_STYLE = 0.9
_NEW = 0.5  # times exp(-age / 1 day)
_TREND = 0.5  # times log(1 + burst)
_ABOUT = 1.0  # the item's topic is what the visit is about
_POSITION_DECAY = 0.92  # of the click probability, a place

_BURSTS_PER_HOUR = 2
_BURST_HOURS = 6.0
_SEEN_BITS = 24
_FOLLOWS = np.array([0.55, 0.14, 0.07])  # a click is followed by a view, a like, a purchase
_SKIP = 0.05


class World:
    """A seeded world of ``users`` people and ``items`` items that runs for ``hours`` from ``start_ms``.

    ``items`` counts everything that is born until the history ends; the catalogue holds a day's births more.
    ``visits_per_day`` is the mean number of visits of a user: the default makes about 14 events a user a day.
    The same arguments give the same world, history and judgements.
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
        births = round(items * BORN_SHARE / max(hours, 1) * FUTURE_HOURS)
        self.catalogue = make_catalogue(np.random.default_rng([seed, 1]), items, births, self.start_ms, hours)
        self.people = make_people(np.random.default_rng([seed, 2]), users)
        self._bursts = _bursts(np.random.default_rng([seed, 3]), len(self.catalogue.items), span)
        self._order = np.argsort(self.catalogue.topic, kind="stable")
        self._bounds = np.searchsorted(self.catalogue.topic[self._order], np.arange(TOPICS + 1))
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
        rng = np.random.default_rng([self.seed, 4])
        parts: list[History] = []
        seen = np.zeros(1 << _SEEN_BITS, np.bool_)
        sessions = listings = 0
        for hour in range(self.hours):
            hour_parts, sessions, listings = self._hour(rng, self.start_ms + hour * HOUR_MS, sessions, listings, seen)
            parts.extend(hour_parts)
        return in_order(parts)

    def judge(self, user: int | str, items: Sequence[str], at_ms: int) -> Floats:
        """The true chance, of each item, that ``user`` would click it at ``at_ms`` if it stood first in a list.

        Raises ``KeyError`` for an item or user that is not of this world.
        """
        which = np.array([self._position[item] for item in items], np.int64)
        return self._click_chance(np.full(len(which), self._user(user)), which, at_ms, None)

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
        known = [(at, self._position[item]) for at, item in enumerate(shown) if item in self._position]
        places = np.array([at for at, _ in known], np.int64)
        which = np.array([item for _, item in known], np.int64)
        chance = self._click_chance(np.full(len(which), who), which, now_ms, None) * _POSITION_DECAY**places
        happened = _respond(rng, chance)
        out = [(now_ms + 200 * at, IMPRESSION, at) for at in range(len(shown))]
        delay = _delays(rng, len(which))
        out += [
            (now_ms + int(delay[kind, i]), kind, int(places[i]))
            for kind, mask in happened.items()
            for i in np.flatnonzero(mask)
        ]
        attributes = {"country": COUNTRIES[self.people.country[who]], "device": DEVICES[self.people.device[who]]}
        return [
            Event(
                user=user_id(who),
                item=shown[place],
                type=EVENT_TYPES[kind],
                time=time_ms,
                value=self.catalogue.items[self._position[shown[place]]].price if kind == PURCHASE else None,
                surface=surface,
                request_id=request_id,
                position=place,
                attributes=dict(attributes),
            )
            for time_ms, kind, place in sorted(out)
        ]

    def _user(self, user: int | str) -> int:
        position = user if isinstance(user, int) else int(user.removeprefix("user-"))
        if not 0 <= position < len(self.people):
            raise KeyError(user)
        return position

    def _burst(self, at_ms: int) -> Floats:
        hour = int(np.clip((at_ms - self.start_ms) // HOUR_MS, 0, len(self._bursts) - 1))
        return np.asarray(self._bursts[hour], np.float64)

    def _click_chance(self, users: Ints, items: Ints, at_ms: int, about: Ints | None) -> Floats:
        """``users``, ``items`` and ``about`` (topics) have one shape; so has the result, in (0, 1)."""
        catalogue, people = self.catalogue, self.people
        affinity = catalogue.affinity(people.tastes, users, items)
        age_days = np.maximum(at_ms - catalogue.born_ms[items], 0) / (24 * HOUR_MS)
        logit = _BIAS + _TASTE * np.sqrt(affinity) + _QUALITY * catalogue.quality[items]
        logit += _STYLE * (catalogue.style[items] == people.style[users])
        logit += _NEW * np.exp(-age_days) + _TREND * np.log1p(self._burst(at_ms)[items])
        if about is not None:
            logit += _ABOUT * (catalogue.topic[items] == about)
        return np.asarray(1.0 / (1.0 + np.exp(-logit)))

    def _exposure(self, at_ms: int) -> Floats:
        """How often each item is come across at ``at_ms``: long tail, newness, trend; 0 when it is not alive."""
        catalogue = self.catalogue
        age_days = np.maximum(at_ms - catalogue.born_ms, 0) / (24 * HOUR_MS)
        newness = 0.5 + np.exp(-age_days / 2)
        return np.asarray(catalogue.popularity * newness * (1.0 + self._burst(at_ms)) * catalogue.alive(at_ms))

    def _hour(
        self, rng: np.random.Generator, at_ms: int, sessions: int, listings: int, seen: npt.NDArray[np.bool_]
    ) -> tuple[list[History], int, int]:
        """The visits that start in one hour; returns their events and the next session and listing numbers."""
        people = self.people
        rate = people.activity * people.presence(at_ms)[people.country] * self.visits_per_day / 24
        users = np.flatnonzero(rng.random(len(people)) < -np.expm1(-rate))
        starts = at_ms + (rng.random(len(users)) * HOUR_MS).astype(np.int64)
        about = _draw(rng, np.cumsum(people.tastes[users], axis=1))
        device = np.where(
            rng.random(len(users)) < 0.85, people.device[users], rng.integers(0, len(DEVICES), len(users))
        )
        exposure = np.cumsum(self._exposure(at_ms)[self._order])
        numbers = sessions + np.arange(len(users))
        clock = starts
        parts: list[History] = []
        for _ in range(_MOST_LISTS):
            if len(users) == 0:
                break
            shown, fresh = self._shown(rng, users, about, exposure, seen)
            chance = self._click_chance(
                np.broadcast_to(users[:, None], shown.shape), shown, at_ms, np.broadcast_to(about[:, None], shown.shape)
            )
            happened = _respond(rng, np.where(fresh, chance * _POSITION_DECAY ** np.arange(LIST_LENGTH), 0.0), fresh)
            lists = listings + np.arange(len(users))
            listings += len(users)
            parts.extend(
                self._columns(rng, happened | {IMPRESSION: fresh}, users, shown, clock, device, numbers, lists)
            )
            clicked = happened[CLICK]
            seen[_seen_key(np.broadcast_to(users[:, None], shown.shape)[clicked], shown[clicked])] = True
            # The visit turns to what was clicked first.
            first = np.argmax(clicked, axis=1)
            topic = self.catalogue.topic[shown[np.arange(len(users)), first]]
            about = np.where(clicked.any(axis=1) & (rng.random(len(users)) < 0.8), topic, about)
            stays = rng.random(len(users)) < _STAY
            clock = clock + (20_000 + rng.exponential(40_000, len(users))).astype(np.int64)
            users, about, device, numbers, clock = (a[stays] for a in (users, about, device, numbers, clock))
        return parts, sessions + len(starts), listings

    def _shown(
        self, rng: np.random.Generator, users: Ints, about: Ints, exposure: Floats, seen: npt.NDArray[np.bool_]
    ) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Items (visits, LIST_LENGTH) that are come across, and which of them really stand there.

        Six of ten are of the visit's topic, two of the user's tastes, two of anything; repeats in a list
        and items that the user has already clicked are taken out.
        """
        shape = (len(users), LIST_LENGTH)
        tastes = np.cumsum(self.people.tastes[users], axis=1)
        own = np.stack([_draw(rng, tastes) for _ in range(LIST_LENGTH)], axis=1)
        kind = rng.random(shape)
        topic = np.where(kind < 0.6, np.broadcast_to(about[:, None], shape), own)
        below = np.concatenate([[0.0], exposure])
        low = np.where(kind < 0.8, below[self._bounds[topic]], 0.0)
        high = np.where(kind < 0.8, below[self._bounds[topic + 1]], exposure[-1])
        drawn = low + rng.random(shape) * (high - low)
        shown = self._order[np.minimum(np.searchsorted(exposure, drawn, "right"), len(exposure) - 1)]
        fresh = (high > low) & ~seen[_seen_key(np.broadcast_to(users[:, None], shape), shown)]
        for place in range(1, LIST_LENGTH):
            fresh[:, place] &= ~(shown[:, place, None] == shown[:, :place]).any(axis=1)
        return shown, fresh

    def _columns(
        self,
        rng: np.random.Generator,
        happened: dict[int, npt.NDArray[np.bool_]],
        users: Ints,
        shown: Ints,
        clock: Ints,
        device: Ints,
        sessions: Ints,
        listings: Ints,
    ) -> list[History]:
        prices = np.array([item.price for item in self.catalogue.items], np.float32)
        parts = []
        for kind, mask in sorted(happened.items()):
            row, place = np.nonzero(mask)
            item = shown[row, place]
            value = np.full(len(row), np.nan, np.float32)
            if kind == PURCHASE:
                value = prices[item]
            elif kind == VIEW:
                value = (5 + rng.exponential(40, len(row))).astype(np.float32)
            after = 200 * place if kind == IMPRESSION else _delays(rng, len(row))[kind]
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


def _respond(
    rng: np.random.Generator, chance: Floats, shown: npt.NDArray[np.bool_] | None = None
) -> dict[int, npt.NDArray[np.bool_]]:
    """What follows impressions with these click chances: a mask of the same shape for each event type."""
    clicked = rng.random(chance.shape) < chance
    follows = rng.random((len(_FOLLOWS), *chance.shape))
    skipped = ~clicked & (rng.random(chance.shape) < _SKIP)
    return {
        CLICK: clicked,
        VIEW: clicked & (follows[0] < _FOLLOWS[0]),
        LIKE: clicked & (follows[1] < _FOLLOWS[1]),
        PURCHASE: clicked & (follows[2] < _FOLLOWS[2]),
        SKIP: skipped if shown is None else skipped & shown,
    }


def _delays(rng: np.random.Generator, count: int) -> Ints:
    """Milliseconds from the list to a response, (event types, count): a view follows its click, and so on."""
    click = 1_500 + rng.exponential(4_000, count)
    out = np.zeros((len(EVENT_TYPES), count))
    out[CLICK], out[SKIP] = click, click
    out[VIEW] = click + 5_000
    out[LIKE] = click + 8_000
    out[PURCHASE] = click + 15_000
    return out.astype(np.int64)


def _draw(rng: np.random.Generator, cumulative: Floats) -> Ints:
    """One column index a row, drawn from rows of cumulative chances (n, c)."""
    drawn = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
    return np.asarray(np.minimum((cumulative <= drawn).sum(axis=1), cumulative.shape[1] - 1))


def _seen_key(users: Ints, items: Ints) -> Ints:
    """Place of a (user, item) pair in the seen bitmap; two pairs rarely share one, which only hides an item."""
    return ((users * 2_654_435_761 + items * 40_503_011) >> 7) & ((1 << _SEEN_BITS) - 1)


def _bursts(rng: np.random.Generator, items: int, hours: int) -> npt.NDArray[np.float32]:
    """Strength of each item's trend by hour, (hours, items): it jumps and fades over some hours."""
    out = np.zeros((hours, items), np.float32)
    fade = np.float32(np.exp(-1 / _BURST_HOURS))
    for hour in range(hours):
        if hour:
            out[hour] = out[hour - 1] * fade
        out[hour, rng.integers(0, items, _BURSTS_PER_HOUR)] += rng.uniform(4, 16, _BURSTS_PER_HOUR).astype(np.float32)
    return out
