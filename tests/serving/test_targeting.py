"""Whom an experiment is for: the condition against a slow evaluation of the same words, and what the linter says."""

from __future__ import annotations

import pytest

from headwater.features.zones import Zones
from headwater.policy.syntax import parse
from headwater.schema.errors import ConfigurationError, HeadwaterError
from headwater.schema.events import Scalar
from headwater.serving.rule_fields import rule_fields
from headwater.serving.targeting import Asking, Targets, compile_target
from headwater.testing.policy_oracle import Facts, holds_slowly
from tests.serving.test_rules import NOW_MS, made, shop

ANN: Facts = {
    "context.surface": "home", "context.hour": 21.0, "context.weekday": 2.0, "context.country": "NL", "context.device": None,
    "user.events": 1.0, "user.budget": 10.5, "user.taste": "b2",
}  # fmt: skip
BOB: Facts = {
    **ANN,
    "context.hour": 20.0,
    "context.country": None,
    "user.events": 2.0,
    "user.budget": None,
    "user.taste": None,
}
CONDITIONS = (
    "context.country == 'NL' and user.taste != 'x'",
    "context.country in ['BE', 'DE'] or user.budget >= 10.5",
    "not has user.taste",
    "user.events > 1",
    "context.hour < 21 and context.weekday == 2",
    "context.surface == 'home' and not context.device == 'tv'",
    "context.country != 'NL'",
)


def targeted(when: str, user: str, context: dict[str, Scalar] | None = None, surface: str = "home") -> bool:
    small = shop()
    targets = Targets(
        {"one": compile_target(when, made(), small.plan)}, small.plan, small.log.log.vocabulary(), Zones(small.log.log.vocabulary())
    )  # fmt: skip
    number = small.log.user(user) if user else 0
    assert targets("other", Asking(number, surface, context or {}), small.view, NOW_MS), "one without a condition"
    return targets("one", Asking(number, surface, context or {}), small.view, NOW_MS)


@pytest.mark.parametrize("when", CONDITIONS)
def test_it_holds_for_whom_the_words_say(when: str) -> None:
    node = parse(when, rule_fields(made(), shop().plan))
    for user, facts in (("ann", ANN), ("bob", BOB)):
        assert targeted(when, user) == holds_slowly(node, facts), user


def test_what_the_request_says_counts_before_what_was_known() -> None:
    assert not targeted("context.country == 'NL'", "ann", {"country": "FR"})
    assert targeted("context.country == 'XX'", "ann", {"country": "XX"}), "nobody was ever there"
    assert targeted("context.hour == 5", "ann", {"timezone": "Asia/Tokyo"})
    assert targeted("context.app == '7' and not has context.device", "bob", {"app": 7})
    assert not targeted("context.app == '7'", "bob")
    assert targeted("user.events == 0 and not has user.budget", "", {}), "of a stranger nothing is known"


class Away:
    """A view whose store cannot be reached."""

    def read_user(self, *_: object) -> int:
        raise HeadwaterError("the store is away")


def test_where_the_state_is_away_nobody_is_targeted_who_would_have_to_be_known() -> None:
    small = shop()
    compiled = {name: compile_target(when, made(), small.plan) for name, when in (("known", "user.taste != 'x'"), ("said", "context.app == '7'"))}  # fmt: skip
    targets = Targets(compiled, small.plan, small.log.log.vocabulary(), None)
    asking = Asking(1, "home", {"app": "7"})
    assert not targets("known", asking, Away(), NOW_MS)  # type: ignore[arg-type]
    assert targets("said", asking, Away(), NOW_MS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("context.country = 'NL'", r"when: column 17: Write == to compare"),
        ("context.country == 'NL' and prise > 3", r"column 29: There is no field \"prise\".*\"price\""),
        ("category == 'shoes'", r"column 1: category is a field of items; `when` asks about the request"),
        ("context.app > 3", r"column 13: context.app is a text"),
        ("user.tast == 'b2'", r'did you mean "user.taste"'),
        ("context.surface == 'hom'", r'is never "hom", did you mean "home"'),
        ("user.events < 0", r"when: It can never hold, so nobody would take part"),
    ],
)
def test_a_mistake_is_shown_where_it_is(when: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compile_target(when, made(), shop().plan)


def test_what_is_probably_not_meant_is_noted() -> None:
    assert compile_target("context.country == 'NL'", made(), shop().plan).notes == ()
    (app,) = compile_target("context.ap == '7'", made(), shop().plan).notes
    assert "context.ap is none of segments.keys (country, device)" in app
    (always,) = compile_target("user.events >= 0", made(), shop().plan).notes
    assert "always holds" in always
