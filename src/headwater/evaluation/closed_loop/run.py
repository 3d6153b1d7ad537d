"""One policy in one world: people come, get lists from the product, respond, and come back or not."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.evaluation.closed_loop.estimates import impressions_to_know
from headwater.evaluation.closed_loop.policies import Policy
from headwater.evaluation.closed_loop.system import Start, System
from headwater.simulator import History, Life, Scenario
from headwater.simulator.browsing import columns
from headwater.simulator.catalogue import HOUR_MS
from headwater.simulator.history import CLICK, IMPRESSION, SKIP, in_order
from headwater.simulator.life import Choices
from headwater.simulator.supply import DAY_MS

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

K = 10
_MOST_LISTS = 12  # of one visit
_PAUSE_MS = 30_000  # between two lists of a visit, at least; as much again on average
_AT_ONCE = (
    IMPRESSION,
    CLICK,
    SKIP,
)  # what is known of a list before the next one; views, likes and purchases come later


@dataclass
class Ledger:
    """What happened, ``u`` people and ``d`` days: ``sums[name]`` is float64[u, d].

    ``visits``, ``satisfaction`` (their sum), ``lists``, ``clicks``, ``impressions``, ``expected`` and ``best`` (utility of the lists that
    were made, and of the oracle's, before anybody clicked). ``shown`` counts impressions by catalogue position, ``new`` has the
    times of impressions of items born in the measured days, by position, ``born_ms`` and ``gone_ms`` when these came and went.
    """

    sums: dict[str, Float64]
    shown: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    new: dict[int, list[int]] = field(default_factory=dict)
    born_ms: dict[int, int] = field(default_factory=dict)
    gone_ms: dict[int, int] = field(default_factory=dict)
    eligible: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))  # items that could be shown
    end_ms: int = 0
    to_know: int = 0  # impressions after which an item's rate is a good estimate


SUMS = ("visits", "satisfaction", "lists", "clicks", "impressions", "expected", "best")


@dataclass(order=True)
class _Visit:
    at_ms: int
    number: int
    user: int = field(compare=False)
    device: int = field(compare=False)
    about: int = field(compare=False)
    start_ms: int = field(compare=False)
    lists: int = field(default=0, compare=False)
    gained: float = field(default=0.0, compare=False)


def run_policy(
    policy: Policy, start: Start, *, seed: int, days: int, births_per_day: float, share: float, scenario: Scenario | None
) -> Ledger:  # fmt: skip
    """``days`` of the world of ``start`` under ``policy``. The same arguments give the same ledger."""
    life = Life(start.world, seed=seed, scenario=scenario, births_per_day=births_per_day)
    loop = _Loop(policy, start, life, seed=seed, days=days, share=share)
    try:
        return loop.run()
    finally:
        loop.system.close()


class _Loop:
    def __init__(self, policy: Policy, start: Start, life: Life, *, seed: int, days: int, share: float) -> None:
        self.policy, self.life, self.days, self._seed = policy, life, days, seed
        self.system = System(policy, start, seed=seed, share=share)
        self.ledger = Ledger({name: np.zeros((life.humans, days)) for name in SUMS})
        self._pauses = np.random.default_rng([seed, 42])
        self._delays = np.random.default_rng([seed, 43])
        self._visits: list[_Visit] = []
        self._listings = 0

    def run(self) -> Ledger:
        """All days, hour by hour."""
        life = self.life
        self.ledger.to_know = impressions_to_know(life, k=K, seed=self._seed)
        for hour in range(self.days * 24):
            at_ms = life.start_ms + hour * HOUR_MS
            self._turn(at_ms)
            if hour % 24 == 0 and hour:
                self.system.catch_up(life, at_ms)
                self.system.train()
            arrivals = life.arrivals(at_ms + HOUR_MS)
            for row in range(len(arrivals)):
                start_ms = int(arrivals.start_ms[row])
                visit = _Visit(
                    start_ms, int(arrivals.number[row]), int(arrivals.user[row]), int(arrivals.device[row]),
                    int(arrivals.about[row]), start_ms,
                )  # fmt: skip
                heapq.heappush(self._visits, visit)
            while self._visits and self._visits[0].at_ms < at_ms + HOUR_MS:
                self._list(heapq.heappop(self._visits))
        while self._visits:
            self._list(heapq.heappop(self._visits))
        ledger = self.ledger
        ledger.end_ms = life.start_ms + self.days * DAY_MS
        shown = np.zeros(len(life.catalogue), np.int64)
        shown[: len(ledger.shown)] = ledger.shown[: len(shown)]
        ledger.shown, ledger.eligible = shown, life.ends_ms > life.start_ms
        return ledger

    def _turn(self, at_ms: int) -> None:
        """What is new in the world, told to the product."""
        turn = self.life.advance(at_ms)
        first = len(self.life.catalogue) - len(turn.born)
        self.ledger.born_ms |= {first + n: at_ms for n in range(len(turn.born))}
        self.ledger.gone_ms |= {int(p): at_ms for p in self.life.positions(turn.gone)}
        self.system.put_items(turn.born, at_ms)
        self.system.delete_items(turn.gone, at_ms)
        if turn.events is not None:
            self._hear(turn.events, at_ms)

    def _list(self, visit: _Visit) -> None:
        """One list of one visit."""
        life, now_ms, user = self.life, visit.at_ms, visit.user
        self.system.catch_up(life, now_ms)
        if life.outage(now_ms) == "serving":
            self._end(visit)
            return
        listing = self._listings
        self._listings += 1
        shown = self.system.recommend(life, user, visit.device, listing, K, now_ms)
        users, about = np.array([user]), np.array([visit.about])
        best = life.oracle(user, K, now_ms, visit.about)[1]
        chosen = life.choose(users, shown[None, :], now_ms, about)
        self._note(visit, shown, chosen, best)
        self._respond(visit, shown, chosen, listing)
        visit.gained += float(chosen.gained[0])
        visit.about = int(chosen.about[0])
        visit.lists += 1
        pause = _PAUSE_MS + int(self._pauses.exponential(_PAUSE_MS))
        if chosen.stays[0] and visit.lists < _MOST_LISTS:
            visit.at_ms = now_ms + pause
            heapq.heappush(self._visits, visit)
        else:
            self._end(visit)

    def _respond(self, visit: _Visit, shown: Int64, chosen: Choices, listing: int) -> None:
        """The events of a list, on their way to the log."""
        now_ms = visit.at_ms
        happened = {IMPRESSION: np.ones((1, len(shown)), np.bool_), **chosen.happened}
        parts = columns(
            self._delays, happened, np.array([visit.user]), shown[None, :], np.array([now_ms]),
            np.array([visit.device]), np.array([visit.number]), np.array([listing]), self.life.prices,
        )  # fmt: skip
        sorts = list(zip(sorted(happened), parts, strict=True))
        for soon in (True, False):
            events = [part for kind, part in sorts if (kind in _AT_ONCE) == soon and len(part)]
            if events:
                self._hear(in_order(events), max(int(part.time_ms.max()) for part in events))

    def _hear(self, events: History, at_ms: int) -> None:
        """Events reach the log late, where the policy has it so, and after an outage."""
        life = self.life
        arrive_ms = at_ms + self.policy.delay_ms
        if self.policy.daily:
            arrive_ms = life.start_ms + ((at_ms - life.start_ms) // DAY_MS + 1) * DAY_MS
        while life.outage(arrive_ms) == "events":
            arrive_ms += HOUR_MS // 4
        self.system.hear(events, arrive_ms)

    def _end(self, visit: _Visit) -> None:
        satisfaction = self.life.finish(np.array([visit.user]), np.array([visit.gained]))
        self._add("visits", visit, 1.0)
        self._add("satisfaction", visit, float(satisfaction[0]))

    def _note(self, visit: _Visit, shown: Int64, chosen: Choices, best: float) -> None:
        ledger = self.ledger
        self._add("lists", visit, 1.0)
        self._add("impressions", visit, float(len(shown)))
        self._add("clicks", visit, float(chosen.happened[CLICK].sum()))
        self._add("expected", visit, float(chosen.expected[0]))
        self._add("best", visit, best)
        if len(ledger.shown) < len(self.life.catalogue):
            grown = np.zeros(2 * len(self.life.catalogue), np.int64)
            grown[: len(ledger.shown)] = ledger.shown
            ledger.shown = grown
        ledger.shown[shown] += 1
        for position in shown.tolist():
            if position in ledger.born_ms:
                ledger.new.setdefault(position, []).append(visit.at_ms)

    def _add(self, name: str, visit: _Visit, amount: float) -> None:
        day = min((visit.start_ms - self.life.start_ms) // DAY_MS, self.days - 1)
        self.ledger.sums[name][visit.user, day] += amount
