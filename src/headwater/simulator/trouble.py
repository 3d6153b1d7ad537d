"""What a scenario has happen to a world that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import numpy as np
import numpy.typing as npt

from headwater.schema.durations import parse_duration
from headwater.simulator.catalogue import HOUR_MS, NEVER, TOPICS, Catalogue
from headwater.simulator.history import CLICK, IMPRESSION, History, in_order
from headwater.simulator.people import COUNTRIES, DEVICES, People
from headwater.simulator.scenario import (
    CATEGORY_NAMES,
    BotAttack,
    Change,
    NewItemFlood,
    Outage,
    Scenario,
    TasteDrift,
    ViralItem,
)
from headwater.simulator.tastes import turned_to

if TYPE_CHECKING:
    from headwater.simulator.life import Life

Ints = npt.NDArray[np.int64]

_BURST_HALF_LIFE_MS = 6 * HOUR_MS
_NO_NUMBER = -1  # session and list of an event that belongs to none


@dataclass(frozen=True)
class _Attack:
    bots: Ints
    items: Ints
    per_ms: float
    from_ms: int
    until_ms: int


@dataclass(frozen=True)
class _Flood:
    creator: int
    items: int
    from_ms: int
    until_ms: int

    def due(self, after_ms: int, until_ms: int) -> int:
        """How many of its items are born in that time."""
        span = self.until_ms - self.from_ms
        first, last = (min(max((at - self.from_ms) / span, 0.0), 1.0) for at in (after_ms, until_ms))
        return round(last * self.items) - round(first * self.items)


class Trouble:
    """The changes of ``scenario`` (None: none), as time passes in ``life``. ``rng`` is its own stream."""

    def __init__(self, life: Life, scenario: Scenario | None, rng: np.random.Generator) -> None:
        self._life, self._rng = life, rng
        changes = () if scenario is None else scenario.changes
        self._waiting: list[Change] = sorted(changes, key=lambda change: change.at_ms)
        self._outages = [change for change in self._waiting if isinstance(change, Outage)]
        self._attacks: list[_Attack] = []
        self._floods: list[_Flood] = []
        self.viral: list[int] = []  # positions of the items that went viral
        self.attacked: list[int] = []  # positions of the items that bots click
        self.burst_half_life_ms = _BURST_HALF_LIFE_MS

    def outage(self, at_ms: int) -> str:
        """Which part is out at ``at_ms``, "": none."""
        for one in self._outages:
            from_ms = self._life.start_ms + one.at_ms
            if from_ms <= at_ms < from_ms + parse_duration(one.lasts):
                return one.part
        return ""

    def advance(self, before_ms: int, now_ms: int) -> Catalogue | None:
        """Begin what is due by ``now_ms``; returns the items of a flood that were born since ``before_ms``."""
        while self._waiting and self._life.start_ms + self._waiting[0].at_ms <= now_ms:
            change = self._waiting.pop(0)
            self._begin(change, self._life.start_ms + change.at_ms)
        made: Catalogue | None = None
        for flood in self._floods:
            part = self._life.supply.make(flood.due(before_ms, now_ms), now_ms, flood.creator)
            made = part if made is None else made if part is None else made.joined(part)
        return made

    def events(self, before_ms: int, now_ms: int) -> History | None:
        """What bots did since ``before_ms``; None: nothing."""
        parts = [self._clicks(attack, before_ms, now_ms) for attack in self._attacks]
        parts = [part for part in parts if len(part)]
        return in_order(parts) if parts else None

    def _begin(self, change: Change, at_ms: int) -> None:
        life, rng = self._life, self._rng
        lasting = life.alive & (life.catalogue.expires_ms == NEVER)
        match change:
            case TasteDrift():
                users = np.flatnonzero(rng.random(life.humans) < change.share)
                to = rng.integers(0, len(CATEGORY_NAMES), len(users))
                if change.toward:
                    to[:] = CATEGORY_NAMES.index(change.toward)
                life.people.tastes[:] = turned_to(rng, life.people.tastes, users, to, change.strength)
            case ViralItem():
                alive = np.flatnonzero(lasting & (life.catalogue.quality > 0.0))
                chosen = rng.choice(alive, min(change.items, len(alive)), replace=False)
                life.burst[chosen] = change.strength
                life.ends_ms[chosen] = np.maximum(life.ends_ms[chosen], at_ms + 4 * parse_duration(change.half_life))
                self.burst_half_life_ms = parse_duration(change.half_life)
                self.viral += chosen.tolist()
            case NewItemFlood():
                creator = life.supply.join(int(rng.integers(TOPICS)), change.skill, 0.0)
                self._floods.append(_Flood(creator, change.items, at_ms, at_ms + parse_duration(change.lasts)))
            case BotAttack():
                alive = np.flatnonzero(lasting)
                worst = alive[np.argsort(life.catalogue.quality[alive], kind="stable")[: change.items]]
                bots, until_ms = life.add_people(_bots(rng, change.bots)), at_ms + parse_duration(change.lasts)
                life.ends_ms[worst] = np.maximum(life.ends_ms[worst], until_ms)
                self._attacks.append(_Attack(bots, worst, change.clicks_per_hour / HOUR_MS, at_ms, until_ms))
                self.attacked += worst.tolist()
            case Outage():
                pass  # asked for by `outage`
            case _:
                assert_never(change)

    def _clicks(self, attack: _Attack, before_ms: int, now_ms: int) -> History:
        """Every click of a bot with the impression before it."""
        rng = self._rng
        first, last = max(before_ms, attack.from_ms), min(now_ms, attack.until_ms)
        count = int(rng.poisson(len(attack.bots) * attack.per_ms * max(last - first, 0)))
        user = rng.choice(attack.bots, count).astype(np.int32)
        item = rng.choice(attack.items, count).astype(np.int32)
        seen_ms = first + (rng.random(count) * (last - first)).astype(np.int64)
        none = np.full(count, _NO_NUMBER, np.int32)
        parts = [
            History(
                time_ms=np.minimum(seen_ms + (1_000 if kind == CLICK else 0), now_ms), user=user, item=item,
                type=np.full(count, kind, np.uint8), value=np.full(count, np.nan, np.float32),
                device=self._life.people.device[user].astype(np.uint8), session=none, listing=none,
                position=np.zeros(count, np.uint8),
            )
            for kind in (IMPRESSION, CLICK)
        ]  # fmt: skip
        return in_order(parts)


def _bots(rng: np.random.Generator, count: int) -> People:
    return People(
        tastes=np.full((count, TOPICS), 1.0 / TOPICS),
        activity=np.zeros(count),
        style=np.zeros(count, np.int64),
        country=rng.integers(0, len(COUNTRIES), count),
        device=rng.integers(0, len(DEVICES), count),
    )
