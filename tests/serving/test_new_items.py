"""The new-item budget: who is owed what, who sees it, and whether promises are kept in the end."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from headwater.features.assemble import stranger
from headwater.log.commands import PutItems
from headwater.retrieval.young import Prior, Young
from headwater.schema.config import Config, parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import ServedList
from headwater.serving.explain import Explainer, Question, Stand
from headwater.serving.lists import LastLists
from headwater.serving.new_items import NewItemBudget, account, is_bad
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.results import ResultLists
from headwater.serving.rules import open_rules
from headwater.serving.served import Served
from headwater.serving.stages import TIER_RETRIEVAL
from headwater.serving.walk import drawn_tier
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import HOUR_MS, MINUTE_MS, World, clicks, many, world
from tests.serving.rankers import by_column

OLD_MS = START_MS - 30 * 24 * HOUR_MS


def promising(said: str = "", surface: str = "", more: str = "") -> Config:
    """Old items come from sources, new ones from the budget alone."""
    return parse_config(
        f'[[surfaces]]\nname = "home"\nsources = ["popular"]\n{surface}\n[[surfaces]]\nname = "cart"\n'
        f'[new_items]\nimpressions = 40\nwithin = "1h"\nshare = 0.2\n{said}\n{more}'
    )


def old_and_new(old: int = 30, new: int = 4) -> list[Item]:
    olds = [Item(id=f"old{n}", categories=[f"c{n % 5}"], tags=[f"t{n % 5}"], published=OLD_MS) for n in range(old)]
    return olds + [Item(id=f"new{n}", tags=[f"t{n % 5}"]) for n in range(new)]


def made_world(config: Config) -> World:
    liked = clicks(*[(f"x{n % 7}", f"old{n % 30}") for n in range(90)])
    traffic = clicks(*[(f"y{n}", f"old{n % 30}") for n in range(600)], kind="impression", at_ms=START_MS + MINUTE_MS)
    return world(Step(START_MS, PutItems(old_and_new())), liked, traffic, config=config)


@cache
def small() -> World:
    return made_world(promising())


def pipeline_of(config: Config, made: World, conditions: Conditions | None = None) -> Pipeline:
    rules = open_rules(config, made.plan, made.log.log.vocabulary())
    return Pipeline(config, made.plan, rules=rules, conditions=conditions)


def ask(pipeline: Pipeline, made: World, name: str, later_ms: int = 0, **said: object) -> Answer:
    query = replace(Query(name, k=10, deadline_ms=1e9), **said)  # type: ignore[arg-type]
    return pipeline.recommend(query, made.view, by_column(made.plan, "item_age"), made.now_ms + later_ms)


def young(shown: list[float], liked: list[float], prior: Prior, age_ms: int = 0) -> Young:
    n = len(shown)
    born = np.full(n, START_MS - age_ms)
    return Young(np.arange(1, n + 1), born, np.array(shown), np.array(liked), prior)


def test_an_item_is_given_up_once_it_is_clearly_bad_and_no_sooner() -> None:
    said, prior = promising().new_items, Prior(2.0, 20.0)  # 0.1 of impressions, as a rule
    shown = np.array([0.0, 20.0, 40.0, 80.0, 200.0, 200.0])
    liked = np.array([0.0, 0.0, 0.0, 0.0, 3.0, 20.0])
    bad = is_bad(shown, liked, prior, said)
    assert bad.tolist() == [False, False, False, True, True, False]
    random = np.random.default_rng(1)
    for n, s, said_so in zip(shown.tolist(), liked.tolist(), bad.tolist(), strict=True):
        above = np.mean(random.gamma(2.0 + s, 1.0 / (20.0 + n), 200_000) > 0.05)
        assert (above < 0.05) == said_so
    came = account(young(shown.tolist(), liked.tolist(), prior, age_ms=HOUR_MS // 2), said, START_MS)
    assert came.reached.tolist() == [False, False, True, True, True, True], "40 were promised"
    assert came.stopped.tolist() == [False] * 6
    assert came.behind.tolist() == [True, False, False, False, False, False]
    longer = msgspec.structs.replace(said, impressions=1_000)
    assert account(young([80.0], [0.0], prior), longer, START_MS).stopped.tolist() == [True]


def test_who_is_behind_gets_more_and_who_is_ahead_gets_nothing() -> None:
    made, config = small(), promising()
    budget = NewItemBudget(config, made.plan)
    standing = budget.standing(made.view, made.now_ms)
    assert sorted(made.log.names(standing.items.tolist())) == ["new0", "new1", "new2", "new3"]
    assert (standing.promised, standing.reached, standing.behind, standing.stopped) == (4, 0, 0, 0)
    assert np.ptp(standing.demand) == 0.0
    later = budget.standing(made.view, made.now_ms + HOUR_MS // 2)
    assert later.behind == 4
    assert (later.demand > standing.demand).all()
    ahead = made_world(config)
    ahead.add(clicks(*many("new2", 30), kind="impression", at_ms=START_MS + 2 * MINUTE_MS))
    now = NewItemBudget(config, ahead.plan).standing(ahead.view, ahead.now_ms)
    assert sorted(ahead.log.names(now.items.tolist())) == ["new0", "new1", "new3"]
    assert not len(NewItemBudget(config, made.plan).standing(made.view, made.now_ms + 2 * HOUR_MS).items)


def test_what_became_of_the_promise_to_one_item() -> None:
    config = promising()
    made = made_world(config)
    made.add(clicks(*many("new2", 30), kind="impression", at_ms=START_MS + 2 * MINUTE_MS))
    made.add(clicks(*many("new3", 45), kind="impression", at_ms=START_MS + 3 * MINUTE_MS))
    budget = NewItemBudget(config, made.plan)

    def said(item: str, later_ms: int = 0) -> tuple[str, int] | None:
        found = budget.promise_to(made.log.item(item), made.view, made.now_ms + later_ms)
        return None if found is None else (found.state, found.shown)

    assert [said(f"new{n}") for n in range(4)] == [("owed", 0), ("owed", 0), ("owed", 30), ("reached", 45)]
    later = HOUR_MS // 2
    assert [said(f"new{n}", later) for n in range(4)] == [("behind", 0), ("behind", 0), ("owed", 30), ("reached", 45)]
    assert budget.standing(made.view, made.now_ms + later).behind == 2
    assert said("new0", HOUR_MS) == ("over", 0)
    assert said("old0") == ("over", 20)
    assert budget.promise_to(made.log.item("new0"), made.view, START_MS - HOUR_MS) is None


def test_a_list_keeps_its_share_and_the_record_says_how_likely_each_place_was() -> None:
    made, config = small(), promising()
    pipeline = pipeline_of(config, made)
    plain = ask(pipeline, made, "r", surface="cart")
    assert plain.promised is None
    assert ask(pipeline, made, "r", later_ms=HOUR_MS // 2, lots=False).promised is None
    given, lists = 0, 200
    for n in range(lists):
        answer = ask(pipeline, made, f"r{n}", later_ms=HOUR_MS // 2)
        promised = answer.promised
        assert promised is not None
        assert promised.places == [3, 8], "two of ten, spread"
        assert answer.explored is None
        assert math.fsum(promised.chances) <= 2.0 + 1e-9
        names = made.log.names(answer.items.tolist())
        for place, kept, chance, log_propensity in zip(
            promised.places, promised.kept, promised.chances, promised.log_propensities, strict=True
        ):
            assert names[place].startswith("new") == kept
            assert answer.sources[place] == ("new_items" if kept else "popular")
            assert math.exp(log_propensity) <= (chance if kept else 1.0 - chance) + 1e-9
            given += kept
        assert not any(name.startswith("new") for i, name in enumerate(names) if i not in promised.places)
        record = served_list(Query(f"r{n}"), answer, sampled=False)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=ServedList).promised == promised
        assert record.log_propensity == pytest.approx(math.fsum(promised.log_propensities))
    assert given > lists


def test_users_see_first_what_is_like_their_recent_items_and_nothing_that_is_not() -> None:
    made = made_world(promising())
    made.add(clicks(("fan", "old0"), ("fan", "old5"), at_ms=START_MS + 2 * MINUTE_MS))  # both of t0, like new0
    budget = NewItemBudget(promising("least_fit = -1.0"), made.plan)

    def chosen(user: str, by: NewItemBudget, later_ms: int = 0) -> dict[str, float]:
        row, now_ms = stranger(made.plan), made.now_ms + later_ms
        made.view.read_user(made.log.user(user), row)
        by.begin(made.view, "home", now_ms)
        items, wanted = by._choose(row, made.view, lambda ids: np.ones(len(ids), np.bool_), now_ms)
        return dict(zip(made.log.names(items.tolist()), wanted.tolist(), strict=True))

    fan, nobody = chosen("fan", budget), chosen("", budget)
    assert max(fan, key=lambda name: fan[name]) == "new0"
    assert fan["new0"] > 3 * sorted(fan.values())[-2]
    assert len(set(nobody.values())) == 1, "of whom nothing is known everything fits"
    strict = NewItemBudget(promising("least_fit = 0.5"), made.plan)
    assert list(chosen("fan", strict)) == ["new0"]
    assert len(chosen("", strict)) == 4
    late = list(chosen("fan", strict, later_ms=HOUR_MS // 2))
    assert (late[0], len(late)) == ("new0", 4), (
        "what is behind its schedule comes to everybody, and still to these first"
    )


def test_a_light_ranker_that_lets_few_through_keeps_no_promised_item_out() -> None:
    config = promising(more="[ranker]\ncandidates = 60\nlight_keep = 12\n")
    made = made_world(config)
    pipeline, given = pipeline_of(config, made), 0
    by_age = by_column(made.plan, "item_age")  # the new ones are the last for both
    model = replace(by_age, light=by_age.ranker)
    for n in range(30):
        query = Query(f"r{n}", k=10, deadline_ms=1e9)
        answer = pipeline.recommend(query, made.view, model, made.now_ms + HOUR_MS // 2)
        assert (answer.tier, answer.trace["deep_rank"].width) == (0, 12)
        assert len(answer.features) == len(answer.items) == 10
        given += 0 if answer.promised is None else sum(answer.promised.kept)
    assert given > 20


def test_rules_filters_caps_and_pins_hold_for_promised_items_too() -> None:
    rules = """
[[rules]]
name = "no"
filter = 'not id == "new1"'
[[rules]]
name = "pinned"
pin = {item = "old7", position = 4}
"""
    made, config = small(), promising(more=rules)
    pipeline = pipeline_of(config, made)
    for n in range(40):
        answer = ask(pipeline, made, f"r{n}", later_ms=HOUR_MS // 2)
        names = made.log.names(answer.items.tolist())
        assert "new1" not in names
        assert names[3] == "old7"
        assert answer.promised is not None
        assert answer.promised.places == [8], "a pinned place is nobody else's"


def test_lists_with_promised_places_are_drawn_anew_each_time_and_kept_by_nobody() -> None:
    made, config = small(), promising()
    results, last = ResultLists(60_000, 100), LastLists()
    pipeline = pipeline_of(config, made, Conditions(results=results, lists=last, walk=0.1))
    name = next(f"r{n}" for n in range(1_000) if not drawn_tier(f"r{n}", 0.1))
    one, again = (ask(pipeline, made, name, later_ms=HOUR_MS // 2) for _ in range(2))
    assert one.items.tolist() == again.items.tolist()
    assert one.promised == again.promised
    assert (len(results), len(last)) == (0, 0)
    walker = next(f"r{n}" for n in range(1_000) if drawn_tier(f"r{n}", 0.1) == TIER_RETRIEVAL)
    assert ask(pipeline, made, walker, later_ms=HOUR_MS // 2).promised is None
    given = made.log.items("old1", "old2", "new0")
    named = ask(pipeline, made, name, later_ms=HOUR_MS // 2, candidates=np.array(given))
    assert named.promised is None
    assert sorted(named.items.tolist()) == sorted(given)


def test_a_uniform_list_is_a_sample_of_all_candidates_and_nothing_else() -> None:
    made, config = small(), promising(surface="exploration = {uniform = 0.5, share = 0.5, candidates = 5}")
    pipeline, uniform = pipeline_of(config, made), 0
    for n in range(60):
        answer = ask(pipeline, made, f"r{n}", later_ms=HOUR_MS // 2)
        drawn = answer.explored
        assert drawn is not None
        if drawn.uniform:
            uniform += 1
            assert (drawn.temperature, drawn.share, answer.promised) == (0.0, 0.5, None)
            size = len(drawn.candidates)
            assert size == 30, "all that may be shown"
            assert np.exp(drawn.log_propensities) == pytest.approx([1.0 / (size - place) for place in range(10)])
        else:
            assert (len(drawn.candidates), drawn.temperature) == (5, 0.2)
            assert answer.promised is not None
            assert served_list(Query("r"), answer, sampled=False).log_propensity == pytest.approx(
                math.fsum(drawn.log_propensities)
            )
    assert 15 < uniform < 45


def test_explain_draws_the_list_that_was_served() -> None:
    config = promising(
        surface="exploration = {share = 0.5, candidates = 12}", more='[sources.fresh]\norder = "thompson"\n'
    )
    config = msgspec.structs.replace(
        config, surfaces=tuple(msgspec.structs.replace(each, sources=None) for each in config.surfaces)
    )
    made = made_world(config)
    pipeline, model = pipeline_of(config, made), by_column(made.plan, "item_age")
    explainer = Explainer(config, made.plan, made.log.log.vocabulary())
    new = 0
    for n in range(25):
        query = Query(f"r{n}", user=made.log.user("x1"), k=10, deadline_ms=1e9)
        answer = pipeline.recommend(query, made.view, model, made.now_ms + 1_700)
        record = served_list(query, answer, sampled=False)
        stand = Stand(made.view, "as-of", made.now_ms + 1_700)
        said = explainer.explain(Served(query.user, record), stand, model, Question(item="new0"))
        assert said.replay.same_list
        assert [each.item for each in said.items] == made.log.names(answer.items.tolist())
        new += any(each.source == "new_items" for each in said.items)
    assert new == 0, "the fresh source offers them here"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('surfaces = ["hom"]', 'new_items.surfaces: There is no surface "hom", did you mean "home"'),
        ('types = ["impresion"]', 'new_items.types: There is no event type "impresion", did you mean "impression"'),
        ("share = 0.6", "new_items.share"),
        ("doubt = 0.4", "new_items.doubt"),
        ('within = "soon"', "new_items.within"),
    ],
)
def test_what_cannot_be_promised_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_config(f"[new_items]\nimpressions = 10\n{text}\n")


def test_promises_need_a_log_of_what_was_served() -> None:
    with pytest.raises(ConfigurationError, match="There is no event type"):
        parse_config('[sources.fresh]\norder = "thompson"\n[new_items]\ntypes = ["shown"]\n')
    with pytest.raises(ConfigurationError, match=r"serving\.log_served"):
        parse_config("[new_items]\nimpressions = 10\n[serving]\nlog_served = false\n")
    with pytest.raises(ConfigurationError, match=r"0\.7 \+ 0\.5 is more than all"):
        parse_config('[[surfaces]]\nname = "home"\nexploration = {share = 0.7, uniform = 0.5}\n')


class Town:
    """People who ask for lists, look at all of each, and click by an item's true rate."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.random = config, np.random.default_rng(seed)
        self.world = world(Step(START_MS, PutItems(old_and_new(new=0))), config=config)
        self.pipeline = pipeline_of(config, self.world)
        self.rates = {f"old{n}": float(rate) for n, rate in enumerate(self.random.gamma(2.0, 0.1, 30))}
        self.given: dict[str, int] = {}
        self.asked = 0
        self.minute(60, serve=False)

    def minute(self, requests: int = 8, *, serve: bool = True, born: dict[str, float] | None = None) -> None:
        """A minute goes by: items are ``born`` with their rates, lists are served."""
        made = self.world
        now_ms = made.now_ms + MINUTE_MS
        events: list[Event] = []
        for _ in range(requests):
            self.asked += 1
            user = f"u{self.random.integers(40)}"
            if serve:
                query = Query(f"q{self.asked}", user=made.log.user(user), k=10, deadline_ms=1e9)
                answer = self.pipeline.recommend(query, made.view, None, made.now_ms)
                shown = made.log.names(answer.items.tolist())
                if answer.promised is not None:
                    for place, kept in zip(answer.promised.places, answer.promised.kept, strict=True):
                        self.given[shown[place]] = self.given.get(shown[place], 0) + kept
            else:
                shown = [f"old{n}" for n in self.random.choice(30, 10, replace=False)]
            for item in shown:
                events.append(Event(user=user, item=item, type="impression"))
                if self.random.random() < self.rates[item]:
                    events.append(Event(user=user, item=item, type="like"))
        if born:
            self.rates.update(born)
            made.add(Step(now_ms, PutItems([Item(id=name, tags=["t1"]) for name in born])))
        made.add(Step(now_ms, events))


def test_every_new_item_gets_its_promise_in_time_and_a_bad_one_is_stopped() -> None:
    config = parse_config(
        '[[events]]\nname = "impression"\n[[events]]\nname = "like"\npositive = true\nweight = 1.0\nseen = false\n'
        '[[surfaces]]\nname = "home"\nsources = ["popular"]\n[ranker]\nkind = "none"\n'
        '[new_items]\nimpressions = 100\nwithin = "50m"\nshare = 0.2\n'
    )
    town = Town(config, seed=4)
    births = {2: {"new0": 0.3, "new1": 0.4}, 8: {"new2": 0.3, "bad": 0.0}, 14: {"new3": 0.3}}
    reached: dict[str, int] = {}
    counts: dict[str, float] = {}
    born = {name: minute for minute, names in births.items() for name in names}
    assert town.world.plan.outcomes is not None
    rows = town.world.view.table.rows.u4
    for minute in range(66):
        town.minute(born=births.get(minute))
        rows = town.world.view.table.rows.u4
        for name, since in born.items():
            if minute >= since:
                counts[name] = float(rows[town.world.log.item(name), town.world.plan.outcomes.shown])
                if counts[name] >= 100:
                    reached.setdefault(name, minute - since)
    assert set(reached) == {"new0", "new1", "new2", "new3"}
    assert max(reached.values()) <= 50, "in time"
    assert counts["bad"] < 100
    assert max(town.given.values()) < 110, "hardly more than was promised, whatever popularity adds"
    standing = NewItemBudget(config, town.world.plan).standing(town.world.view, START_MS + 50 * MINUTE_MS)
    assert standing.stopped == 1
