"""The request path on small worlds: what it may show, what it must fill, and where it steps down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.state import LmdbState
from headwater.log.commands import PutItems, PutProfiles
from headwater.log.record import Namespace
from headwater.retrieval.index import ItemIndex
from headwater.retrieval.sources import Asked, Offer, Trending
from headwater.schema.config import Config, Features, FreshConfig, Ranker, SourceConfig, Sources
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.requests import Address, ServedList
from headwater.schema.surfaces import Surface
from headwater.schema.users import UserProfile
from headwater.serving.model import Model
from headwater.serving.pipeline import Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import NO_MODEL, Answer, Query, served_list
from headwater.serving.stages import TIER_FULL, TIER_POPULAR, TIER_RETRIEVAL
from headwater.serving.view import FoldView, LiveView, View
from headwater.testing.assembly_oracle import assemble_slowly
from headwater.testing.events import START_MS, Step, Written, script, written
from headwater.testing.oracle import SlowFold, SlowUser
from tests.features.states import STABLE, folded_slowly, overwrite
from tests.retrieval.worlds import MINUTE_MS, World, clicks, many, world
from tests.serving.rankers import ByRule, SteppingTimer, by_column, failing, giving

CONFIG = Config(
    features=Features(seen=16, recent=12, segment_slots=16),
    surfaces=(Surface(name="home"), Surface(name="similar", sources=("covisit", "content"))),
)
NO_DEADLINE_MS = 1e9


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[msgspec.Struct]]:
    """Failures are provoked here; their log lines stay out of the output."""
    with capture_logs():
        yield []


@dataclass(frozen=True)
class Generated:
    """A generated world, and the plain objects that say what may be shown in it."""

    small: World
    slow: SlowFold

    def may_show(self, query: Query, now_ms: int) -> set[int]:
        """The eligibility rules, read off the slow fold."""
        user = self.slow.users.get(query.user, SlowUser())
        barred = {*user.seen[-CONFIG.features.seen :], *query.exclude.tolist(), query.anchor}
        return {
            number
            for number, item in self.slow.items.items()
            if number not in barred and number != 0 and not item.hidden
            and item.published <= now_ms and (item.expires == 0 or item.expires > now_ms)
            and (not item.regions or query.region in item.regions)
        }  # fmt: skip

    def must_fill(self, allowed: set[int]) -> set[int]:
        """Of these, the items that are in the catalogue or were ever liked: no list may end while one is left."""
        rows, cell = self.small.fold.items.rows, self.small.plan.popular_cells[-1]
        return {item for item in allowed if self.slow.items[item].known or rows.f4[item, cell] > 0.0}


@cache
def generated(seed: int) -> Generated:
    """Worlds are made once and only read; the slow fold gets the same log."""
    with capture_logs():
        small = world(*script(seed, 160, users=8, items=40), config=CONFIG)
        return Generated(small, folded_slowly(small.log))


QUERIES = st.builds(
    lambda user, k, surface, segments, region, exclude, anchor: Query(
        "r", user=user, k=k, surface=surface, segments=segments, region=region, anchor=anchor,
        exclude=np.array(exclude, np.int64), deadline_ms=NO_DEADLINE_MS,
    ),
    st.integers(0, 9), st.integers(1, 60), st.sampled_from(["home", "similar"]),
    st.tuples(st.integers(0, 4), st.integers(0, 40)), st.integers(0, 5), st.lists(st.integers(1, 45), max_size=12),
    st.sampled_from([0, 0, 0, 1, 5, 44]),
)  # fmt: skip


@STABLE
@given(seed=st.integers(1, 4), query=QUERIES, later_ms=st.sampled_from([0, 60_000, 86_400_000]), ranked=st.booleans())
def test_only_what_may_be_shown_comes_back_and_no_list_starves(
    seed: int, query: Query, later_ms: int, ranked: bool
) -> None:
    given_world = generated(seed)
    small, now_ms = given_world.small, given_world.small.now_ms + later_ms
    model = by_column(small.plan, "item_age", ascending=True) if ranked else None
    answer = Pipeline(CONFIG, small.plan).recommend(query, small.view, model, now_ms)
    allowed = given_world.may_show(query, now_ms)
    shown = answer.items.tolist()
    assert set(shown) <= allowed
    assert len(set(shown)) == len(shown) <= query.k
    assert len(shown) >= min(query.k, len(given_world.must_fill(allowed)))
    check(answer, query, small.plan)
    if not shown:
        assert answer.degraded[-1] == "nothing that may be shown is left"


def check(answer: Answer, query: Query, plan: Plan) -> None:
    """What holds for every answer."""
    n = len(answer.items)
    assert n <= query.k
    assert (answer.items.dtype.name, answer.scores.dtype.name) == ("int64", "float32")
    assert n == len(answer.scores) == len(answer.sources) == len(answer.reasons) == len(answer.causes)
    assert np.isfinite(answer.scores).all()
    assert (np.diff(answer.scores) <= 0).all()
    assert set(answer.sources) <= {"covisit", "trending", "popular", "content", "fresh", "catalogue"}
    for reason, cause in zip(answer.reasons, answer.causes.tolist(), strict=True):
        assert reason
        assert cause > 0 or "{item}" not in reason
    assert answer.tier == TIER_FULL or answer.degraded
    assert len(answer.features) in ((n,) if answer.tier == TIER_FULL else (0, n))
    assert answer.address.plan == plan.hash
    assert len(answer.context) == 4
    assert all(lap.ms >= 0 for lap in answer.trace.values())
    assert set(answer.widths) == {"covisit", "content"} or query.surface != "similar"


@STABLE
@given(seed=st.integers(1, 4), query=QUERIES)
def test_ranked_rows_are_the_slow_assembly_and_what_features_gives(seed: int, query: Query) -> None:
    """What the ranker sees, what is logged, and what the slow oracle assembles: the same bytes."""
    given_world = generated(seed)
    small, now_ms = given_world.small, given_world.small.now_ms
    pipeline = Pipeline(CONFIG, small.plan)
    model = by_column(small.plan, "item_count")
    answer = pipeline.recommend(query, small.view, model, now_ms)
    assert isinstance(model.ranker, ByRule)
    if not len(answer.items):
        return
    assert model.ranker.given is not None
    assert {row.tobytes() for row in answer.features} <= {row.tobytes() for row in model.ranker.given}
    fresh = Pipeline(CONFIG, small.plan)
    candidates = fresh.candidates(query, small.view, now_ms)
    assert set(answer.items.tolist()) <= set(candidates.items.tolist())
    out = np.zeros((len(answer.items), len(small.plan.columns)), np.float32)
    again = fresh.features(query, small.view, answer.items, now_ms, out)
    assert again.tobytes() == answer.features.tobytes()
    if query.anchor == 0:
        user = given_world.slow.users.get(query.user, SlowUser())
        first, second = (asked or own for asked, own in zip(query.segments, user.segments, strict=True))
        assert answer.context == [first, second, 0, 0]
        slow = assemble_slowly(given_world.slow, user, answer.items.tolist(), (first, second), now_ms)
        assert slow.tobytes() == answer.features.tobytes()


@STABLE
@given(seed=st.integers(1, 4), first=QUERIES, second=QUERIES)
def test_an_answer_does_not_depend_on_the_requests_before_it(seed: int, first: Query, second: Query) -> None:
    small = generated(seed).small
    model = by_column(small.plan, "item_positive_6h")
    used = Pipeline(CONFIG, small.plan)
    used.recommend(first, small.view, model, small.now_ms)
    assert same(used.recommend(second, small.view, model, small.now_ms), recommend(small, second, model))


def recommend(small: World, query: Query, model: Model | None = None, *, config: Config = CONFIG) -> Answer:
    return Pipeline(config, small.plan).recommend(query, small.view, model, small.now_ms)


def same(a: Answer, b: Answer) -> bool:
    """Equal but for the time that the stages took."""
    return (
        a.items.tolist() == b.items.tolist() and a.scores.tobytes() == b.scores.tobytes()
        and a.features.tobytes() == b.features.tobytes() and a.causes.tolist() == b.causes.tolist()
        and (a.sources, a.reasons, a.tier, a.degraded, a.address, a.context, a.widths)
        == (b.sources, b.reasons, b.tier, b.degraded, b.address, b.context, b.widths)
    )  # fmt: skip


# -- small worlds ----------------------------------------------------------------------------------------


def test_an_empty_catalogue_gives_an_empty_list_and_a_reason() -> None:
    empty = world(config=CONFIG)
    for model in (None, by_column(empty.plan, "item_age")):
        answer = recommend(empty, Query("r"), model)
        assert answer.items.tolist() == []
        assert answer.degraded[-1] == "the catalogue is empty"
        check(answer, Query("r"), empty.plan)


def test_a_stranger_gets_what_is_popular_and_new() -> None:
    put = PutItems([Item(id=f"i{n}", title=f"item {n}") for n in range(40)])
    small = world(Step(START_MS, put), clicks(*many("i7", 5), *many("i9", 3)), config=CONFIG)
    for user in (0, 77_777):
        answer = recommend(small, Query("r", user=user, k=10))
        assert small.log.names(answer.items.tolist())[:2] == ["i7", "i9"]
        assert len(answer.items) == 10
        assert set(answer.sources) <= {"popular", "trending", "fresh"}
        assert answer.address.user_offset == small.log.log.last_offset


def test_a_click_changes_the_list() -> None:
    items = [Item(id=f"{kind} {n}", categories=[kind]) for kind in ("rock", "jazz") for n in range(10)]
    small = world(Step(START_MS, PutItems(items)), clicks(*[(f"x{n}", f"rock {n}") for n in range(9)]), config=CONFIG)
    small.add(clicks(("me", "rock 9"), at_ms=START_MS + MINUTE_MS))
    query, by_taste = Query("r", user=small.log.user("me"), k=9), by_column(small.plan, "content_last")
    before = small.log.names(recommend(small, query, by_taste).items.tolist())
    small.add(clicks(("me", "jazz 3"), at_ms=START_MS + 2 * MINUTE_MS))
    answer = recommend(small, query, by_taste)
    assert [name.split()[0] for name in before] == ["rock"] * 9
    assert [name.split()[0] for name in small.log.names(answer.items.tolist())] == ["jazz"] * 9
    assert answer.sources == ["content"] * 9
    assert set(answer.causes.tolist()) == {small.log.item("jazz 3")}
    assert small.log.item("jazz 3") not in answer.items


def test_a_user_who_saw_the_popular_ones_gets_the_rest_of_the_catalogue() -> None:
    put = PutItems([Item(id=f"i{n}", published=1) for n in range(30)])
    seen = [("me", f"i{n}") for n in range(12)]
    small = world(Step(START_MS, put), clicks(*seen), config=CONFIG)
    answer = recommend(small, Query("r", user=1, k=20))
    assert sorted(answer.items.tolist()) == sorted(small.log.items(*[f"i{n}" for n in range(12, 30)]))
    assert set(answer.sources) == {"catalogue"}, "nobody liked them: they are not called popular"


def test_what_was_skipped_or_shown_may_come_back_what_was_taken_not() -> None:
    kinds = ["impression", "skip", "view", "click", "hide"]
    events = [Event(user="me", item=kind, type=kind) for kind in kinds]
    put = PutItems([Item(id=kind) for kind in kinds])
    small = world(Step(START_MS, put), Step(START_MS, events), config=CONFIG)
    answer = recommend(small, Query("r", user=1, k=20))
    assert sorted(small.log.names(answer.items.tolist())) == ["impression", "skip"]


def test_a_request_that_says_no_region_is_where_the_user_was_last() -> None:
    put = PutItems([Item(id="all"), Item(id="de", regions=["DE"]), Item(id="fr", regions=["FR"])])
    profiles = PutProfiles(
        [UserProfile(id="de", country="DE"), UserProfile(id="it", country="IT"), UserProfile(id="?")]
    )
    small = world(
        Step(START_MS, put), Step(START_MS, profiles), clicks(("fr", "x"), ("de", "x"), attributes={"country": "FR"}),
        clicks(("de", "x"), attributes={"country": "DE", "device": "tv"}), config=CONFIG,
    )  # fmt: skip
    vocabulary = small.log.log.vocabulary()
    located = Pipeline(CONFIG, small.plan, stored_region=StoredRegion(vocabulary))

    def shown(pipeline: Pipeline, user: str, region: int | None = None, anchor: int = 0) -> set[str]:
        query = Query("r", user=small.log.user(user), region=region, anchor=anchor, deadline_ms=NO_DEADLINE_MS)
        return set(small.log.names(pipeline.recommend(query, small.view, None, small.now_ms).items.tolist())) - {"x"}

    assert shown(located, "de") == {"all", "de"}
    assert shown(located, "fr") == {"all", "fr"}, "an event says where somebody is, too"
    assert shown(located, "it") == shown(located, "?") == shown(located, "stranger") == {"all"}
    assert shown(located, "de", vocabulary.index(Namespace.REGION, "FR")) == {"all", "fr"}, "the request goes first"
    assert shown(located, "de", 0) == {"all"}, "also when it names a place that no item is limited to"
    assert shown(located, "fr", anchor=small.log.item("x")) == {"all", "fr"}
    assert shown(Pipeline(CONFIG, small.plan), "de") == {"all"}
    small.add(Step(small.now_ms, PutItems([Item(id="it", regions=["IT"])])))
    assert shown(located, "it") == {"all", "it"}, "a region that came up later"


def test_a_list_about_an_item() -> None:
    steps = [clicks((f"u{n}", "a"), at_ms=START_MS + n * MINUTE_MS) for n in range(4)]
    steps += [clicks((f"u{n}", "b"), at_ms=START_MS + n * MINUTE_MS + 1_000) for n in range(4)]
    put = PutItems(
        [Item(id="a", categories=["c"]), Item(id="near", categories=["c"]), Item(id="far", categories=["z"])]
    )
    small = world(Step(START_MS, put), *sorted(steps, key=lambda step: step.at_ms), config=CONFIG)
    a = small.log.item("a")
    query = Query("r", surface="similar", k=3, anchor=a)
    answer = recommend(small, query)
    assert small.log.names(answer.items.tolist()) == ["b", "near", "far"]
    assert answer.sources == ["covisit", "content", "catalogue"]
    assert answer.causes.tolist() == [a, a, 0]
    assert "{item}" not in answer.reasons[2]
    assert answer.context == [0, 0, a, 0]
    again = recommend(small, Query("r", surface="similar", k=3, anchor=a, user=small.log.user("u1")))
    assert small.log.names(again.items.tolist()) == ["near", "far"], "what this user has seen stays away"


@pytest.mark.parametrize("surface", ["nowhere", "home"])
def test_without_any_source_the_catalogue_is_what_is_left(surface: str) -> None:
    off = SourceConfig(enabled=False)
    sources = Sources(popular=off, trending=off, covisit=off, content=off, fresh=FreshConfig(enabled=False))
    config = Config(
        features=CONFIG.features, sources=sources, surfaces=(Surface(name="nowhere", sources=()), Surface(name="home"))
    )
    small = world(Step(START_MS, PutItems([Item(id="a"), Item(id="b")])), clicks(*many("b", 2)), config=config)
    answer = recommend(small, Query("r", surface=surface), config=config)
    assert small.log.names(answer.items.tolist()) == ["b", "a"]
    assert answer.sources == ["catalogue"] * 2
    assert answer.widths == {}


def test_a_surface_asks_only_its_own_sources() -> None:
    small = generated(1).small
    assert set(recommend(small, Query("r", surface="similar", user=1)).widths) == {"covisit", "content"}
    everything = {"covisit", "trending", "popular", "content", "fresh"}
    assert set(recommend(small, Query("r", user=1)).widths) == everything
    assert set(recommend(small, Query("r", surface="unheard of", user=1)).widths) == everything


def test_more_may_be_asked_for_than_is_ranked() -> None:
    config = Config(ranker=msgspec.structs.replace(CONFIG.ranker, candidates=5))
    put = PutItems([Item(id=f"i{n}") for n in range(400)])
    small = world(Step(START_MS, put), config=config)
    model = by_column(small.plan, "item_age")
    for k, expected in ((3, 3), (5, 5), (150, 150), (400, 400)):
        query = Query("r", k=k, deadline_ms=NO_DEADLINE_MS)
        answer = recommend(small, query, model, config=config)
        assert len(answer.items) == expected
        check(answer, query, small.plan)


# -- stepping down ---------------------------------------------------------------------------------------


@pytest.fixture
def small() -> World:
    put = PutItems([Item(id=f"i{n}", categories=[f"c{n % 3}"]) for n in range(30)])
    return world(Step(START_MS, put), clicks(*many("i1", 4), *many("i2", 3), ("me", "i3")), config=CONFIG)


def test_with_a_model_the_tier_is_full_and_the_model_named(small: World) -> None:
    answer = recommend(small, Query("r", user=1), by_column(small.plan, "item_count"))
    assert (answer.tier, answer.address.bundle) == (TIER_FULL, "by-column")
    assert answer.features.shape == (len(answer.items), len(small.plan.columns))
    assert answer.scores.tolist() == sorted(answer.scores.tolist(), reverse=True)


def test_equal_scores_are_ordered_by_number(small: World) -> None:
    answer = recommend(small, Query("r", k=30), giving(small.plan, 0.5))
    assert answer.items.tolist() == sorted(answer.items.tolist())


def test_where_ranking_is_switched_off_the_merged_order_is_the_full_answer(small: World) -> None:
    pipeline = Pipeline(msgspec.structs.replace(CONFIG, ranker=Ranker(kind="none")), small.plan)
    model = by_column(small.plan, "item_count")
    for served in (model, None):
        answer = pipeline.recommend(Query("r", deadline_ms=NO_DEADLINE_MS), small.view, served, small.now_ms)
        assert answer.tier == TIER_FULL
        assert small.log.names(answer.items.tolist())[:2] == ["i1", "i2"]
        assert not any("ranker" in reason for reason in answer.degraded)


@pytest.mark.parametrize("model", [None, Model("bare", None)])
def test_without_a_ranker_the_retrieval_order_is_served(small: World, model: Model | None) -> None:
    answer = recommend(small, Query("r"), model)
    assert (answer.tier, answer.address.bundle) == (TIER_RETRIEVAL, model.version if model else NO_MODEL)
    assert "no ranker in service" in answer.degraded
    assert small.log.names(answer.items.tolist())[:2] == ["i1", "i2"]
    assert len(answer.features) == 0


@pytest.mark.parametrize("kind", ["fails", "nan", "inf"])
def test_a_ranker_that_fails_costs_its_order_and_nothing_else(small: World, kind: str) -> None:
    model = failing(small.plan) if kind == "fails" else giving(small.plan, float(kind))
    answer = recommend(small, Query("r"), model)
    assert answer.tier == TIER_RETRIEVAL
    assert any("ranker failed" in why for why in answer.degraded)
    assert any(("out of trees" if kind == "fails" else "not finite") in why for why in answer.degraded)
    assert answer.items.tolist() == recommend(small, Query("r")).items.tolist()
    check(answer, Query("r"), small.plan)


@pytest.mark.parametrize(("step_ms", "tier"), [(0.1, TIER_FULL), (12.0, TIER_RETRIEVAL), (30.0, TIER_POPULAR)])
def test_past_its_deadline_a_request_is_not_ranked(small: World, step_ms: float, tier: int) -> None:
    pipeline = Pipeline(CONFIG, small.plan, timer=SteppingTimer(step_ms))
    answer = pipeline.recommend(
        Query("r", deadline_ms=50.0), small.view, by_column(small.plan, "item_count"), small.now_ms
    )
    assert answer.tier == tier
    assert any("deadline" in why for why in answer.degraded) == (tier != TIER_FULL)
    assert len(answer.items) == 20
    assert answer.trace["hydrate"].ms == pytest.approx(step_ms)


class Broken(Trending):
    """A source whose store is gone."""

    name = "fresh"

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:  # noqa: ARG002
        raise HeadwaterError("the index is away")


def test_a_source_that_fails_yields_its_reason_and_nothing_else(small: World) -> None:
    pipeline = Pipeline(CONFIG, small.plan, sources=(Broken(CONFIG), Trending(CONFIG)))
    answer = pipeline.recommend(Query("r", k=2), small.view, None, small.now_ms)
    assert "fresh failed: the index is away" in answer.degraded
    assert small.log.names(answer.items.tolist()) == ["i1", "i2"]
    assert answer.widths["fresh"] == 0


# -- live state ------------------------------------------------------------------------------------------


@dataclass
class Live:
    """The same log in LMDB, with item columns that move on by epochs."""

    log: Written
    plan: Plan
    path: Path
    state: LmdbState
    fold: Fold

    def take(self, *steps: Step, epoch: bool = True) -> None:
        self.log.add(steps)
        while (block := self.log.log.read(self.fold.offset)) is not None:
            self.fold.apply(block)
        self.fold.commit(epoch=epoch)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    plan = compile_plan(CONFIG)
    state = LmdbState(tmp_path / "state", plan, writable=True)
    made = Live(Written(CONFIG), plan, tmp_path / "state", state, Fold(plan, state))
    yield made
    made.state.close()


def ask(live: Live, view: View, query: Query, model: Model | None = None) -> Answer:
    return Pipeline(CONFIG, live.plan).recommend(query, view, model, live.log.now_ms)


@pytest.mark.parametrize("seed", [31, 32])
def test_live_state_gives_the_answers_of_a_fold_in_memory(live: Live, seed: int) -> None:
    steps = script(seed, 160, users=8, items=40)
    live.take(*steps[:90])
    view = LiveView(live.plan, live.state)
    live.take(*steps[90:120], epoch=False)
    live.take(*steps[120:])
    view.refresh()
    memory = world(*steps, config=CONFIG)
    model = by_column(live.plan, "item_positive_6h")
    for user in range(10):
        for anchor in (0, 3):
            query = Query("r", user=user, k=30, anchor=anchor, deadline_ms=NO_DEADLINE_MS)
            assert same(ask(live, view, query, model), recommend(memory, query, model))


@pytest.mark.parametrize("new", [3, 3_000])
def test_a_user_who_knows_items_that_the_epoch_does_not(live: Live, new: int) -> None:
    """User rows are read at every request, item columns move on by epochs: the row may be ahead."""
    live.take(Step(START_MS, PutItems([Item(id="old", categories=["c"]), Item(id="older", categories=["c"])])))
    view = LiveView(live.plan, live.state)
    put = Step(START_MS, PutItems([Item(id=f"new {n}", categories=["c"]) for n in range(new)]))
    latest = [(("me", f"new {n}")) for n in range(max(new - 3, 0), new)]
    live.take(put, clicks(*latest), epoch=False)
    assert not view.refresh()
    for query in (
        Query("r", user=1, deadline_ms=NO_DEADLINE_MS), Query("r", anchor=live.log.item(f"new {new - 1}"), deadline_ms=NO_DEADLINE_MS),
        Query("r", exclude=np.array([live.log.item(f"new {new - 1}")], np.int64), deadline_ms=NO_DEADLINE_MS),
    ):  # fmt: skip
        answer = ask(live, view, query, by_column(live.plan, "item_age"))
        assert sorted(live.log.names(answer.items.tolist())) == ["old", "older"]
        assert (answer.tier, answer.address.item_offset) == (TIER_FULL, view.item_offset)
        assert answer.address.user_offset == live.log.log.last_offset
    live.take()
    assert view.refresh()
    answer = ask(live, view, Query("r", user=1, k=200, deadline_ms=NO_DEADLINE_MS), by_column(live.plan, "item_age"))
    assert len(answer.items) == min(200, 2 + new - 3)
    assert not set(answer.items.tolist()) & set(live.log.items(*[name for _, name in latest]))


def test_a_damaged_user_row_steps_down_to_what_is_popular(live: Live) -> None:
    put = Step(START_MS, PutItems([Item(id=f"i{n}") for n in range(30)]))
    live.take(put, clicks(*many("i1", 4), *many("i2", 3), ("me", "i3")))
    user = live.log.user("me")
    live.state.close()
    overwrite(live.path, b"users", user.to_bytes(4, "big"), 17)
    live.state = LmdbState(live.path, live.plan, writable=False)
    view = LiveView(live.plan, live.state)
    answer = ask(live, view, Query("r", user=user), by_column(live.plan, "item_age"))
    assert answer.tier == TIER_POPULAR
    assert any("state unavailable" in why and "checksum" in why for why in answer.degraded)
    assert live.log.names(answer.items.tolist())[:2] == ["i1", "i2"]
    assert len(answer.items) == 20
    whole = ask(live, view, Query("r", user=live.log.user("x1")), by_column(live.plan, "item_age"))
    assert whole.tier == TIER_FULL


# -- what is logged --------------------------------------------------------------------------------------


def test_a_served_list_says_what_was_shown_and_where(small: World) -> None:
    query = Query("request 1", user=1, k=7, surface="home", segments=(2, 0))
    answer = recommend(small, query, by_column(small.plan, "item_count"))
    served = msgspec.msgpack.decode(msgspec.msgpack.encode(served_list(query, answer, sampled=True)), type=ServedList)
    assert (served.request_id, served.surface, served.items) == ("request 1", "home", answer.items.tolist())
    assert np.array(served.scores, np.float32).tobytes() == answer.scores.tobytes()
    assert (served.sources, served.tier, served.reasons) == (answer.sources, answer.tier, answer.degraded)
    assert served.context == [2, 0, 0, 0]
    offset = small.log.log.last_offset
    assert served.address == Address(offset, offset, small.now_ms, small.plan.hash, "by-column")
    rows = np.frombuffer(served.features, np.float32).reshape(7, -1)
    pipeline = Pipeline(CONFIG, small.plan)
    pipeline.candidates(query, small.view, small.now_ms)
    out = np.zeros_like(rows)
    assert pipeline.features(query, small.view, answer.items, small.now_ms, out).tobytes() == rows.tobytes()
    assert served_list(query, answer, sampled=False).features == b""


def test_a_served_row_is_assembled_again_at_its_address(small: World) -> None:
    """The address is enough: a fold up to it gives the same bytes, whatever was appended since."""
    query = Query("r", user=1, k=9, deadline_ms=NO_DEADLINE_MS)
    answer = recommend(small, query, by_column(small.plan, "item_count"))
    small.add(clicks(("me", "i9"), *many("i5", 9), at_ms=START_MS + MINUTE_MS))
    then = Written(CONFIG)
    then.log = small.log.log
    slow = folded_slowly(then, until=answer.address.item_offset)
    first, second, *_ = answer.context
    rows = assemble_slowly(slow, slow.users[1], answer.items.tolist(), (first, second), answer.address.now_ms)
    assert rows.tobytes() == answer.features.tobytes()
    now = folded_slowly(small.log)
    assert (
        assemble_slowly(now, now.users[1], answer.items.tolist(), (first, second), small.now_ms).tobytes()
        != rows.tobytes()
    )


def test_views_agree_on_users_they_do_not_know(small: World) -> None:
    view = FoldView(small.plan, small.fold)
    row = small.user("nobody")
    row.u4[:] = 9
    assert view.read_user(10**6, row) == small.log.log.last_offset
    assert not row.u4.any()
    row.i8[:] = 9
    view.read_user(0, row)
    assert not row.i8.any()
    assert written([], CONFIG).log.last_offset == 0
