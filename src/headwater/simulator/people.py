"""The people of the simulated world: what they like, where they live, how often and on what they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.simulator.catalogue import STYLES, TOPICS
from headwater.simulator.words import CATEGORIES, TOPICS_PER_CATEGORY

COUNTRIES: tuple[str, ...] = ("US", "DE", "GB", "FR", "BR", "JP")
_COUNTRY_SHARES = (0.34, 0.2, 0.16, 0.12, 0.1, 0.08)
_HOURS_FROM_UTC = (-5, 1, 0, 1, -3, 9)
DEVICES: tuple[str, ...] = ("mobile", "desktop", "tablet")
_DEVICE_SHARES = (0.64, 0.28, 0.08)

_TASTES = 3  # categories that a user is drawn to, at most
_COUNTRY_PULL = 0.8  # how strongly a country leans to its favourite categories (log scale)

# Share of a day's visits by local hour: a dip at night, a small peak at lunch, a large one in the evening.
_DAY = np.array([14, 8, 5, 4, 4, 7, 16, 28, 36, 38, 40, 44, 52, 50, 42, 41, 44, 52, 64, 78, 88, 84, 62, 34], np.float64)
_WEEK = np.array([0.94, 0.92, 0.93, 0.96, 1.04, 1.16, 1.2])  # Monday first
_DAY_MS = 86_400_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


@dataclass(frozen=True)
class People:
    """Users as columns (``n`` users): id ``user-00017`` stands at position 17.

    ``tastes`` is (n, TOPICS), rows sum to 1: the chance that a visit is about the topic. ``activity`` has mean 1
    (a few people come far more often than most). ``style`` is the look they prefer. ``country`` and ``device`` index ``COUNTRIES`` and ``DEVICES``.
    """

    tastes: npt.NDArray[np.float64]
    activity: npt.NDArray[np.float64]
    style: npt.NDArray[np.int64]
    country: npt.NDArray[np.int64]
    device: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.activity)

    def presence(self, at_ms: int) -> npt.NDArray[np.float64]:
        """Relative rate of visits of each country at ``at_ms`` (mean 1 over a week): the daily and weekly rhythm."""
        local = at_ms + np.array(_HOURS_FROM_UTC) * 3_600_000
        hour = (local % _DAY_MS) // 3_600_000
        weekday = (local // _DAY_MS + _EPOCH_WEEKDAY) % 7
        return np.asarray((_DAY / _DAY.mean())[hour] * (_WEEK / _WEEK.mean())[weekday])


def user_id(position: int) -> str:
    """The external id of the user at ``position``."""
    return f"user-{position:05d}"


def user_position(user: int | str) -> int:
    """The position of the user with this id, or at this position; ``KeyError`` for what cannot be one."""
    if isinstance(user, int):
        return user
    number = user.removeprefix("user-")
    if number == user or not number.isdecimal():
        raise KeyError(user)
    return int(number)


def make_people(rng: np.random.Generator, count: int) -> People:
    """``count`` users with one to three tastes each, narrower topics inside them, and a lean by country."""
    country = rng.choice(len(COUNTRIES), count, p=_COUNTRY_SHARES)
    device = rng.choice(len(DEVICES), count, p=_DEVICE_SHARES)
    lean = rng.normal(0.0, _COUNTRY_PULL, (len(COUNTRIES), len(CATEGORIES)))
    # Gumbel top-k: draws categories without repeats, those that the country leans to more often.
    gumbel = rng.gumbel(size=(count, len(CATEGORIES))) + lean[country]
    liked = np.argsort(-gumbel, axis=1)[:, :_TASTES]
    share = rng.dirichlet([1.6, 1.0, 0.6], count)
    share[(share < 0.12)] = 0.0  # so that some people have one or two tastes only
    share /= share.sum(axis=1, keepdims=True)
    tastes = np.full((count, TOPICS), 0.02 / TOPICS)
    rows = np.arange(count)
    for k in range(_TASTES):
        inside = rng.dirichlet([0.7] * TOPICS_PER_CATEGORY, count)
        for t in range(TOPICS_PER_CATEGORY):
            tastes[rows, liked[:, k] * TOPICS_PER_CATEGORY + t] += 0.98 * share[:, k] * inside[:, t]
    activity = rng.gamma(0.8, 1.25, count) + 0.05
    style = rng.integers(0, STYLES, count)
    return People(tastes / tastes.sum(axis=1, keepdims=True), activity / activity.mean(), style, country, device)
