"""Declaring features: what the functions make, and what they refuse, in words that help."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from headwater.features import declare as d
from headwater.features.aggregations import Aggregation, Counted, Decayed, Windowed
from headwater.features.definitions import Column, Formula, Side, Term, TermOp
from headwater.schema.errors import ConfigurationError

CLICKS = d.count("clicks", "item", ["click"])
anything: Any = d  # wrong types on purpose

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a bare text": (lambda: d.count("f", "user", "click"), "feature f: event types are a list of names, such as"),
    "no types": (lambda: d.total("f", "user", []), "feature f: event types are a list"),
    "a bare text of since": (lambda: d.since("f", "user", "click"), "feature f: event types are a list"),
    "no types of largest": (lambda: d.largest("f", "user", []), "feature f: event types are a list"),
    "no types of distinct": (lambda: d.distinct("f", "user", [], "item"), "feature f: event types are a list"),
    "no weights": (lambda: d.affinity("f", {}), "feature f: event types are a list"),
    "an entity": (lambda: anything.count("f", "shop", ["click"]), 'entity "shop": it is one of user, item, everybody'),
    "an attribute of all": (lambda: anything.attribute("f", "everybody", "x"), 'entity "everybody": it is one of user, item'),
    "a table of all": (lambda: anything.table("f", "shop", "t", "c"), 'feature f: entity "shop": it is one of user, item'),
    "both spans": (lambda: d.mean("f", "item", ["click"], half_life="1h", window="1h"), "give a half_life or a window, not both"),
    "tiles that do not fit": (lambda: d.count("f", "item", ["click"], window="1s", tiles=7), "feature f: a window of 1s does not fall into 7 equal tiles"),
    "no tiles": (lambda: d.count("f", "item", ["click"], window="1s", tiles=0), "1 to 366 tiles"),
    "too many tiles": (lambda: d.count("f", "item", ["click"], window="367d", tiles=367), "1 to 366 tiles"),
    "no duration": (lambda: d.count("f", "item", ["click"], half_life="soon"), 'Expected a duration such as .*, got "soon"'),
    "too long": (lambda: d.count("f", "item", ["click"], half_life="4000d"), "Expected a duration from 1ms to 3660d"),
    "no window": (lambda: d.rate("f", "item", ["click"], ["view"], window="0s"), "Expected a duration from 1ms"),
    "precision": (lambda: d.distinct("f", "item", ["click"], "user", precision=13), "precision must lie between 4 and 12, got 13"),
    "distinct of": (lambda: anything.distinct("f", "item", ["click"], "shop"), 'distinct of "shop": it is one of user, item, category'),
    "slots": (lambda: d.affinity("f", {"click": 1.0}, slots=0), "feature f: slots must lie between 1 and 64, got 0"),
    "buckets": (lambda: d.attribute("f", "item", "a", kind="category", buckets=0), "buckets must lie between 1 and 16777216, got 0"),
    "a context": (lambda: d.context("f", "weather"), 'feature f: there is no context "weather": it is one of hour, weekday, segment'),
    "a read": (lambda: d.read("f", "mood"), 'feature f: there is no "mood": it is one of price, age'),
    "a cross of formulas": (
        lambda: d.ratio("f", CLICKS, d.mean("m", "item", ["click"])),
        "feature f: m is a formula of its own; a cross is made of counts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_meaning_is_refused(what: str) -> None:
    declare, message = REFUSED[what]
    with pytest.raises(ConfigurationError, match=message):
        declare()


@pytest.mark.parametrize("span", [{}, {"half_life": "1h"}, {"window": "1h", "tiles": 6}])
def test_counts_and_means_over_every_span(span: dict[str, Any]) -> None:
    counted = d.count("c", "everybody", ["click"], **span).terms[0]
    expected: dict[str, tuple[TermOp, Aggregation]] = {
        "": (TermOp.COUNT, Counted("item", ("click",))),
        "half_life": (TermOp.DECAYED, Decayed("item", ("click",), (1.0,), 3_600_000)),
        "window": (TermOp.WINDOW, Windowed("item", ("click",), (1.0,), 3_600_000, 6)),
    }
    op, cell = expected[next(iter(span), "")]
    assert counted == Term(op, Side.EVERYBODY, cell)
    mean = d.mean("m", "user", ["click"], **span)
    assert mean.formula is Formula.RATE
    assert [getattr(cell, "of", None) for cell in mean.reads] == ["value", "given"]


def test_what_is_said_of_a_feature_is_kept() -> None:
    made = d.count("c", "user", ["click"], unit="clicks", description="said", owner="team", default=3)
    assert (made.unit, made.description, made.owner, made.default) == ("clicks", "said", "team", 3.0)
    assert isinstance(made.default, float)
    plain = d.since("s", "user", ["click"])
    assert (plain.unit, plain.owner, plain.default) == ("hours", "yours", -1.0)


def test_several_columns_come_as_a_list_with_numbered_names() -> None:
    assert [column.name for column in d.embedding("v", 3)] == ["v_0", "v_1", "v_2"]
    assert [column.name for column in d.recent("r", 2, "age")] == ["r_0", "r_1"]


@pytest.mark.parametrize("what", re.findall(r"``(\w+)``", d.read.__doc__ or ""))
def test_everything_that_read_promises_is_there(what: str) -> None:
    assert isinstance(d.read("f", what), Column)
