"""The plan: rows without overlaps, and a hash that changes with what changes the numbers, and with nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headwater.features.definitions import Column, Counted, Decayed, LastTime, Op, default_columns
from headwater.features.plan import (
    I_COUNTS,
    I_TIMES,
    MAX_ITEMS,
    U_COUNTS,
    U_TIMES,
    Plan,
    compile_plan,
)
from headwater.log.protocol import INDEX_LIMITS
from headwater.log.record import Namespace
from headwater.schema.config import MAX_EVENT_TYPES, Config, CoVisits, EventType, Features, Segments, Serving, Surface
from headwater.testing.oracle_rows import positions
from tests.features.states import CONFIGS, PLANS

BASE = Config()


def with_features(**changes: Any) -> Config:
    return Config(features=msgspec.structs.replace(BASE.features, **changes))


CHANGED = {
    "a new event type": Config(events=(*BASE.events, EventType(name="share", positive=True, weight=3.0))),
    "one event type less": Config(events=BASE.events[:-1]),
    "the order of the types": Config(events=BASE.events[::-1]),
    "a weight": Config(events=(EventType(name="click", positive=True, weight=2.0), *BASE.events[3:])),
    "what is seen": Config(events=(EventType(name="impression", seen=True), *BASE.events[1:])),
    "what is a sequence": Config(events=(EventType(name="impression", sequence=True), *BASE.events[1:])),
    "what is positive": Config(
        events=(*BASE.events[:5], EventType(name="skip", weight=-0.5, positive=True), BASE.events[6])
    ),
    "item half-lives": with_features(item_half_lives=("31m", "6h", "3d")),
    "their number": with_features(item_half_lives=("30m", "6h")),
    "user half-lives": with_features(user_half_lives=("1d", "15d")),
    "affinity half-life": with_features(affinity_half_life="13d"),
    "segment half-life": with_features(segment_half_life="7h"),
    "segment keys": Config(segments=Segments(keys=("country",))),
    "other segment keys": Config(segments=Segments(keys=("country", "age"))),
    "segment slots": with_features(segment_slots=65),
    "recent": with_features(recent=65),
    "seen": with_features(seen=511),
    "affinity": with_features(affinity=11),
    "content size": with_features(content_size=32),
    "prior": with_features(rate_prior=21.0),
    "neighbours": with_features(co_visits=CoVisits(neighbours=47)),
    "depth": with_features(co_visits=CoVisits(depth=7)),
    "window": with_features(co_visits=CoVisits(window="11h")),
    "co-visit half-life": with_features(co_visits=CoVisits(half_life="3d")),
    "fast co-visit half-life": with_features(co_visits=CoVisits(fast_half_life="1h")),
}


def test_the_hash_changes_with_everything_that_changes_a_row_or_a_column() -> None:
    hashes = {what: compile_plan(config).hash for what, config in CHANGED.items()}
    assert len({PLANS["default"].hash, *hashes.values()}) == len(hashes) + 1, hashes


def test_the_hash_changes_with_the_columns() -> None:
    columns = default_columns(BASE)
    fewer = compile_plan(BASE, columns[:-1])
    again = compile_plan(BASE, (*columns[1:], columns[0]))
    assert len({fewer.hash, again.hash, compile_plan(BASE, columns).hash}) == 3


def test_nothing_else_changes_the_hash() -> None:
    other = Config(
        data_dir="elsewhere", clock="log", surfaces=(Surface(name="cart", k=3),), serving=Serving(port=1, workers=2),
    )  # fmt: skip
    spelt = with_features(item_half_lives=("1800s", "360m", "72h"))
    assert compile_plan(other).hash == compile_plan(Config()).hash == PLANS["default"].hash
    assert compile_plan(BASE, default_columns(BASE)).hash == PLANS["default"].hash
    assert compile_plan(spelt).layout == PLANS["default"].layout


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_cell_of_a_row_has_one_owner(plan: Plan) -> None:
    layout, at = plan.layout, positions(plan)
    keys, slots = len(plan.segment_keys), layout.segment_size

    def check(width: int, parts: list[tuple[int, int]]) -> None:
        owned = [cell for start, size in parts for cell in range(start, start + size)]
        assert sorted(owned) == list(range(width))

    def cells(kind: type, entity: str) -> list[tuple[int, int]]:
        return [(place, 1) for cell, place in at.items() if isinstance(cell, kind) and cell.entity == entity]

    check(layout.user_i8, [(0, U_TIMES), *cells(LastTime, "user")])
    check(layout.user_f4, [*cells(Decayed, "user"), (layout.affinity_f4, layout.affinity_size)])
    check(
        layout.user_u4,
        [(0, U_COUNTS), *cells(Counted, "user"), (layout.affinity_u4, layout.affinity_size),
         (layout.recent_keys, layout.recent_size), (layout.recent_times, layout.recent_size),
         (layout.seen, layout.seen_size)],
    )  # fmt: skip
    check(layout.item_i8, [(0, I_TIMES), *cells(LastTime, "item")])
    check(
        layout.item_f4,
        [*cells(Decayed, "item"), (layout.segment_f4, keys * slots), (layout.co_f4, layout.co_size),
         (layout.co_fast_f4, layout.co_size), (layout.co_total_f4, 2), (layout.price_f4, 1), (layout.content_f4, layout.content_size)],
    )  # fmt: skip
    check(layout.item_u4, [(0, I_COUNTS), *cells(Counted, "item"), (layout.co_u4, layout.co_size)])


@pytest.mark.parametrize("name", CONFIGS)
def test_columns_have_names_of_their_own_and_say_what_they_are(name: str) -> None:
    columns = default_columns(CONFIGS[name])
    assert len({column.name for column in columns}) == len(columns)
    assert PLANS[name].columns == tuple(column.name for column in columns)
    assert all(column.unit and column.description for column in columns)
    assert set(Op) - {column.op for column in columns} <= {Op.SEGMENT_SHARE, Op.SEGMENT_LIFT, Op.TREND_ITEM}


def test_popular_cells_stand_in_the_order_of_the_configured_half_lives() -> None:
    plan = PLANS["wide"]
    assert plan.half_lives == ("2d", "90s", "30m", "6h")
    assert [round(1 / rate) for rate in plan.popular_rates] == [172_800_000, 90_000, 1_800_000, 21_600_000]
    assert len(set(plan.popular_cells)) == 4


def test_an_item_and_a_type_fit_into_one_word() -> None:
    assert INDEX_LIMITS[Namespace.ITEM] <= MAX_ITEMS
    assert (MAX_ITEMS | MAX_EVENT_TYPES << 24) < 2**32


def test_columns_may_be_chosen() -> None:
    few = (
        Column("hour", Op.HOUR, "hours", "hour of the day"),
        Column("clicks", Op.DECAYED_USER, "events", "clicks", (Decayed("user", ("click",), (1.0,), 1000),)),
    )
    plan = compile_plan(Config(features=Features(recent=2)), few)
    assert plan.columns == ("hour", "clicks")
    assert plan.reads.op.tolist() == [Op.HOUR, Op.DECAYED_USER]
    assert round(1 / plan.reads.rate[1, 0]) == 1000
