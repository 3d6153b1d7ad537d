"""The temporal protocol on a log small enough to answer by hand."""

from __future__ import annotations

from collections.abc import Iterator
from math import log2

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.freshness import evaluate_freshness
from headwater.evaluation.temporal import CO_VISITS, RANKER, RECENT_POPULARITY, UNION, TemporalReport, evaluate_temporal
from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.replay import fold_to
from headwater.log.record import RecordBlock
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.serving.view import FoldView
from headwater.testing.events import START_MS, Step, Written, script, written
from tests.retrieval.worlds import MINUTE_MS, clicks, many
from tests.serving.rankers import by_column

CONFIG = Config()
PLAN = compile_plan(CONFIG)
SECOND = 1 / log2(3)  # the gain of an answer in second place


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def evaluate(log: Written, split: int, *, questions: str = "all", sample: float = 1.0, seed: int = 1) -> TemporalReport:
    assert questions in ("all", "session")
    return evaluate_temporal(
        log.log, PLAN, CONFIG, by_column(PLAN, "co_sum"), split_offset=split,
        questions="session" if questions == "session" else "all", sample=sample, seed=seed, train_s={RANKER: 2.5},
    )  # fmt: skip


@pytest.fixture
def history() -> Written:
    """Five like a, three like b: that is all there is before T."""
    return written([clicks(*many("a", 5), *many("b", 3, "y"), at_ms=START_MS)], CONFIG)


def later(minutes: int, user: str, item: str, session: str | None = None) -> Step:
    event = Event(user=user, item=item, type="click", session=session)
    return Step(START_MS + minutes * MINUTE_MS, [event])


def test_the_answers_are_those_worked_out_by_hand(history: Written) -> None:
    """
    first x   nobody has asked yet: no history, no question
    first b   popular: a, b → 2nd. No co-visits of x: the same list. Ranker: no co-visit, by number a, b → 2nd
    other x   no history, no question
    other a   popular: a (5), b (4) → 1st. Co-visits of x: b, then a → 2nd. Ranker: b, then a → 2nd
    """
    split = history.log.last_offset
    history.add([later(1, "first", "x"), later(2, "first", "b"), later(3, "other", "x"), later(4, "other", "a")])
    report = evaluate(history, split)
    assert (report.n, report.questions, report.protocol, report.seen_targets) == (2, "all", "temporal", 0)
    popular, co_visits, ranker = (report.models[name] for name in (RECENT_POPULARITY, CO_VISITS, RANKER))
    assert (popular.hr_at_10, popular.ndcg_at_10, popular.mrr) == pytest.approx((1.0, (SECOND + 1) / 2, 0.75))
    assert (co_visits.hr_at_10, co_visits.ndcg_at_10, co_visits.mrr) == pytest.approx((1.0, SECOND, 0.5))
    assert (ranker.hr_at_10, ranker.ndcg_at_10, ranker.mrr) == pytest.approx((1.0, SECOND, 0.5))
    assert set(report.models) == {RECENT_POPULARITY, CO_VISITS, UNION, RANKER}
    # a and b came back to both, x to nobody (each had seen it): two of three items
    assert popular.coverage == pytest.approx(2 / 3)
    assert [report.models[name].train_s for name in (RANKER, UNION)] == [2.5, 0.0]
    assert report.ranker_over[RECENT_POPULARITY].difference == pytest.approx(SECOND - (SECOND + 1) / 2)
    assert report.ranker_over[CO_VISITS].difference == pytest.approx(0.0)
    assert set(report.ranker_over) == {RECENT_POPULARITY, CO_VISITS, UNION}
    assert report.data["split_offset"] == split
    assert report.data["last_offset"] == history.log.last_offset
    assert (report.data["first_ms"], report.data["last_ms"]) == (START_MS + MINUTE_MS, START_MS + 4 * MINUTE_MS)
    msgspec.json.encode(report)


def test_nobody_is_told_which_item_was_shown_a_moment_before_the_click(history: Written) -> None:
    """The impression that led to the click is in the state by then; a ranker that orders by it would always be right."""
    split = history.log.last_offset
    history.add([later(1, "first", "x")])
    shown = Event(user="first", item="b", type="impression")
    history.add([Step(START_MS + 2 * MINUTE_MS, [shown]), later(3, "first", "b")])
    report = evaluate_temporal(
        history.log, PLAN, CONFIG, by_column(PLAN, "item_impression_30m"), split_offset=split, questions="all", sample=1.0,
        seed=1, train_s={},
    )  # fmt: skip
    assert report.n == 1
    assert report.models[RANKER].mrr == pytest.approx(0.5)

    view = FoldView(PLAN, Fold(PLAN))
    fold_to(history.log, view.fold, split)
    fresh = evaluate_freshness(
        history.log, PLAN, CONFIG, {"never": _Kept(), "renewed": _Renewed()}, once="never", split_offset=split,
        until=history.log.last_offset, questions="all", sample=1.0, seed=1, train_s=0.0, view=view,
    )  # fmt: skip
    assert {name: fresh.models[name].mrr for name in ("never", "renewed")} == pytest.approx(
        {"never": 0.5, "renewed": 0.5}
    )


class _Kept:
    """A bundle that orders by what was just shown, and stays."""

    renewals, seconds = 0, 0.0

    def __init__(self) -> None:
        self.model = by_column(PLAN, "item_impression_30m")

    def wanted(self, block: RecordBlock) -> npt.NDArray[np.bool_]:
        return np.zeros(len(block), np.bool_)

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None: ...


class _Renewed(_Kept):
    """Another one before each question."""

    def look(self, block: RecordBlock, i: int, view: FoldView) -> None:  # noqa: ARG002
        self.model = by_column(PLAN, "item_impression_30m")


def test_by_session_only_what_follows_in_a_session_is_asked(history: Written) -> None:
    split = history.log.last_offset
    history.add(
        [
            later(1, "u", "x", "s1"),
            later(2, "u", "b", "s1"),  # asked: 2nd of popular
            later(3, "u", "a", "s2"),  # another session begins
            later(4, "v", "a", "s2"),  # another user's session of that name
            later(5, "v", "x", "s2"),  # asked: b (4), x (1): 2nd, as a is seen
            later(6, "w", "b"),
            later(7, "w", "a"),  # no session
        ]
    )
    report = evaluate(history, split, questions="session")
    assert (report.n, report.questions) == (2, "session")
    popular = report.models[RECENT_POPULARITY]
    assert (popular.ndcg_at_10, popular.mrr) == pytest.approx((SECOND, 0.5))


def test_what_was_seen_before_is_missed_by_all_and_counted(history: Written) -> None:
    split = history.log.last_offset
    history.add([later(1, "u", "a"), later(2, "u", "a"), later(3, "u", "new"), later(4, "u", "b")])
    report = evaluate(history, split)
    assert (report.n, report.seen_targets) == (3, 1)
    popular = report.models[RECENT_POPULARITY]
    # a again: seen. new: unheard of. b: after "new" (1 click now) and before nothing else, so first
    assert popular.hr_at_10 == pytest.approx(1 / 3)
    assert popular.ndcg_at_10 == pytest.approx(1 / 3)


def test_only_positive_events_that_stand_are_asked(history: Written) -> None:
    split = history.log.last_offset
    click = Event(user="u", item="b", type="click", time=START_MS + 2 * MINUTE_MS)
    history.add(
        [
            later(1, "u", "a"),
            Step(START_MS + 2 * MINUTE_MS, [Event(user="u", item="b", type="view"), click]),
            Step(START_MS + 3 * MINUTE_MS, [msgspec.structs.replace(click, retract=True)]),
        ]
    )
    assert evaluate(history, split).n == 1


def test_it_ends_where_it_is_told(history: Written) -> None:
    split = history.log.last_offset
    history.add([later(1, "first", "x"), later(2, "first", "b")])
    until = history.log.last_offset
    history.add([later(3, "other", "x"), later(4, "other", "a")])
    report = evaluate_temporal(
        history.log, PLAN, CONFIG, by_column(PLAN, "co_sum"), split_offset=split, questions="all", sample=1.0, seed=1,
        train_s={}, until=until,
    )  # fmt: skip
    assert (report.n, report.data["last_offset"]) == (1, until)


def test_a_sample_is_a_part_of_the_questions_and_the_seed_says_which() -> None:
    log = written(script(50, 250, users=20, items=60), CONFIG)
    split = log.log.last_offset // 3
    whole = evaluate(log, split)
    some, again, other = (evaluate(log, split, sample=0.4, seed=seed) for seed in (1, 1, 2))
    assert 0.2 * whole.n < some.n < 0.6 * whole.n
    assert _comparable(some) == _comparable(again)
    assert _comparable(some) != _comparable(other)
    assert _comparable(whole) == _comparable(evaluate(log, split))


def _comparable(report: TemporalReport) -> bytes:
    """All but what was measured with a clock or a meter."""
    models = {name: msgspec.structs.replace(model, peak_mb=0.0) for name, model in report.models.items()}
    return msgspec.json.encode(msgspec.structs.replace(report, replay_s=0.0, models=models, seed=0))


def test_without_a_question_there_is_no_model_to_judge(history: Written) -> None:
    with pytest.raises(HeadwaterError, match="no question to ask"):
        evaluate(history, history.log.last_offset)
