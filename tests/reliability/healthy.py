"""Sites that are well, as the judgements of drift see them: lists whose outcomes are in (``Site``), and rows of lists (``Served``); and one fault at a time.

Stationary, not still: more people come in the evening and click more then; a visit is several lists within minutes, in one mood, of one person; a few people make much of the
traffic; a few items are most of what is shown and fade with age while new ones come. From day to day the click rate differs by 6 to 11%, chance included (KuaiRand: 3%, and 5% between hours).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.evaluation.seen import Seen
from headwater.monitoring.outcomes import Waiting, group_of
from headwater.registry.reference import BundleReference

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

DAY_MS, HOUR_MS = 24 * 3_600_000, 3_600_000
LIST = 10
CLICK, PURCHASE = 2, 3
SURFACES = ("home", "item")
BUNDLE = "b"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How large a site is and how it moves. ``evening``: how much more than at the mean people click at the best hour (and less at the worst);
    ``busy`` the same of traffic. ``fades_days``: how long an item is of interest, ``turnover`` the share of items that are new each day.
    """

    name: str
    lists: int = 2_000  # a day
    people: int = 2_000
    items: int = 300
    explored: float = 0.2
    click_rate: float = 0.03  # of a place of chance
    purchases: float = 0.4  # of clicks
    evening: float = 0.1
    busy: float = 0.7
    visit: float = 3.0  # lists, at the mean
    fades_days: float = 14.0
    turnover: float = 0.02
    steered: float = 0.5  # how strongly the policy follows what is popular; 0: it is no better than chance


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a day: rates of a type (of one surface, of the policy alone) times so much, or a policy that crowds."""

    clicks: float = 1.0
    purchases: float = 1.0
    surface: str = ""
    policy: float = 1.0
    crowd: float = 1.0


WELL = Fault()


class Site:
    """``day`` gives the lists of the next day, in the order of time."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind, self._rng, self._answers = kind, np.random.default_rng(seed), np.random.default_rng((seed, 1))
        rng = self._rng
        self._comes = rng.lognormal(0.0, 1.0, kind.people)
        self._comes /= self._comes.sum()
        self._likes, self._buys = rng.gamma(2.0, 0.5, kind.people), rng.gamma(2.0, 0.5, kind.people)
        self._groups = np.array([group_of(user, "") for user in range(1, kind.people + 1)])
        self._draw = rng.exponential(1.0, kind.items)  # of an item while it is new
        self._born = -rng.exponential(1.0 / kind.turnover, kind.items)  # day
        self._ids = np.arange(1, kind.items + 1)
        self._day = 0

    @property
    def now_ms(self) -> int:
        """The end of the last day."""
        return (self._day + 1) * DAY_MS

    def day(self, fault: Fault = WELL) -> list[Waiting]:
        """The next day."""
        kind, rng = self.kind, self._rng
        began_ms = self.now_ms
        self._renew()
        user, mood, time_ms = self._visits()
        surface = rng.integers(0, len(SURFACES), len(user))
        uniform = rng.random(len(user)) < kind.explored
        pull = self._draw * np.exp(-(self._day - self._born) / kind.fades_days)
        noise = rng.gumbel(size=(len(user), kind.items)).astype(np.float32)
        noise[~uniform] += (2.0 * kind.steered * fault.crowd * pull).astype(np.float32)
        shown = np.argpartition(-noise, LIST, axis=1)[:, :LIST]
        shown = np.take_along_axis(shown, np.argsort(-np.take_along_axis(noise, shown, 1), axis=1), 1)
        appeal = np.sqrt(0.5 + pull) / np.sqrt(0.5 + pull).mean()
        likes = kind.click_rate * appeal[shown] * self._likes[user][:, None]
        rate = likes * (mood * evening(time_ms, kind.evening) * fault.clicks)[:, None]
        rate *= np.where(uniform, 1.0, fault.policy)[:, None]
        if fault.surface:
            rate[surface != SURFACES.index(fault.surface)] /= fault.clicks
        clicked = rng.random(rate.shape) < np.minimum(rate, 0.9)
        bought = clicked & (
            rng.random(rate.shape) < np.minimum(kind.purchases * self._buys[user] * fault.purchases, 1.0)[:, None]
        )
        scores = np.log(likes + 1e-3) + rng.normal(0.0, 0.3, rate.shape)
        self._day += 1
        late, short = (
            self._answers.random(len(user)) < share for share in (0.03, 0.05)
        )  # answers of a lower tier, and of fewer items than asked for
        made = []
        for i in range(len(user)):
            by_type = {
                type_: set(np.flatnonzero(places[i]).tolist())
                for type_, places in ((CLICK, clicked), (PURCHASE, bought))
                if places[i].any()
            }
            made.append(Waiting(
                began_ms + int(time_ms[i]), int(user[i]) + 1, int(self._groups[user[i]]), SURFACES[surface[i]], BUNDLE, int(late[i]), 0, bool(uniform[i]),
                self._ids[shown[i]].tolist(), scores[i].tolist(), by_type, asked=LIST + 2 * int(short[i]),
            ))  # fmt: skip
        return made

    def _renew(self) -> None:
        gone = np.flatnonzero(self._rng.random(self.kind.items) < self.kind.turnover)
        self._draw[gone], self._born[gone] = self._rng.exponential(1.0, len(gone)), self._day
        self._ids[gone] = self._ids.max() + 1 + np.arange(len(gone))

    def _visits(self) -> tuple[npt.NDArray[np.int64], Float64, npt.NDArray[np.int64]]:
        """User, mood and time since midnight of each list of a day."""
        kind, rng = self.kind, self._rng
        visits = rng.poisson(kind.lists / kind.visit * rng.lognormal(0.0, 0.05))
        hours = evening(np.arange(24) * HOUR_MS, kind.busy)
        starts = rng.choice(24, visits, p=hours / hours.sum()) * HOUR_MS + rng.integers(0, HOUR_MS, visits)
        lengths = rng.geometric(1.0 / kind.visit, visits)
        of = np.repeat(np.arange(visits), lengths)
        place = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        time_ms = np.minimum(starts[of] + 60_000 * place, DAY_MS - 1)
        order = np.argsort(time_ms, kind="stable")
        of = of[order]
        users = rng.choice(kind.people, visits, p=self._comes)
        return users[of], rng.gamma(2.0, 0.5, visits)[of], time_ms[order]


def evening(time_ms: npt.NDArray[np.int64], by: float) -> Float64:
    """The season of a day: 1 at the mean, ``1 + by`` at nine in the evening, ``1 - by`` at nine in the morning."""
    return np.asarray(1.0 + by * np.cos(2.0 * np.pi * (time_ms / DAY_MS - 21.0 / 24.0)), np.float64)


COLUMNS = ("noise", "history", "counter", "hour", "weekend", "segment", "new_item", "rare", "bought")
PLACES = 20


class Asked(NamedTuple):
    """Who asks when; ``stranger``: somebody of whom nothing is known yet."""

    time_ms: int
    user: int
    stranger: bool


class Served:
    """Feature rows of a site to which, of a hundred visits, so many are ``strangers``'. Columns are of the item, of the user, of both, of the hour, of the day."""

    def __init__(self, lists: int, strangers: float, seed: int, people: int = 2_000) -> None:
        self._rng, self._lists, self._strangers = np.random.default_rng(seed), lists, strangers
        rng = self._rng
        self._comes = rng.lognormal(0.0, 1.0, people)
        self._comes /= self._comes.sum()
        self._history, self._segment = rng.exponential(5.0, people).round(2), rng.integers(0, 4, people)
        self._buys = rng.random(people) < 0.3
        self._newest = people

    def hour(self, hour: int) -> list[Asked]:
        """The requests of an hour, in the order of time."""
        rng, found = self._rng, list[Asked]()
        many = rng.poisson(self._lists / 24 * evening(np.array([hour * HOUR_MS]), 0.8)[0])
        while len(found) < many:
            stranger = bool(rng.random() < self._strangers)
            self._newest += stranger
            user = self._newest if stranger else int(rng.choice(len(self._comes), p=self._comes)) + 1
            began_ms = hour * HOUR_MS + int(rng.integers(HOUR_MS))
            found += [
                Asked(min(began_ms + 60_000 * n, (hour + 1) * HOUR_MS - 1), user, stranger)
                for n in range(rng.geometric(1.0 / 3.0))
            ]
        return sorted(found)

    def rows(self, asked: Asked) -> tuple[Float32, Float32]:
        """Rows of the list and its scores, float32[PLACES, 9] and float32[PLACES]."""
        rng, (time_ms, user, stranger) = self._rng, asked
        rows = np.zeros((PLACES, len(COLUMNS)), np.float32)
        rows[:, 0] = rng.normal(size=PLACES)
        rows[:, 2] = rng.poisson(
            0.15 * evening(np.array([time_ms]), 0.9)[0], PLACES
        )  # clicks of the last minutes: few at night
        rows[:, 3], rows[:, 4] = time_ms // HOUR_MS % 24, time_ms // DAY_MS % 7 >= 5
        rows[:, 6], rows[:, 7] = rng.random(PLACES) < 0.05, rng.random(PLACES) < 0.004
        if not stranger:
            rows[:, 1], rows[:, 5] = self._history[user - 1], self._segment[user - 1]
            rows[:, 8] = self._buys[user - 1] * rng.poisson(0.5, PLACES)
        return rows, rng.normal(size=PLACES).astype(np.float32)

    def reference(self, hours: Sequence[int], questions: int = 600) -> BundleReference:
        """That of a bundle, as the gate makes it: by questions about people who have acted, so few of them strangers."""
        seen = Seen(COLUMNS)
        for asked in self._questions(hours, questions // len(hours)):
            seen.ask(asked.time_ms, asked.user)
            seen.take(*self.rows(asked))
        return seen.into(BundleReference(learnt_from="lists"))

    def _questions(self, hours: Sequence[int], each: int) -> Iterator[Asked]:
        for hour in hours:
            asked = [one for one in self.hour(hour) if not one.stranger or self._rng.random() < 0.1]
            yield from asked[:each]
