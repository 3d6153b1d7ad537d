"""What the gate lets pass, and what it measures: by hand, and against a slow count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.gate import FLOOR_MS, UNALIKE, forced, verdict
from headwater.evaluation.heldout import Stretch, Trial, behind, held_out_stretch, try_out
from headwater.features.plan import compile_plan
from headwater.learning.trainingset import positive_types, positives
from headwater.ranking.ranker import Features, Scores
from headwater.registry.card import CANDIDATE, IN_SERVICE, RECENT_POPULARITY, Estimate, HeldOut, Measured
from headwater.retrieval.index import NOTHING, ItemIndex
from headwater.retrieval.sources import Asked, Offer
from headwater.schema.config import Config
from headwater.schema.models import Gate
from headwater.serving.model import Model
from headwater.testing.events import START_MS, Written, script, written
from tests.serving.rankers import ByRule, by_column, failing, giving

CONFIG = Config(gate=Gate(questions=60, holdout="1s"))
PLAN = compile_plan(CONFIG)
GATE = Gate(margin=0.02, slower=2.0, questions=500)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def log() -> Written:
    with capture_logs():
        return written(script(50, 400, users=25, items=60), CONFIG)


# -- the verdict -----------------------------------------------------------------------------------------------------


def trial(
    relative: tuple[float, float, float] = (0.0, -0.1, 0.1), *, questions: int = 500, score_ms: float = 1.0,
    list_ms: float = 5.0, popular: float = 0.1, **more: object,
) -> Trial:  # fmt: skip
    """A candidate that is better by ``relative`` (value, low, high) than what is in service, which takes 1 and 5 ms."""
    same = {key: Estimate(0.3, 0.2, 0.4) for key in ("hr@10", "ndcg@10", "mrr")}
    over = Estimate(*relative)
    systems = {
        CANDIDATE: Measured(version="new", metrics=same, score_ms=score_ms, fetch_ms=1.0, list_ms=list_ms),
        IN_SERVICE: Measured(
            version="old", metrics=same, ndcg_over=over, relative_over=over, score_ms=1.0, fetch_ms=1.0, list_ms=5.0
        ),
        RECENT_POPULARITY: Measured(
            version=None, metrics=same, ndcg_over=Estimate(popular, 0.0, 0.2), fetch_ms=1.0, list_ms=1.0
        ),
    }
    held = HeldOut(
        first_offset=1, last_offset=9, first_ms=0, last_ms=1, questions=questions, users=50, seed=7, systems=systems,
        segments=(), coverage={},
    )  # fmt: skip
    return replace(Trial(held), **more)  # type: ignore[arg-type]


def reasons(given: Trial | None, against: str | None = "old", **more: object) -> tuple[str, ...]:
    report = verdict(GATE, given, version="new", against=against, judged_ms=1, **more)  # type: ignore[arg-type]
    assert report.passed == (not report.reasons)
    return report.reasons


@pytest.mark.parametrize(
    ("relative", "questions", "passes"),
    [
        ((0.0, -0.1, 0.1), 500, True),
        ((-0.019, -0.1, 0.06), 500, True),
        ((-0.021, -0.1, 0.06), 500, False),  # enough questions: the figure itself counts
        ((-0.05, -0.15, 0.05), 499, True),  # too few of them: it may be chance
        ((-0.05, -0.15, -0.021), 499, False),  # it is not
        ((0.5, 0.4, 0.6), 49, False),  # nothing can be said
    ],
)
def test_quality(relative: tuple[float, float, float], questions: int, passes: bool) -> None:
    assert (not reasons(trial(relative, questions=questions))) == passes


def test_what_is_said_about_quality() -> None:
    (why,) = reasons(trial((-0.05, -0.15, 0.05)))
    assert "lower by 5.0% [-5.0%, 15.0%] than that of old on 500 questions; gate.margin allows 2.0%" in why


@pytest.mark.parametrize(
    ("score_ms", "list_ms", "passes"),
    [(2.0, 5.0, True), (2.1, 5.0, False), (1.0, 10.0, True), (1.0, 10.6, False), (0.0, 0.0, True)],
)
def test_speed(score_ms: float, list_ms: float, passes: bool) -> None:
    assert (not reasons(trial(score_ms=score_ms, list_ms=list_ms))) == passes


def test_what_the_clock_cannot_tell_is_not_slower() -> None:
    quick = trial(score_ms=0.01 + FLOOR_MS)
    assert quick.held_out is not None
    other = msgspec.structs.replace(quick.held_out.systems[IN_SERVICE], score_ms=0.01)
    systems = quick.held_out.systems | {IN_SERVICE: other}
    assert reasons(replace(quick, held_out=msgspec.structs.replace(quick.held_out, systems=systems))) == ()


def test_what_is_broken_is_refused_with_or_without_another_bundle() -> None:
    for against in ("old", None):
        assert "3 of 500 lists were not ranked: a NaN" in reasons(trial(unranked=3, problem="a NaN"), against)[0]
        assert "failed in 2 of 500 requests" in reasons(trial(failed=2, problem="x failed"), against)[0]
        assert "holds 40% of the items" in reasons(trial(vocabulary={"sequence": 0.4}), against)[0]
        assert reasons(trial(vocabulary={"sequence": 0.6}), against) == ()
        empty = trial()
        assert empty.held_out is not None
        held = msgspec.structs.replace(empty.held_out, coverage={"als": 0.0, "ease": 0.1})
        assert reasons(replace(empty, held_out=held), against) == ('the source "als" had no offer in 500 requests',)
        assert reasons(None, against, problems=("it cannot be opened: x",)) == ("it cannot be opened: x",)


def test_the_first_bundle_passes_and_says_what_it_was_not_compared_with() -> None:
    report = verdict(GATE, trial(popular=-0.01), version="new", against=None, judged_ms=1)
    assert report.passed
    assert "compared with none" in report.notes[0]
    assert "recent popularity alone has a higher NDCG@10" in report.notes[1]
    assert not forced(report).forced
    assert forced(verdict(GATE, trial((-0.5, -0.6, -0.4)), version="new", against="old", judged_ms=1)).forced


def test_who_learnt_from_something_else_is_held_against_popularity_alone() -> None:
    """Questions favour who learnt from them; speed and sanity are judged as ever."""
    worse = trial((-0.5, -0.6, -0.4))
    assert reasons(worse)
    report = verdict(GATE, worse, version="new", against="old", judged_ms=1, alike=False)
    assert report.passed
    assert UNALIKE in report.notes
    assert UNALIKE not in verdict(GATE, worse, version="new", against="old", judged_ms=1).notes
    assert "ranking 300 rows" in reasons(trial(score_ms=3.0), alike=False)[0]
    assert worse.held_out is not None
    popular = worse.held_out.systems[RECENT_POPULARITY]
    for high, refused in ((0.01, False), (-0.01, True)):
        other = msgspec.structs.replace(popular, ndcg_over=Estimate(-0.05, -0.09, high))
        systems = worse.held_out.systems | {RECENT_POPULARITY: other}
        found = reasons(replace(worse, held_out=msgspec.structs.replace(worse.held_out, systems=systems)), alike=False)
        assert bool(found) == refused


# -- what is held out ------------------------------------------------------------------------------------------------


def positive_events(log: Written) -> list[tuple[int, int]]:
    """(offset, received_ms), one record at a time."""
    found, types = [], positive_types(log.log, CONFIG)
    for offset in range(log.log.last_offset):
        block = log.log.read(offset, 1)
        assert block is not None
        if positives(block, types)[0]:
            found.append((offset + 1, int(block.records["received_ms"][0])))
    return found


@pytest.mark.parametrize("questions", [50, 80, 1_000])
@pytest.mark.parametrize("holdout", ["1s", "1h", "2d", "300d"])
@pytest.mark.parametrize("since", [0, 0.5])
def test_the_stretch_against_a_slow_count(log: Written, questions: int, holdout: str, since: float) -> None:
    config = Config(gate=Gate(questions=questions, holdout=holdout))
    events = positive_events(log)
    last = log.log.last_offset - 40
    until_ms = int(log.log.read(last - 1, 1).records["received_ms"][0])  # type: ignore[union-attr]
    start_ms = int(START_MS + since * (until_ms - START_MS)) if since else 0
    stretch = held_out_stretch(log.log, config, until=last, until_ms=until_ms, start_ms=start_ms)
    known = [(offset, ms) for offset, ms in events if offset <= last and ms >= start_ms]
    length = {"1s": 1_000, "1h": 3_600_000, "2d": 172_800_000, "300d": 300 * 86_400_000}[holdout]
    recent = sum(ms >= until_ms - length for _, ms in known)
    wanted = min(max(recent, questions), len(known) // 10)
    assert stretch.positives == wanted
    assert sum(stretch.split < offset <= stretch.until for offset, _ in events) == wanted
    assert stretch.until == last
    assert behind(log.log, config, stretch.split, last) == stretch


# -- the trial -------------------------------------------------------------------------------------------------------


def tried(log: Written, candidate: Model, in_service: Model | None, config: Config = CONFIG, **more: object) -> Trial:
    stretch = behind(log.log, config, log.log.last_offset // 2, log.log.last_offset)
    return try_out(log.log, PLAN, config, candidate, in_service, stretch, seed=3, **more)  # type: ignore[arg-type]


def test_both_are_asked_the_same_and_equals_differ_by_nothing(log: Written) -> None:
    model = by_column(PLAN, "co_sum")
    found = tried(log, model, replace(model, version="old"))
    assert found.held_out is not None
    assert (found.held_out.questions, found.unranked, found.failed) == (60, 0, 0)
    service = found.held_out.systems[IN_SERVICE]
    assert service.version == "old"
    assert service.ndcg_over == Estimate(0.0, 0.0, 0.0)
    assert service.metrics == found.held_out.systems[CANDIDATE].metrics
    assert set(found.held_out.systems) == {CANDIDATE, IN_SERVICE, RECENT_POPULARITY}
    known = {part.segment: part for part in found.held_out.segments}
    assert known["users: known"].over == Estimate(0.0, 0.0, 0.0)
    assert all(part.questions >= 30 for part in known.values())
    again = tried(log, model, replace(model, version="old"))
    assert again.held_out is not None
    assert again.held_out.systems[CANDIDATE].metrics == found.held_out.systems[CANDIDATE].metrics


def test_a_worse_one_is_seen_to_be_worse(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.evaluation.heldout.MIN_SEGMENT", 5)  # the log is small
    config = Config(gate=Gate(questions=100_000))
    good, bad = by_column(PLAN, "co_sum"), by_column(PLAN, "co_sum", ascending=True)
    found = tried(log, bad, good, config)
    assert found.held_out is not None
    assert any("country=" in part.segment and part.over is not None for part in found.held_out.segments)
    report = verdict(config.gate, found, version="new", against="old", judged_ms=1)
    assert not report.passed
    assert "NDCG@10 is lower by" in report.reasons[0]
    assert verdict(config.gate, tried(log, good, bad, config), version="new", against="old", judged_ms=1).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_seen(log: Written, value: float) -> None:
    found = tried(log, giving(PLAN, value), None)
    assert found.unranked == 60
    assert "not finite" in found.problem
    assert tried(log, failing(PLAN), None).problem.startswith("ranker failed: out of trees")


class Stopwatch:
    """A clock that stands still, unless a ranker moves it on."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_time_is_that_of_300_rows(log: Written) -> None:
    watch = Stopwatch()

    def slow(rows: Features) -> Scores:
        watch.seconds += 1e-5 * len(rows)
        return rows[:, 0]

    model = Model("slow", ByRule(PLAN.columns, slow))
    found = tried(log, model, by_column(PLAN, "co_sum"), timer=watch)
    assert found.held_out is not None
    assert found.held_out.systems[CANDIDATE].score_ms == pytest.approx(3.0)
    assert found.held_out.systems[IN_SERVICE].score_ms == 0.0
    assert found.held_out.systems[CANDIDATE].list_ms > 0.0
    assert "ranking 300 rows takes 3.00 ms" in verdict(GATE, replace(found, held_out=msgspec.structs.replace(
        found.held_out, questions=500)), version="new", against="old", judged_ms=1).reasons[-1]  # fmt: skip


@dataclass
class Knowing:
    """A trained source that knows the first ``count`` items and offers nothing."""

    count: int
    name: str = "item_knn"
    weight: float = 1.0
    reason: str = ""
    closed: bool = False

    def prepare(self, index: ItemIndex) -> None: ...

    def fetch(self, asked: Asked, index: ItemIndex) -> Offer:  # noqa: ARG002
        return Offer(NOTHING, "nothing")

    def score(
        self, asked: Asked, index: ItemIndex, items: npt.NDArray[np.int64], out: npt.NDArray[np.float32]  # noqa: ARG002
    ) -> None:  # fmt: skip
        out[:] = 0

    def knows(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return items <= self.count

    def close(self) -> None:
        self.closed = True


def test_the_vocabulary_is_that_of_the_items_asked_for(log: Written) -> None:
    model = by_column(PLAN, "co_sum")
    for count, share in ((0, 0.0), (10**6, 1.0)):
        found = tried(log, replace(model, sources=(Knowing(count),)), None)
        assert found.vocabulary == {"item_knn": share}


def test_without_a_question_there_is_no_figure(log: Written) -> None:
    last = log.log.last_offset
    found = try_out(log.log, PLAN, CONFIG, by_column(PLAN, "co_sum"), None, Stretch(last, last, 0), seed=1)
    assert found == Trial(None)
    report = verdict(GATE, found, version="new", against=None, judged_ms=1)
    assert report.passed
    assert "no positive event was held out" in report.notes[-1]
