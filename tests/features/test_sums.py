"""Sums with a rest: they go on growing where a ``float32`` stands still, in every cell of an item row that is a sum."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.features import declare as d
from headwater.features.aggregations import Decayed, Windowed
from headwater.features.layout import WIDE
from headwater.features.plan import compile_plan, of_everybody
from headwater.features.sums import add, held, hold
from headwater.jit import kernel
from headwater.log.commands import PutItems
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.events import START_MS, Step, written
from tests.features.states import STABLE, folded

Float32 = npt.NDArray[np.float32]
FULL = 2.0**24  # where a float32 stops counting


@kernel
def _added(f4: Float32, amount: float, times: int, rests: bool) -> None:
    for _ in range(times):
        add(f4, 0, 1, amount, 1.0, rests)


@kernel
def _keep(f4: Float32, total: float) -> float:
    hold(f4, 0, 1, True, total)
    return held(f4, 0, 1, True)


def test_thirty_million_additions_are_thirty_million() -> None:
    f4 = np.zeros(2, np.float32)
    _added(f4, 1.0, 30_000_000, True)
    assert f4.tolist() == [30_000_000.0, 0.0]
    _added(f4, 1.0, 3, True)
    assert float(f4[0]) + float(f4[1]) == 30_000_003.0
    without = np.zeros(2, np.float32)
    _added(without, 1.0, 30_000_000, False)
    assert without.tolist() == [FULL, 0.0]  # what it is about
    fractions = np.zeros(2, np.float32)
    _added(fractions, 0.1, 30_000_000, True)
    assert math.isclose(
        float(fractions[0]) + float(fractions[1]), 3_000_000.0, rel_tol=5e-8
    )  # 3e7 roundings of 2^-49 each


@STABLE
@given(total=st.floats(-1e30, 1e30).filter(lambda x: x == 0.0 or abs(x) > 1e-20))
def test_two_cells_hold_48_bits(total: float) -> None:
    f4 = np.zeros(2, np.float32)
    assert abs(_keep(f4, total) - total) <= 2.0**-48 * abs(total)
    assert f4[0] == np.float32(total)  # what a reader takes is the sum, rounded once


COLUMNS = (  # what is kept of everybody is kept of every item, too
    d.total("ever", "everybody", ["click"]),
    d.count("decayed", "everybody", ["click"], half_life="3660d"),
    d.mean("decayed_mean", "everybody", ["click"], half_life="7d"),
    d.count("window", "everybody", ["click"], window="30d", tiles=30),
    d.mean("window_mean", "everybody", ["click"], window="30d", tiles=30),
)
CLICK = Event(user="u", item="i", type="click", time=START_MS, value=1.0, attributes={"country": "de"})


@pytest.mark.parametrize("name", ["i", None])
def test_every_sum_of_an_item_and_of_everybody_goes_on_growing(name: str | None) -> None:
    """As if the first click had happened 2^25 times, more than a ``float32`` can count: a thousand more are a thousand more."""
    plan = compile_plan(Config(), COLUMNS)
    log = written([Step(START_MS, PutItems([Item(id="i")])), Step(START_MS, [CLICK])], Config())
    fold = folded(plan, log)
    f4 = fold.items.rows.f4[log.item(name) if name else 0]
    rests = {at: at + 1 for at in range(plan.layout.segment_f4, plan.layout.co_f4, WIDE)}
    for cell, (at, rest) in plan.positions.items():
        if isinstance(cell, Decayed | Windowed) and cell.entity == "item" and (name or cell in of_everybody(COLUMNS)):
            rests |= {at + k: rest + k for k in range(cell.tiles if isinstance(cell, Windowed) else 1)}
    one = {at: float(f4[at]) + float(f4[rest]) for at, rest in rests.items() if f4[at]}
    assert len(one) >= 4 + 3 + 3  # decayed sums, a tile of each window, both totals of segments and the country
    f4 *= np.float32(2 * FULL)
    log.add([Step(START_MS, [CLICK] * 1000)])
    for block in log.blocks():
        fold.apply(block.tail(fold.offset - block.first_offset + 1))
    for at, click in one.items():
        grown = float(f4[at]) + float(f4[rests[at]]) - 2 * FULL * click
        assert math.isclose(grown, 1000 * click, rel_tol=1e-6), at
