"""The supply side: creators who make items, more of them when these are seen, and who leave when nobody sees them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from headwater.simulator.catalogue import HOUR_MS, NEVER, Catalogue, Describer, Makers, make_items

DAY_MS = 24 * HOUR_MS
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_REVIEW_MS = DAY_MS  # creators look at their impressions once a day
_MEMORY = 0.5  # of a creator's drive, from one day to the next
_MOST_DRIVE = 3.0
_PATIENCE = 3  # days without an impression after which a creator leaves
_ARRIVALS = 0.02  # new creators a day, of those who are there


class Supply:
    """Creators, and the items that they make from ``now_ms`` on, ``births_per_day`` of them when all have a drive of 1.

    ``drive`` is float64[creators]: how much a creator makes beside the mean one. It moves toward the square root of their share of
    the day's impressions over the mean share, up to 3; ``active`` says who is still there.
    """

    def __init__(
        self, makers: Makers, describer: Describer, rng: np.random.Generator, *, births_per_day: float, now_ms: int
    ) -> None:
        self.makers, self.births_per_day = makers, births_per_day
        self._describer, self._rng = describer, rng
        self._founders = len(makers)
        self.drive: Floats = np.ones(len(makers))
        self.active: npt.NDArray[np.bool_] = np.ones(len(makers), np.bool_)
        self._unseen_days: Ints = np.zeros(len(makers), np.int64)
        self._impressions: Floats = np.zeros(len(makers))
        self._next_review_ms = now_ms + _REVIEW_MS

    def shown(self, creators: Ints) -> None:
        """An impression for each of ``creators``."""
        self._impressions += np.bincount(creators, minlength=len(self.makers))

    def step(self, now_ms: int, dt_ms: int) -> Catalogue | None:
        """What was made in the ``dt_ms`` before ``now_ms``; None: nothing."""
        if now_ms >= self._next_review_ms:
            self._review()
            self._next_review_ms += _REVIEW_MS * ((now_ms - self._next_review_ms) // _REVIEW_MS + 1)
        rate = self.births_per_day * dt_ms / DAY_MS * self.drive.sum() / self._founders
        return self.make(int(self._rng.poisson(rate)), now_ms)

    def make(self, count: int, now_ms: int, creator: int | None = None) -> Catalogue | None:
        """``count`` items born at ``now_ms``, by ``creator`` or by whoever has the drive."""
        if not count or not self.drive.any():
            return None
        by = (
            self._rng.choice(len(self.drive), count, p=self.drive / self.drive.sum())
            if creator is None
            else np.full(count, creator)
        )
        born = np.full(count, now_ms, np.int64)
        made = make_items(self._rng, self.makers, self._describer, by, born, start_ms=now_ms, hours=1)
        made.expires_ms[:] = NEVER  # how long they live is decided where they live
        made.items[:] = [replace(item, expires=None) for item in made.items]
        return made

    def join(self, topic: int, skill: float, drive: float) -> int:
        """A new creator; returns their number."""
        self.makers = Makers(np.append(self.makers.topic, topic), np.append(self.makers.skill, skill))
        self.drive, self.active = np.append(self.drive, drive), np.append(self.active, True)
        self._unseen_days = np.append(self._unseen_days, 0)
        self._impressions = np.append(self._impressions, 0.0)
        return len(self.makers) - 1

    def _review(self) -> None:
        """Creators look at the day's impressions; some leave, some arrive."""
        total = self._impressions.sum()
        if total > 0.0:  # a day in which nothing was shown says nothing about anybody
            share = self._impressions / total * self.active.sum()
            aim = np.minimum(np.sqrt(share), _MOST_DRIVE)
            self.drive = np.where(self.active, _MEMORY * self.drive + (1 - _MEMORY) * aim, 0.0)
            self._unseen_days = np.where(self._impressions > 0.0, 0, self._unseen_days + 1)
            leaves = self.active & (self._unseen_days >= _PATIENCE)
            self.active &= ~leaves
            self.drive[leaves] = 0.0
        self._impressions[:] = 0.0
        for _ in range(int(self._rng.poisson(_ARRIVALS * self._founders))):
            self.join(int(self._rng.choice(self.makers.topic)), float(self._rng.normal()), 1.0)
