"""The as-of join of tables: what a person would write down row by row, and what the fold's state says."""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.features.asof import Questions, answers
from headwater.features.declare import product, table
from headwater.features.plan import compile_plan
from headwater.learning.tables import TableFeature, TableRows, join_tables, table_features
from headwater.log.commands import PutItems, PutTable
from headwater.log.seek import last_before
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.events import START_MS, Step, Written

Row = tuple[str, int, float | None, float | None]  # key, valid from, two values
VALUES = st.one_of(
    st.none(), st.sampled_from([0.0, -0.0, -1e-60, 1e-60, 1e12, -0.1, 1 / 3, 16_777_217.0]), st.floats(-1e6, 1e6)
)
ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), VALUES, VALUES), max_size=25)
FEATURES = (
    TableFeature("score", "item", "quality", "score", 0, 0.5),
    TableFeature("young_score", "item", "quality", "score", 7, -1.0),
    TableFeature("left", "item", "quality", "left", 20, 0.1),
    TableFeature("churn", "user", "risk", "score", 11, 0.0),
)


def as_rows(name: str, rows: list[Row], delay: int) -> TableRows:
    frame = pl.DataFrame(
        rows, schema={"key": pl.String, "valid_ms": pl.Int64, "score": pl.Float64, "left": pl.Float64}, orient="row"
    )
    return TableRows(name, "item" if name == "quality" else "user", delay, frame)


def slowly(rows: list[Row], key: str, now: int, delay: int, which: int, max_age: int, default: float) -> bytes:
    """One value, as 32 bits: the newest due row of the key, in a loop."""
    newest: Row | None = None
    for row in rows:
        if row[0] == key and row[1] + delay <= now and (newest is None or row[1] >= newest[1]):
            newest = row
    value = None if newest is None else newest[2 + which]
    if newest is None or value is None or (max_age and now - newest[1] > max_age):
        value = default
    return struct.pack("<f", 0.0 if value == 0.0 else value)


@settings(max_examples=150, deadline=None)
@given(ROWS, ROWS, st.integers(0, 9), st.integers(0, 9), st.lists(st.tuples(*[st.integers(0, 4)] * 2, st.integers(0, 90)), max_size=30))  # fmt: skip
def test_the_join_is_what_a_loop_finds(
    items: list[Row], users: list[Row], delay: int, other: int, asked: list[tuple[int, int, int]]
) -> None:
    frame = pl.DataFrame(
        [("abcde"[user], "abcde"[item], now) for user, item, now in asked],
        schema={"user": pl.String, "item": pl.String, "now_ms": pl.Int64}, orient="row",
    )  # fmt: skip
    joined = join_tables(frame, [as_rows("quality", items, delay), as_rows("risk", users, other)], FEATURES)
    assert joined.select(frame.columns).equals(frame)
    for feature in FEATURES:
        which = int(feature.column == "left")
        rows, wait = (items, delay) if feature.entity == "item" else (users, other)
        expected = b"".join(
            slowly(rows, one[feature.entity], one["now_ms"], wait, which, feature.max_age_ms, feature.default)
            for one in frame.iter_rows(named=True)
        )
        assert joined[feature.name].dtype == pl.Float32
        assert joined[feature.name].to_numpy().tobytes() == expected


COLUMNS = (
    table("score", "item", "quality", "score", default=0.5),
    table("young_score", "item", "quality", "score", max_age="7ms", default=-1.0),
    table("left", "item", "quality", "left", max_age="20ms", default=0.1),
    table("churn", "user", "risk", "score", max_age="11ms"),
)
CONFIG = Config()
PLAN = compile_plan(CONFIG, COLUMNS)


@settings(max_examples=60, deadline=None)
@given(
    ROWS, ROWS, st.integers(0, 9), st.integers(0, 9), st.lists(st.integers(1, 80), max_size=8), st.integers(0, 2**16)
)
def test_the_join_is_what_the_state_says_when_every_row_was_loaded_when_it_was_due(
    items: list[Row], users: list[Row], delay: int, other: int, acts: list[int], seed: int
) -> None:
    log = Written(CONFIG)
    log.add([Step(START_MS, PutItems([Item(id=name) for name in "abcd"]))])
    due = [
        (START_MS + row[1] + wait, order, name, row)
        for name, rows, wait in (("quality", items, delay), ("risk", users, other))
        for order, row in enumerate(rows)
    ]
    # rows of a table that are due at one moment go in the order of the table
    steps: list[Step] = []
    for at, _, name, (key, valid, score, left) in sorted(due, key=lambda one: one[:2]):
        entity: Literal["user", "item"] = "item" if name == "quality" else "user"
        put = PutTable(name, entity, ["score", "left"], [key], [START_MS + valid], [[score, left]])
        steps.append(Step(at, put))
    steps += [Step(START_MS + at, [Event(user="ab"[at % 2], item="abc"[at % 3], type="click")]) for at in acts]
    log.add(sorted(steps, key=lambda step: step.at_ms))
    rng = np.random.default_rng(seed)
    now = np.sort(START_MS + rng.integers(0, 90, 40))
    offset = np.array([last_before(log.log, int(moment) + 1)[0] for moment in now], np.int64)
    questions = Questions(offset, rng.integers(0, 5, 40), rng.integers(1, 5, 40), now, np.zeros((40, 2), np.uint16))
    state = np.concatenate([rows for _, _, rows in answers(log.log, PLAN, questions)])
    frame = pl.DataFrame({"user": questions.user, "item": questions.item, "now_ms": now})
    tables = []
    for name, rows, wait in (("quality", items, delay), ("risk", users, other)):
        number = log.item if name == "quality" else log.user
        known = [(number(key), START_MS + valid, score, left) for key, valid, score, left in rows]
        schema = {"key": pl.Int64, "valid_ms": pl.Int64, "score": pl.Float64, "left": pl.Float64}
        made = pl.DataFrame(known, schema=schema, orient="row")
        tables.append(TableRows(name, "item" if name == "quality" else "user", wait, made))
    joined = join_tables(frame, tables, table_features(COLUMNS)).select(PLAN.columns)
    assert np.ascontiguousarray(joined.to_numpy()).tobytes() == np.ascontiguousarray(state).tobytes()


def test_what_cannot_be_joined_is_named() -> None:
    frame = pl.DataFrame({"user": ["a"], "item": ["a"], "now_ms": [5]})
    with pytest.raises(HeadwaterError, match="reads table risk, which is not among"):
        join_tables(frame, [as_rows("quality", [], 0)], FEATURES)
    wrong = TableFeature("x", "item", "quality", "scores", 0, 0.0)
    with pytest.raises(HeadwaterError, match='no column "scores"'):
        join_tables(frame, [as_rows("quality", [], 0)], [wrong])


def test_formulas_over_tables_are_no_values_of_tables() -> None:
    cross = product("cross", COLUMNS[0], COLUMNS[3])
    assert table_features([cross, *COLUMNS]) == [
        TableFeature("score", "item", "quality", "score", 0, 0.5),
        TableFeature("young_score", "item", "quality", "score", 7, -1.0),
        TableFeature("left", "item", "quality", "left", 20, 0.1),
        TableFeature("churn", "user", "risk", "score", 11, 0.0),
    ]
