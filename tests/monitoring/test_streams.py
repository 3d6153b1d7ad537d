"""Streams: ADWIN against a slow twin, hours against their season, sketches against the cells themselves."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.monitoring.adwin import EACH, Adwin
from headwater.monitoring.rates import Rate, RateState
from headwater.monitoring.reservoir import HOUR_MS
from headwater.monitoring.season import Season
from headwater.monitoring.sketches import Sketches
from headwater.schema.errors import HeadwaterError


class SlowAdwin:
    """The same window with every value kept, and buckets worked out from their definition."""

    def __init__(self, delta: float) -> None:
        self.delta, self.values, self.sizes, self.since = delta, list[float](), list[int](), 0

    def update(self, value: float) -> None:
        self.values.append(value)
        self.sizes.append(1)
        size = 1
        while self.sizes.count(size) > EACH:
            at = self.sizes.index(size)
            self.sizes[at : at + 2] = [2 * size]
            size *= 2
        self.since += 1
        if self.since == 32:
            self.since = 0
            while self._differs():
                self.values = self.values[self.sizes.pop(0) :]

    def _differs(self) -> bool:
        n = len(self.values)
        if n < 64:
            return False
        mean = sum(self.values) / n
        variance = sum((v - mean) ** 2 for v in self.values) / n
        log = math.log(2 * math.log(n) / self.delta)
        cut = 0
        for size in self.sizes[:-1]:
            cut += size
            if min(cut, n - cut) < 32:
                continue
            m = 1 / (1 / cut + 1 / (n - cut))
            apart = abs(sum(self.values[:cut]) / cut - sum(self.values[cut:]) / (n - cut))
            if apart > math.sqrt(2 / m * variance * log) + 2 / (3 * m) * log:
                return True
        return False


@given(parts=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 400)), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_adwin_keeps_the_window_that_its_slow_twin_keeps(parts: list[tuple[float, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    fast, slow = Adwin(0.01), SlowAdwin(0.01)
    for rate, count in parts:
        for value in (rng.random(count) < rate).astype(float).tolist():
            fast.update(value)
            slow.update(value)
    assert fast.width == len(slow.values)
    assert fast.mean == pytest.approx(sum(slow.values) / len(slow.values))


def test_adwin_finds_a_drop_of_the_click_rate_and_nothing_without_one() -> None:
    rng = np.random.default_rng(4)
    calm = Adwin()
    for value in (rng.random(60_000) < 0.1).astype(float).tolist():
        calm.update(value)
    assert calm.changes == 0
    assert calm.width == 60_000
    for late, value in enumerate((rng.random(20_000) < 0.05).astype(float).tolist()):  # noqa: B007  (asked below)
        if calm.update(value):
            break
    assert late < 3_000
    for value in (rng.random(20_000) < 0.05).astype(float).tolist():
        calm.update(value)
    assert calm.mean == pytest.approx(0.05, abs=0.01)
    with pytest.raises(ValueError, match="0, 1"):
        calm.update(2.0)
    with pytest.raises(ValueError, match="probability"):
        Adwin(0.0)


def test_adwin_does_not_tell_what_is_no_matter_nor_what_people_explain() -> None:
    rng = np.random.default_rng(4)
    for floor, inflation, drop, changes in (
        (0.0, 1.0, 0.08, 1),
        (0.1, 1.0, 0.08, 0),
        (0.1, 1.0, 0.2, 1),
        (0.1, 30.0, 0.2, 0),
    ):
        adwin = Adwin(0.002, floor)
        for rate in (0.5, 0.5 * (1 - drop)):
            for value in (rng.random(12_000) < rate).astype(float).tolist():
                adwin.update(value, inflation)
        assert (adwin.changes > 0) == changes, (floor, inflation, drop)


def told(rate: Rate, first: int, days: int, *, drop: float = 1.0) -> int:
    """Changes from day ``first`` on: visits of one to five lists, in a mood each, with a season of a quarter over the day."""
    rng, changes, by = np.random.default_rng(first), 0, 0.25
    for hour in range(24 * first, 24 * (first + days)):
        for _ in range(60):
            group, mood = int(rng.integers(64)), rng.gamma(2.0, 0.5)
            share = 0.3 * drop * mood * (1 + by * math.sin(2 * math.pi * (hour % 24) / 24))
            for _ in range(rng.integers(1, 6)):
                changes += rate.update(bool(rng.random() < share), group, hour * HOUR_MS)
    return changes


def test_neither_the_hour_of_the_day_nor_people_are_a_change_of_the_click_rate() -> None:
    rate = Rate(RateState(), 0.002)
    told(rate, 1_000, 2)  # the season is not known on the first day
    assert told(rate, 1_002, 4) == 0
    assert rate.mean == pytest.approx(0.3, rel=0.1)
    assert rate.state.between > 1.3 * rate.state.within > 0.0  # a visit is one mood
    again = Rate(msgspec.msgpack.decode(msgspec.msgpack.encode(rate.state), type=RateState), 0.002)
    assert told(again, 1_006, 2) == 0
    assert told(again, 1_008, 1, drop=0.6) > 0


def day_of(hour: int) -> float:
    """Events that an hour of the day brings."""
    return 2_000 + 1_500 * math.sin(2 * math.pi * (hour % 24) / 24)


def test_volume_is_held_against_the_same_hour_of_other_days() -> None:
    rng = np.random.default_rng(9)
    season, off, judged = Season(), 0, 0
    for hour in range(24 * 40):
        count = int(rng.poisson(day_of(hour) * rng.lognormal(0, 0.1)))
        expected = season.expected(hour)
        if expected is not None:
            judged += 1
            off += expected.off(count)
        season.add(hour, count)
    assert judged > 24 * 35
    assert off == 0
    assert len(season.counts) <= 24 * 29
    expected = season.expected(24 * 40)
    assert expected is not None
    assert expected.mean == pytest.approx(day_of(0), rel=0.2)
    assert expected.off(0)
    assert expected.off(int(day_of(0) / 4))
    assert expected.off(int(day_of(0) * 4))
    assert not expected.off(int(day_of(0) * 0.8))


def test_volume_is_not_judged_before_enough_is_known() -> None:
    season = Season()
    assert season.expected(0) is None
    for hour in range(30):
        season.add(hour, 100)
    assert season.expected(30) is None
    rare = Season(dict.fromkeys(range(24 * 8), 1))
    assert rare.expected(24 * 8) is None


@given(st.lists(st.lists(st.floats(width=32), max_size=30), max_size=5))
@settings(max_examples=30, deadline=None)
def test_hours_add_up_and_survive_a_file(hours: list[list[float]]) -> None:
    whole = Sketches()
    for hour in hours:
        part = Sketches()
        part.update("x", np.array(hour, np.float32))
        part.count("users", np.arange(len(hour)))
        whole.merge(Sketches.decode(part.encode()))
    cells = np.array([cell for hour in hours for cell in hour], np.float32)
    known = np.sort(cells[np.isfinite(cells)])
    assert whole.cells("x") == len(cells)
    assert whole.missing("x") == pytest.approx(1 - len(known) / max(len(cells), 1) if len(cells) else 0.0)
    if len(known):  # fewer than 200 values: the sketch is exact
        assert whole.quantiles("x", [0.0, 1.0]) == [known[0], known[-1]]
        assert whole.quantiles("x", [0.5])[0] in known
    else:
        assert whole.quantiles("x", [0.5]) == []
    assert whole.distinct("users") == pytest.approx(max(map(len, hours), default=0), abs=0.5)


def test_a_large_hour_is_within_the_errors_that_are_stated() -> None:
    rng = np.random.default_rng(8)
    sketches, cells = Sketches(), rng.lognormal(size=100_000).astype(np.float32)
    for part in np.array_split(cells, 40):
        sketches.update("x", part)
    sketches.count("items", rng.integers(0, 50_000, 100_000))
    ranks = [(cells <= value).mean() for value in sketches.quantiles("x", [0.1, 0.5, 0.9])]
    assert ranks == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    assert sketches.distinct("items") == pytest.approx(50_000 * (1 - math.exp(-2)), rel=0.12)
    assert len(sketches.encode()) < 20_000
    with pytest.raises(HeadwaterError, match="cannot be read"):
        Sketches.decode(b'{"format":1,"columns":{},"distinct":{"a":"AAAA"}}')
