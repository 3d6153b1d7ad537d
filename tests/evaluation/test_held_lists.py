"""Held-out lists as the gate's measure: against a slow count, on a log whose best order is known, and when there are too few of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.evaluation.gate import UNALIKE, verdict
from headwater.evaluation.held_lists import MOST_WEIGHT, Shown, by_place, clip, measure, sums
from headwater.evaluation.heldout import Trial, behind, try_out
from headwater.features.plan import compile_plan
from headwater.learning.gbdt import GbdtParams, fit_gbdt
from headwater.learning.trainingset import LISTS, QUESTIONS, build_training_set
from headwater.log.commands import AppendServed, PutItems, ServedEntry
from headwater.offline.publish import Publication, publish_and_promote
from headwater.ranking.gbdt import MODEL_FILE
from headwater.registry.audit import Author
from headwater.registry.bundle import ManifestFields
from headwater.registry.card import (
    CANDIDATE,
    IN_SERVICE,
    NDCG,
    SHOWN_NDCG,
    Estimate,
    HeldLists,
    HeldOut,
    read_card,
    render_card,
)
from headwater.registry.listing import GateReport
from headwater.registry.registry import Registry
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.models import Gate
from headwater.schema.requests import Explored, ServedList
from headwater.serving.model import Model
from headwater.testing.events import START_MS, Step, Written
from tests.offline.exposed import served_entry
from tests.serving.rankers import ByRule, by_column, giving

CONFIG = Config(gate=Gate(questions=60, lists=50, holdout="1s"))
PLAN = compile_plan(CONFIG)
ITEMS, GOOD, SIZE = 12, 4, 4


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def window(requests: int, *, drawn: bool) -> Written:
    """Lists of four items in any order, of which people take a third of the times those of the first four, hardly ever another."""
    rng, log, now_ms = np.random.default_rng(8), Written(CONFIG), START_MS
    log.add([Step(now_ms, PutItems([Item(id=f"i{n}", categories=[f"c{n % 3}"]) for n in range(ITEMS)]))])
    for r in range(requests):
        now_ms += 60_000
        user, shown = f"u{r % 25}", rng.permutation(ITEMS)[:SIZE].tolist()
        entry = served_entry(log, user, f"r{r}", [f"i{n}" for n in shown], now_ms)
        if drawn:
            served = msgspec.msgpack.decode(entry.payload, type=ServedList)
            logs = np.log(rng.uniform(0.05, 1.0, SIZE)).tolist()
            explored = Explored(logs, list(served.items), 1.0, 1.0)
            payload = msgspec.msgpack.encode(msgspec.structs.replace(served, explored=explored))
            entry = ServedEntry(entry.user, entry.surrogate, payload)
        log.add([Step(now_ms + 5, AppendServed([entry]))])
        taken = [n for n in shown if rng.random() < (0.6 if n < GOOD else 0.05)]
        acts = [Event(user=user, item=f"i{n}", type="click", time=now_ms + 900, request_id=f"r{r}") for n in taken]
        if acts:
            log.add([Step(now_ms + 1_000, acts)])
    return log


@pytest.fixture(scope="module")
def log() -> Written:
    with capture_logs():
        return window(280, drawn=False)


def tried(log: Written, candidate: Model, in_service: Model | None, config: Config = CONFIG) -> Trial:
    stretch = behind(log.log, config, log.log.last_offset // 2, log.log.last_offset)
    return try_out(log.log, PLAN, config, candidate, in_service, stretch, seed=3, on_lists=True)


def held(trial: Trial) -> HeldOut:
    assert trial.held_out is not None
    return trial.held_out


def on_lists(trial: Trial) -> HeldLists:
    found = held(trial).lists
    assert found is not None, held(trial).no_lists
    return found


def judged(trial: Trial, config: Config = CONFIG, *, alike: bool = False) -> GateReport:
    return verdict(config.gate, trial, version="new", against="old", judged_ms=1, alike=alike)


def shuffled(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return Model("shuffled", ByRule(PLAN.columns, lambda rows: rng.random(len(rows)).astype(np.float32)))


@pytest.fixture(scope="module")
def better(log: Written) -> Trial:
    """What orders by clicks, beside what does not order."""
    with capture_logs():
        return tried(log, by_column(PLAN, "item_click_3d"), shuffled(1))


# -- the figures -----------------------------------------------------------------------------------------------------


def slow(shown: Shown, scores: npt.NDArray[np.float64], of: int) -> tuple[float, float, float, float]:
    """One list, over every order that the scores allow."""
    at = [i for i in range(len(shown.of)) if shown.of[i] == of]
    heavy = {i: float(shown.weights[i]) if shown.taken[i] else 0.0 for i in at}

    def discounted(order: Any) -> float:
        return float(sum(heavy[i] / np.log2(rank + 2.0) for rank, i in enumerate(order)))

    allowed = [
        order for order in itertools.permutations(at)
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]  # fmt: skip
    left = [i for i in at if not shown.taken[i]]
    won = sum(
        heavy[i] * np.mean([(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for j in left])
        for i in at if shown.taken[i]
    )  # fmt: skip
    best = discounted(sorted(at, key=lambda i: -heavy[i]))
    return float(np.mean([discounted(order) for order in allowed])), best, float(won), sum(heavy.values())


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Shown, npt.NDArray[np.float64]]:
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    rows = sum(sizes)
    taken = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    starts = np.cumsum(sizes) - sizes
    taken[starts], taken[starts + 1] = True, False  # as lists are chosen
    weights = np.array(draw(st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=rows, max_size=rows)))
    scores = np.array(draw(st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=rows, max_size=rows)))
    users = np.array(draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes))), np.int64)
    return Shown(np.repeat(np.arange(len(sizes)), sizes), taken, weights, users), scores


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_sums_against_every_order(world: tuple[Shown, npt.NDArray[np.float64]]) -> None:
    shown, scores = world
    found = np.stack(sums(shown, scores), axis=1)
    assert found == pytest.approx(np.array([slow(shown, scores, of) for of in range(len(shown.users))]))


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_equal_scores_give_equal_metrics(world: tuple[Shown, npt.NDArray[np.float64]]) -> None:
    """Only the order counts; and who does not order at all is half right, wherever things stood."""
    shown, scores = world
    versions = {CANDIDATE: "new", IN_SERVICE: "old"}
    found = measure(
        shown, {CANDIDATE: scores, IN_SERVICE: 3.0 * scores + 1.0}, versions, weighting="position", clipped=0.0
    )
    ours, theirs = found.systems[CANDIDATE], found.systems[IN_SERVICE]
    assert (ours.shown_ndcg, ours.shown_auc) == (theirs.shown_ndcg, theirs.shown_auc)
    assert theirs.ndcg_over is not None
    assert theirs.ndcg_over.value == 0.0
    flat = measure(shown, {CANDIDATE: np.zeros(len(scores))}, versions, weighting="position", clipped=0.0)
    assert flat.systems[CANDIDATE].shown_auc.value == pytest.approx(0.5)


def test_what_is_taken_from_a_place_that_is_passed_over_counts_more() -> None:
    places = np.tile(np.arange(3), 200)
    taken = np.zeros(600, np.bool_)
    taken[0:300:3], taken[1:30:3] = True, True  # 100 of the first place, 10 of the second, none of the third
    weights = by_place(places, taken)
    mean = 110 / 600
    assert weights[:3] == pytest.approx([210 / (100 + 10 * mean), 210 / (10 + 10 * mean), 210 / (10 * mean)])
    clipped, share = clip(np.array([1.0, 1.0, 100.0, 500.0]), np.array([True, True, True, False]))
    assert clipped.tolist() == [1.0, 1.0, MOST_WEIGHT, MOST_WEIGHT]
    assert share == pytest.approx(1 / 3)


# -- the trial -------------------------------------------------------------------------------------------------------


def test_a_better_ranker_passes_and_a_worse_one_is_refused(log: Written, better: Trial) -> None:
    lists = on_lists(better)
    assert lists.weighting == "position"
    assert 50 <= lists.lists <= 200
    assert lists.rows == SIZE * lists.lists
    assert lists.users == 25
    assert 50 <= lists.ess <= lists.taken
    assert lists.systems[CANDIDATE].shown_auc.low > 0.7
    over = lists.systems[IN_SERVICE].ndcg_over
    assert over is not None
    assert over.low > 0.05
    report = judged(better)
    assert (report.passed, report.metric, report.lists) == (True, SHOWN_NDCG, 50)
    assert UNALIKE not in report.notes, (
        "lists compare those that learnt from lists with those that learnt from questions"
    )

    refused = judged(tried(log, shuffled(2), by_column(PLAN, "item_click_3d")))
    assert not refused.passed
    assert refused.reasons[0].startswith("shown_ndcg is lower by ")
    assert f"on {lists.lists} lists as they were shown (effective sample size" in refused.reasons[0]


def test_a_bundle_beside_itself_differs_by_nothing(log: Written) -> None:
    model = by_column(PLAN, "item_click_3d")
    found = tried(log, model, model)
    lists = on_lists(found)
    ours, theirs = lists.systems[CANDIDATE], lists.systems[IN_SERVICE]
    assert (ours.shown_ndcg, ours.shown_auc) == (theirs.shown_ndcg, theirs.shown_auc)
    assert theirs.ndcg_over == theirs.relative_over == theirs.auc_over == Estimate(0.0, 0.0, 0.0)
    assert judged(found).passed
    assert held(found).questions == 60, "questions are asked beside them, for sanity and speed"


def test_the_effective_sample_size_decides_whether_the_figure_or_the_interval_counts(better: Trial) -> None:
    lists = on_lists(better)
    for ess, high, passes in ((50.0, 0.1, False), (49.0, 0.1, True), (49.0, -0.03, False)):
        service = msgspec.structs.replace(lists.systems[IN_SERVICE], relative_over=Estimate(-0.05, -0.2, high))
        changed = msgspec.structs.replace(lists, ess=ess, systems=lists.systems | {IN_SERVICE: service})
        trial = Trial(msgspec.structs.replace(held(better), lists=changed))
        assert judged(trial).passed == passes


def test_too_few_lists_leave_it_to_questions_and_say_so(log: Written) -> None:
    config = Config(gate=Gate(questions=60, lists=1_000, holdout="1s"))
    found = tried(log, by_column(PLAN, "item_click_3d"), shuffled(1), config)
    assert held(found).lists is None
    report = judged(found, config, alike=True)
    assert report.metric == NDCG
    assert "held-out lists had something taken and something left (gate.lists wants 1000)" in held(found).no_lists
    assert f"questions decide, not lists: {held(found).no_lists}" in report.notes
    assert UNALIKE in judged(found, config, alike=False).notes


def test_a_list_that_cannot_be_scored_is_no_measure(log: Written) -> None:
    found = tried(log, giving(PLAN, float("nan")), by_column(PLAN, "co_sum"))
    assert held(found).lists is None
    assert "gave a score that is not finite" in held(found).no_lists
    assert not judged(found).passed
    nobody = tried(log, by_column(PLAN, "co_sum"), Model("unranked", None))
    assert "has no ranker" in held(nobody).no_lists


def test_lists_that_were_drawn_by_lot_are_weighted_by_their_propensities() -> None:
    drawn = window(200, drawn=True)
    lists = on_lists(tried(drawn, by_column(PLAN, "item_click_3d"), shuffled(1)))
    assert lists.weighting == "propensity"
    assert lists.ess < 0.9 * lists.taken, "propensities differ by up to twenty times"
    assert lists.systems[CANDIDATE].shown_auc.low > 0.7


# -- bundles ---------------------------------------------------------------------------------------------------------


def published(log: Written, registry: Registry, learnt_from: str, later: int, *, upside_down: bool) -> Publication:
    stretch = behind(log.log, CONFIG, log.log.last_offset // 2, log.log.last_offset)
    rows = build_training_set(log.log, PLAN, CONFIG, until=stretch.split, start_ms=0, groups=200, seed=7)
    labels = 1 - rows.labels if upside_down else rows.labels
    params = GbdtParams(trees=10, leaves=4, holdout=0.0)
    text, _ = fit_gbdt(
        rows.features, labels, rows.groups, None, columns=PLAN.columns, params=params, seed=7, num_threads=1
    )
    fields = ManifestFields(
        created_ms=START_MS + later, plan_hash=PLAN.hash, columns=PLAN.columns, ranker="lightgbm",
        event_types=PLAN.event_types, data=rows.data, training={"learnt_from": learnt_from},
    )  # fmt: skip
    return publish_and_promote(
        CONFIG,
        PLAN,
        log.log,
        registry,
        fields,
        {MODEL_FILE: text},
        stretch=stretch,
        seed=7,
        promote=Author("cli", lambda: START_MS + later),
    )


def test_a_bundle_of_lists_is_held_against_one_of_questions_on_lists(log: Written, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    first = published(log, registry, QUESTIONS, 1, upside_down=True)
    assert first.gate is not None
    assert first.gate.metric == NDCG
    second = published(log, registry, LISTS, 2, upside_down=False)
    assert second.promoted, second.gate
    assert second.gate is not None
    assert (second.gate.metric, second.gate.against) == (SHOWN_NDCG, first.bundle)
    card = read_card(registry.load(second.bundle, plan_hash=PLAN.hash))
    assert card is not None
    assert card.held_out == second.gate.held_out
    text = render_card(card)
    assert "The gate compares shown_ndcg, on " in text
    assert f"| in service {first.bundle} | " in text
    third = published(log, registry, QUESTIONS, 3, upside_down=True)
    assert not third.promoted
    assert third.gate is not None
    assert third.gate.reasons[0].startswith("shown_ndcg is lower by ")
