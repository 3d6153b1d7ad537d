"""The whole system under leave-one-out: a ranker that learns from validation questions, and what it may not know."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from headwater.evaluation.loo import LooReport, Part, evaluate_loo
from headwater.evaluation.loo_system import LooSystem
from headwater.evaluation.report import write_report
from headwater.evaluation.scoring import POPULARITY, Askable, Training
from headwater.evaluation.temporal import RANKER
from headwater.features.plan import compile_plan
from headwater.learning.rankers import FittedRanker, fit_ranker
from headwater.learning.trainingset import TrainingSet
from headwater.log.commands import PutItems
from headwater.schema.config import Config, FittedConfig, Ranker, Sources
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.models import DeepModel, Models
from headwater.testing.events import START_MS, Step, Written

FITTED = Sources(item_knn=FittedConfig(enabled=True), ease=FittedConfig(enabled=True))
CONFIG = Config(sources=FITTED, ranker=Ranker(trees=20, leaves=4))
TRAINING = Training(sources=("item_knn", "ease"), seed=3)
GROUPS, ITEMS, PEOPLE, PLACES = 3, 10, 150, 6
VALIDATION, TEST = PLACES - 2, PLACES - 1


def world(*, validation: int = 0, test: int = 0) -> Written:
    """People go through the items of their group in an order of their own.

    ``validation`` and ``test`` say by how many items of the group these events are shifted; there is an item that nobody touches.
    """
    rng = np.random.default_rng(5)
    log = Written(CONFIG)
    names = [f"{'abc'[g]}{k}" for g in range(GROUPS) for k in range(ITEMS)] + ["untouched"]
    steps = [
        Step(START_MS, PutItems([Item(id=name, title=f"title {name[0]}", categories=[name[0]]) for name in names]))
    ]
    orders = [rng.permutation(ITEMS) for _ in range(PEOPLE)]
    for place in range(PLACES):
        for person, order in enumerate(orders):
            at = {VALIDATION: place + validation, TEST: place + test}.get(place, place)
            item = f"{'abc'[person % GROUPS]}{order[at]}"
            at_ms = START_MS + (place * PEOPLE + person) * 1_000
            steps.append(Step(at_ms, [Event(user=f"p{person}", item=item, type="click")]))
    log.add(steps)
    return log


class Watched:
    """Keeps what every ranker learnt from, and what it was asked and answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[TrainingSet] = []
        self.rankers: list[FittedRanker] = []
        self.asked: list[tuple[FittedRanker, npt.NDArray[np.void]]] = []
        self.lists: list[npt.NDArray[np.int64]] = []
        fit, answers = fit_ranker, LooSystem.answers

        def fitting(config, plan, columns, rows, **more):  # type: ignore[no-untyped-def]
            made = fit(config, plan, columns, rows, **more)
            self.rows.append(rows)
            self.rankers.append(made)
            return made

        def answering(
            system: LooSystem, ranker: FittedRanker, state: Askable, questions: npt.NDArray[np.void]
        ) -> npt.NDArray[np.int64]:
            made = answers(system, ranker, state, questions)
            self.asked.append((ranker, questions))
            self.lists.append(made)
            return made

        monkeypatch.setattr("headwater.evaluation.loo_system.fit_ranker", fitting)
        monkeypatch.setattr(LooSystem, "answers", answering)


def evaluate(log: Written, config: Config = CONFIG, part: Part = "test") -> LooReport:
    return evaluate_loo(log.log, compile_plan(config), config, TRAINING, part=part)


def test_the_whole_system_is_judged_on_the_same_questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched, log = Watched(monkeypatch), world()
    report = evaluate(log)
    assert list(report.models)[-1] == RANKER
    ranker, (learnt,) = report.models[RANKER], report.rankers
    assert (ranker.questions, learnt.asked, report.left_out) == (PEOPLE, PEOPLE, "")
    assert learnt.trees > 0
    assert ranker.mrr > 1.5 * report.models[POPULARITY].mrr
    assert ranker.train_s > sum(report.models[name].train_s for name in TRAINING.sources)
    over = report.ranker_over[POPULARITY]
    assert over.difference == pytest.approx(ranker.ndcg_at_10 - report.models[POPULARITY].ndcg_at_10)
    assert RANKER not in report.ranker_over
    assert not np.isin(watched.lists[0], log.item("untouched")).any(), "no event names it"
    again = evaluate(world())
    assert watched.rankers[0].files == watched.rankers[1].files
    np.testing.assert_array_equal(watched.lists[0], watched.lists[1])
    assert again.models[RANKER].ci95 == ranker.ci95
    text = write_report(report, tmp_path)[1].read_text(encoding="utf-8")
    assert f"| {POPULARITY} | ndcg@10 {over.difference:+.4f} [" in text


def test_a_ranker_learns_nothing_of_the_test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other test events, and the ranker is the same to the byte."""
    watched = Watched(monkeypatch)
    for log in (world(), world(test=2)):
        evaluate(log)
    first, second = watched.rows
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.addresses.item, second.addresses.item)
    assert watched.rankers[0].files == watched.rankers[1].files
    (_, asked), (_, others) = watched.asked
    assert (asked["item"] != others["item"]).all(), "or it would say nothing"
    np.testing.assert_array_equal(watched.lists[0], watched.lists[1])


def test_rows_know_nothing_of_their_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other validation events, and each candidate of each question has the same row: features and scores of sources."""
    watched = Watched(monkeypatch)
    for log in (world(), world(validation=3)):
        evaluate(log)
    first, second = ({_address(rows, n): rows.features[n] for n in range(len(rows.labels))} for rows in watched.rows)
    answers = ({_address(rows, n) for n in np.flatnonzero(rows.labels).tolist()} for rows in watched.rows)
    assert not set.intersection(*answers)
    both = first.keys() & second.keys()
    assert len(both) > 1_000
    for address in both:
        np.testing.assert_array_equal(first[address], second[address])


def _address(rows: TrainingSet, n: int) -> tuple[int, int]:
    return int(rows.addresses.user[n]), int(rows.addresses.item[n])


def test_validation_is_answered_by_a_ranker_of_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    report = evaluate(world(), part="validation")
    assert [each.asked for each in report.rankers] == [PEOPLE / 2, PEOPLE / 2]
    everybody: set[int] = set()
    for (ranker, questions), rows, fitted in zip(watched.asked, watched.rows, watched.rankers, strict=True):
        assert ranker is fitted
        asked = set(questions["user"].tolist())
        assert not asked & set(rows.addresses.user.tolist())
        everybody |= asked
    assert len(everybody) == PEOPLE
    assert report.models[RANKER].questions == PEOPLE
    assert report.models[RANKER].mrr > 1.5 * report.models[POPULARITY].mrr


def test_a_deep_ranker_is_trained_as_well() -> None:
    deep = msgspec.structs.replace(CONFIG.ranker, kind="deep")
    models = Models(deep=DeepModel(width=16, crosses=1, epochs=8, batch=256))
    report = evaluate(world(), msgspec.structs.replace(CONFIG, ranker=deep, models=models))
    assert report.rankers[0].kind == "deep"
    assert report.rankers[0].epochs > 0
    assert report.models[RANKER].mrr > report.models[POPULARITY].mrr


def test_without_a_ranker_the_report_has_the_sources_alone() -> None:
    report = evaluate(world(), msgspec.structs.replace(CONFIG, ranker=Ranker(kind="none")))
    assert set(report.models) == {POPULARITY, "recent_popularity", *TRAINING.sources}
    assert (report.ranker_over, report.rankers, report.left_out) == ({}, [], "")


def test_too_few_questions_train_no_ranker_and_the_report_says_so() -> None:
    log, at_ms = Written(CONFIG), START_MS
    for person in range(10):
        for place in range(4):
            at_ms += 1_000
            log.add([Step(at_ms, [Event(user=f"p{person}", item=f"i{(person + place) % 7}", type="click")])])
    report = evaluate(log)
    assert RANKER not in report.models
    assert "ranker: of 10 validation questions" in report.left_out
