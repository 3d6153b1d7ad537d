"""Lists about items, lists of the caller's own candidates, and pages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.features.layout import U_RECENT_LENGTH
from headwater.log.commands import PutItems
from headwater.online.cursor import next_cursor, shown_before
from headwater.online.errors import RefusalError
from headwater.schema.config import Config
from headwater.schema.items import Item
from headwater.schema.requests import MAX_PAGED
from headwater.schema.surfaces import Surface
from headwater.serving.lists import LastLists
from headwater.serving.pipeline import Conditions, Pipeline
from headwater.serving.request import Answer, Query
from headwater.serving.stages import TIER_FULL, TIER_LAST
from headwater.testing.events import START_MS, Step
from tests.retrieval.worlds import World, clicks, many, world
from tests.serving.rankers import by_column, failing
from tests.serving.test_pipeline import CONFIG, NO_DEADLINE_MS

BECAUSE = Config(
    features=CONFIG.features,
    surfaces=(Surface(name="home"), Surface(name="because", about="latest"), Surface(name="cart")),
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def small() -> World:
    put = PutItems([Item(id=f"i{n}", categories=[f"c{n % 3}"]) for n in range(30)])
    pairs = [(f"x{n}", item) for n in range(6) for item in ("i1", "i4")]
    others = [(f"y{n}", item) for n in range(6) for item in ("i2", "i5")]
    return world(
        Step(START_MS, put), clicks(*pairs, *others, *many("i9", 20, "z"), ("me", "i2"), ("me", "i1")), config=BECAUSE
    )


def recommend(small: World, pipeline: Pipeline | None = None, **query: object) -> Answer:
    made = pipeline or Pipeline(BECAUSE, small.plan)
    given = {"request_id": "r", "deadline_ms": NO_DEADLINE_MS, **query}
    return made.recommend(Query(**given), small.view, by_column(small.plan, "co_last"), small.now_ms)  # type: ignore[arg-type]


def items(small: World, *names: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([small.log.item(name) for name in names], np.int64)


def names(small: World, answer: Answer) -> list[str]:
    return small.log.names(answer.items.tolist())


# -- about -------------------------------------------------------------------------------------------------


def test_because_is_about_the_item_that_the_user_turned_to_last(small: World) -> None:
    answer = recommend(small, user=small.log.user("me"), surface="because", k=5)
    assert answer.context[2] == small.log.item("i1")
    assert names(small, answer)[0] == "i4"
    assert "i1" not in names(small, answer)
    asked = recommend(small, user=small.log.user("me"), surface="because", k=5, anchor=small.log.item("i2"))
    assert names(small, asked)[0] == "i5", "the request's own item comes first"
    stranger = recommend(small, surface="because", k=5)
    assert stranger.context[2] == 0
    assert len(stranger.items) == 5
    assert stranger.degraded[0] == ("about nothing: this user has turned to no item yet")


def test_a_cart_is_about_all_of_its_items(small: World) -> None:
    first, second = items(small, "i1", "i2").tolist()
    both = recommend(small, surface="cart", k=5, anchor=second, before=(first,))
    assert set(names(small, both)) >= {"i4", "i5"}
    assert not {"i1", "i2"} & set(names(small, both))
    assert both.context[2:] == [second, 0, first]
    only = recommend(small, surface="cart", k=28, anchor=second)
    covisited = {name for name, source in zip(names(small, only), only.sources, strict=True) if source == "covisit"}
    assert "i5" in covisited
    assert "i4" not in covisited


def test_anchors_are_the_whole_recent_sequence(small: World) -> None:
    pipeline = Pipeline(BECAUSE, small.plan)
    recommend(small, pipeline, user=small.log.user("me"), surface="cart", k=3, anchor=7, before=(5, 6))
    start = small.plan.layout.recent_keys
    assert pipeline.user.u4[start : start + 3].tolist() == [5, 6, 7]
    assert pipeline.user.u4[U_RECENT_LENGTH] == 3


# -- candidates --------------------------------------------------------------------------------------------


def test_the_callers_candidates_are_ranked_and_nothing_is_added(small: World) -> None:
    mine = items(small, "i7", "i2", "i4", "i7", "i8", "i1")
    answer = recommend(small, user=small.log.user("me"), k=20, candidates=mine, exclude=items(small, "i8"))
    assert sorted(names(small, answer)) == ["i1", "i2", "i4", "i7"], "seen ones stay, excluded ones do not, each once"
    assert names(small, answer)[0] == "i4"
    assert set(answer.sources) == {"given"}
    assert answer.tier == TIER_FULL
    assert answer.widths == {"given": 6}
    assert answer.trace["fetch"].outcome == "skipped"
    hidden = small.add(Step(small.now_ms, PutItems([Item(id="i4", available=False)])))
    assert "i4" not in names(hidden, recommend(hidden, k=20, candidates=mine))
    assert len(recommend(small, k=20, candidates=items(small)).items) == 0


def test_without_a_ranker_it_is_the_callers_order(small: World) -> None:
    mine = items(small, "i7", "i2", "i9", "i3")
    pipeline = Pipeline(BECAUSE, small.plan)
    query = Query("r", k=3, candidates=mine, deadline_ms=NO_DEADLINE_MS)
    failed = pipeline.recommend(query, small.view, failing(small.plan), small.now_ms)
    assert names(small, failed) == ["i7", "i2", "i9"]
    assert failed.tier > TIER_FULL
    late = pipeline.fallback(query, small.view, None, small.now_ms, "a defect")
    assert names(small, late) == ["i7", "i2", "i9"]
    assert late.tier == TIER_LAST


# -- pages -------------------------------------------------------------------------------------------------


def test_pages_show_everything_once(small: World) -> None:
    shown: list[int] = []
    cursor: str | None = None
    for _ in range(5):
        before = shown_before(cursor)
        assert before.tolist() == shown
        answer = recommend(small, user=small.log.user("me"), k=7, exclude=before, paged=cursor is not None)
        shown += answer.items.tolist()
        cursor = next_cursor(before, answer.items)
    assert len(shown) == len(set(shown)) == 28, "30 items less the two that the user has seen"


@pytest.mark.parametrize("wrong", ["A", "AAAA", "AAAAA", "_____w", "A" * (6 * MAX_PAGED)])
def test_what_is_no_cursor_is_refused(wrong: str) -> None:
    with pytest.raises(RefusalError, match="Not a cursor") as refused:
        shown_before(wrong)
    assert (refused.value.status, refused.value.field) == (400, "cursor")


def test_a_cursor_ends_when_it_holds_all_it_can() -> None:
    assert next_cursor(np.arange(1, MAX_PAGED), np.array([MAX_PAGED])) is not None
    assert next_cursor(np.arange(1, MAX_PAGED), np.array([MAX_PAGED, MAX_PAGED + 1])) is None


def test_only_a_first_page_of_the_sources_is_kept_as_the_last_good_list(small: World) -> None:
    kept = LastLists()
    pipeline = Pipeline(BECAUSE, small.plan, conditions=Conditions(lists=kept))
    for query in ({"candidates": items(small, "i3")}, {"paged": True}, {"anchor": 3, "before": (4,)}):
        recommend(small, pipeline, k=3, **query)
    assert len(kept) == 0
    recommend(small, pipeline, k=3)
    assert len(kept) == 1
