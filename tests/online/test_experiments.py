"""Experiments in service: variants answer whom they are assigned to, exposures are recorded, and stopping is at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from headwater.cli.main import build_app
from headwater.experiments.assignment import variant_of
from headwater.experiments.definitions import ExperimentError
from headwater.experiments.exposures import first_exposures, read_exposures
from headwater.experiments.store import (
    as_served,
    create,
    folder_of,
    override,
    read_experiment,
    start,
    stop,
    switch,
)
from headwater.log.commands import PutItems, ServedEntry
from headwater.log.identity import LmdbIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace, RecordBlock
from headwater.online.experiments import HOUR_MS, POLL_S, ExperimentsWatch, _Exposed
from headwater.online.metrics import Metrics
from headwater.online.recommender import Asked, Recommender
from headwater.online.shadow import Shadowing, _drawn
from headwater.registry.registry import Registry
from headwater.schema.config import parse_config
from headwater.schema.experiments import ExposureRecord
from headwater.schema.requests import RecommendRequest, RecommendResponse, ServedList, ShadowList
from headwater.schema.rules import Rule
from headwater.serving.explain import Question
from headwater.serving.explain_logged import explain_logged
from headwater.serving.lists import LastLists
from headwater.serving.pace import Pace
from headwater.serving.pipeline import Conditions
from headwater.serving.request import served_list
from headwater.serving.results import ResultLists
from headwater.serving.served import Served, find_shadows, newest_served
from headwater.testing.events import START_MS, Step
from tests.online.conftest import Site
from tests.online.running import PATIENCE_S, publish_ranker
from tests.retrieval.worlds import World, clicks, many, world
from tests.serving.rankers import SteppingTimer
from tests.serving.test_results import items

CONFIG = parse_config('[ranker]\nkind = "none"\n')
TEXT = """
name = "topics"
hypothesis = "one topic is enough"

[[variants]]
name = "control"

[[variants]]
name = "one"
[[variants.rules]]
name = "only-one"
surfaces = ["home"]
filter = "category == 'c1'"

[[variants]]
name = "two"
[[variants.rules]]
name = "only-two"
surfaces = ["home"]
filter = "category == 'c2'"
"""
TOPIC = {"control": {0, 1, 2}, "one": {1}, "two": {2}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@dataclass
class Worker:
    """What of a worker decides on an answer, in a small world."""

    data: Path
    small: World = field(default_factory=lambda: small_world())
    metrics: Metrics = field(default_factory=Metrics)
    results: ResultLists = field(default_factory=lambda: ResultLists(1_000, 500))

    def __post_init__(self) -> None:
        log = self.small.log
        conditions = Conditions(lists=LastLists(), results=self.results)
        self.recommender = Recommender(
            CONFIG, self.small.plan, log.log.vocabulary(), log.identity, self.small.view, conditions
        )
        self.watch = ExperimentsWatch(self.data, self.small.plan, log.log.vocabulary, self.recommender, self.metrics)
        self.follow()

    def follow(self) -> bool:
        """Take up what changed; whether something did."""
        loaded = self.watch.load()
        self.watch.swap(loaded)
        return loaded is not None

    def asked(self, user: str | None, surface: str = "home", **more: Any) -> Asked:
        return self.recommender.asked(
            RecommendRequest(user=user, surface=surface, k=4, **more), "r", 1e6, self.small.now_ms
        )

    def ask(self, user: str | None, surface: str = "home", **more: Any) -> RecommendResponse:
        asked = self.asked(user, surface, **more)
        return self.recommender.response(asked, self.recommender.answer(asked, self.small.now_ms), [])

    def topics(self, user: str | None, surface: str = "home", **more: Any) -> set[int]:
        return {int(item.id[1:]) % 3 for item in self.ask(user, surface, **more).items}


def small_world() -> World:
    liked = [*many("i1", 4), *many("i2", 3), *many("i3", 2, "y"), ("ann", "i3")]
    return world(Step(START_MS, PutItems(items())), clicks(*liked), config=CONFIG)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    made = Worker(tmp_path)
    create(tmp_path, TEXT)
    start(tmp_path, "topics", CONFIG, now_ms=1)
    assert made.follow()
    return made


def wanted(at: Worker, user: str) -> set[int]:
    return TOPIC[variant_of(read_experiment(at.data, "topics"), user)]


# -- variants ------------------------------------------------------------------------------------------------


def test_each_user_gets_their_variant_also_from_the_caches(worker: Worker) -> None:
    users = [f"u{n}" for n in range(60)]
    assert {variant_of(read_experiment(worker.data, "topics"), user) for user in users} == set(TOPIC)
    for _ in range(2):
        for user in users:  # all of them are unknown: the same row, the same question, and still never another's list
            assert worker.topics(user) <= wanted(worker, user)
    assert worker.results.hits >= 100
    assert worker.ask("u1").experiments is msgspec.UNSET
    traced = worker.ask("u1", trace=True)
    assert traced.experiments == {"topics": variant_of(read_experiment(worker.data, "topics"), "u1")}
    worker.small.view.read_user = None  # type: ignore[method-assign, assignment]  # a defect: the last good lists answer
    for user in users:
        answer = worker.ask(user, trace=True)
        assert answer.tier >= 3
        assert {int(item.id[1:]) % 3 for item in answer.items} <= wanted(worker, user)


def test_strangers_and_other_surfaces_are_the_control(worker: Worker) -> None:
    assert worker.topics(None) == {0, 1, 2}
    assert worker.ask(None, trace=True).experiments == {}
    for user in ("u1", "u2", "u3", "u4"):
        asked = worker.asked(user, "cart")
        assert (asked.arm, asked.choices, asked.query.arm) == (None, (), "")


def test_who_is_not_targeted_is_not_assigned_and_not_exposed(tmp_path: Path) -> None:
    made = Worker(tmp_path)
    create(tmp_path, "when = \"context.country == 'NL' and user.events < 1\"\n" + TEXT)
    start(tmp_path, "topics", CONFIG, now_ms=1)
    assert made.follow()
    fresh, there = [f"u{n}" for n in range(40)], {"country": "NL"}
    assert {len(made.asked(user, context=there).choices) for user in fresh} == {1}
    assert {made.asked(user, context=there).choices[0].variant for user in fresh} == set(TOPIC)
    for asked in (made.asked("ann", context=there), made.asked("u1"), made.asked("u1", context={"country": "DE"})):
        assert (asked.choices, made.watch.exposures(asked, made.small.now_ms)) == ((), [])
    path = folder_of(tmp_path) / "topics.toml"
    path.write_text(path.read_text().replace("user.events < 1", "user.evnts < 1"))
    assert made.follow()
    assert made.asked("u1", context=there).choices == (), (
        "a condition that does not compile takes the experiment out of service"
    )
    assert made.metrics.experiments_refused._value.get() == 1.0


def test_stopping_and_the_switch_for_all_are_taken_up(worker: Worker) -> None:
    (treated, *_) = [f"u{n}" for n in range(60) if wanted(worker, f"u{n}") == {1}]
    assert worker.topics(treated) == {1}
    switch(worker.data, on=False)
    assert worker.follow()
    assert worker.topics(treated) == {0, 1, 2}
    switch(worker.data, on=True)
    assert worker.follow()
    assert worker.topics(treated) == {1}
    assert not worker.follow(), "nothing changed"
    stop(worker.data, "topics", now_ms=2)
    assert worker.follow()
    assert worker.topics(treated) == {0, 1, 2}


def test_testers_get_their_variant_and_are_not_counted(worker: Worker) -> None:
    override(worker.data, "topics", "ann", "two")
    worker.follow()
    assert worker.topics("ann") <= {2}
    assert worker.watch.exposures(worker.asked("ann"), START_MS) == []


def test_a_file_that_breaks_changes_nothing_and_is_told(worker: Worker) -> None:
    path = folder_of(worker.data) / "topics.toml"
    path.write_text(path.read_text().replace("'c1'", "'c1"))
    with capture_logs() as said:
        worker.follow()
    assert [line["event"] for line in said] == ["experiment_refused", "experiments_in_service"]
    assert "'c1" in said[0]["reason"]
    assert worker.metrics.experiments_refused._value.get() == 1
    users = [f"u{n}" for n in range(30)]
    assert all(worker.topics(user) == {0, 1, 2} for user in users), "its rule does not compile: no part of it is served"
    path.write_text("nonsense")
    worker.follow()
    assert worker.metrics.experiments_refused._value.get() == 1


def test_new_rules_of_the_configuration_reach_the_variants(worker: Worker) -> None:
    (treated, *_) = [f"u{n}" for n in range(60) if wanted(worker, f"u{n}") == {1}]
    assert "i1" in {item.id for item in worker.ask(treated).items}
    worker.recommender.config = msgspec.structs.replace(CONFIG, rules=(Rule(name="no-i1", filter="id != 'i1'"),))
    assert worker.follow()
    assert "i1" not in {item.id for item in worker.ask(treated).items}
    assert worker.topics(treated) == {1}


def test_a_bundle_of_a_variant_answers_and_a_bad_one_leaves_everybody_the_control(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    first = publish_ranker(tmp_path, CONFIG, seed=1, created_ms=1_772_000_000_000)
    text = f'name = "next"\n[[variants]]\nname = "control"\n[[variants]]\nname = "new"\nbundle = "{first}"\n'
    create(tmp_path, text)
    start(tmp_path, "next", CONFIG, now_ms=1)
    worker.follow()
    experiment = read_experiment(tmp_path, "next")
    new = [f"u{n}" for n in range(20) if variant_of(experiment, f"u{n}") == "new"]
    old = [f"u{n}" for n in range(20) if variant_of(experiment, f"u{n}") == "control"]
    assert {worker.ask(user).model for user in new} == {first}
    assert {worker.ask(user).model for user in old} == {"none"}
    path = folder_of(tmp_path) / "next.toml"
    gone = "20260101T000000000Z-0123456789ab"
    path.write_text(path.read_text().replace(first, gone))
    with capture_logs() as said:
        worker.follow()
    assert said[0]["event"] == "experiment_refused"
    assert gone in said[0]["reason"]
    assert {worker.ask(user).model for user in new} == {"none"}
    assert worker.asked(old[0]).choices == (), "nobody is exposed"
    assert Registry(tmp_path / "models").current(worker.small.plan.hash) == first


def test_a_variant_that_would_change_the_state_is_refused(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    text = (
        'name = "tired"\n[[variants]]\nname = "control"\n[[variants]]\nname = "v"\nset = {"fatigue.impressions" = 3}\n'
    )
    create(tmp_path, text)
    start(tmp_path, "tired", CONFIG, now_ms=1)
    with capture_logs() as said:
        worker.follow()
    assert "changes what the state holds" in said[0]["reason"]
    assert worker.asked("ann").choices == ()


# -- interleaving --------------------------------------------------------------------------------------------

BOTH = """
name = "both"
interleave = true

[[variants]]
name = "control"

[[variants]]
name = "one"
[[variants.rules]]
name = "only-one"
surfaces = ["home"]
filter = "category == 'c1'"
"""


@pytest.fixture
def interleaving(tmp_path: Path) -> Worker:
    made = Worker(tmp_path)
    create(tmp_path, BOTH)
    start(tmp_path, "both", CONFIG, now_ms=1)
    assert made.follow()
    return made


def test_an_interleaved_answer_holds_the_picks_of_both_and_the_log_says_whose(interleaving: Worker) -> None:
    recommender, now_ms = interleaving.recommender, interleaving.small.now_ms
    ahead = set()
    for n in range(30):
        asked = interleaving.asked("ann" if n % 2 else f"u{n}")
        other = asked.challenger
        assert other is not None
        assert (asked.arm, asked.query.lots, asked.query.arm) == (None, False, "")
        asked = replace(asked, query=replace(asked.query, request_id=f"r{n}"))
        answer = recommender.answer(asked, now_ms)
        lists = {
            1: recommender.pipeline.recommend(asked.query, recommender.view, None, now_ms),
            2: other.pipeline.recommend(replace(asked.query, arm=other.name), recommender.view, None, now_ms),
        }
        shown: list[int] = []
        for place, (item, team) in enumerate(zip(answer.items.tolist(), answer.teams, strict=True)):
            picked = lists[team].items.tolist()
            left = {t: [i for i in one.items.tolist() if i not in shown] for t, one in lists.items()}
            assert item == left[team][0], "the best that is left of whose pick it is"
            assert answer.scores[place] == lists[team].scores[picked.index(item)]
            assert answer.sources[place] == lists[team].sources[picked.index(item)]
            assert {1, 2} <= set(answer.teams[place - 1 : place + 1]) or place % 2 == 0 or not left[3 - team]
            shown.append(item)
        ahead.add(answer.teams[0])
        variants = {choice.experiment: choice.variant for choice in asked.choices}
        record = served_list(asked.query, answer, sampled=True, experiments=variants)
        read = msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=ServedList)
        assert (read.teams, read.experiments, read.lots) == (answer.teams, {"both": "interleaved"}, False)
        assert (read.features, read.modelled, read.explored, read.promised) == (b"", b"", None, None)
        assert len(recommender.response(asked, answer, []).items) == 4
    assert ahead == {1, 2}
    assert not any(found.answer.teams for found in interleaving.results._results.values()), (
        "only whole lists are cached"
    )
    (exposure,) = interleaving.watch.exposures(interleaving.asked("ann"), START_MS)
    assert msgspec.msgpack.decode(exposure.payload, type=ExposureRecord).variant == "interleaved"


def test_what_cannot_be_interleaved_is_the_controls(interleaving: Worker) -> None:
    recommender, now_ms = interleaving.recommender, interleaving.small.now_ms
    first = interleaving.ask("ann")
    paged, given = interleaving.asked("ann", cursor=first.next), interleaving.asked("ann", candidates=["i1", "i2"])
    for asked in (paged, given, interleaving.asked(None), interleaving.asked("ann", "cart")):
        assert (asked.choices, asked.challenger, asked.query.lots) == ((), None, True)
        assert recommender.answer(asked, now_ms).teams == b""
    asked = interleaving.asked("ann")
    hurried = recommender.answer(replace(asked, query=replace(asked.query, deadline_ms=1e-9, reuse=False)), now_ms)
    assert (hurried.tier > 0, hurried.teams) == (True, b"")
    assert asked.challenger is not None
    asked.challenger.pipeline._fetch = None  # type: ignore[method-assign, assignment]  # a defect
    alone = recommender.answer(replace(asked, query=replace(asked.query, reuse=False)), now_ms)
    assert (alone.tier, alone.teams) == (0, b"")
    assert {int(name[1:]) % 3 for name in interleaving.small.log.names(alone.items.tolist())} == {0, 1, 2}


def test_a_tester_gets_a_variant_and_no_interleaved_list(interleaving: Worker) -> None:
    override(interleaving.data, "both", "ann", "one")
    interleaving.follow()
    assert interleaving.asked("ann").challenger is None
    assert interleaving.topics("ann") == {1}


def test_another_experiment_changes_both_lists(interleaving: Worker) -> None:
    wide = 'name = "wide"\nlayer = "other"\n[[variants]]\nname = "control"\n[[variants]]\nname = "wide"\nset = {"ranker.candidates" = 7}\n'
    create(interleaving.data, wide)
    experiment = start(interleaving.data, "wide", CONFIG, now_ms=1)
    interleaving.follow()
    user = next(name for n in range(60) if variant_of(experiment, name := f"u{n}") == "wide")
    asked = interleaving.asked(user)
    assert asked.arm is not None
    assert asked.challenger is not None
    assert (asked.arm.config.ranker.candidates, asked.challenger.config.ranker.candidates) == (7, 7)
    assert (len(asked.arm.config.rules), len(asked.challenger.config.rules)) == (0, 1)
    assert recommended_teams(interleaving, asked) == {1, 2}


def recommended_teams(at: Worker, asked: Asked) -> set[int]:
    return set(at.recommender.answer(asked, at.small.now_ms).teams)


# -- shadows -------------------------------------------------------------------------------------------------


def test_a_shadow_is_asked_copies_and_answers_nobody(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    create(tmp_path, TEXT.replace('"topics"\n', '"topics"\nshadow = 0.5\n', 1))
    start(tmp_path, "topics", CONFIG, now_ms=1)
    worker.follow()
    kept: list[ServedEntry] = []
    shadows = Shadowing(worker.recommender, worker.metrics, keep=kept.append, timer=iter(range(1_000)).__next__)
    drawn = 0
    for number in range(32):
        asked = worker.asked(f"u{number}", "home" if number % 4 else "cart")
        assert (asked.arm, asked.choices) == (None, ())
        asked = replace(asked, query=replace(asked.query, request_id=f"{number:032x}"))
        drawn += number % 4 > 0 and _drawn(asked.query, 0) < 0.5
        answer = worker.recommender.answer(asked, worker.small.now_ms)
        assert {int(name[1:]) % 3 for name in worker.small.log.names(answer.items.tolist())} == {0, 1, 2}
        shadows.offer(asked, answer, worker.small.now_ms)
    while shadows._copies:
        assert shadows.ask_one() == 1.0
    assert 9 <= drawn <= 15, "of 24 on its surface, each for two shadows; 16 copies wait at most"
    assert {outcome: told(worker, "lists_total", outcome=outcome) for outcome in ("full", "dropped")} == {
        "full": 8,
        "dropped": drawn - 8,
    }
    assert 0.0 < told(worker, "overlap_sum") / 8 < 0.6, "a list of one topic beside one of three"
    assert not [key for key in worker.results._results if key.arm], "nobody may get what a shadow said"
    records = [msgspec.msgpack.decode(entry.payload, type=ShadowList) for entry in kept]
    assert Counter(record.variant for record in records) == {"one": 8, "two": 8}
    for record in records:
        topics = {int(name[1:]) % 3 for name in worker.small.log.names(record.answer.items)}
        assert topics == TOPIC[record.variant]
        assert record.version == read_experiment(tmp_path, "topics").version


def test_what_shadows_say_is_in_the_log_beside_the_list_and_nothing_takes_it_for_one(tmp_path: Path) -> None:
    text = TEXT.replace('"topics"\n', '"topics"\nshadow = 1.0\nshadow_logged = 0.5\n', 1)
    worker = Worker(tmp_path)
    create(tmp_path, "when = 'user.events > 0'\n" + text)
    start(tmp_path, "topics", CONFIG, now_ms=1)
    worker.follow()
    kept: list[ServedEntry] = []
    shadows = Shadowing(worker.recommender, worker.metrics, keep=kept.append)
    given: dict[str, ServedList] = {}
    for number, user in enumerate(("ann", "ann", "new")):
        asked = worker.asked(user)
        asked = replace(asked, query=replace(asked.query, request_id=f"{0:08x}{(number & 1) << 31:08x}{number:016x}"))
        answer = worker.recommender.answer(asked, worker.small.now_ms)
        shadows.offer(asked, answer, worker.small.now_ms)
        given[asked.query.request_id] = served_list(asked.query, answer, sampled=False)
    while shadows._copies:
        shadows.ask_one()
    assert told(worker, "lists_total", outcome="full") == 2, "the third user is not targeted"
    assert len(kept) == 2, "half of them is logged, the same requests of both variants"
    log, ann = worker.small.log, worker.small.log.identity.lookup("ann")
    assert ann is not None
    before, row = worker.small.fold.items.copy(), worker.small.user("ann")
    log.writer.append_served(
        [ServedEntry(ann.user, ann.surrogate, msgspec.msgpack.encode(one)) for one in given.values()]
    )
    log.writer.append_shadows(kept)
    worker.small.add()
    for part in ("i8", "f4", "u4"):
        assert np.array_equal(
            getattr(worker.small.fold.items.rows, part)[: before.count], getattr(before.rows, part)[: before.count]
        )
        assert np.array_equal(getattr(worker.small.user("ann"), part), getattr(row, part))
    newest = newest_served(log.log, 10)
    assert [served.answer for served in newest] == list(given.values()), "nothing of a shadow is a served list"
    assert [[one.variant for one in find_shadows(log.log, served)] for served in newest] == [["one", "two"], [], []]
    with pytest.raises(ExperimentError, match="shadow_logged: There is no `shadow` whose lists"):
        create(tmp_path, text.replace('"topics"\nshadow = 1.0', '"other"'))


def test_copies_take_a_twentieth_of_the_time_and_none_under_load(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    create(tmp_path, TEXT.replace('"topics"\n', '"topics"\nshadow = 1.0\n', 1))
    start(tmp_path, "topics", CONFIG, now_ms=1)
    worker.follow()
    asked = worker.asked("ann")
    asked = replace(asked, query=replace(asked.query, request_id="0" * 32))
    answer = worker.recommender.answer(asked, worker.small.now_ms)

    async def check() -> float:
        shadows = Shadowing(worker.recommender, worker.metrics, timer=SteppingTimer(10.0))
        running = asyncio.create_task(shadows.run())
        shadows.offer(asked, answer, worker.small.now_ms)
        began = time.perf_counter()
        while shadows._copies:
            await asyncio.sleep(0.001)
        running.cancel()
        worker.recommender.pipeline.conditions.pace = Narrowed()
        shadows.offer(asked, answer, worker.small.now_ms)
        assert not shadows._copies
        return time.perf_counter() - began

    took_s = asyncio.run(check())
    assert told(worker, "seconds_sum") == pytest.approx(0.01)
    assert took_s >= 19 * 0.01, "the second copy waits for its time"


class Narrowed(Pace):
    """That of a worker under load."""

    quality = 0.9


def told(at: Worker, figure: str, **labels: str) -> float:
    """A figure of the shadow that is variant ``one``."""
    labels |= {"experiment": "topics", "variant": "one"}
    found = at.metrics.registry.get_sample_value(f"headwater_shadow_{figure}", labels)
    assert found is not None
    return found


# -- exposures -----------------------------------------------------------------------------------------------


def test_an_exposure_is_recorded_once_an_hour_for_each_user(worker: Worker) -> None:
    known = worker.small.log.identity.lookup("ann")
    assert known is not None
    (entry,) = worker.watch.exposures(worker.asked("ann"), START_MS)
    assert (entry.user, entry.surrogate, entry.external) == (*known, "")
    assert worker.watch.exposures(worker.asked("ann"), START_MS + 1) == []
    (new,) = worker.watch.exposures(worker.asked("new"), START_MS + 1)
    assert (new.user, new.external) == (0, "new")
    record = msgspec.msgpack.decode(new.payload, type=ExposureRecord)
    experiment = read_experiment(worker.data, "topics")
    assert record == ExposureRecord("topics", variant_of(experiment, "new"), experiment.version, "r")
    assert len(worker.watch.exposures(worker.asked("ann"), START_MS + HOUR_MS)) == 1
    assert worker.watch.exposures(worker.asked("ann", "cart"), START_MS + 2 * HOUR_MS) == []
    worker.metrics.flush()
    counted = worker.metrics.registry.get_sample_value(
        "headwater_experiment_answers_total",
        {"experiment": "topics", "variant": variant_of(experiment, "ann")},
    )
    assert counted is not None
    assert counted >= 3


def test_what_is_remembered_of_exposures_is_bounded() -> None:
    exposed = _Exposed(most=10)
    new = [exposed.is_new((f"u{n % 20}", "e", "v", "x"), 5) for n in range(40)]
    assert len(exposed._known) <= 10
    assert new[:20] == [True] * 20


# -- a whole system ------------------------------------------------------------------------------------------


def eventually(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Seconds until ``holds``."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < patience_s
        time.sleep(0.02)
    return time.monotonic() - began


def topics_of(answer: dict[str, Any]) -> set[int]:
    return {int(item["id"].removeprefix("item-")) % 10 for item in answer["items"]}


def test_an_experiment_from_its_file_to_the_log_and_its_end(server: Site) -> None:
    text = TEXT.replace("'c1'", "'topic-1'").replace("'c2'", "'topic-2'").replace('"topics"', '"live"')
    create(server.data, text + '\n[[guardrails]]\nmetric = "empty"\ndirection = "increase"\nbound = 0.01\n')
    experiment = start(server.data, "live", server.config, now_ms=1)
    users = [f"experiment-{n}" for n in range(200)]
    variant = {user: variant_of(experiment, user) for user in users}
    wanted = {"control": set(range(10)), "one": {1}, "two": {2}}
    (probe, *_) = [user for user in users if variant[user] == "one"]
    try:
        eventually(lambda: topics_of(server.recommend(user=probe, k=5)) == {1})
        answers = {user: server.recommend(user=user, k=5, trace=user == probe) for user in users}
        for user, answer in answers.items():
            assert topics_of(answer) <= wanted[variant[user]]
            assert ("experiments" in answer) == (user == probe)
            assert answer.get("experiments", {"live": "one"}) == {"live": "one"}
        assert len(topics_of(server.recommend(k=5))) > 1, "a stranger"
        assert exposed_in(server, experiment.variant_names) == variant
        assert explained_in(server, answers[probe]["request_id"]) == {1}
        (standing,) = said_by(server, "status", "live")["experiments"]
        assert {each["name"]: each["users"] for each in standing["variants"]} == Counter(variant.values())
        assert (standing["mixed"], standing["unknown"], standing["exposures"] >= 200) == (0, 0, True)
        took_s = stopped_in(server, probe)
        assert took_s < 40 * POLL_S, "the files are looked at all the time; the machine may be busy"
        assert all(len(topics_of(server.recommend(user=user, k=5))) > 1 for user in users[:20])
    finally:
        folder_of(server.data).joinpath("live.toml").unlink()
    told = server.http.get("/metrics").text
    assert 'headwater_experiment_answers_total{experiment="live",variant="two"}' in told


def explained_in(server: Site, request_id: str) -> set[int]:
    """The topics of a replay of the request."""
    found = explain_logged(
        server.config, server.data, request_id, Question(),
        arms=lambda config, variants: as_served(server.data, config, variants),
    )  # fmt: skip
    assert found.request.experiments == {"live": "one"}
    assert found.replay.rules, "they are those of the variant"
    return {int(item.item.removeprefix("item-")) % 10 for item in found.items}


def stopped_in(server: Site, probe: str) -> float:
    """Stop it; seconds until a user of a variant gets the control."""
    stop(server.data, "live", now_ms=2, why="enough")
    return eventually(lambda: len(topics_of(server.recommend(user=probe, k=5))) > 1)


def exposed_in(server: Site, variants: tuple[str, ...]) -> dict[str, str]:
    """The variant of each user of the log, by their names; waits until all are there."""
    event_log = LmdbLog(server.data / "log", readonly=True)
    identity = LmdbIdentity(server.data / "identity", readonly=True)
    try:
        eventually(lambda: len(first_exposures(read_exposures(event_log, "live", variants)).user) >= 200)
        arms = first_exposures(read_exposures(event_log, "live", variants))
        assert arms.mixed == 0
        by_user = dict(zip(arms.user.tolist(), arms.variant.tolist(), strict=True))
        assert in_served_lists(event_log) >= 200
        found = {}
        for n in range(200):
            key = identity.lookup(f"experiment-{n}")
            assert key is not None, "who was not known is a user now"
            found[f"experiment-{n}"] = variants[by_user[key.user]]
        return found
    finally:
        event_log.close()
        identity.close()


def in_served_lists(event_log: EventLog) -> int:
    """How many served lists say which variant they were made with."""
    return sum("live" in served.answer.experiments for served in newest_served(event_log, 1_000))


def test_interleaved_lists_from_their_file_to_who_won(server: Site) -> None:
    create(server.data, BOTH.replace("'c1'", "'topic-1'"))
    users = [f"both-{n}" for n in range(130)]
    server.reflected(server.ingest("/v1/events", [{"user": user, "item": "item-3", "type": "view"} for user in users]))
    start(server.data, "both", server.config, now_ms=1)
    try:
        traced: dict[str, Any] = {"user": users[0], "k": 4, "trace": True}
        eventually(lambda: server.recommend(**traced)["experiments"] == {"both": "interleaved"})
        asked = {server.recommend(user=user, k=4)["request_id"]: user for user in users}
        event_log = LmdbLog(server.data / "log", readonly=True)
        try:
            eventually(lambda: len(lists_of(event_log, asked)) == len(users))
            lists = lists_of(event_log, asked)
            names = event_log.vocabulary().texts(Namespace.ITEM)
        finally:
            event_log.close()
        clicks = []
        for n, (request_id, user) in enumerate(asked.items()):
            served = lists[request_id]
            assert set(served.teams) == {1, 2}
            liked = 1 if n % 6 == 0 else 2  # most like what only the variant's list is full of
            clicks += [
                {"user": user, "item": names[item], "type": "click", "time": served.address.now_ms + 1}
                for item, team in zip(served.items, served.teams, strict=True) if team == liked
            ]  # fmt: skip
        server.ingest("/v1/events", clicks)
        told = explain_logged(
            server.config, server.data, next(iter(asked)), Question(),
            arms=lambda config, variants: as_served(server.data, config, variants),
        )  # fmt: skip
        assert "the list was interleaved" in told.replay.notes[-1]
        assert told.request.experiments == {"both": "interleaved"}
        time.sleep(1.0)
        server.reflected(server.ingest("/v1/events", [{"user": "both-later", "item": "item-3", "type": "view"}]))
        found = said_by(server, "report", "both", "--window", "1s")
        assert (found["variants"], found["preferred"], found["alone"]) == (["control", "one"], "one", 0)
        words = ["experiments", "report", "both", "--window", "1s", "--config", str(server.config_path)]
        assert CliRunner().invoke(build_app(), words).stdout.startswith("users prefer one to control\n")
        counted = found["preference"]
        assert counted["users"] == 130
        assert (counted["losses"], counted["wins"]) == (22, 108)
        (standing,) = said_by(server, "status", "both")["experiments"]
        assert [(each["name"], each["users"]) for each in standing["variants"]] == [("interleaved", 130)]
        assert said_by(server, "guard", "both")["experiments"][0]["decision"] == "continue"
    finally:
        folder_of(server.data).joinpath("both.toml").unlink()


def test_a_shadow_from_its_file_to_what_it_would_have_shown(server: Site) -> None:
    text = TEXT[: TEXT.index('[[variants]]\nname = "two"')].replace("'c1'", "'topic-1'").replace('"topics"', '"unseen"')
    create(server.data, 'shadow = 1.0\nwhen = "user.events > 0"\n' + text)
    users = [f"unseen-{n}" for n in range(8)]
    server.reflected(server.ingest("/v1/events", [{"user": user, "item": "item-3", "type": "view"} for user in users]))
    start(server.data, "unseen", server.config, now_ms=1)
    event_log = LmdbLog(server.data / "log", readonly=True)
    try:
        eventually(lambda: (server.recommend(user=users[0], k=4), in_shadow(event_log) > 0)[1])
        asked = {server.recommend(user=user, k=4)["request_id"]: user for user in users}
        server.recommend(user="unseen-stranger", k=4)
        eventually(lambda: len(lists_of(event_log, asked)) == len(users) and all(find_shadows(event_log, Served(0, one)) for one in lists_of(event_log, asked).values()))  # fmt: skip
        lists, names = lists_of(event_log, asked), event_log.vocabulary().texts(Namespace.ITEM)
        clicks = [{"user": asked[r], "item": names[one.items[0]], "type": "click", "time": one.address.now_ms + 1} for r, one in lists.items()]  # fmt: skip
        server.ingest("/v1/events", clicks)
        told = explain_logged(server.config, server.data, next(iter(asked)), Question())
        (shadow,) = told.shadows
        assert (shadow.experiment, shadow.variant, len(shadow.items)) == ("unseen", "one", 4)
        assert {int(placed.item.removeprefix("item-")) % 10 for placed in shadow.items} == {1}
        assert shadow.shared == len({placed.item for placed in shadow.items} & {placed.item for placed in told.served})
        time.sleep(1.0)
        server.reflected(server.ingest("/v1/events", [{"user": "unseen-later", "item": "item-3", "type": "view"}]))
        (found,) = said_by(server, "report", "unseen", "--window", "1s")["variants"]
        assert (found["clicked"], found["users"]) == (8, 8)
        assert found["lists"] >= 8
        words = ["experiments", "report", "unseen", "--window", "1s", "--config", str(server.config_path)]
        assert "one: of 8 clicked items it would have given" in CliRunner().invoke(build_app(), words).stdout
        assert "headwater_shadows_logged_total" in server.http.get("/metrics").text
    finally:
        event_log.close()
        folder_of(server.data).joinpath("unseen.toml").unlink()


def in_shadow(event_log: EventLog) -> int:
    """How many lists of shadows are in the log."""
    return sum(int((block.records["kind"] == Kind.SHADOW).sum()) for block in blocks_of(event_log))


def blocks_of(event_log: EventLog) -> Iterator[RecordBlock]:
    at = event_log.first_offset - 1
    while (block := event_log.read(at)) is not None:
        yield block
        at = block.last_offset


def lists_of(event_log: EventLog, asked: dict[str, str]) -> dict[str, ServedList]:
    found = (served.answer for served in newest_served(event_log, 1_000))
    return {answer.request_id: answer for answer in found if answer.request_id in asked}


def said_by(server: Site, *arguments: str) -> Any:
    """What ``headwater experiments`` says."""
    words = ["experiments", *arguments, "--config", str(server.config_path), "--json"]
    result = CliRunner().invoke(build_app(), words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])
