"""What is known of new items: the counts, what is usual in the catalogue, and rates that are drawn from both."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy.stats import gamma, kstest

from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.retrieval.sources import Fresh
from headwater.retrieval.young import Prior, Young, YoungItems, add_rate, fitted_prior
from headwater.schema.config import Config, parse_config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import HOUR_MS, World, clicks, many, world

THOMPSON = parse_config('[sources.fresh]\norder = "thompson"\nmax_age = "1d"\n')
PROMISED = parse_config("[new_items]\nimpressions = 10\n")


def catalogue(config: Config) -> World:
    """Ten new items: i0 is liked at every impression, i1 never, the others were never shown."""
    made = world(Step(START_MS, PutItems([Item(id=f"i{n}") for n in range(10)])), config=config)
    for item, likes in (("i0", 30), ("i1", 0)):
        made.add(clicks(*many(item, 30), kind="impression", at_ms=START_MS + 1))
        if likes:
            made.add(clicks(*many(item, likes), at_ms=START_MS + 2))
    return made


def young_of(made: World, config: Config, max_age_ms: int = HOUR_MS) -> Young:
    assert made.plan.outcomes is not None
    found = YoungItems(made.plan.outcomes, max_age_ms, config.features.rate_prior)
    return found.at(made.view.index, made.view.item_offset, made.now_ms)


def test_rows_count_impressions_and_what_came_of_them_where_somebody_asks() -> None:
    assert compile_plan(Config()).outcomes is None
    assert compile_plan(Config()).hash != compile_plan(PROMISED).hash
    made = catalogue(PROMISED)
    made.add(Step(START_MS + 3, [Event(user="x1", item="i0", type="click", retract=True)]))
    young = young_of(made, PROMISED)
    assert dict(zip(made.log.names(young.items.tolist()), young.shown.tolist(), strict=True)) == {
        "i0": 30, "i1": 30, **{f"i{n}": 0 for n in range(2, 10)},
    }  # fmt: skip
    assert young.liked.tolist() == [29, *[0] * 9]
    assert young.born_ms.tolist() == [START_MS] * 10
    assert not len(young_of(made, PROMISED, max_age_ms=1).items)


def test_places_of_served_lists_are_impressions_where_a_product_sends_none() -> None:
    config = parse_config('[new_items]\nimpressions = 10\ncounted_by = "served"\n')
    made = world(Step(START_MS, PutItems([Item(id=f"i{n}") for n in range(3)])), config=config)
    items = made.log.items("i0", "i2", "i0")
    served = ServedList(
        "r", "home", items, [0.0] * 3, ["fresh"] * 3, 0, [], Address(1, 1, START_MS, "p", "b"), [0, 0, 0, 0], b""
    )
    made.add(Step(START_MS + 5, AppendServed([ServedEntry(0, 0, msgspec.msgpack.encode(served))])))
    made.add(clicks(("x", "i2"), at_ms=START_MS + 6))
    young = young_of(made, config)
    assert (young.shown.tolist(), young.liked.tolist()) == ([2, 0, 1], [0, 0, 1])
    again = Fold(made.plan)
    while (block := made.log.log.read(again.offset, 1)) is not None:  # one record at a time, as a slow server sees them
        again.apply(block)
    count = again.items.count
    one, other = again.items.rows, made.fold.items.rows
    assert one.i8[:count].tobytes() == other.i8[:count].tobytes()
    assert one.f4[:count].tobytes() == other.f4[:count].tobytes()
    assert one.u4[:count].tobytes() == other.u4[:count].tobytes()


@pytest.mark.parametrize(("mean", "strength"), [(0.1, 40.0), (0.02, 150.0), (0.3, 10.0)])
def test_the_prior_is_found_again_in_what_was_drawn_from_it(mean: float, strength: float) -> None:
    random = np.random.default_rng(3)
    rates = random.gamma(mean * strength, 1.0 / strength, 20_000)
    shown = random.integers(1, 2_000, len(rates)).astype(float)
    sums = np.zeros(8)
    for n, liked in zip(shown.tolist(), random.poisson(rates * shown).tolist(), strict=True):
        add_rate(n, float(liked), sums)
    found = fitted_prior(sums, 20.0)
    assert found.mean == pytest.approx(mean, rel=0.05)
    assert found.strength == pytest.approx(strength, rel=0.15)


def test_a_catalogue_that_says_little_is_taken_for_a_usual_one() -> None:
    nothing = fitted_prior(np.zeros(8), 20.0)
    assert tuple(nothing) == pytest.approx((1.0, 20.0))
    sums = np.zeros(8)
    for _ in range(1_000):  # all alike: chance alone would make them differ more
        add_rate(100.0, 10.0, sums)
    assert tuple(fitted_prior(sums, 20.0)) == pytest.approx((10.0, 100.0), rel=0.01)
    rare = np.zeros(8)
    for liked in (*[0.0] * 2_000, 60.0):  # hardly any item is ever liked
        add_rate(1_000.0, liked, rare)
    assert fitted_prior(rare, 20.0).shape >= 0.5


def test_rates_are_drawn_from_what_is_known() -> None:
    prior = Prior(2.0, 40.0)
    young = Young(np.arange(4_000), np.zeros(4_000, np.int64), np.full(4_000, 60.0), np.full(4_000, 7.0), prior)
    drawn = young.draw(11)
    assert kstest(drawn, gamma(9.0, scale=1.0 / 100.0).cdf).pvalue > 0.01
    assert drawn.tolist() == young.draw(11).tolist()
    assert drawn.tolist() != young.draw(12).tolist()


def test_the_fresh_source_gives_what_may_be_good_a_chance_and_the_rest_less_and_less() -> None:
    made = catalogue(THOMPSON)
    source = Fresh(THOMPSON, made.plan)
    asked = made.asked(later_ms=HOUR_MS)
    first = [made.names(source.fetch(replace(asked, seed=seed), made.view.index).ranked)[0] for seed in range(300)]
    others = [first.count(f"i{n}") for n in range(2, 10)]
    assert first.count("i0") > 3 * max(others), "what is liked every time"
    assert min(others) > 10, "of these nothing is known: each may be the best"
    assert first.count("i1") == 0
    one, same = (source.fetch(replace(asked, seed=5), made.view.index).ranked for _ in range(2))
    assert one.items.tolist() == same.items.tolist()
    assert len(one) == 10
    late = source.fetch(made.asked(later_ms=30 * HOUR_MS), made.view.index)
    assert (len(late.ranked), late.why_empty) == (0, "no new items")


def test_what_was_found_is_looked_up_again_when_the_columns_or_the_second_move_on() -> None:
    made = catalogue(PROMISED)
    assert made.plan.outcomes is not None
    finder = YoungItems(made.plan.outcomes, HOUR_MS, 20.0)
    index = made.view.index
    one = finder.at(index, made.view.item_offset, made.now_ms)
    assert finder.at(index, made.view.item_offset, made.now_ms) is one
    assert not len(finder.at(index, made.view.item_offset, made.now_ms + HOUR_MS).items)
    made.add(clicks(("y", "i5"), kind="impression", at_ms=START_MS + 4))
    assert finder.at(index, made.view.item_offset, made.now_ms).shown.tolist()[5] == 1.0
