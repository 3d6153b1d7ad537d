"""Expressions: what they mean, for many items at once and one by one, and whether they can hold at all."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headwater.policy.contradiction import alternatives, always_holds, never_holds, values_implied
from headwater.policy.expression import Against, Among, Node, fields_of, holds
from headwater.policy.syntax import ExpressionError, parse
from headwater.testing.policy_oracle import Facts, holds_slowly
from tests.features.states import STABLE
from tests.policy.expressions import (
    AGE,
    BRAND,
    BUDGET,
    CATEGORY,
    COUNTRY,
    FIELDS,
    POSSIBLE,
    PRICE,
    SCORE,
    SURFACE,
    TableScope,
    nodes,
    worlds,
)

PER_ITEM = ("category", "brand", "price", "score", "age")
OF_REQUEST = ("context.surface", "user.budget", "context.country")


@st.composite
def facts(draw: st.DrawFn, names: tuple[str, ...]) -> Facts:
    return {name: draw(st.sampled_from(POSSIBLE[name])) for name in names}


@STABLE
@given(node=nodes(), items=st.lists(facts(PER_ITEM), max_size=8), request=facts(OF_REQUEST))
def test_all_at_once_equals_one_by_one(node: Node, items: list[Facts], request: Facts) -> None:
    found = holds(node, TableScope(items, request), len(items))
    assert found.tolist() == [holds_slowly(node, {**item, **request}) for item in items]


FEW = (CATEGORY, BRAND, SCORE)


@STABLE
@given(node=nodes(FEW))
def test_what_is_called_a_contradiction_never_holds_and_none_is_missed(node: Node) -> None:
    names = sorted({field.name for field in fields_of(node)})
    assume(not any(isinstance(part, Against) for part in _parts(node)))
    ever = any(holds_slowly(node, world) for world in worlds(*names))
    assert never_holds(node) == (not ever)
    assert always_holds(node) == all(holds_slowly(node, world) for world in worlds(*names))


@STABLE
@given(node=nodes())
def test_a_contradiction_is_certain_with_every_kind_of_field(node: Node) -> None:
    names = sorted({field.name for field in fields_of(node)})
    assume(len(names) <= 4)
    if never_holds(node):
        assert not any(holds_slowly(node, world) for world in worlds(*names))


@STABLE
@given(node=nodes((CATEGORY, BRAND, PRICE)))
def test_implied_values_are_certain(node: Node) -> None:
    implied = values_implied(node, CATEGORY)
    assume(implied is not None)
    for world in worlds("category", "brand", "price"):
        if holds_slowly(node, world):
            assert set(world["category"] or ()) & set(implied or ())  # type: ignore[arg-type]  # a tuple of texts


def _parts(node: Node) -> list[Node]:
    found = [node]
    for child in getattr(node, "parts", ()):
        found += _parts(child)
    if hasattr(node, "part"):
        found += _parts(node.part)
    return found


ITEM: Facts = {"category": ("a", "b"), "brand": "a", "price": 9.99, "score": None, "age": 86_400_000}
ASKED: Facts = {"context.surface": "home", "user.budget": 20.0, "context.country": "NL"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("not true", False),
        ("price == 9.99", True),
        ("price <= 9.99 and price >= 9.99", True),
        ("5 < price < 10", True),
        ("5 < price < 6", False),
        ("10 > price", True),
        ('category == "b"', True),
        ('category != "b"', False),
        ('category != "c"', True),
        ('category in ["x", "b"]', True),
        ("category not in ['x', 'y']", True),
        ("has score", False),
        ("not has(score)", True),
        ("score < 100", False),
        ("score != 100", True),
        ('age < "2d" and age >= "1d"', True),
        ("price <= user.budget", True),
        ('context.surface == "cart"', False),
        ('context.country in ["NL", "BE"]', True),
        ("price > 100 or price > 5 and not false", True),
        ("(price > 100 or price > 5) and false", False),
        ("not not price > 5", True),
        ("price == -1", False),
        ("price < 1e3", True),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    node = parse(text, FIELDS)
    assert holds_slowly(node, {**ITEM, **ASKED, "price": 9.989999771118164}) is expected  # as float32 holds it


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("prise < 5", 1, 'There is no field "prise", did you mean "price"?'),
        ("price < 5 and tags == 'x'", 15, "the state keeps none"),
        ("user.age < 5", 1, 'declare "age"'),
        ("price < '5'", 9, "price is a number: expected a number, got '5'"),
        ("category == 5", 13, "category is a text: expected a text in quotes, got `5`"),
        ("category > 'a'", 10, "category is a text"),
        ("age < 3", 7, 'age is a duration: expected a duration such as "3d"'),
        ("age < '3 days'", 7, "age is a duration: Expected a duration such as"),
        ("price < category", 9, "they do not compare"),
        ("brand == category", 10, "texts of different origin"),
        ("context.surface == 'crt'", 20, 'context.surface is never "crt", did you mean "cart"?'),
        ("price", 6, "Expected a comparison after `price`, got the end"),
        ("5 < 6", 1, "Both sides are constants"),
        ("price = 5", 7, "Write == to compare"),
        ("price < 5 && brand == 'a'", 11, "Write `and`, `or`, `not`"),
        ("brand == 'a", 10, "a quote is missing"),
        ("brand == ''", 10, "No text is empty"),
        ("price < 5 brand", 11, "Expected `and`, `or` or the end"),
        ("price < 1.2.3", 9, "Not a number: 1.2.3"),
        ("price < 1e99", 9, "larger than any number"),
        ("(price < 5", 11, "Expected `)`, got the end"),
        ("brand in []", 1, "The list behind `in` is empty"),
        ("brand in ['a' 'b']", 15, "Expected `,`"),
        ("brand in [price]", 11, "Expected a number or a text in the list"),
        ("has price", 5, "price is always there"),
        ("and", 1, "Expected a field, got `and`"),
        ("", 1, "Expected a field, got the end"),
        ("not " * 40 + "true", 129, "Nested more than 32 deep"),
        ("price < __import__('os')", 9, "There is no field"),
        ("price < 5; true", 10, "Unexpected ;"),
    ],
)
def test_a_mistake_is_shown_where_it_is(text: str, column: int, why: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, FIELDS)
    message, line, mark = str(caught.value).split("\n")
    assert message.startswith(f"column {column}: ")
    assert why in message
    assert (line, mark) == (f"    {text}", " " * (3 + column) + "^")


def test_a_condition_asks_about_the_request_only() -> None:
    assert parse("context.country == 'NL'", FIELDS, of_request=True) == Among(COUNTRY, ("NL",))
    with pytest.raises(ExpressionError, match="price is a field of items; `when` asks about the request"):
        parse("price < 3", FIELDS, of_request=True)


@pytest.mark.parametrize(
    "text",
    [
        "price < 5 and price > 10", "price < 0", "not price >= 0", "category == 'a' and not category == 'a'", "brand == 'a' and brand == 'b'",
        "age > '3d' and age < '1d'", "has brand and not has brand", "brand == 'a' and not has brand", "price < user.budget and not price < user.budget",
        "context.surface != 'home' and context.surface != 'cart'", "(price < 1 or price > 9) and 2 < price < 8", "false", "score == 3 and score > 3",
        "price > 3 and price == 2", "age > '1ms' and age < '2ms'",
    ],
)  # fmt: skip
def test_contradictions(text: str) -> None:
    assert never_holds(parse(text, FIELDS))
    assert always_holds(parse(f"not ({text})", FIELDS))


@pytest.mark.parametrize(
    "text",
    [
        "category == 'a' and category == 'b'", "not score < 5 and not score >= 5", "price < 5 or price > 10", "brand != 'a' and brand != 'b'",
        "price <= 5 and price >= 5", "price < user.budget and price > user.budget",
    ],
)  # fmt: skip
def test_no_contradictions(text: str) -> None:
    assert not never_holds(parse(text, FIELDS))


def test_too_many_alternatives_are_left_alone() -> None:
    text = " and ".join(f"(price == {n} or score == {n})" for n in range(1, 14))
    assert alternatives(parse(text, FIELDS)) is None
    assert not never_holds(parse(text, FIELDS))


def test_the_fields_of_these_tests_are_of_every_kind() -> None:
    assert {f.kind for f in (CATEGORY, BRAND, PRICE, SCORE, AGE, SURFACE, BUDGET)} == set(type(PRICE.kind)) - {"time"}
