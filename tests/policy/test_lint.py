"""What the linter finds in rules, and what it leaves alone."""

from __future__ import annotations

import pytest

from headwater.policy.lint import Finding, lint
from headwater.schema.config import parse_config
from headwater.schema.rules import moment_ms
from tests.policy.expressions import FIELDS

NOW_MS = moment_ms("2026-06-01")
SURFACES = {"home": 20, "cart": 4}
SETUP = "[[surfaces]]\nname = 'home'\n[[surfaces]]\nname = 'cart'\nk = 4\n"


def found(*rules: str) -> list[Finding]:
    """The findings of rules "a", "b" … with these keys."""
    tables = [f"[[rules]]\nname = '{name}'\n{text}\n" for name, text in zip("abcdef", rules, strict=False)]
    config = parse_config(SETUP + "\n".join(tables))
    return lint(config.rules, FIELDS, SURFACES, NOW_MS)[1]


@pytest.mark.parametrize(
    ("rules", "level", "about", "message"),
    [
        (["filter = 'prise < 3'"], "error", ("a",), 'rule "a": filter: column 1: There is no field "prise", did you mean "price"?'),
        (["boost = {where = 'tags == 3'}"], "error", ("a",), 'rule "a": boost.where: column 1: There is no field "tags": the state keeps none'),
        (["when = 'price < 3'\nfilter = 'true'"], "error", ("a",), 'rule "a": when: column 1: price is a field of items'),
        (["cap = {by = 'price', at_most = 2}"], "error", ("a",), "a cap counts the texts of a field of items"),
        (["cap = {by = 'context.country', at_most = 2}"], "error", ("a",), "is a fact of the request"),
        (["filter = 'price < 5 and price > 10'"], "error", ("a",), "can never hold, so it removes everything"),
        (["quota = {where = 'price < 0', at_least = 1, within = 2}"], "error", ("a",), "`quota.where` can never hold, so it changes nothing"),
        (["when = 'user.budget < 1 and user.budget > 2'\nfilter = 'brand == \"a\"'"], "error", ("a",), "`when` can never hold"),
        (["filter = 'price >= 0'"], "warning", ("a",), "`filter` always holds, so it changes nothing"),
        (["boost = {where = 'true'}"], "warning", ("a",), "`boost.where` always holds"),
        (["until = '2026-05-01'\nfilter = 'price < 5'"], "warning", ("a",), "is over since 2026-05-01"),
        (["pin = {item = 'x', position = 30}"], "error", ("a",), "its position, 30, lies behind the end of the lists of home (20 items), cart (4 items)"),
        (["pin = {item = 'x', position = 5}"], "warning", ("a",), "behind the end of the lists of cart (4 items)"),
        (["surfaces = ['cart']\nquota = {where = 'price < 5', at_least = 5, within = 9}"], "error", ("a",), "so many items, 5, lies behind the end"),
        (["filter = 'price < 5'", "filter = 'price > 10'"], "error", ("a", "b"), 'rules "a" and "b" exclude each other'),
        (["filter = 'category == \"a\"'", "when = 'context.country == \"a\"'\nfilter = 'category != \"a\"'"], "error", ("a", "b"), "exclude each other"),
        (["filter = 'brand == \"a\"'", "pin = {where = 'brand == \"b\"'}"], "error", ("a", "b"), 'rule "a" removes every item that the pin "b" is about'),
        (["when = 'context.country == \"a\"'\nfilter = 'brand == \"a\"'", "pin = {where = 'brand == \"b\"'}"], "warning", ("a", "b"), "is about, where both act"),
        (["boost = {where = 'price > 9'}", "filter = 'price < 5'"], "warning", ("a", "b"), 'rule "b" removes every item that the boost "a" is about'),
        (["quota = {where = 'price > 9', at_least = 1, within = 2}", "filter = 'price < 5'"], "error", ("a", "b"), "the quota"),
        (["pin = {where = 'price > 9'}", "pin = {where = 'price < 9'}"], "warning", ("a", "b"), "pin to the same position, 1"),
        (["cap = {by = 'brand', at_most = 2}", "quota = {where = 'brand in [\"a\", \"b\"]', at_least = 5, within = 9}"], "error", ("a", "b"), "at most 2 of each brand, a, b"),
    ],
)  # fmt: skip
def test_finding(rules: list[str], level: str, about: tuple[str, ...], message: str) -> None:
    (finding,) = [f for f in found(*rules) if "behind the end" in message or "behind the end" not in f.message]
    assert (finding.level, finding.rules) == (level, about)
    assert message in finding.message


@pytest.mark.parametrize(
    "rules",
    [
        ["surfaces = ['home']\nfilter = 'price < 5'", "surfaces = ['cart']\nfilter = 'price > 10'"],
        ["until = '2027-01-01'\nfilter = 'price < 5'", "from = '2027-01-01'\nfilter = 'price > 10'"],
        ["hours = '08:00-18:00'\nfilter = 'price < 5'", "hours = '18:00-08:00'\nfilter = 'price > 10'"],
        ["when = 'context.country == \"a\"'\nfilter = 'price < 5'", "when = 'context.country != \"a\"'\nfilter = 'price > 10'"],
        ["filter = 'category == \"a\"'", "filter = 'category == \"b\"'"],  # an item may have both
        ["cap = {by = 'brand', at_most = 2}", "quota = {where = 'brand in [\"a\", \"b\"]', at_least = 4, within = 9}"],
        ["cap = {by = 'brand', at_most = 2}", "quota = {where = 'brand == \"a\" or price < 5', at_least = 4, within = 9}"],
        ["pin = {item = 'x', position = 1}", "pin = {item = 'y', position = 2}"],
        ["when = 'context.surface == \"home\"'\nboost = {where = 'age < \"3d\"'}"],
    ],
)  # fmt: skip
def test_nothing_to_find(rules: list[str]) -> None:
    # lists of the cart are short; that is not what these are about
    assert [f for f in found(*rules) if "behind the end" not in f.message] == []


def test_hours_that_meet_are_seen_past_midnight() -> None:
    late, early = "hours = '22:00-06:00'\nfilter = 'price < 5'", "hours = '05:00-09:00'\nfilter = 'price > 10'"
    assert [f.rules for f in found(late, early)] == [("a", "b")]
    assert [f.rules for f in found(early, late)] == [("a", "b")]


def test_errors_come_first_and_every_rule_is_looked_at() -> None:
    findings = found("boost = {where = 'true'}", "filter = 'nope < 3'", "filter = 'false'")
    assert [(f.level, f.rules) for f in findings] == [("error", ("b",)), ("error", ("c",)), ("warning", ("a",))]
