"""The random slice, judged: nothing is said while the policy leads and crowds as it did, both faults are found, more traffic is none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from headwater.monitoring.loop import PERIOD_MS, Loop, LoopState, LoopWatch, different_items, log_ratio
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
    found = world.day(crowd=1.5)
    assert found.crowding_off
    assert found.crowding is not None
    assert found.crowding > (found.crowding_chance or 0.0) > 0.0
    assert not found.lead_off


def test_too_few_lists_of_chance_are_waited_for() -> None:
    watch = LoopWatch(LoopState(), 0.01)
    watch.add(Waiting(1, 1, 1, "home", "b", 0, 0, True, [1, 2], [0.0, 0.0], {2: {0}}))
    assert watch.close(10 * PERIOD_MS) is None
    assert watch.state.looks == 0


def test_how_many_items_so_many_places_show_does_not_depend_on_how_many_there_are() -> None:
    rng = np.random.default_rng(4)
    shares = np.arange(1, 51) / np.arange(1, 51).sum()
    truth = float((1 - (1 - shares) ** 30).sum())
    for places in (40, 400):
        found = [
            different_items(rng.multinomial(places // 4, shares, size=4).T.astype(np.float64), 30) for _ in range(400)
        ]
        assert np.mean(found) == pytest.approx(truth, rel=0.02)
    counts = rng.multinomial(20, shares, size=4).T.astype(np.float64)
    items = np.repeat(np.arange(50), counts.sum(1).astype(int))
    slow = np.mean([len(np.unique(rng.choice(items, 30, replace=False))) for _ in range(4_000)])
    assert different_items(counts, 30) == pytest.approx(slow, rel=0.01)
    assert different_items(counts, 81) == 0.0
    assert different_items(counts, 80) == np.count_nonzero(counts.sum(1))


def test_items_of_a_part_that_is_left_out_count_for_nothing() -> None:
    counts = np.ones((40, 16))
    rare = np.vstack((counts, np.eye(16)))  # and one more item for each part alone
    assert log_ratio(counts, counts, 40) == (0.0, 0.0)
    found = log_ratio(rare, counts, 40)
    assert found is not None
    assert found[0] > 0.0
    assert found[1] == pytest.approx(0.0, abs=1e-12)  # the parts are alike
    assert log_ratio(counts, counts, 10_000) is None


def test_what_is_popular_comes_and_goes() -> None:
    """A hit that is in every list is no loop: it is one item of those that a hundred places show."""
    world = World(5)
    world.day()
    for hit in (50, 120, 30):
        world.popular = world.rng.permutation(1.0 / np.arange(1, ITEMS + 1))
        world.popular[hit] = 400.0
        assert not world.day().crowding_off
