"""What is counted of an answer, and how far behind the log a worker is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np

from headwater.log.batch import events_to_batch
from headwater.log.commands import ServedEntry
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.writer import LogWriter
from headwater.online.counting import BATCH, AnswerCounts, explored_places
from headwater.online.freshness import EVERY_S, Freshness
from headwater.online.metrics import Metrics
from headwater.online.recommender import Asked
from headwater.schema.events import Event
from headwater.schema.feed import Position
from headwater.schema.items import Item
from headwater.schema.requests import Address, Explored, Promised
from headwater.serving.request import Answer, Query
from headwater.serving.run import Lap
from headwater.serving.scorer import ThreadScorer
from headwater.serving.view import View

NONE = np.zeros((0, 0), np.float32)
ANSWER = Answer(
    np.array([7, 3, 5]), np.zeros(3, np.float32), ["a"] * 3, [""] * 3, np.zeros(3, np.int64), 1, [], Address(1, 1, 1, "plan", "b1"),
    NONE, NONE, [], {"fetch": Lap(2.0, 80, "shortened"), "assemble": Lap(1.0, 80), "deep_rank": Lap(0.0, 0, "skipped")},
    {"popular": 80, "covisit": 0, "fresh": 0, "content": 0}, missed={"fresh": "failed", "content": "skipped"}, rules={"pin": 2}, walked=1,
)  # fmt: skip
DRAWN = Explored([0.0] * 3, candidates=[7, 5, 9, 3], temperature=0.2, share=0.1)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"headwater_{name}", labels)


def test_an_answer_is_counted_with_all_that_it_says() -> None:
    metrics, scorer = Metrics(), cast(ThreadScorer, SimpleNamespace(stalls=2))
    counts = AnswerCounts(metrics, scorer)
    asked = cast(Asked, SimpleNamespace(query=Query("r", surface="cart")))
    for _ in range(2):
        counts.count(asked, replace(ANSWER, explored=DRAWN))
    counts.log(0.001)
    assert value(metrics, "answers_total", tier="1", surface="cart") is None, "it is gathered"
    metrics.flush()
    assert value(metrics, "answers_total", tier="1", surface="cart") == 2.0
    assert value(metrics, "answer_seconds_sum", tier="1") == 0.006
    assert value(metrics, "stage_seconds_count", stage="fetch") == 2.0
    assert value(metrics, "stage_seconds_count", stage="log") == 1.0
    assert value(metrics, "stage_seconds_count", stage="deep_rank") is None
    assert value(metrics, "stage_items_total", stage="assemble") == 160.0
    assert value(metrics, "stage_outcomes_total", stage="deep_rank", outcome="skipped") == 2.0
    assert value(metrics, "stage_outcomes_total", stage="fetch", outcome="shortened") == 2.0
    assert value(metrics, "source_candidates_total", source="popular") == 160.0
    for source, outcome in (("covisit", "empty"), ("fresh", "failed"), ("content", "skipped")):
        assert value(metrics, "source_outcomes_total", source=source, outcome=outcome) == 2.0
    assert value(metrics, "rule_items_total", rule="pin") == 4.0
    assert value(metrics, "walked_total", tier="1") == 2.0
    assert value(metrics, "explored_places_total", surface="cart") == 2.0
    assert value(metrics, "ranker_stalls_total") == 2.0


def test_answers_do_not_wait_without_end() -> None:
    metrics = Metrics()
    counts = AnswerCounts(metrics, cast(ThreadScorer, SimpleNamespace(stalls=0)))
    asked = cast(Asked, SimpleNamespace(query=Query("r")))
    for _ in range(BATCH + 1):
        counts.count(asked, ANSWER)
    assert metrics.tiers["1", "home"] == BATCH
    metrics.flush()
    assert value(metrics, "answers_total", tier="1", surface="home") == BATCH + 1


def test_what_a_list_drawn_by_lot_spends() -> None:
    assert explored_places(ANSWER.items, DRAWN, None) == 1, "item 3 is drawn and is not among the best three"
    assert explored_places(ANSWER.items, drawn_from([5, 7, 3]), None) == 0, "another order of the best"
    assert explored_places(ANSWER.items, drawn_from([7, 5, 9]), None) == 0, "item 3 was placed by a rule"
    promised = Promised([1], [0.5], [True], [0.0])
    assert explored_places(ANSWER.items, DRAWN, promised) == 0, "item 3 stands there by its promise"


def drawn_from(candidates: list[int]) -> Explored:
    return Explored([0.0] * 3, candidates=candidates, temperature=0.2, share=0.1)


def test_how_far_behind_the_log_a_worker_is() -> None:
    now_ms, seconds = [1_000], [0.0]
    log = MemoryLog()
    writer = LogWriter(log, MemoryIdentity(), clock=lambda: now_ms[0])
    writer.put_items([Item(id="i", categories=["c"])])
    writer.append_events(events_to_batch([Event(user="u", item="i", type="click")], ()))
    start = log.last_offset
    view = SimpleNamespace(item_offset=start)
    metrics = Metrics()
    fresh = Freshness(metrics, log, cast(View, view), ["click"], clock=lambda: now_ms[0], seconds=lambda: seconds[0])
    fresh.heard(Position(start, 0, 0))
    fresh.tell(0)

    def staleness(entity: str) -> float | None:
        return value(metrics, "feature_staleness_seconds", entity=entity)

    assert (staleness("user"), staleness("item")) == (0.0, 0.0)
    now_ms[0] = 2_000
    writer.append_served([ServedEntry(1, 1, b"payload")])  # no item changes with it
    now_ms[0] = 3_000
    writer.append_events(events_to_batch([Event(user="u", item="i", type="click")], ()))
    now_ms[0] = 3_500
    fresh.tell(log.last_offset - start)
    assert (staleness("user"), staleness("item")) == (1.5, 0.5)
    assert value(metrics, "fold_lag_records") == 2.0

    seconds[0] = EVERY_S
    fresh.heard(Position(start + 2, 1, start + 2))
    fresh.heard(Position(start + 2, 1, start + 2))  # nothing new in it
    assert value(metrics, "event_to_recommendation_seconds_count") == 1.0
    assert value(metrics, "event_to_recommendation_seconds_sum") == 1.5
    writer.append_events(events_to_batch([Event(user="u", item="i", type="click")], ()))
    fresh.heard(Position(start + 3, 1, start + 2))
    assert value(metrics, "event_to_recommendation_seconds_count") == 1.0, "one in a tenth of a second is timed"
    fresh.tell(0)
    view.item_offset = log.last_offset
    fresh.tell(0)
    assert (staleness("user"), staleness("item")) == (0.0, 0.0)
    for _ in range(3):  # lists alone make no item column stale, and what comes behind them does
        writer.append_served([ServedEntry(1, 1, b"payload")])
        fresh.tell(0)
        assert staleness("item") == 0.0
    writer.put_items([Item(id="i", categories=["other"])])
    now_ms[0] += 700
    for _ in range(2):
        fresh.tell(0)
        assert staleness("item") == 0.7
