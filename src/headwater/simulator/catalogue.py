"""The simulated catalogue: titled items of known topics, born hour by hour, some of which expire."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from headwater.schema.items import Item
from headwater.simulator.words import (
    ADJECTIVES,
    CATEGORIES,
    MAKERS,
    PRAISE,
    TEXTS,
    TOPICS_PER_CATEGORY,
)

HOUR_MS = 3_600_000
TOPICS = len(CATEGORIES) * TOPICS_PER_CATEGORY
STYLES = 4
FUTURE_HOURS = 24  # items are known this long beyond the history, so that live traffic sees births too
NEVER = np.iinfo(np.int64).max

BORN_SHARE = 0.15  # of the items are born while the world runs, the rest was there before
_EXPIRING_SHARE = 0.10
_SECOND_SHARE = 0.25  # of the items also stand in another category
_SECOND_WEIGHT = 0.3
_AGE_SCALE_DAYS = 30.0
_POPULARITY_SIGMA = 1.1  # of the log-normal draw behind the long tail
_SKILL_SHARE = 0.4  # of the variance of quality is the creator's
_CREATORS_A_TOPIC = 2
_SAID = 0.7  # correlation of what a text says about quality with quality


@dataclass(frozen=True)
class Catalogue:
    """Items as objects and as columns, in order of birth (``n`` items).

    ``topic`` is the narrow subject (0 … ``TOPICS`` - 1; its category is ``topic // 4``), ``second`` another
    one or -1. ``quality`` (standard normal) moves clicks and what they are worth, ``lure`` (standard normal) brings clicks that
    are worth less, ``popularity`` (log-normal) says how often an item is come across. ``creator`` numbers who made it.
    ``born_ms`` and ``expires_ms`` bound its life.
    """

    items: list[Item]
    topic: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]
    quality: npt.NDArray[np.float64]
    lure: npt.NDArray[np.float64]
    popularity: npt.NDArray[np.float64]
    creator: npt.NDArray[np.int64]
    born_ms: npt.NDArray[np.int64]
    expires_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def category(self) -> npt.NDArray[np.int64]:
        """Position of each item's first category in ``CATEGORIES``."""
        return self.topic // TOPICS_PER_CATEGORY

    def affinity(
        self, tastes: npt.NDArray[np.float64], users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """How much of each user's taste (rows of ``tastes``, (users, TOPICS)) the item at the same place meets."""
        other = self.second[items]
        first = tastes[users, self.topic[items]]
        second = tastes[users, np.maximum(other, 0)]
        weight = np.where(other >= 0, _SECOND_WEIGHT, 0.0)
        return np.asarray(first + weight * (second - first))

    def alive(self, at_ms: int) -> npt.NDArray[np.bool_]:
        """Which items can be shown at ``at_ms``."""
        return np.asarray((self.born_ms <= at_ms) & (at_ms < self.expires_ms))

    def until(self, at_ms: int) -> Catalogue:
        """The items born at ``at_ms`` or before."""
        count = int(np.searchsorted(self.born_ms, at_ms, "right"))
        return Catalogue(*(getattr(self, field.name)[:count] for field in fields(self)))

    def joined(self, later: Catalogue) -> Catalogue:
        """This one and ``later``, whose items are born behind its own."""
        columns = [np.concatenate([getattr(self, f.name), getattr(later, f.name)]) for f in fields(self)[1:]]
        return Catalogue(self.items + later.items, *columns)


@dataclass(frozen=True)
class Makers:
    """Who makes items (``c`` creators): each has a ``topic`` and a ``skill`` (standard normal), which their items share in."""

    topic: npt.NDArray[np.int64]
    skill: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.topic)

    def quality(self, creator: npt.NDArray[np.int64], noise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Standard normal qualities of items by these creators, from standard normal ``noise``."""
        return np.asarray(np.sqrt(_SKILL_SHARE) * self.skill[creator] + np.sqrt(1 - _SKILL_SHARE) * noise)


def make_makers(rng: np.random.Generator) -> Makers:
    """Two creators for each topic."""
    topic = np.repeat(np.arange(TOPICS), _CREATORS_A_TOPIC)
    return Makers(topic, rng.normal(0.0, 1.0, len(topic)))


def make_catalogue(
    rng: np.random.Generator, makers: Makers, describer: Describer, count: int, future: int, start_ms: int, hours: int
) -> Catalogue:
    """``count`` items that are born until ``hours`` after ``start_ms``, and ``future`` more in the day after that."""
    born_later = round(count * BORN_SHARE)
    ages = np.sort(rng.exponential(_AGE_SCALE_DAYS * 24, count - born_later))[::-1]
    # One hour at the least, so that what was there before the world began was there before it began.
    old = start_ms - (np.maximum(ages, 1.0) * HOUR_MS).astype(np.int64)
    count += future
    within = np.arange(born_later) * hours // max(born_later, 1)
    beyond = hours + np.arange(future) * FUTURE_HOURS // max(future, 1)
    born_ms = np.concatenate([old, start_ms + np.concatenate([within, beyond]).astype(np.int64) * HOUR_MS])
    topic = rng.choice(TOPICS, count, p=_topic_shares(rng))
    creator = topic * _CREATORS_A_TOPIC + rng.integers(0, _CREATORS_A_TOPIC, count)
    return make_items(rng, makers, describer, creator, born_ms, start_ms=start_ms, hours=hours)


def make_items(
    rng: np.random.Generator, makers: Makers, describer: Describer, creator: npt.NDArray[np.int64],
    born_ms: npt.NDArray[np.int64], *, start_ms: int, hours: int,
) -> Catalogue:  # fmt: skip
    """Items by these creators, int64[n], born at these times, in order of time."""
    count, topic = len(creator), makers.topic[creator]
    elsewhere = (topic + TOPICS_PER_CATEGORY * rng.integers(1, len(CATEGORIES), count)) % TOPICS
    second = np.where(rng.random(count) < _SECOND_SHARE, elsewhere, -1)
    # What stood in the shop before the world began ends somewhere inside it; what is born here lives its life.
    ends_ms = np.where(
        born_ms < start_ms,
        start_ms + (rng.random(count) * hours * HOUR_MS).astype(np.int64),
        born_ms + (rng.uniform(18, 96, count) * HOUR_MS).astype(np.int64),
    )
    expires_ms = np.where(rng.random(count) < _EXPIRING_SHARE, ends_ms, NEVER)
    quality = makers.quality(creator, rng.normal(0.0, 1.0, count))
    lure = rng.normal(0.0, 1.0, count)
    popularity = np.exp(rng.normal(0.0, _POPULARITY_SIGMA, count) + 0.35 * quality)
    style = rng.integers(0, STYLES, count)
    items = describer.describe(rng, topic, second, quality, creator, born_ms, expires_ms)
    return Catalogue(items, topic, second, style, quality, lure, popularity, creator, born_ms, expires_ms)


def _topic_shares(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    shares = rng.gamma(6.0, 1.0, TOPICS)
    return np.asarray(shares / shares.sum())


class Describer:
    """Says what items are: titles that no two share, texts that name the topic and hint at quality, tags, prices."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._orders = [
            rng.permutation(len(t.nouns) * len(ADJECTIVES) * len(MAKERS)) for c in CATEGORIES for t in c.topics
        ]
        self._taken = [0] * TOPICS
        self._made = 0

    def describe(
        self, rng: np.random.Generator, topic: npt.NDArray[np.int64], second: npt.NDArray[np.int64],
        quality: npt.NDArray[np.float64], creator: npt.NDArray[np.int64], born_ms: npt.NDArray[np.int64],
        expires_ms: npt.NDArray[np.int64],
    ) -> list[Item]:  # fmt: skip
        """The items of these columns, numbered on from those before."""
        count = len(topic)
        noise, templates = rng.normal(0.0, 0.45, count), rng.integers(0, len(TEXTS), count)
        said = _SAID * quality + np.sqrt(1 - _SAID**2) * rng.normal(0.0, 1.0, count)
        praise = np.clip(np.floor(said + len(PRAISE) / 2), 0, len(PRAISE) - 1).astype(np.int64)
        items = []
        for i in range(count):
            category = CATEGORIES[int(topic[i]) // TOPICS_PER_CATEGORY]
            subject = category.topics[int(topic[i]) % TOPICS_PER_CATEGORY]
            noun, adjective, maker, turn = self._title(int(topic[i]))
            categories = [category.name]
            if second[i] >= 0:
                categories.append(CATEGORIES[int(second[i]) // TOPICS_PER_CATEGORY].name)
            words = {
                "adjective": adjective.lower(),
                "noun": noun.lower(),
                "maker": maker,
                "phrase": subject.phrase,
                "topic": subject.name,
            }
            items.append(
                Item(
                    id=f"item-{self._made:05d}",
                    title=f"{maker} {adjective} {noun}" + (f" {turn + 1}" if turn else ""),
                    text=TEXTS[int(templates[i])].format(**words) + PRAISE[int(praise[i])],
                    categories=categories,
                    tags=[subject.name, noun.lower()],
                    price=_price(category.price * float(np.exp(noise[i]))),
                    published=int(born_ms[i]),
                    expires=None if expires_ms[i] == NEVER else int(expires_ms[i]),
                    attributes={"maker": maker, "creator": creator_id(int(creator[i]))},
                )
            )
            self._made += 1
        return items

    def _title(self, topic: int) -> tuple[str, str, str, int]:
        """Noun, adjective and maker of the next item of a topic, and how often all of these were used up before."""
        nouns = CATEGORIES[topic // TOPICS_PER_CATEGORY].topics[topic % TOPICS_PER_CATEGORY].nouns
        order = self._orders[topic]
        turn, drawn = divmod(self._taken[topic], len(order))
        self._taken[topic] += 1
        rest, noun_at = divmod(int(order[drawn]), len(nouns))
        maker_at, adjective_at = divmod(rest, len(ADJECTIVES))
        return nouns[noun_at], ADJECTIVES[adjective_at], MAKERS[maker_at], turn


def creator_id(number: int) -> str:
    """The external id of a creator."""
    return f"creator-{number:03d}"


def _price(amount: float) -> float:
    return max(1.0, float(round(amount))) - 0.1 if amount < 20 else float(5 * round(amount / 5)) - 0.05
