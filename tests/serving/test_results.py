"""Answers that are given again: only to the same question, while nothing it depends on has changed, and filtered again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.log.commands import EraseUsers, Login, PutItems, PutProfiles
from headwater.schema.config import Config, parse_config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile
from headwater.serving.lists import LastLists
from headwater.serving.model import Model
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.results import ResultLists
from headwater.serving.rules import Rules, open_rules
from headwater.serving.stages import TIER_FULL, TIER_LAST, TIER_POPULAR
from headwater.serving.walk import drawn_tier
from headwater.testing.events import START_MS, Step
from tests.evaluation.served import rows_of
from tests.features.states import STABLE
from tests.retrieval.worlds import MINUTE_MS, World, clicks, many, world
from tests.serving.rankers import SteppingTimer, by_column
from tests.serving.test_ladder import Away
from tests.serving.test_pipeline import CONFIG, NO_DEADLINE_MS, same

TTL_MS = 1_000
RULES = (
    "",
    "[[rules]]\nname = 'no-c1'\nfilter = \"category != 'c1'\"\n",
    "[[rules]]\nname = 'lift-c2'\nboost = {where = \"category == 'c2'\", factor = 3.0}\n",
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def items(count: int = 14) -> list[Item]:
    return [Item(id=f"i{n}", categories=[f"c{n % 3}"], published=START_MS - 1) for n in range(count)]


def small_world() -> World:
    return world(
        Step(START_MS, PutItems(items())), clicks(*many("i1", 4), *many("i2", 3), ("ann", "i3"), ("bob", "i4")),
        config=CONFIG,
    )  # fmt: skip


@cache
def parsed(text: str) -> Config:
    return parse_config(text)


def rules_of(small: World, text: str) -> Rules | None:
    return open_rules(parsed(text), small.plan, small.log.log.vocabulary())


def model_of(small: World, version: str) -> Model:
    return replace(by_column(small.plan, "item_age", ascending=version == "old"), version=version)


@dataclass
class Asker:
    """A pipeline with a cache beside one without."""

    small: World
    results: ResultLists = field(default_factory=lambda: ResultLists(TTL_MS, 64))
    config: Config = CONFIG

    def __post_init__(self) -> None:
        self.cached = Pipeline(self.config, self.small.plan, conditions=Conditions(results=self.results))
        self.plain = Pipeline(self.config, self.small.plan)
        self.model = model_of(self.small, "new")

    def obey(self, text: str) -> None:
        self.cached.rules, self.plain.rules = rules_of(self.small, text), rules_of(self.small, text)

    def query(self, user: str = "ann", **more: object) -> Query:
        query = Query("r", user=self.small.log.user(user), k=4, deadline_ms=NO_DEADLINE_MS)
        return replace(query, **more)  # type: ignore[arg-type]

    def ask(self, query: Query, later_ms: int = 0) -> Answer:
        return self.cached.recommend(query, self.small.view, self.model, self.small.now_ms + later_ms)

    def is_hit(self, query: Query, later_ms: int = 0) -> bool:
        before = self.results.hits
        answer = self.ask(query, later_ms)
        hit = self.results.hits > before
        assert hit == any(note.startswith("from the cache") for note in answer.degraded)
        return hit


# -- against a pipeline without a cache ----------------------------------------------------------------------

USERS = ("ann", "bob", "cat", "")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(USERS), st.integers(0, 3)),
        st.tuples(st.just("ask"), st.sampled_from(USERS), st.integers(0, 3)),
        st.tuples(st.just("ask"), st.sampled_from(USERS[:2]), st.just(0)),
        st.tuples(st.just("click"), st.sampled_from(USERS[:3]), st.integers(0, 13)),
        st.tuples(st.sampled_from(["hide", "show"]), st.just(""), st.integers(0, 13)),
        st.tuples(st.sampled_from(["login", "erase", "profile"]), st.sampled_from(USERS[:2]), st.just(0)),
        st.tuples(st.just("rules"), st.just(""), st.integers(0, len(RULES) - 1)),
        st.tuples(st.just("model"), st.just(""), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.just(""), st.sampled_from([1, 300, 600, 1_001])),
    ),
    min_size=6,
    max_size=30,
)


@dataclass
class Said:
    """A question, and what a pipeline without a cache answered at that moment."""

    turn: int
    at_ms: int
    query: Query
    rules: int
    model: str
    items: list[int]
    scores: bytes


@dataclass
class Slow:
    """What a cache may answer, worked out from the history of everything."""

    said: list[Said] = field(default_factory=list)
    touched: dict[int, int] = field(default_factory=dict)  # the turn at which a user's row changed last
    hidden: set[str] = field(default_factory=set)

    def may_be(self, answer: Answer, now: Said) -> bool:
        """Whether it is what was right at a moment not longer ago than the cache keeps it, with nothing changed since."""
        return any(
            said.items == answer.items.tolist() and said.scores == answer.scores.tobytes()
            and same_question(said.query, now.query) and (said.rules, said.model) == (now.rules, now.model)
            and said.turn > self.touched.get(now.query.user, -1) and 0 <= now.at_ms - said.at_ms < TTL_MS
            for said in self.said
        )  # fmt: skip


def same_question(a: Query, b: Query) -> bool:
    return (a.user, a.surface, a.k, a.exclude.tolist()) == (b.user, b.surface, b.k, b.exclude.tolist())


@STABLE
@given(operations=OPERATIONS)
def test_whatever_happens_the_cache_gives_what_was_right_a_moment_ago(operations: list[tuple[str, str, int]]) -> None:
    """Events, logins, erasures, hidden items, other rules and bundles, in any order; nothing hidden, nothing of others."""
    small = small_world()
    asker, slow, now_ms, rules = Asker(small), Slow(), small.now_ms, 0
    for turn, (operation, name, number) in enumerate([("ask", "ann", 0), ("ask", "ann", 0), *operations]):
        user = small.log.user(name)
        if operation == "wait":
            now_ms += number
        elif operation == "rules":
            rules = number
            asker.obey(RULES[number])
        elif operation == "model":
            asker.model = model_of(small, ("new", "old")[number])
        elif operation in ("hide", "show"):
            item = items()[number]
            small.add(Step(now_ms, PutItems([replace_item(item, available=operation == "show")])))
            (slow.hidden.add if operation == "hide" else slow.hidden.discard)(item.id)
        elif operation == "ask":
            exclude = np.array(small.log.items("i1") if number == 3 else [], np.int64)
            query = Query(f"r{turn}", user=user, k=3 + number % 2, exclude=exclude, deadline_ms=NO_DEADLINE_MS)
            plain = asker.plain.recommend(query, small.view, asker.model, now_ms)
            now = Said(turn, now_ms, query, rules, asker.model.version, plain.items.tolist(), plain.scores.tobytes())
            slow.said.append(now)
            hits = asker.results.hits
            answer = asker.cached.recommend(query, small.view, asker.model, now_ms)
            if asker.results.hits == hits:
                assert same(answer, plain)
            else:
                assert slow.may_be(answer, now)
                assert answer.address.user_offset == small.fold.offset
            shown = small.log.names(answer.items.tolist())
            assert not slow.hidden & set(shown)
            assert rules != 1 or not {f"i{n}" for n in range(1, 14, 3)} & set(shown)
            assert turn != 1 or asker.results.hits == 1, "nothing happened in between"
        else:
            commands: dict[str, list[Event] | Login | EraseUsers | PutProfiles] = {
                "click": [Event(user=name, item=f"i{number}", type="click")],
                "login": Login("cat", name),
                "erase": EraseUsers([name]),
                "profile": PutProfiles([UserProfile(id=name, country="DE" if turn % 2 else "FR")]),
            }
            small.add(Step(now_ms, commands[operation]))
            for touched in {user, small.log.user("cat")} if operation == "login" else {user}:
                slow.touched[touched] = turn


def replace_item(item: Item, *, available: bool) -> Item:
    return Item(id=item.id, categories=item.categories, published=item.published, available=available)


# -- the log -------------------------------------------------------------------------------------------------


def test_the_record_of_a_hit_says_where_its_rows_are_assembled_again() -> None:
    small = small_world()
    asker = Asker(small)
    query = asker.query()
    made = asker.ask(query)
    small.add(clicks(("bob", "i5"), at_ms=small.now_ms), Step(small.now_ms, PutItems([Item(id="new")])))
    again = asker.ask(replace(query, request_id="s"), 900)
    record = served_list(replace(query, request_id="s"), again, sampled=True)
    assert again.items.tolist() == made.items.tolist()
    assert record.tier == TIER_FULL
    assert record.reasons[-1] == "from the cache: made 900 ms ago"
    assert record.features == b"", "the rows are in the log with the request that made the list"
    assert again.address.user_offset > made.address.user_offset, "and up to here the user is known"
    assert (again.address.item_offset, again.address.now_ms) == (made.address.item_offset, made.address.now_ms)
    rows = rows_of(small.log.log, small.plan, query.user, record.items, record.address, record.context)
    assert rows.tobytes() == made.features.tobytes()
    assert len(rows) == 4


# -- what is a hit -------------------------------------------------------------------------------------------


def test_the_same_question_is_answered_again_for_its_time() -> None:
    asker = Asker(small_world())
    query = asker.query()
    assert [asker.is_hit(query, later_ms) for later_ms in (0, 0, 999, 1_000, 1_999, 0)] == [
        False, True, True, False, True, False,
    ]  # fmt: skip
    other = [
        replace(query, surface="similar"), replace(query, k=3), replace(query, segments=(1, 0)), replace(query, region=3),
        replace(query, zone="Asia/Tokyo"), replace(query, exclude=np.array([7])), replace(query, anchor=2),
        replace(query, anchor=2, before=(3,)), replace(query, candidates=np.array([1, 2, 5, 6, 7, 8, 9])),
        replace(query, candidates=np.array([1, 2, 5, 6, 7, 8, 10])), asker.query("bob"), asker.query(""),
    ]  # fmt: skip
    assert not any(asker.is_hit(different) for different in other)
    assert all(asker.is_hit(different) for different in (query, *other))
    asker.model = model_of(asker.small, "old")
    assert not any(asker.is_hit(different) for different in (query, *other))


def test_one_new_event_makes_the_old_list_unreachable_at_once() -> None:
    small = small_world()
    asker = Asker(small)
    query = asker.query()
    first = asker.ask(query)
    small.add(clicks(("bob", "i9"), at_ms=small.now_ms))
    assert asker.is_hit(query), "somebody else's event"
    small.add(clicks(("ann", small.log.names(first.items.tolist())[0]), at_ms=small.now_ms))
    after = asker.ask(query)
    assert asker.results.hits == 1
    assert first.items[0] not in after.items


def test_a_list_with_an_item_that_may_not_be_shown_any_more_is_made_anew() -> None:
    small = small_world()
    asker = Asker(small)
    query = asker.query()
    first = asker.ask(query)
    gone = small.log.names(first.items.tolist())[1]
    small.add(Step(small.now_ms, PutItems([Item(id=gone, available=False)])))
    again = asker.ask(query)
    assert (asker.results.refused, asker.results.hits) == (1, 0)
    assert len(again.items) == 4
    assert first.items[1] not in again.items
    assert asker.is_hit(query)


def test_a_rule_that_comes_into_force_makes_another_list() -> None:
    small = small_world()
    asker = Asker(small)
    moment = "2025-10-09T09:13:20Z"  # 20 minutes after START_MS
    asker.obey(
        "[[rules]]\nname = 'evening'\nhours = '08:00-09:10'\nboost = {where = \"category == 'c2'\"}\n"
        f"[[rules]]\nname = 'sale'\nfrom = '{moment}'\npin = {{item = 'i13', position = 1}}\n"
    )
    asker.results.ttl_ms = 60 * MINUTE_MS
    query = asker.query()
    hits = [asker.is_hit(query, minutes * MINUTE_MS) for minutes in (0, 10, 17, 18, 21, 22)]
    assert hits == [False, True, False, True, False, True]
    assert small.log.names(asker.ask(query, 23 * MINUTE_MS).items.tolist())[0] == "i13"
    asker.obey("")
    assert not asker.is_hit(query)


def test_rules_are_known_by_what_they_say() -> None:
    small = small_world()
    made = [rules_of(small, text) for text in (RULES[1], RULES[1], RULES[2], RULES[1] + RULES[2], RULES[2] + RULES[1])]
    versions = [rules.version for rules in made if rules is not None]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 4


def test_only_whole_lists_are_kept() -> None:
    small = small_world()
    asker = Asker(small)
    for query in (
        asker.query(paged=True), asker.query(reuse=False), asker.query(k=60), asker.query(deadline_ms=0.0),
        asker.query(region=None, request_id=next(f"r{n}" for n in range(9_999) if drawn_tier(f"r{n}", 0.1))),
    ):  # fmt: skip
        asker.cached.conditions.walk = 0.1
        asker.ask(query)
        assert len(asker.results) == 0, query
    asker.cached.conditions.walk = 0.0
    asker.model = Model("none", None)
    asker.ask(asker.query())
    assert len(asker.results) == 0, "tier 2"
    asker.model = model_of(small, "new")
    slow = Pipeline(CONFIG, small.plan, timer=SteppingTimer(6.0), conditions=Conditions(results=asker.results))
    answer = slow.recommend(asker.query(deadline_ms=50.0), small.view, asker.model, small.now_ms)
    assert len(asker.results) == 0, answer.degraded
    asker.ask(asker.query())
    assert len(asker.results) == 1
    assert not asker.is_hit(asker.query(reuse=False)), "who wants a trace gets a list of their own"


def test_without_state_there_is_no_hit() -> None:
    small = small_world()
    asker = Asker(small)
    asker.cached.conditions.lists = LastLists()
    asker.ask(asker.query())
    view = Away(small.plan, small.fold)
    view.refresh()
    answer = asker.cached.recommend(asker.query(), view, asker.model, small.now_ms)
    assert (answer.tier, asker.results.hits) == (TIER_LAST, 0), "nobody knows whether the user's row is the same"


def test_no_list_is_older_than_the_event_that_is_asked_for() -> None:
    small = small_world()
    asker = Asker(small)
    asker.cached.conditions.lists = LastLists()
    query = asker.query()
    asker.ask(query)
    stands = small.fold.offset
    assert asker.is_hit(replace(query, since=stands))
    assert not asker.is_hit(replace(query, since=stands + 1)), "the state has not got there, and says so"
    view = Away(small.plan, small.fold)
    view.refresh()
    tiers = [
        asker.cached.recommend(replace(query, since=since), view, asker.model, small.now_ms).tier
        for since in (0, stands, stands + 1)
    ]
    assert tiers == [TIER_LAST, TIER_LAST, TIER_POPULAR]


def test_lists_are_bounded_and_those_of_an_erased_user_go() -> None:
    small = small_world()
    asker = Asker(small, ResultLists(TTL_MS, 3))
    for user in ("ann", "bob", "x0", "x1"):
        asker.ask(asker.query(user))
    assert (len(asker.results), asker.results.evictions) == (3, 1)
    asker.results.forget([small.log.user("bob"), 77])
    assert len(asker.results) == 2
    assert not asker.is_hit(asker.query("bob"))
    asker.results.drop_old(small.now_ms + TTL_MS)
    assert len(asker.results) == 0
    asker.ask(asker.query())
    asker.results.forget(None)
    assert len(asker.results) == 0
