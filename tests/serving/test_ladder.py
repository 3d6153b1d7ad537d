"""The tiers of the ladder: each answers, says so, keeps the rules, and is reached when it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.features.plan import compile_plan
from headwater.features.rows import User
from headwater.log.commands import PutItems
from headwater.ranking.ranker import Features, RankerError, Scores
from headwater.schema.config import Config, Ranker
from headwater.schema.errors import UnavailableError
from headwater.schema.items import Item
from headwater.serving.lists import KEEP_MS, LastLists, PopularSnapshot, by_popularity
from headwater.serving.model import Model
from headwater.serving.pace import BUSY, LEAST_QUALITY, RANK_MS, MeasuredPace, Pace
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.rank import LEAST_ASK_MS
from headwater.serving.request import Answer, Query, served_list
from headwater.serving.scorer import DirectScorer, ThreadScorer
from headwater.serving.stages import (
    STAGES,
    TIER_FULL,
    TIER_LAST,
    TIER_LIGHT,
    TIER_POPULAR,
    TIER_RETRIEVAL,
    TIERS,
)
from headwater.serving.view import FoldView
from headwater.serving.walk import drawn_tier
from headwater.testing.events import START_MS, Step
from tests.features.states import STABLE
from tests.retrieval.worlds import World, clicks, many, world
from tests.serving.rankers import ByRule, Stalling, SteppingTimer, by_column, failing, giving
from tests.serving.test_pipeline import CONFIG, NO_DEADLINE_MS, QUERIES, check, generated

NARROW = Config(
    features=CONFIG.features, surfaces=CONFIG.surfaces, ranker=Ranker(candidates=24, light_keep=0)
)  # tier 1 looks at 6 of the 24
FINE_MS = 60_000.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[object]]:
    with capture_logs():
        yield []


@pytest.fixture
def small() -> World:
    put = PutItems([Item(id=f"i{n}", categories=[f"c{n % 3}"]) for n in range(30)])
    return world(Step(START_MS, put), clicks(*many("i1", 4), *many("i2", 3), ("me", "i3")), config=NARROW)


class Away(FoldView):
    """The state store cannot be reached."""

    def read_user(self, user: int, into: User) -> int:  # noqa: ARG002
        raise UnavailableError("no store")


def away(small: World) -> Away:
    view = Away(small.plan, small.fold)
    view.refresh()
    return view


def lit(model: Model, rule: float = -1.0) -> Model:
    """``model`` with a light ranker that orders by the item's age, upside down at 1."""
    assert isinstance(model.ranker, ByRule)
    at = model.ranker.columns.index("item_age")
    return replace(model, light=ByRule(model.ranker.columns, lambda rows: np.float32(rule) * rows[:, at]))


def pipeline(small: World, config: Config = NARROW, **conditions: object) -> Pipeline:
    made = Conditions()
    for name, value in conditions.items():
        setattr(made, name, value)
    return Pipeline(config, small.plan, conditions=made)


def walking(small: World, tier: int) -> tuple[Pipeline, Query]:
    """A pipeline, and a request of the user "me" that walks ``tier`` by lot."""
    number = next(n for n in range(10_000) if drawn_tier(f"r{n}", 0.1) == tier)
    made = pipeline(small, walk=0.1, lists=LastLists())
    return made, Query(f"r{number}", user=small.log.user("me"), k=5, deadline_ms=NO_DEADLINE_MS)


# -- the description ---------------------------------------------------------------------------------------


def test_the_trace_holds_stages_of_the_description_in_their_order(small: World) -> None:
    names = [stage.name for stage in STAGES]
    assert [stage.until for stage in STAGES] == sorted(stage.until for stage in STAGES)
    assert [tier.number for tier in TIERS] == list(range(5))
    config = msgspec.structs.replace(NARROW, ranker=Ranker(candidates=24, light_keep=8))
    answer = pipeline(small, config).recommend(
        Query("r", k=5, deadline_ms=NO_DEADLINE_MS), small.view, lit(by_column(small.plan, "item_count")), small.now_ms
    )
    assert list(answer.trace) == [name for name in names if name != "log"]
    widths = {name: lap.width for name, lap in answer.trace.items()}
    assert widths["fetch"] == sum(answer.widths.values())
    assert (widths["eligibility"], widths["assemble"], widths["light_rank"]) == (24, 24, 8)
    assert (widths["deep_rank"], widths["policy"]) == (8, 5)
    assert {lap.outcome for lap in answer.trace.values()} == {"ok"}


# -- tiers 0 to 2 ------------------------------------------------------------------------------------------


def test_the_light_ranker_lets_the_best_through_and_the_deep_one_orders_them(small: World) -> None:
    model = lit(by_column(small.plan, "item_count"))
    assert model.light is not None
    config = msgspec.structs.replace(NARROW, ranker=Ranker(candidates=24, light_keep=8))
    query = Query("r", user=1, k=8, deadline_ms=NO_DEADLINE_MS)
    answer = pipeline(small, config).recommend(query, small.view, model, small.now_ms)
    fresh = Pipeline(config, small.plan)
    candidates = fresh.candidates(query, small.view, small.now_ms, model).items
    rows = fresh.features(
        query, small.view, candidates, small.now_ms, np.zeros((24, len(small.plan.columns)), np.float32)
    )
    light = model.light.score(rows)
    kept = candidates[np.lexsort((candidates, -light))[:8]]
    assert answer.tier == TIER_FULL
    assert sorted(answer.items.tolist()) == sorted(kept.tolist())
    assert isinstance(model.ranker, ByRule)
    assert model.ranker.given is not None
    assert len(model.ranker.given) == 8
    check(answer, query, small.plan)


@pytest.mark.parametrize("k", [3, 30])
def test_a_light_ranker_changes_nothing_by_default(small: World, k: int) -> None:
    query = Query("r", k=k, deadline_ms=NO_DEADLINE_MS)
    model = by_column(small.plan, "item_count")
    plain = pipeline(small).recommend(query, small.view, model, small.now_ms)
    with_light = pipeline(small).recommend(query, small.view, lit(model), small.now_ms)
    assert plain.items.tolist() == with_light.items.tolist()
    assert plain.scores.tobytes() == with_light.scores.tobytes()


@pytest.mark.parametrize("broken", ["fails", "nan"])
def test_where_the_ranker_fails_the_light_one_orders_fewer_candidates(small: World, broken: str) -> None:
    model = lit(failing(small.plan) if broken == "fails" else giving(small.plan, float("nan")))
    query = Query("r", k=5, deadline_ms=NO_DEADLINE_MS)
    answer = pipeline(small).recommend(query, small.view, model, small.now_ms)
    merged = Pipeline(NARROW, small.plan).candidates(query, small.view, small.now_ms).items
    assert answer.tier == TIER_LIGHT
    assert any("ranker failed" in why for why in answer.degraded)
    assert set(answer.items.tolist()) <= set(merged[:6].tolist())
    assert (answer.trace["deep_rank"].outcome, answer.trace["light_rank"].outcome) == ("failed", "shortened")
    assert answer.features.shape == (5, len(small.plan.columns))
    check_tier(answer, query, small)


def test_where_both_fail_the_merged_order_is_left(small: World) -> None:
    def fail(_: Features) -> Scores:
        raise RankerError("dark")

    model = replace(failing(small.plan), light=ByRule(small.plan.columns, fail))
    answer = pipeline(small).recommend(Query("r", k=5, deadline_ms=NO_DEADLINE_MS), small.view, model, small.now_ms)
    assert answer.tier == TIER_RETRIEVAL
    assert [why for why in answer.degraded if "failed" in why] == ["ranker failed: out of trees", "ranker failed: dark"]
    assert {answer.trace[s].outcome for s in ("light_rank", "deep_rank")} == {"failed"}


@pytest.mark.parametrize("light", [True, False])
def test_too_little_time_for_all_is_enough_for_some(small: World, light: bool) -> None:
    class Slow(Pace):
        rank_ms = 1e6

    model = by_column(small.plan, "item_count")
    made = pipeline(small, pace=Slow())
    for deadline_ms, tier in ((9e5, TIER_LIGHT), (1e5, TIER_RETRIEVAL)):
        query = Query("r", k=5, deadline_ms=deadline_ms)
        answer = made.recommend(query, small.view, lit(model) if light else model, small.now_ms)
        assert answer.tier == tier
        assert "deadline: full ranking skipped" in answer.degraded
        assert answer.trace["light_rank" if light and tier == TIER_LIGHT else "deep_rank"].outcome == (
            "shortened" if tier == TIER_LIGHT else "skipped"
        )
        check_tier(answer, query, small)


def test_a_ranker_is_not_asked_with_so_little_time_that_it_would_count_as_stalled(small: World) -> None:
    asked: list[float] = []

    class Noting(DirectScorer):
        def score(self, ranker: Any, rows: Any, attention: Any, limit_ms: float) -> Scores:
            asked.append(limit_ms)
            return super().score(ranker, rows, attention, limit_ms)

    made = Pipeline(NARROW, small.plan, timer=lambda: 0.0, conditions=Conditions(scorer=Noting()))  # no time passes
    for deadline_ms, tier in ((RANK_MS + 1.0, TIER_RETRIEVAL), (50.0, TIER_FULL)):
        query = Query("r", k=5, deadline_ms=deadline_ms)
        answer = made.recommend(query, small.view, by_column(small.plan, "item_count"), small.now_ms)
        assert answer.tier == tier
        assert ("deadline: no time to ask the ranker" in answer.degraded) == (tier == TIER_RETRIEVAL)
    assert len(asked) == 1
    assert asked[0] >= LEAST_ASK_MS


def check_tier(answer: Answer, query: Query, small: World) -> None:
    assert answer.degraded
    assert len(answer.items) == len(set(answer.items.tolist())) == len(answer.sources) == query.k
    assert (np.diff(answer.scores) <= 0).all()
    assert len(answer.features) in (0, query.k)
    assert set(answer.trace) <= {stage.name for stage in STAGES}


# -- a ranker that stalls ----------------------------------------------------------------------------------


def test_a_stalled_ranker_costs_one_request_its_time_and_the_next_ones_nothing(small: World) -> None:
    ranker = Stalling(small.plan.columns)
    scorer = ThreadScorer()
    made = pipeline(small, scorer=scorer)
    model = replace(lit(by_column(small.plan, "item_count")), ranker=ranker)
    try:
        full = made.recommend(Query("r", k=5, deadline_ms=FINE_MS), small.view, model, small.now_ms)
        assert full.tier == TIER_FULL
        ranker.go.clear()
        first = made.recommend(Query("r", k=5, deadline_ms=2_000.0), small.view, model, small.now_ms)
        assert first.tier == TIER_LIGHT
        assert any("ranker stalled" in why for why in first.degraded)
        assert ranker.given is not None
        held = ranker.given.copy()
        for user in range(4):
            answer = made.recommend(Query("r", user=user, k=5, deadline_ms=FINE_MS), small.view, model, small.now_ms)
            assert answer.tier == TIER_LIGHT
            assert any("ranker rests" in why for why in answer.degraded)
        assert np.array_equal(held, ranker.given, equal_nan=True), "later requests wrote where the thread still reads"
        assert scorer.stalls == 1
        bare = replace(model, light=None)
        assert (
            made.recommend(Query("r", k=5, deadline_ms=FINE_MS), small.view, bare, small.now_ms).tier == TIER_RETRIEVAL
        )
        ranker.go.set()
        for _ in range(10_000):
            answer = made.recommend(Query("r", k=5, deadline_ms=FINE_MS), small.view, model, small.now_ms)
            if answer.tier == TIER_FULL:
                break
        assert answer.tier == TIER_FULL
        assert answer.items.tolist() == full.items.tolist()
    finally:
        ranker.go.set()
        scorer.close()


@STABLE
@given(seed=st.integers(1, 4), query=QUERIES)
def test_a_thread_gives_the_lists_of_a_direct_call(seed: int, query: Query) -> None:
    small = generated(seed).small
    model = lit(by_column(small.plan, "item_positive_6h"))
    scorer = ThreadScorer()
    try:
        threaded = Pipeline(CONFIG, small.plan, conditions=Conditions(scorer=scorer))
        answer = threaded.recommend(query, small.view, model, small.now_ms)
    finally:
        scorer.close()
    direct = Pipeline(CONFIG, small.plan).recommend(query, small.view, model, small.now_ms)
    assert answer.items.tolist() == direct.items.tolist()
    assert answer.scores.tobytes() == direct.scores.tobytes()
    assert answer.features.tobytes() == direct.features.tobytes()


# -- tiers 3 and 4 -----------------------------------------------------------------------------------------


@STABLE
@given(seed=st.integers(1, 4), query=QUERIES, before=QUERIES)
def test_without_state_nothing_is_shown_that_may_not_be(seed: int, query: Query, before: Query) -> None:
    """Whatever was remembered, lists keep to the rules that item columns and request say; only the user's row is missing."""
    given_world = generated(seed)
    small, now_ms = given_world.small, given_world.small.now_ms
    made = pipeline(small, CONFIG, lists=LastLists())
    model = by_column(small.plan, "item_count")
    same_user = replace(before, user=query.user, surface=query.surface, anchor=query.anchor)
    made.recommend(same_user, small.view, model, now_ms)
    answer = made.recommend(query, away(small), model, now_ms)
    nobody = replace(query, user=0, region=query.region if query.region is not None else 0)
    allowed = given_world.may_show(nobody, now_ms)
    shown = answer.items.tolist()
    assert answer.tier in (TIER_LAST, TIER_POPULAR)
    assert set(shown) <= allowed
    assert len(set(shown)) == len(shown) >= min(query.k, len(given_world.must_fill(allowed)))
    assert any("state unavailable" in why for why in answer.degraded)


def test_the_last_good_list_comes_back_but_not_what_was_hidden_since(small: World) -> None:
    made = pipeline(small, lists=LastLists())
    model = by_column(small.plan, "item_age")
    me = Query("r", user=small.log.user("me"), k=5, deadline_ms=NO_DEADLINE_MS)
    before = made.recommend(me, small.view, model, small.now_ms)
    assert before.tier == TIER_FULL
    again = made.recommend(me, away(small), model, small.now_ms)
    assert (again.tier, again.items.tolist()) == (TIER_LAST, before.items.tolist())
    assert set(again.sources) == {"last"}
    first, *others = before.items.tolist()
    small.add(Step(small.now_ms, PutItems([Item(id=small.log.names([first])[0], available=False)])))
    filtered = made.recommend(me, away(small), model, small.now_ms)
    assert filtered.tier == TIER_LAST
    assert filtered.items.tolist()[:4] == others
    assert first not in filtered.items
    assert filtered.sources == ["last"] * 4 + ["popular"], "it is filled up"
    excluding = replace(me, exclude=np.array(others[:1], np.int64))
    assert others[0] not in made.recommend(excluding, away(small), model, small.now_ms).items
    late = made.recommend(me, away(small), model, small.now_ms + KEEP_MS)
    assert late.tier == TIER_POPULAR


def test_nobody_gets_the_list_of_somebody_else(small: World) -> None:
    made = pipeline(small, lists=LastLists())
    model = by_column(small.plan, "item_age")
    asking = Query("r", k=5, deadline_ms=NO_DEADLINE_MS, segments=(1, 1))
    made.recommend(replace(asking, user=small.log.user("me")), small.view, model, small.now_ms)
    other = replace(asking, user=small.log.user("x1"))
    assert made.recommend(other, away(small), model, small.now_ms).tier == TIER_POPULAR
    stranger = made.recommend(asking, small.view, model, small.now_ms)
    answer = made.recommend(other, away(small), model, small.now_ms)
    assert (answer.tier, answer.items.tolist()) == (TIER_LAST, stranger.items.tolist())
    elsewhere = replace(other, segments=(2, 2))
    assert made.recommend(elsewhere, away(small), model, small.now_ms).tier == TIER_POPULAR
    assert made.recommend(replace(other, surface="similar"), away(small), model, small.now_ms).tier == TIER_POPULAR


def test_lists_are_bounded_and_the_oldest_go() -> None:
    lists = LastLists(3)
    for user in (1, 2, 3, 1, 4):
        lists.keep(Query("r", user=user), (0, 0), np.array([user]), 0, 1_000)
    assert len(lists) == 3
    assert [lists.find(Query("r", user=user), (0, 0), 1_000) is not None for user in (1, 2, 3, 4)] == [
        True, False, True, True,
    ]  # fmt: skip
    lists.keep(Query("r", user=5), (0, 0), np.array([5]), 0, 1_000 + KEEP_MS)
    assert len(lists) == 1, "what is too old to be shown is not kept"


def test_the_snapshot_is_the_slow_order_and_needs_no_store(small: World) -> None:
    snapshot = PopularSnapshot(small.plan)
    names = small.log.names(snapshot.items(small.view, small.now_ms).tolist())
    assert names[:2] == ["i1", "i2"]
    assert sorted(names) == sorted(f"i{n}" for n in range(30))
    small.add(clicks(*many("i9", 9), at_ms=small.now_ms))
    assert small.log.names(snapshot.items(small.view, small.now_ms).tolist())[0] == "i1", "ten seconds old at most"
    later = small.now_ms + 10_000
    assert snapshot.items(small.view, later).tolist() == by_popularity(small.plan, small.view, later).tolist()
    assert small.log.names(snapshot.items(small.view, later).tolist())[0] == "i9"


def test_too_late_to_fetch_is_time_for_a_list_that_is_there(small: World) -> None:
    made = Pipeline(NARROW, small.plan, timer=SteppingTimer(5.0), conditions=Conditions(lists=LastLists()))
    model = by_column(small.plan, "item_age")
    me = Query("r", user=small.log.user("me"), k=5, deadline_ms=NO_DEADLINE_MS)
    before = made.recommend(me, small.view, model, small.now_ms)
    hurried = made.recommend(replace(me, deadline_ms=10.0), small.view, model, small.now_ms)
    assert (hurried.tier, hurried.items.tolist()) == (TIER_LAST, before.items.tolist())
    assert "deadline: no time to fetch candidates" in hurried.degraded
    assert hurried.trace["fetch"].outcome == "skipped"


def test_sources_that_come_too_late_are_left_out(small: World) -> None:
    made = Pipeline(NARROW, small.plan, timer=SteppingTimer(6.0))
    answer = made.recommend(Query("r", k=5, deadline_ms=50.0), small.view, None, small.now_ms)
    assert answer.tier == TIER_RETRIEVAL
    assert answer.trace["fetch"].outcome == "shortened"
    assert sum("skipped: deadline" in why for why in answer.degraded) >= 1
    assert len(answer.items) == 5


def test_the_fallback_answers_when_the_pipeline_cannot(small: World) -> None:
    made = pipeline(small, lists=LastLists())
    model = by_column(small.plan, "item_age")
    me = Query("r", user=small.log.user("me"), k=5, deadline_ms=NO_DEADLINE_MS)
    assert made.fallback(me, away(small), model, small.now_ms, "broken").tier == TIER_POPULAR
    before = made.recommend(me, small.view, model, small.now_ms)
    answer = made.fallback(me, away(small), None, small.now_ms, "broken")
    assert (answer.tier, answer.degraded, answer.items.tolist()) == (TIER_LAST, ["broken"], before.items.tolist())


# -- walking and pace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [TIER_LIGHT, TIER_RETRIEVAL, TIER_LAST, TIER_POPULAR])
def test_a_request_that_walks_a_tier_gets_it_and_is_labelled(small: World, tier: int) -> None:
    made, query = walking(small, tier)
    model = lit(by_column(small.plan, "item_count"))
    plain = next(f"r{n}" for n in range(10_000) if not drawn_tier(f"r{n}", 0.1))
    full = made.recommend(replace(query, request_id=plain), small.view, model, small.now_ms)
    assert (full.tier, full.walked) == (TIER_FULL, 0)
    for _ in range(2):
        answer = made.recommend(query, small.view, model, small.now_ms)
        assert (answer.tier, answer.walked) == (tier, tier)
        assert any("on purpose" in why for why in answer.degraded)
        assert served_list(query, answer, sampled=False).walked == tier
        check_tier(answer, query, small)
    if tier == TIER_LAST:
        assert answer.items.tolist() == full.items.tolist(), "a walk is not remembered as a good list"


def test_the_lot_is_fair_and_the_same_every_time() -> None:
    ids = [f"request {n}" for n in range(20_000)]
    drawn = [drawn_tier(i, 0.01) for i in ids]
    assert drawn == [drawn_tier(i, 0.01) for i in ids]
    assert drawn != [drawn_tier(i, 0.01, 1) for i in ids]
    counts = Counter(drawn)
    for tier in (1, 2, 3, 4):
        assert abs(counts[tier] - 200) < 5 * 200**0.5
    assert not any(drawn_tier(i, 0.0) for i in ids)


def test_widths_shrink_while_requests_take_long_and_come_back(small: World) -> None:
    pace = MeasuredPace()
    for _ in range(1_000):
        pace.took(40.0, 50.0)
    assert pace.quality == LEAST_QUALITY
    made = pipeline(small, pace=pace)
    query = Query("r", k=4, deadline_ms=NO_DEADLINE_MS)
    answer = made.recommend(query, small.view, by_column(small.plan, "item_count"), small.now_ms)
    assert (answer.tier, answer.trace["eligibility"].width) == (TIER_FULL, 4), "a tenth of 24, but what was asked for"
    assert (answer.trace["fetch"].outcome, answer.trace["deep_rank"].outcome) == ("shortened", "shortened")
    for _ in range(1_000):
        pace.took(BUSY * 50.0 - 5.0, 50.0)
    assert pace.quality == 1.0


def test_one_slow_request_narrows_nothing() -> None:
    pace = MeasuredPace()
    for n in range(200):
        pace.took(45.0 if n == 100 else 5.0, 50.0)
        pace.ranked(40.0 if n == 100 else 1.0)
        assert pace.quality == 1.0
        assert pace.rank_ms <= max(RANK_MS, 3.0)


def test_the_default_conditions_read_nothing_of_the_past() -> None:
    assert Conditions().pace.quality == 1.0
    assert (Conditions().lists, Conditions().walk) == (None, 0.0)
    assert compile_plan(NARROW).hash == compile_plan(CONFIG).hash
