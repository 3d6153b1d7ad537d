"""The simulated catalogue: titled items of known topics, born hour by hour, some of which expire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.schema.items import Item
from headwater.simulator.words import ADJECTIVES, CATEGORIES, MAKERS, TEXTS, TOPICS_PER_CATEGORY

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


@dataclass(frozen=True)
class Catalogue:
    """Items as objects and as columns, in order of birth (``n`` items).

    ``topic`` is the narrow subject (0 … ``TOPICS`` - 1; its category is ``topic // 4``), ``second`` another
    one or -1. ``quality`` (standard normal) moves clicks, ``popularity`` (log-normal) how often an item is come
    across. ``born_ms`` and ``expires_ms`` bound its life.
    """

    items: list[Item]
    topic: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]
    quality: npt.NDArray[np.float64]
    popularity: npt.NDArray[np.float64]
    born_ms: npt.NDArray[np.int64]
    expires_ms: npt.NDArray[np.int64]

    @property
    def category(self) -> npt.NDArray[np.int64]:
        """Position of each item's first category in ``CATEGORIES``."""
        return self.topic // TOPICS_PER_CATEGORY

    def affinity(
        self, tastes: npt.NDArray[np.float64], users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """How much of each user's taste (rows of ``tastes``, (users, TOPICS)) the item at the same place meets."""
        first = tastes[users, self.topic[items]]
        second = tastes[users, np.maximum(self.second[items], 0)]
        weight = np.where(self.second[items] >= 0, _SECOND_WEIGHT, 0.0)
        return np.asarray((1 - weight) * first + weight * second)

    def alive(self, at_ms: int) -> npt.NDArray[np.bool_]:
        """Which items can be shown at ``at_ms``."""
        return np.asarray((self.born_ms <= at_ms) & (at_ms < self.expires_ms))


def make_catalogue(rng: np.random.Generator, count: int, future: int, start_ms: int, hours: int) -> Catalogue:
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
    elsewhere = (topic + TOPICS_PER_CATEGORY * rng.integers(1, len(CATEGORIES), count)) % TOPICS
    second = np.where(rng.random(count) < _SECOND_SHARE, elsewhere, -1)
    # What stood in the shop before the world began ends somewhere inside it; what is born here lives its life.
    ends_ms = np.where(
        born_ms < start_ms,
        start_ms + (rng.random(count) * hours * HOUR_MS).astype(np.int64),
        born_ms + (rng.uniform(18, 96, count) * HOUR_MS).astype(np.int64),
    )
    expires_ms = np.where(rng.random(count) < _EXPIRING_SHARE, ends_ms, NEVER)
    quality = rng.normal(0.0, 1.0, count)
    popularity = np.exp(rng.normal(0.0, _POPULARITY_SIGMA, count) + 0.35 * quality)
    style = rng.integers(0, STYLES, count)
    items = _describe(rng, topic, second, born_ms, expires_ms)
    return Catalogue(items, topic, second, style, quality, popularity, born_ms, expires_ms)


def _topic_shares(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    shares = rng.gamma(6.0, 1.0, TOPICS)
    return np.asarray(shares / shares.sum())


def _describe(
    rng: np.random.Generator,
    topic: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    born_ms: npt.NDArray[np.int64],
    expires_ms: npt.NDArray[np.int64],
) -> list[Item]:
    """Titles that no two items share, texts that name the topic, tags and prices of the category."""
    orders = [rng.permutation(len(t.nouns) * len(ADJECTIVES) * len(MAKERS)) for c in CATEGORIES for t in c.topics]
    taken = [0] * TOPICS
    noise = rng.normal(0.0, 0.45, len(topic))
    templates = rng.integers(0, len(TEXTS), len(topic))
    items = []
    for i in range(len(topic)):
        category = CATEGORIES[int(topic[i]) // TOPICS_PER_CATEGORY]
        subject = category.topics[int(topic[i]) % TOPICS_PER_CATEGORY]
        order = orders[int(topic[i])]
        turn, draw = divmod(taken[int(topic[i])], len(order))
        taken[int(topic[i])] += 1
        rest, noun_at = divmod(int(order[draw]), len(subject.nouns))
        maker_at, adjective_at = divmod(rest, len(ADJECTIVES))
        noun, adjective, maker = subject.nouns[noun_at], ADJECTIVES[adjective_at], MAKERS[maker_at]
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
                id=f"item-{i:05d}",
                title=f"{maker} {adjective} {noun}" + (f" {turn + 1}" if turn else ""),
                text=TEXTS[int(templates[i])].format(**words),
                categories=categories,
                tags=[subject.name, noun.lower()],
                price=_price(category.price * float(np.exp(noise[i]))),
                published=int(born_ms[i]),
                expires=None if expires_ms[i] == NEVER else int(expires_ms[i]),
                attributes={"maker": maker},
            )
        )
    return items


def _price(amount: float) -> float:
    return max(1.0, float(round(amount))) - 0.1 if amount < 20 else float(5 * round(amount / 5)) - 0.05
