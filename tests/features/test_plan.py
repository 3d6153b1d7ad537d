"""The plan: rows without overlaps, and a hash that changes with what changes the numbers, and with nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headwater.features.aggregations import (
    Affinity,
    Aggregation,
    Decayed,
    Distinct,
    LastTime,
    LastValue,
    TableValue,
    Windowed,
)
from headwater.features.declare import context, count, embedding, log1p, mean, ratio, recent, total
from headwater.features.defaults import default_columns
from headwater.features.definitions import Column, TermOp, version_of
from headwater.features.factors import CELLS, item_numbers
from headwater.features.layout import I_COUNTS, I_TIMES, MAX_ITEMS, U_COUNTS, U_TIMES, WIDE
from headwater.features.plan import MAX_LIVES, Plan, compile_plan
from headwater.log.protocol import INDEX_LIMITS
from headwater.log.record import Namespace
from headwater.schema.config import MAX_EVENT_TYPES, Config, CoVisits, EventType, Features, Serving
from headwater.schema.errors import ConfigurationError
from headwater.schema.segments import Segments
from headwater.schema.surfaces import Fatigue, Surface
from tests.features.columns import EVERYTHING_PLAN
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
    "idle after": with_features(idle_after="399d"),
    "never idle": with_features(idle_after="never"),
    "fatigue": Config(fatigue=Fatigue(impressions=3)),
    "fewer default features": with_features(without=("co_last",)),
}


def test_the_hash_changes_with_everything_that_changes_a_row_or_a_column() -> None:
    hashes = {what: compile_plan(config).hash for what, config in CHANGED.items()}
    assert len({PLANS["default"].hash, *hashes.values()}) == len(hashes) + 1, hashes


def test_the_hash_changes_with_the_columns() -> None:
    columns = default_columns(BASE)
    fewer = compile_plan(BASE, columns[:-1])
    again = compile_plan(BASE, (*columns[1:], columns[0]))
    renamed = compile_plan(BASE, (msgspec.structs.replace(columns[0], name="other"), *columns[1:]))
    assert len({fewer.hash, again.hash, renamed.hash, compile_plan(BASE, columns).hash}) == 4


def test_words_change_neither_hash_nor_version() -> None:
    said = {"unit": "x", "description": "y", "owner": "z"}
    columns = tuple(msgspec.structs.replace(column, **said) for column in default_columns(BASE))
    plan = compile_plan(BASE, columns)
    assert (plan.hash, plan.versions) == (PLANS["default"].hash, PLANS["default"].versions)


A = count("a", "item", ["click"], half_life="1h")
NUMBERS = [
    A,
    count("b", "item", ["click"], half_life="1h"),
    count("a", "user", ["click"], half_life="1h"),
    count("a", "everybody", ["click"], half_life="1h"),
    count("a", "item", ["like"], half_life="1h"),
    count("a", "item", ["click", "like"], half_life="1h"),
    count("a", "item", ["click"], half_life="2h"),
    count("a", "item", ["click"]),
    count("a", "item", ["click"], window="1h"),
    count("a", "item", ["click"], window="1h", tiles=6),
    total("a", "item", ["click"], half_life="1h"),
    mean("a", "item", ["click"], half_life="1h"),
    log1p("a", A),
    count("a", "item", ["click"], half_life="1h", default=-1.0),
    msgspec.structs.replace(A, dtype="int32"),
]


def test_a_version_changes_with_whatever_changes_the_numbers() -> None:
    assert len({version_of(column) for column in NUMBERS}) == len(NUMBERS)
    assert version_of(A) == version_of(count("a", "item", ["click"], half_life="3600s", owner="me", unit="u"))


def test_nothing_else_changes_the_hash() -> None:
    other = Config(
        data_dir="elsewhere", clock="log", surfaces=(Surface(name="cart", k=3),), serving=Serving(port=1, workers=2),
    )  # fmt: skip
    spelt = with_features(item_half_lives=("1800s", "360m", "72h"))
    assert compile_plan(other).hash == compile_plan(Config()).hash == PLANS["default"].hash
    assert compile_plan(BASE, default_columns(BASE)).hash == PLANS["default"].hash
    assert compile_plan(spelt).layout == PLANS["default"].layout


ALL_PLANS = {**PLANS, "everything": EVERYTHING_PLAN}


@pytest.mark.parametrize("plan", ALL_PLANS.values(), ids=ALL_PLANS)
def test_every_cell_of_a_row_has_one_owner(plan: Plan) -> None:
    layout = plan.layout
    keys, slots = len(plan.segment_keys), layout.segment_size
    found: dict[tuple[str, str], set[tuple[int, int]]] = {}

    def own(cell: Aggregation, part: str, start: int, size: int = 1) -> None:
        found.setdefault((cell.entity, part), set()).add((start, size))

    for cell, (at, other) in plan.positions.items():
        if isinstance(cell, Affinity):
            own(cell, "f4", at, cell.slots)
            own(cell, "u4", other, 2 * cell.slots)
        elif isinstance(cell, Windowed):
            own(cell, "f4", at, cell.tiles)
            if cell.entity == "item":
                own(cell, "f4", other, cell.tiles)
        elif isinstance(cell, Decayed):
            own(cell, "f4", at, WIDE if cell.entity == "item" else 1)
            assert other == (at + 1 if cell.entity == "item" else 0)
        elif isinstance(cell, Distinct):
            own(cell, "u4", at, 2**cell.precision // 4)
        elif isinstance(cell, LastValue):
            own(cell, "f4", at)
            own(cell, "i8", other)
        elif isinstance(cell, TableValue):  # columns of one table have one time
            own(cell, "u4", at)
            own(cell, "i8", other)
        else:
            own(cell, "i8" if isinstance(cell, LastTime) else "u4", at)

    def check(entity: str, part: str, width: int, *fixed: tuple[int, int]) -> None:
        parts = [*fixed, *found.get((entity, part), ())]
        owned = [cell for start, size in parts for cell in range(start, start + size)]
        assert sorted(owned) == list(range(width))

    check("user", "i8", layout.user_i8, (0, U_TIMES))
    block = plan.factors.size + 1 if plan.factors.size else 0
    check("user", "f4", layout.user_f4, (plan.factors.user_f4, block))
    check("user", "u4", layout.user_u4, (0, U_COUNTS), (layout.untouched, 2 * layout.untouched_size),
          (layout.recent_keys, layout.recent_size),
          (layout.recent_times, layout.recent_size), (layout.seen, layout.seen_size))  # fmt: skip
    check("item", "i8", layout.item_i8, (0, I_TIMES))
    check("item", "f4", layout.item_f4, (layout.segment_f4, WIDE * keys * slots), (layout.co_f4, layout.co_size),
          (layout.co_fast_f4, layout.co_size), (layout.co_total_f4, 2), (layout.price_f4, 1),
          (layout.content_f4, layout.content_size), (plan.factors.item_f4, item_numbers(plan.factors.size, plan.factors.hidden)))  # fmt: skip
    check(
        "item",
        "u4",
        layout.item_u4,
        (0, I_COUNTS),
        (layout.co_u4, layout.co_size),
        (plan.factors.item_u4, CELLS if block else 0),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_columns_have_names_of_their_own_and_say_what_they_are(name: str) -> None:
    columns = default_columns(CONFIGS[name])
    assert len({column.name for column in columns}) == len(columns)
    assert PLANS[name].columns == tuple(column.name for column in columns)
    assert all(column.unit and column.description and column.owner == "headwater" for column in columns)


def test_a_term_that_several_columns_need_is_read_once() -> None:
    clicks = count("clicks", "item", ["click"], half_life="1h")
    plan = compile_plan(BASE, (clicks, log1p("log", clicks), ratio("ratio", clicks, clicks)))
    assert len(plan.reads.op) == 1
    assert plan.reads.term.tolist() == [[0, 0, 0]] * 3


def test_popular_cells_stand_in_the_order_of_the_configured_half_lives() -> None:
    plan = PLANS["wide"]
    assert plan.half_lives == ("2d", "90s", "30m", "6h")
    lives = [round(1 / plan.lives.rate[life]) for life in plan.popular_lives]
    assert lives == [172_800_000, 90_000, 1_800_000, 21_600_000]
    assert len(set(plan.popular_cells)) == 4


def test_half_lives_have_a_limit() -> None:
    columns = tuple(count(f"c{n}", "item", ["click"], half_life=f"{n}s") for n in range(1, MAX_LIVES + 1))
    with pytest.raises(ConfigurationError, match=f"different half-lives; the fold keeps at most {MAX_LIVES}"):
        compile_plan(BASE, columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (embedding("content", 9), 'feature "content_8": entry 8 does not exist, features.content_size is 8'),
        (recent("latest", 4), 'feature "latest_3": entry 3 does not exist, features.recent is 3'),
    ],
)
def test_reads_behind_the_end_of_a_row_are_refused(columns: list[Column], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compile_plan(CONFIGS["tight"], tuple(columns))


def test_an_item_and_a_type_fit_into_one_word() -> None:
    assert INDEX_LIMITS[Namespace.ITEM] <= MAX_ITEMS
    assert (MAX_ITEMS | MAX_EVENT_TYPES << 24) < 2**32


def test_columns_may_be_chosen() -> None:
    few = (context("hour", "hour"), count("clicks", "user", ["click"], half_life="1s"))
    plan = compile_plan(Config(features=Features(recent=2)), few)
    assert plan.columns == ("hour", "clicks")
    assert plan.reads.op.tolist() == [TermOp.HOUR, TermOp.DECAYED]
    assert round(1 / plan.lives.rate[plan.reads.life[1]]) == 1000
