"""Rules at work in the pipeline: every field as an item's own words say, every action on a whole list."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from headwater.features.declare import attribute, table
from headwater.features.fold import Fold
from headwater.features.module import configured_columns
from headwater.features.plan import Plan, compile_plan
from headwater.features.zones import Zones
from headwater.log.commands import PutItems, PutProfiles
from headwater.log.record import Namespace
from headwater.policy.syntax import parse
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.items import Item
from headwater.schema.rules import moment_ms
from headwater.schema.users import UserProfile
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.rule_effects import effects
from headwater.serving.rule_fields import rule_fields
from headwater.serving.rules import open_rules
from headwater.serving.served import Served
from headwater.serving.stages import TIER_RETRIEVAL
from headwater.serving.view import FoldView
from headwater.testing.events import START_MS, Step, TableRow, Written
from headwater.testing.policy_oracle import Facts, holds_slowly
from tests.retrieval.worlds import World, clicks
from tests.serving.rankers import by_column, giving

DAY_MS = 86_400_000
NOW_MS = moment_ms("2026-03-04T20:30:00Z")  # a Wednesday
KINDS = ("shoes", "bags", "hats")


def catalogue() -> list[Item]:
    """30 items; those of higher numbers are older, and some say less about themselves."""
    items = []
    for n in range(30):
        said = n % 5 != 4
        items.append(
            Item(
                id=f"i{n}",
                categories=[KINDS[n % 3], *(["sale"] if n % 4 == 0 else [])] if said else [],
                tags=["t"],
                price=None if n % 7 == 6 else n + 0.99,
                regions=["NL", "BE"] if n % 10 == 9 else [],
                published=NOW_MS - n * DAY_MS if n % 3 else None,
                expires=NOW_MS + n * DAY_MS if n % 6 == 5 else None,
                attributes={"brand": f"b{n % 4}", "stars": n / 4} if said else None,
            )
        )
    return items


def made(text: str = "") -> Config:
    return parse_config('[[surfaces]]\nname = "home"\nk = 10\n[[surfaces]]\nname = "cart"\n' + text)


def rules_of(*tables: str) -> Config:
    """A configuration with rules "r0", "r1" … of these keys."""
    return made("".join(f"[[rules]]\nname = 'r{n}'\n{keys}\n" for n, keys in enumerate(tables)))


@cache
def shop() -> World:
    """The catalogue, what a table says of some items, and a user with a profile. Only read."""
    config = made()
    columns = (
        *configured_columns(config),
        attribute("brand", "item", "brand", kind="category"), attribute("stars", "item", "stars"),
        attribute("budget", "user", "budget"), attribute("taste", "user", "taste", kind="category"), table("quality", "item", "scores", "quality"),
    )  # fmt: skip
    plan = compile_plan(config, columns)
    log = Written(config)
    fold = Fold(plan, unseal=log.identity.decrypt)
    small = World(log, plan, fold, FoldView(plan, fold))
    profile = UserProfile(
        id="ann", country="NL", timezone="Europe/Amsterdam", attributes={"budget": 10.5, "taste": "b2"}
    )
    small.add(
        Step(START_MS, PutItems(catalogue())), Step(START_MS, PutProfiles([profile])),
        *(Step(START_MS, TableRow("item", f"i{n}", "scores", {"quality": n / 2}, START_MS)) for n in range(6)),
        clicks(("ann", "i29"), ("bob", "i28"), ("bob", "i27"), at_ms=START_MS + 1),
    )  # fmt: skip
    return small


def said_by(item: Item, n: int, first_ms: int) -> Facts:
    """What rules may know of an item, in its own words."""
    born = item.published or first_ms
    given = item.attributes or {}
    return {
        "id": item.id, "category": tuple(item.categories) or None, "region": tuple(item.regions) or None,
        "price": float(np.float32(item.price or 0.0)), "published": item.published, "expires": item.expires,
        "age": max(NOW_MS - born, 0), "attributes.brand": given.get("brand"), "attributes.stars": given.get("stars"),
        "tables.scores.quality": n / 2 if n < 6 else None,
    }  # fmt: skip


ANN: Facts = {
    "context.surface": "home", "context.hour": 21.0, "context.weekday": 2.0, "context.country": "NL", "context.device": None,
    "user.events": 1.0, "user.budget": 10.5, "user.taste": "b2",
}  # fmt: skip
STRANGER: Facts = {
    **ANN, "context.hour": 20.0, "context.country": None, "user.events": 0.0, "user.budget": None, "user.taste": None,
}  # fmt: skip


def recommend(config: Config, query: Query, model: Model | None = None, *, small: World | None = None, now_ms: int = NOW_MS) -> Answer:  # fmt: skip
    small = small or shop()
    vocabulary = small.log.log.vocabulary()
    pipeline = Pipeline(
        config, small.plan, zones=Zones(vocabulary), rules=open_rules(config, small.plan, vocabulary)
    )  # fmt: skip
    return pipeline.recommend(query, small.view, model, now_ms)


def names(answer: Answer, small: World | None = None) -> list[str]:
    return (small or shop()).log.names(answer.items.tolist())


def asked(user: str = "", k: int = 10, surface: str = "home") -> Query:
    return Query("r", user=shop().log.user(user) if user else 0, k=k, surface=surface, region=0, deadline_ms=1e9)


EXPRESSIONS = [
    "id in ['i3', 'i4', 'nobody']", "category == 'shoes'", "category != 'sale'", "category in ['sale', 'hats'] and price < 20", "not has category",
    "has region", "region != 'NL'", "price <= 9.99", "price == 0", "price > 3.99 and price <= 12.99", "has published", "published > '2026-02-20'",
    "expires < '2026-03-20T00:00:00+01:00'", "not has expires", "age < '5d'", "age >= '29d'", "attributes.brand == 'b1'", "attributes.brand != 'b1'",
    "has attributes.brand", "attributes.stars > 2.25", "attributes.stars in [1, 2.5]", "not attributes.stars <= 3", "tables.scores.quality >= 1",
    "has tables.scores.quality", "price <= user.budget", "attributes.brand == user.taste", "context.country == 'NL' and price < 5",
    "context.hour >= 21 or price < 3", "context.weekday == 2", "user.events < 1 or category == 'bags'", "has user.budget", "context.device == 'tv'",
    "context.surface == 'cart'", "published >= expires",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
@pytest.mark.parametrize("user", ["ann", ""])
def test_a_filter_keeps_what_holds_by_the_items_own_words(text: str, user: str) -> None:
    small, config = shop(), rules_of(f'filter = "{text}"')
    node = parse(text, rule_fields(config, small.plan))
    query = asked(user, k=30)
    plain = {*names(recommend(made(), query))}
    first_ms = START_MS
    expected = {
        item.id
        for n, item in enumerate(catalogue())
        if item.id in plain and holds_slowly(node, {**said_by(item, n, first_ms), **(ANN if user else STRANGER)})
    }
    answer = recommend(config, query)
    assert set(names(answer)) == expected
    assert answer.rules == {"r0": len(plain) - len(expected)}
    if len(expected) < len(plain):
        why = f'{len(expected)} of 30 items: rule "r0" removed {len(plain) - len(expected)} candidates'
        assert why in answer.degraded


def test_every_field_is_asked_about() -> None:
    known = {field.name for field in rule_fields(made(), shop().plan)}
    assert {name for name in known if any(name in text for text in EXPRESSIONS)} == known
    assert known == {*said_by(catalogue()[0], 0, 0), *ANN}


def oldest(plan: Plan) -> Model:
    return by_column(plan, "item_age")


def youngest(plan: Plan) -> Model:
    return by_column(plan, "item_age", ascending=True)


def test_other_candidates_take_the_place_of_what_a_filter_removes() -> None:
    answer = recommend(rules_of("filter = 'category == \"bags\"'"), asked(k=5), oldest(shop().plan))
    assert len(answer.items) == 5
    assert not any("rule" in note for note in answer.degraded), "nothing came out shorter"
    assert answer.rules["r0"] > 0


def test_a_boost_and_a_bury_move_scores_and_leave_them_as_they_were() -> None:
    ages = recommend(made(), asked(k=30), oldest(shop().plan))
    plain, score_of = names(ages), dict(zip(names(ages), ages.scores.tolist(), strict=True))
    config = rules_of(
        "boost = {where = 'id == \"i5\"', factor = 1000}", f"bury = {{where = 'id == \"{plain[0]}\"', factor = 0.001}}"
    )
    answer = recommend(config, asked(k=30), oldest(shop().plan))
    assert names(answer)[0] == "i5"
    assert names(answer).index(plain[0]) > 20
    assert answer.rules == {"r0": 1, "r1": 1}
    assert dict(zip(names(answer), answer.scores.tolist(), strict=True)) == score_of
    below_zero = recommend(
        rules_of("boost = {where = 'id == \"i20\"', factor = 1000}"), asked(k=30), youngest(shop().plan)
    )
    assert names(below_zero)[0] == "i20"


@pytest.mark.parametrize("ranked", [True, False])
def test_a_pin_stands_at_its_position_also_when_no_source_offers_it(ranked: bool) -> None:
    off = "".join(f"[sources.{name}]\nwidth = 2\n" for name in ("popular", "trending", "covisit", "content", "fresh"))
    config = made("[ranker]\ncandidates = 2\n" + off + "[[rules]]\nname = 'p'\npin = {item = 'i25', position = 2}\n")
    model = youngest(shop().plan) if ranked else None
    answer = recommend(config, asked(k=2), model)
    assert names(answer)[1] == "i25"
    assert answer.sources[1] == "catalogue"
    assert answer.rules == {"p": 1}
    assert answer.tier == (0 if ranked else TIER_RETRIEVAL)


def test_a_pin_does_not_show_what_may_not_be_shown() -> None:
    config = rules_of("pin = {item = 'i29'}")
    assert names(recommend(config, asked("bob")))[0] != "i29", "it is for other regions"
    seen = rules_of("pin = {item = 'i28'}")
    assert names(recommend(seen, asked()))[0] == "i28"
    assert "i28" not in names(recommend(seen, asked("bob", k=30)))
    both = rules_of("pin = {item = 'i3'}", "filter = 'id != \"i3\"'")
    assert "i3" not in names(recommend(both, asked(k=30)))
    unknown = recommend(rules_of("pin = {item = 'nobody'}"), asked())
    assert (len(unknown.items), unknown.rules) == (10, {"r0": 0})


def test_a_cap_and_what_it_shortens() -> None:
    answer = recommend(rules_of("cap = {by = 'category', at_most = 2}"), asked(k=30), oldest(shop().plan))
    by_id = {item.id: item for item in catalogue()}
    listed = [category for name in names(answer) for category in by_id[name].categories]
    assert listed
    assert max(listed.count(category) for category in set(listed)) == 2
    assert any("kept out" in note for note in answer.degraded)
    by_brand = recommend(rules_of("cap = {by = 'attributes.brand', at_most = 1}"), asked(k=5), oldest(shop().plan))
    brands = [str((by_id[name].attributes or {}).get("brand")) for name in names(by_brand)]
    assert len([b for b in brands if b != "None"]) == len({b for b in brands if b != "None"})


def test_a_quota_of_new_items() -> None:
    config = rules_of("quota = {where = 'age < \"4d\"', at_least = 2, within = 5}")
    answer = recommend(config, asked(k=8), oldest(shop().plan))
    ages = {item.id: said_by(item, n, START_MS)["age"] for n, item in enumerate(catalogue())}
    young = [place for place, name in enumerate(names(answer)) if ages[name] < 4 * DAY_MS]  # type: ignore[operator]  # a number
    assert young == [3, 4]
    assert answer.rules == {"r0": 2}


@pytest.mark.parametrize(
    ("keys", "user", "now", "acts"),
    [
        ("surfaces = ['cart']", "", "2026-03-04T20:30Z", False),
        ("surfaces = ['cart', 'home']", "", "2026-03-04T20:30Z", True),
        ("from = '2026-03-04T20:30:00Z'", "", "2026-03-04T20:30Z", True),
        ("from = '2026-03-04T20:30:01Z'", "", "2026-03-04T20:30Z", False),
        ("until = '2026-03-04T20:30:00Z'", "", "2026-03-04T20:30Z", False),
        ("until = '2026-03-05'", "", "2026-03-04T20:30Z", True),
        ("hours = '20:00-20:30'", "", "2026-03-04T20:30Z", False),
        ("hours = '20:30-20:31'", "", "2026-03-04T20:30Z", True),
        ("hours = '21:00-22:00'", "ann", "2026-03-04T20:30Z", True),  # an hour later in Amsterdam
        ("hours = '21:00-22:00'", "bob", "2026-03-04T20:30Z", False),
        ("hours = '22:00-02:00'", "", "2026-03-04T01:59Z", True),
        ("hours = '22:00-02:00'", "", "2026-03-04T02:00Z", False),
        ("when = 'context.country == \"NL\"'", "ann", "2026-03-04T20:30Z", True),
        ("when = 'context.country == \"NL\"'", "bob", "2026-03-04T20:30Z", False),
        ("when = 'user.events >= 2'", "bob", "2026-03-04T20:30Z", True),
        ("when = 'context.weekday in [5, 6]'", "", "2026-03-07T20:30Z", True),
        ("when = 'context.weekday in [5, 6]'", "", "2026-03-04T20:30Z", False),
    ],
)
def test_where_and_when_a_rule_acts(keys: str, user: str, now: str, acts: bool) -> None:
    config = rules_of(f"{keys}\npin = {{item = 'i3'}}")
    assert recommend(config, asked(user), now_ms=moment_ms(now)).rules == ({"r0": 1} if acts else {})


def test_what_the_request_says_goes_before_what_the_row_knows() -> None:
    small = shop()
    german = small.log.log.vocabulary().index(Namespace.SEGMENT, "country=DE")
    assert german == 0, "nobody was there yet: a request from there is like one that does not say"
    config = rules_of("when = 'context.country == \"NL\"'\npin = {item = 'i3'}")
    dutch = small.log.log.vocabulary().index(Namespace.SEGMENT, "country=NL")
    assert recommend(config, Query("r", segments=(dutch, 0), region=0, deadline_ms=1e9)).rules == {"r0": 1}


def test_a_category_that_comes_up_later_is_found() -> None:
    small = World(log := Written(made()), plan := compile_plan(made()), fold := Fold(plan), FoldView(plan, fold))
    small.add(Step(START_MS, PutItems([Item(id="a", categories=["x"])])))
    config = rules_of("filter = 'category != \"wine\"'")
    rules = open_rules(config, plan, log.log.vocabulary())
    pipeline = Pipeline(config, plan, rules=rules)

    def shown() -> set[str]:
        return set(log.names(pipeline.recommend(Query("r", deadline_ms=1e9), small.view, None, NOW_MS).items.tolist()))

    assert shown() == {"a"}
    small.add(Step(START_MS + 1, PutItems([Item(id="b", categories=["wine"]), Item(id="c", categories=["y"])])))
    assert shown() == {"a", "c"}
    small.add(Step(START_MS + 2, PutItems([Item(id="b", categories=["y"])])))
    assert shown() == {"a", "b", "c"}


def test_rules_that_do_not_compile_are_all_named() -> None:
    config = rules_of(
        "filter = 'tags == \"t\"'", "filter = 'price < 3'", "boost = {where = 'attributes.colour == \"red\"'}"
    )
    with pytest.raises(ConfigurationError) as caught:
        open_rules(config, shop().plan, shop().log.log.vocabulary())
    message = str(caught.value)
    assert 'rule "r0": filter: column 1: There is no field "tags": the state keeps no tags of items' in message
    assert 'attribute(…, "item", "colour", kind="category")' in message
    assert "r1" not in message


def test_no_rules_cost_nothing() -> None:
    assert open_rules(made(), shop().plan, shop().log.log.vocabulary()) is None
    assert recommend(made(), asked()).rules == {}


@dataclass(frozen=True)
class Case:
    keys: str
    acts: int
    touched: int
    shortened: int = 0
    emptied: int = 0


@pytest.mark.parametrize(
    "case",
    [
        Case("filter = 'true'", 2, 0),
        Case("filter = 'false'", 2, 2, 2, 2),
        Case("filter = 'price < 3'", 2, 2, 2),
        Case("when = 'context.country == \"NL\"'\nfilter = 'category != \"shoes\"'", 1, 1),
        Case("cap = {by = 'category', at_most = 1}", 2, 2, 2),
        Case("cap = {by = 'category', at_most = 30}", 2, 0),
        Case("cap = {by = 'id', at_most = 1}", 2, 0),
        Case("surfaces = ['cart']\nfilter = 'false'", 0, 0),
        Case("pin = {where = 'true', position = 2}", 2, 2),
        Case("boost = {where = 'false'}", 2, 0),
    ],
)
def test_effects_on_served_lists(case: Case) -> None:
    small = shop()
    plain = {"ann": asked("ann"), "bob": asked("bob")}
    served = [
        Served(query.user, served_list(query, recommend(made(), query, oldest(small.plan)), sampled=False))
        for query in plain.values()
    ]
    vocabulary, config = small.log.log.vocabulary(), rules_of(case.keys)
    rules = open_rules(config, small.plan, vocabulary)
    assert rules is not None
    (effect,) = effects(rules.compiled, served, small.plan, vocabulary, small.view)
    assert effect.lists == 2
    assert (effect.acts, effect.touched, effect.shortened, effect.emptied) == (
        case.acts, case.touched, case.shortened, case.emptied,
    )  # fmt: skip


def test_a_surface_with_diversity_mixes_what_is_alike() -> None:
    items = [Item(id=f"{kind}{n}", categories=[kind]) for kind in ("a", "b", "c") for n in range(5)]
    small = World(log := Written(made()), plan := compile_plan(made()), fold := Fold(plan), FoldView(plan, fold))
    small.add(Step(START_MS, PutItems(items)), clicks(*[(f"u{n}", "a0") for n in range(9)]))

    def kinds(diversity: float, surface: str = "home") -> list[str]:
        config = parse_config(f'[[surfaces]]\nname = "home"\ndiversity = {diversity}\n[[surfaces]]\nname = "cart"\n')
        pipeline = Pipeline(config, plan, rules=open_rules(config, plan, log.log.vocabulary()))
        answer = pipeline.recommend(
            Query("r", k=6, surface=surface, deadline_ms=1e9), small.view, giving(plan, 1.0), START_MS + 10
        )
        return [name[0] for name in log.names(answer.items.tolist())]

    assert kinds(0.0) == ["a"] * 5 + ["b"] == kinds(0.9, "cart")
    assert sorted(kinds(0.9)[:3]) == ["a", "b", "c"]
