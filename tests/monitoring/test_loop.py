"""The random slice, judged: nothing is said while the policy leads and crowds as it did, both faults are found, more traffic is none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from headwater.monitoring.loop import PERIOD_MS, Loop, LoopState, LoopWatch, same_item
from headwater.monitoring.outcomes import Waiting, group_of

ITEMS, LIST = 200, 10


class World:
    """Days of lists: the policy's are drawn by popularity to a power of ``crowd``, those of chance evenly."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.watch = LoopWatch(LoopState(), 0.01)
        self.now_ms = PERIOD_MS
        self.popular = self.rng.permutation(1.0 / np.arange(1, ITEMS + 1))

    def day(self, *, crowd: float = 0.5, policy: float = 0.12, chance: float = 0.08, lists: int = 1_500) -> Loop:
        """A day, judged."""
        steered = self.popular**crowd / (self.popular**crowd).sum()
        for i in range(lists):
            uniform = i % 5 == 0
            drawn = self.items(None if uniform else steered)
            user = int(self.rng.integers(1, 400))
            clicked = np.flatnonzero(self.rng.random(LIST) < (chance if uniform else policy)).tolist()
            self.watch.add(Waiting(
                self.now_ms + i, user, group_of(user, ""), "home", "b", 0, 0, uniform, drawn, [0.0] * LIST,
                {2: set(clicked)} if clicked else {},
            ))  # fmt: skip
        self.now_ms += PERIOD_MS
        found = self.watch.close(self.now_ms)
        assert found is not None
        return found

    def items(self, steered: npt.NDArray[np.float64] | None) -> list[int]:
        """A list without repeats, by Gumbel top-k."""
        noise = self.rng.gumbel(size=ITEMS)
        order = np.argsort(-(noise if steered is None else noise + np.log(steered)))
        return [int(item) for item in order[:LIST]]


def test_a_loop_that_is_as_it_was_raises_no_alarm() -> None:
    world = World(1)
    days = [world.day(lists=1_500 + 300 * (day % 3)) for day in range(12)]  # more traffic is no crowding
    assert not any(day.lead_off or day.crowding_off for day in days)
    assert days[0].crowding is None
    assert np.mean([day.lead for day in days]) == pytest.approx(0.5, abs=0.1)
    grown = [day.crowding for day in days if day.crowding is not None]
    assert np.mean(grown) == pytest.approx(0.0, abs=0.1)


def test_a_policy_that_chance_does_better_than_has_lost_its_lead() -> None:
    world = World(2)
    world.day()
    found = world.day(policy=0.06, chance=0.12)
    assert found.lead_off
    assert not found.crowding_off
    assert found.lead == pytest.approx(-0.5, abs=0.15)


def test_a_policy_that_crowds_into_fewer_items_is_found() -> None:
    world = World(3)
    world.day()
    found = world.day(crowd=1.0)
    assert found.crowding_off
    assert found.crowding is not None
    assert found.crowding > (found.crowding_chance or 0.0) > 0.0
    assert not found.lead_off


def test_too_few_lists_of_chance_are_waited_for() -> None:
    watch = LoopWatch(LoopState(), 0.01)
    watch.add(Waiting(1, 1, 1, "home", "b", 0, 0, True, [1, 2], [0.0, 0.0], {2: {0}}))
    assert watch.close(10 * PERIOD_MS) is None
    assert watch.state.looks == 0


def test_the_chance_that_two_places_agree_does_not_depend_on_how_many_there_are() -> None:
    rng = np.random.default_rng(4)
    shares = np.arange(1, 51) / np.arange(1, 51).sum()
    truth = float((shares**2).sum())
    for places in (20, 200):
        found = [same_item(rng.multinomial(places // 4, shares, size=4).T.astype(np.float64)) for _ in range(400)]
        assert np.mean(found) == pytest.approx(truth, rel=0.1)
