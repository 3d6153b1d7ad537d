"""Explanations: a just served request explained is the same list and the same bytes; where an item was lost is said, whatever lost it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.verify import verify
from headwater.features.assemble import stranger
from headwater.features.fold import Fold
from headwater.features.replay import fold_to
from headwater.features.snapshot import open_snapshot, write_snapshot
from headwater.features.state_memory import MemoryState
from headwater.features.zones import Zones
from headwater.learning.fitting import FitJob, fit_source
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.log.record import RecordBlock
from headwater.ranking.ranker import Attention, Features, Scores
from headwater.retrieval.fitted import open_sources
from headwater.schema.config import Config, FittedConfig, Sources, parse_config
from headwater.schema.errors import HeadwaterError
from headwater.schema.explanation import Explanation
from headwater.schema.items import Item
from headwater.schema.request_ids import new_request_id, request_ms
from headwater.schema.requests import Address, ServedList
from headwater.serving.explain import Explainer, Question, Stand, query_of
from headwater.serving.model import Model
from headwater.serving.pace import Pace
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.region import StoredRegion
from headwater.serving.request import Query, served_list
from headwater.serving.results import ResultLists
from headwater.serving.rules import open_rules
from headwater.serving.served import RECORDED_WITHIN_MS, UnknownRequestError, find_served
from headwater.serving.stages import TIER_LAST
from headwater.serving.standing import Patience, TooFarError, stand_at
from headwater.serving.view import View
from headwater.testing.events import DAY_MS, START_MS, Step, script
from headwater.testing.source_contract import taste_world
from tests.retrieval.worlds import MINUTE_MS, World, clicks, many, world
from tests.serving.rankers import ByRule, by_column
from tests.serving.test_pipeline import CONFIG, NO_DEADLINE_MS


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Generated logs hold events of a type that is configured nowhere; the fold's lines about it stay out of the output."""
    with capture_logs():
        yield


def serve(
    small: World, query: Query, model: Model | None, *, config: Config = CONFIG, view: View | None = None,
    conditions: Conditions | None = None,
) -> None:  # fmt: skip
    """Answer and record, as a server does."""
    vocabulary = small.log.log.vocabulary()
    pipeline = Pipeline(
        config, small.plan, stored_region=StoredRegion(vocabulary), zones=Zones(vocabulary), conditions=conditions,
        rules=open_rules(config, small.plan, vocabulary),
    )  # fmt: skip
    answer = pipeline.recommend(query, view or small.view, model, small.now_ms)
    payload = msgspec.msgpack.encode(served_list(query, answer, sampled=True))
    small.add(Step(small.now_ms, AppendServed([ServedEntry(query.user, query.user, payload)])))


def explained(
    small: World, request_id: str, model: Model | None, question: Question | None = None, *, config: Config = CONFIG,
    other: Model | None = None,
) -> Explanation:  # fmt: skip
    """The explanation of a recorded list, from a fold of the log from its beginning."""
    log = small.log.log
    served = find_served(log, request_id)
    address = served.answer.address
    stand = Stand(stand_at(log, small.plan, served.user, address), "as-of", address.now_ms)
    explainer = Explainer(config, small.plan, log.vocabulary())
    return explainer.explain(served, stand, model, question or Question(), other)


def a_query(rng: np.random.Generator, number: int) -> Query:
    """Anything that may be asked of a small generated world."""

    def items(most: int) -> np.ndarray:
        return rng.integers(1, 31, rng.integers(0, most))

    anchor = int(rng.integers(1, 31)) if rng.random() < 0.3 else 0
    return Query(
        f"request-{number}", user=int(rng.integers(0, 9)), k=int(rng.integers(1, 12)), surface=str(rng.choice(["home", "similar"])),
        segments=(int(rng.integers(0, 4)), int(rng.integers(0, 4))), region=int(rng.integers(0, 4)) if rng.random() < 0.5 else None,
        zone="Asia/Tokyo" if rng.random() < 0.3 else None, exclude=items(6), anchor=anchor,
        before=(int(rng.integers(1, 31)),) if anchor and rng.random() < 0.5 else (), paged=bool(rng.random() < 0.2),
        candidates=items(15) if rng.random() < 0.2 else None, deadline_ms=NO_DEADLINE_MS,
    )  # fmt: skip


def test_a_served_request_explained_is_the_same_list_and_the_same_bytes() -> None:
    seed = 1
    rng = np.random.default_rng(seed)
    small = world(config=CONFIG)
    steps = [step for step in script(seed, 120, users=8, items=30) if not isinstance(step.command, AppendServed)]
    models = {"none": None, "by-column": by_column(small.plan, "item_age", ascending=True)}
    number = 0
    for begin in range(0, len(steps), 20):
        before = small.fold.offset
        small.add(*steps[begin : begin + 20])
        for _ in range(6):
            query, name = a_query(rng, number), str(rng.choice(["none", "by-column", "by-column"]))
            columns_at = int(rng.integers(before, small.fold.offset + 1))  # items lag behind users
            address = Address(small.fold.offset, columns_at, 0, "", "")
            view = stand_at(small.log.log, small.plan, query.user, address)
            pace = Pace()
            pace.quality = float(rng.choice([1.0, 0.3]))
            serve(small, query, models[name], view=view, conditions=Conditions(pace=pace, walk=0.1))
            number += 1
    report = verify(small.log.log, small.plan)
    assert (report.mismatched_bytes, report.requests > 0) == (0, True)
    tiers = set()
    for n in range(number):
        served = find_served(small.log.log, f"request-{n}")
        why = explained(small, f"request-{n}", models[served.answer.address.bundle])
        tiers.add(served.answer.tier)
        assert why.replay.exact
        assert [placed.item for placed in why.served] == [
            name if not name.startswith("#") else ""  # numbers that were made up
            for name in small.log.names(served.answer.items)
        ]
        if served.answer.tier < TIER_LAST:
            assert why.replay.same_list, (n, why.replay)
            assert why.replay.notes == []
            assert [item.item for item in why.items] == [placed.item for placed in why.served]
            assert [item.source for item in why.items] == served.answer.sources
            assert [item.place for item in why.items] == [*range(1, len(why.items) + 1)]
        else:
            assert "from a worker's memory" in why.replay.notes[-1]
        assert why.replay.same_features is (True if served.answer.features else None)
    assert {0, 1, 2} <= tiers


# -- where an item was lost ---------------------------------------------------------------------------------

SHOP = """
[sources.trending]
width = 4
[ranker]
candidates = 3
[[surfaces]]
name = "home"
k = 2
sources = ["trending"]
"""
RULES = """
[[rules]]
name = "no-toys"
filter = "category != 'toys'"
[[rules]]
name = "one-hat"
cap = {by = "category", at_most = 1}
"""


def a_shop() -> World:
    """Items i0 … i9 in the order in which they trend, and some that may not be shown."""
    put = [Item(id=f"i{n}", categories=["hats"] if n < 2 else []) for n in range(10)]
    put += [
        Item(id="hidden", available=False), Item(id="later", published=START_MS + DAY_MS), Item(id="gone", expires=START_MS + 1),
        Item(id="abroad", regions=["JP"]), Item(id="seen"), Item(id="excluded"), Item(id="about"), Item(id="toy", categories=["toys"]),
        Item(id="never"),
    ]  # fmt: skip
    liked = [pair for n in range(10) for pair in many(f"i{n}", 20 - n)]
    liked += [pair for name in ("abroad", "seen", "excluded", "about", "toy") for pair in many(name, 30)]
    return world(
        Step(START_MS, PutItems(put)), clicks(*liked), clicks(("me", "seen"), at_ms=START_MS + 1), config=parse_config(SHOP)
    )  # fmt: skip


@cache
def shop() -> World:
    """One for all tests that add nothing but served lists."""
    return a_shop()


LOST = [
    ("nobody", "unknown", "no record of the log names"),
    ("i0", "listed", "at place 1"),
    ("seen", "eligibility", "seen by this user (place"),
    ("excluded", "eligibility", "excluded by the request"),
    ("about", "eligibility", "the list is about it"),
    ("hidden", "eligibility", "hidden"),
    ("later", "eligibility", "not yet published"),
    ("gone", "eligibility", "expired"),
    ("abroad", "eligibility", "not for the region"),
    ("never", "sources", "none of the sources offered it: trending"),
    ("i2", "rank", "ranked 3 of 3, and the list has 2 places"),
    ("i3", "merge", "place 4 of the merged order, whose first 3 go on"),
    (
        "i5",
        "merge",
        "below the width of every source that offered it: place 6 of what may be shown of trending, whose first 4 count",
    ),
]


def asked(request_id: str) -> Query:
    return Query(request_id, user=shop().log.user("me"), k=2, deadline_ms=NO_DEADLINE_MS)


@pytest.mark.parametrize(("item", "stage", "reason"), LOST, ids=[case[0] for case in LOST])
def test_an_item_was_lost_at_the_first_stage_that_it_did_not_pass(item: str, stage: str, reason: str) -> None:
    small, config = shop(), parse_config(SHOP)
    request_id = f"lost-{item}"
    excluded = np.array(small.log.items("excluded", "toy"))
    query = replace(asked(request_id), exclude=excluded, anchor=small.log.item("about"))
    model = by_column(small.plan, "item_count")
    serve(small, query, model, config=config)
    why = explained(small, request_id, model, Question(item=item), config=config)
    assert why.replay.same_list
    assert why.item is not msgspec.UNSET
    assert (why.item.stage, why.item.of.item) == (stage, item)
    assert why.item.reason.startswith(reason)
    assert bool(why.item.of.features) == (stage != "unknown")


def lost_with_rules(item: str) -> Explanation:
    """Of the two hats the cap lets one through; toys are filtered."""
    small, config = shop(), parse_config(SHOP + RULES)
    model = by_column(small.plan, "item_count")
    away = np.array(small.log.items("excluded", "about", "abroad"))
    serve(small, replace(asked(f"rules-{item}"), exclude=away), model, config=config)
    return explained(small, f"rules-{item}", model, Question(item=item), config=config)


def test_rules_are_named_where_they_filter_cap_and_move() -> None:
    toy, capped, moved = (lost_with_rules(item) for item in ("toy", "i1", "i2"))
    assert all(why.replay.exact and why.replay.same_list for why in (toy, capped, moved))
    assert [placed.item for placed in toy.served] == ["i0", "i2"]
    for why, stage, reason in (
        (toy, "eligibility", 'rule "no-toys" (place 5 of trending)'),
        (
            capped,
            "policy",
            "ranked 2, which would be in the list, but policy kept it out (rules that concern it: one-hat)",
        ),
        (moved, "listed", "at place 2; ranked 3, policy moved it"),
    ):
        assert why.item is not msgspec.UNSET
        assert (why.item.stage, why.item.reason) == (stage, reason)
    filters = {(each.stage, each.reason): (each.items, each.examples) for each in toy.filters}
    assert filters["eligibility", 'rule "no-toys"'] == (1, ["toy"])
    assert filters["policy", "kept out by policy"] == (1, ["i1"])
    assert filters["merge", "behind the first 3 of the merged order"] == (1, ["i3"])
    (trending, *more) = toy.sources
    assert (trending.source, trending.width, trending.kept, trending.listed) == ("trending", 4, 3, 2)
    first = {candidate.item: candidate for candidate in trending.candidates}
    assert (first["toy"].refused, first["toy"].merged) == ('rule "no-toys"', None)
    assert (first["i1"].merged, first["i1"].ranked, first["i1"].place) == (2, 2, None)
    assert more == []


def test_other_rules_than_those_of_the_list_are_told() -> None:
    small = shop()
    serve(small, asked("before-rules"), None, config=parse_config(SHOP))
    why = explained(small, "before-rules", None, config=parse_config(SHOP + RULES))
    assert not why.replay.exact
    assert "the rules of the configuration are not those" in why.replay.notes[0]


def test_what_the_light_ranker_stopped_and_what_was_no_candidate() -> None:
    small = shop()
    config = parse_config(SHOP.replace("candidates = 3", "candidates = 4\nlight_keep = 2"))
    deep = by_column(small.plan, "item_count")
    assert deep.ranker is not None
    at = small.plan.columns.index("item_count")
    model = replace(deep, light=ByRule(deep.ranker.columns, lambda rows: -rows[:, at]))
    away = np.array(small.log.items("excluded", "about", "abroad", "toy"))
    serve(small, replace(asked("light"), exclude=away), model, config=config)
    why = explained(small, "light", model, Question(item="i0"), config=config)
    assert why.item is not msgspec.UNSET
    assert (why.item.stage, why.item.reason) == (
        "light_rank", "the light ranker let 2 others of 4 candidates through",
    )  # fmt: skip
    given = np.array(small.log.items("i5", "i6", "i7"))
    serve(small, replace(asked("given"), candidates=given), model, config=config)
    why = explained(small, "given", model, Question(item="i0"), config=config)
    assert why.item is not msgspec.UNSET
    assert (why.item.stage, why.item.reason) == ("sources", "it is not among the candidates of the request")
    assert (why.request.candidates, why.replay.same_list) == (["i5", "i6", "i7"], True)


def test_another_bundle_is_compared_place_by_place() -> None:
    small, config = shop(), parse_config(SHOP)
    most = by_column(small.plan, "item_count")
    least = Model("least", by_column(small.plan, "item_count", ascending=True).ranker)
    away = np.array(small.log.items("excluded", "about", "abroad", "toy"))
    serve(small, replace(asked("two"), exclude=away), most, config=config)
    other = explained(small, "two", most, Question(bundle="least"), config=config, other=least).other
    assert other is not msgspec.UNSET
    assert (other.bundle, [placed.item for placed in other.items]) == ("least", ["i2", "i1"])
    assert [(each.place, each.item, each.other, each.moved_to) for each in other.differences] == [(1, "i0", "i2", None)]
    same = explained(small, "two", most, Question(bundle="by-column"), config=config, other=most).other
    assert same is not msgspec.UNSET
    assert same.differences == []


def test_features_have_units_ages_and_what_they_are_worth() -> None:
    small, config = a_shop(), parse_config(SHOP)
    small.add(clicks(("late", "i4"), at_ms=small.now_ms + MINUTE_MS))
    model = by_column(small.plan, "item_count")
    serve(small, replace(asked("ages"), candidates=np.array(small.log.items("i4", "i5"))), model, config=config)
    why = explained(small, "ages", model, Question(features=1_000), config=config)
    i4, i5 = why.items
    assert (i4.item, i5.item, i4.score, i5.score) == ("i4", "i5", 17.0, 15.0)
    first = i4.features[0]
    assert (first.name, first.value, first.effect, first.unit) == ("item_count", 17.0, 17.0, "events")
    assert all(feature.effect == 0.0 for feature in i4.features[1:])
    ages = [{feature.name: (feature.age_ms, feature.age_of) for feature in item.features} for item in (i4, i5)]
    assert ages[0]["item_count"] == (0, "event")
    assert ages[1]["item_count"] == (small.now_ms - START_MS, "event")
    assert ages[0]["item_age"] == (None, "")
    assert explained(small, "ages", model, Question(features=2), config=config).items[0].features == i4.features[:2]


class Headed(ByRule):
    """Adds two heads up: what a fitted source thinks, and how often an item was taken."""

    head_names = ("fitted", "count")

    def heads(self, features: Features, attention: Attention | None = None) -> Scores:  # noqa: ARG002
        return np.stack([1e3 * features[:, -1], features[:, self.columns.index("item_count")]], 1)


def test_fitted_sources_are_features_too_and_heads_are_told() -> None:
    config = Config(sources=Sources(item_knn=FittedConfig(enabled=True)))
    tastes = taste_world(config)
    small = World(tastes.log, tastes.plan, tastes.view.fold, tastes.view).add()
    job = FitJob(
        now_ms=small.now_ms, event_types=small.plan.event_types, content=small.view.index.content, price=small.view.index.price,
    )  # fmt: skip
    sources = open_sources(("item_knn",), fit_source("item_knn", tastes.sequences(), config, job), config, small.plan)
    sources[0].prepare(small.view.index)
    at = small.plan.columns.index("item_count")
    ranker = Headed((*small.plan.columns, "item_knn_score"), lambda rows: np.float32(1e3) * rows[:, -1] + rows[:, at])
    model = Model("knn", ranker, sources)
    serve(small, Query("knn", user=small.log.user("p0"), k=3, deadline_ms=NO_DEADLINE_MS), model, config=config)
    why = explained(small, "knn", model, Question(features=3), config=config)
    assert why.replay.exact
    assert why.replay.same_list
    for item in why.items:
        features = {feature.name: feature for feature in item.features}
        thought = features["item_knn_score"]
        assert (thought.unit, thought.age_ms) == ("score", None)
        assert thought.effect == pytest.approx(1e3 * thought.value, rel=1e-5)
        assert item.heads == {"fitted": pytest.approx(thought.effect), "count": features["item_count"].value}
        assert item.score == pytest.approx(sum(item.heads.values()))
        assert "item_knn" in [found.source for found in item.sources]


def test_a_stranger_a_lower_tier_and_the_words_of_the_request() -> None:
    small, config = shop(), parse_config(SHOP)
    serve(
        small, replace(asked("stranger"), user=0, region=0, exclude=np.array([1, 2]), paged=True), None, config=config
    )
    why = explained(small, "stranger", None, config=config)
    assert (why.request.tier, why.request.known_user, why.request.k, why.request.whole) == (2, False, 2, True)
    assert (why.request.excluded, why.request.paged, why.request.region) == (2, True, "")
    assert why.replay.same_list
    assert all(item.score is None and item.heads == {} and item.merged is not None for item in why.items)
    assert all(feature.effect is None for item in why.items for feature in item.features)


def test_an_answer_from_the_cache_is_explained_where_it_was_made() -> None:
    small, config = a_shop(), parse_config(SHOP)
    model = by_column(small.plan, "item_count")
    vocabulary, made_ms = small.log.log.vocabulary(), small.now_ms
    results = ResultLists(1_000, 10)
    pipeline = Pipeline(
        config, small.plan, stored_region=StoredRegion(vocabulary), conditions=Conditions(results=results)
    )
    for number, later_ms in enumerate((0, 500)):
        query = replace(asked(f"again-{number}"), user=small.log.user("me"))
        answer = pipeline.recommend(query, small.view, model, made_ms + later_ms)
        payload = msgspec.msgpack.encode(served_list(query, answer, sampled=True))
        small.add(Step(made_ms + later_ms, AppendServed([ServedEntry(query.user, query.user, payload)])))
    assert results.hits == 1
    why = explained(small, "again-1", model, config=config)
    assert why.request.reasons == ["from the cache: made 500 ms ago"]
    assert (why.replay.exact, why.replay.same_list, why.replay.same_features) == (True, True, None)
    assert (why.replay.now_ms, why.replay.notes) == (made_ms, [])


def test_lists_of_older_releases_are_explained_as_far_as_they_say() -> None:
    small, config = shop(), parse_config(SHOP)
    serve(small, replace(asked("new"), k=3), None, config=config)
    served = find_served(small.log.log, "new")
    old = msgspec.structs.replace(served.answer, request_id="old", query=None)
    fields = msgspec.to_builtins(old, builtin_types=(bytes,))
    payload = msgspec.msgpack.encode(
        fields[: ServedList.__struct_fields__.index("query")]
    )  # what came later is not there
    small.add(Step(small.now_ms, AppendServed([ServedEntry(0, 0, payload)])))
    assert query_of(find_served(small.log.log, "old")).k == 3
    why = explained(small, "old", None, config=config)
    assert not why.request.whole
    assert not why.replay.exact
    assert "older release" in why.replay.notes[0]


# -- finding ----------------------------------------------------------------------------------------------


def test_a_list_is_found_from_either_side_or_said_to_be_missing() -> None:
    small = world(config=CONFIG)
    for n in range(5):
        small.add(clicks((f"u{n}", f"i{n}"), at_ms=START_MS + n))
        serve(small, Query(f"r{n}", k=1, deadline_ms=NO_DEADLINE_MS), None)
    log = small.log.log
    for n in range(5):
        found = find_served(log, f"r{n}")
        assert found.answer.request_id == f"r{n}"
        assert find_served(log, f"r{n}", after=found.answer.address.user_offset).answer == found.answer
    with pytest.raises(
        UnknownRequestError, match=r"request r9 in offsets 1 to \d+; lists reach the log in the background"
    ):
        find_served(log, "r9")
    with pytest.raises(UnknownRequestError, match="or with a smaller one"):
        find_served(log, "r0", after=log.last_offset)
    seconds = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headwater.serving.served.READ_LIMIT", 3)
        for n in range(5):
            assert find_served(log, f"r{n}").answer.request_id == f"r{n}"
        with pytest.raises(UnknownRequestError, match="time was up: say `after`"):
            find_served(log, "r0", limit_s=1.5, timer=lambda: next(seconds))


@pytest.mark.parametrize("recorded_after_ms", [0, RECORDED_WITHIN_MS, 3 * RECORDED_WITHIN_MS])
def test_a_list_is_found_by_the_time_in_its_id_wherever_it_was_recorded(recorded_after_ms: int) -> None:
    """A list that waited for the writer stands behind what came meanwhile."""
    small = world(config=CONFIG)
    for n in range(20):
        small.add(clicks((f"u{n}", f"i{n}"), at_ms=START_MS + n * RECORDED_WITHIN_MS))
    request_id = new_request_id(small.now_ms)
    small.add(clicks(("u", "i"), at_ms=small.now_ms + recorded_after_ms))
    serve(small, Query(request_id, k=1, deadline_ms=NO_DEADLINE_MS), None)
    for n in range(20):
        small.add(clicks((f"u{n}", f"j{n}"), at_ms=small.now_ms + RECORDED_WITHIN_MS))
    log = small.log.log
    looked: list[int] = []

    class Counting:
        """The log, and where it was read."""

        def __getattr__(self, name: str) -> object:
            return getattr(log, name)

        def read(self, after: int, limit: int = READ_LIMIT) -> RecordBlock | None:
            looked.append(after)
            return log.read(after, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headwater.serving.served.READ_LIMIT", 3)
        assert find_served(cast(EventLog, Counting()), request_id).answer.request_id == request_id
        if recorded_after_ms <= RECORDED_WITHIN_MS:  # no more than halving the log and a few records around the time
            assert len(looked) <= log.last_offset.bit_length() + 3
        with pytest.raises(UnknownRequestError, match=f"offsets 1 to {log.last_offset}"):
            find_served(log, new_request_id(small.now_ms))


def test_an_id_of_a_request_says_when_and_nothing_else() -> None:
    ids = {new_request_id(START_MS) for _ in range(1_000)}
    assert len(ids) == 1_000
    assert {request_ms(each) for each in ids} == {START_MS}
    in_time = [new_request_id(START_MS + n) for n in range(300)]
    assert sorted(in_time) == in_time
    for no_id in ("", "r1", "f" * 31, "f" * 33, "F" * 32, "g" * 32, " " + "1" * 31, "0x" + "1" * 30):
        assert request_ms(no_id) is None


def test_a_replay_from_a_snapshot_stands_where_one_from_the_beginning_does(tmp_path: Path) -> None:
    steps = [step for step in script(3, 60, users=8, items=30) if not isinstance(step.command, AppendServed)]
    small = world(*steps, config=CONFIG)
    log, last = small.log.log, small.log.log.last_offset
    store = MemoryState(small.plan)
    fold = Fold(small.plan, store)
    fold_to(log, fold, last // 2)
    fold.commit(epoch=True)
    write_snapshot(store, tmp_path / "state")
    address = Address(last, last - 10, 0, "", "")
    for user in range(1, 9):
        start = open_snapshot(tmp_path / "state", small.plan)
        views = [stand_at(log, small.plan, user, address, start=each) for each in (None, start)]
        found = [stranger(small.plan) for _ in views]
        assert [view.read_user(user, row) for view, row in zip(views, found, strict=True)] == [last, last]
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(*(view.table.rows for view in views), strict=True))
    with pytest.raises(HeadwaterError, match="take an older one"):
        stand_at(log, small.plan, 1, Address(last // 2, last // 2 - 1, 0, "", ""), start=store)


def test_a_replay_that_would_take_too_long_is_given_up_early() -> None:
    seconds = iter([0.0, 0.1, 0.6, 0.7])
    patience = Patience(10.0, lambda: next(seconds))
    patience(1, 1_000_000)  # too early to say
    patience(60_000, 600_000)
    with pytest.raises(TooFarError, match="would take about 70 s"):
        patience(10_000, 1_000_000)
