"""Lists and their age, ties, growth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headwater.features.fold import Fold
from headwater.features.plan import compile_plan
from headwater.features.rows import ItemTable
from headwater.features.state import LmdbState
from headwater.log.commands import PutItems
from headwater.retrieval.index import ItemIndex, best
from headwater.schema.config import Config
from headwater.schema.items import Item
from headwater.serving.view import FoldView, LiveView
from headwater.testing.events import START_MS, Step, Written
from tests.features.states import STABLE
from tests.retrieval.worlds import clicks, many, world

SCORES = hnp.arrays(np.float32, st.integers(0, 40), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0]))


@STABLE
@given(scores=SCORES, count=st.integers(0, 50))
def test_best_are_the_highest_and_ties_go_to_the_lower_number(scores: npt.NDArray[np.float32], count: int) -> None:
    ranked = best(scores, count)
    expected = sorted((i for i in range(len(scores)) if scores[i] > 0), key=lambda i: (-scores[i], i))[:count]
    assert ranked.items.tolist() == expected
    assert ranked.scores.tolist() == [scores[i] for i in expected]
    assert (ranked.items.dtype.name, ranked.scores.dtype.name) == ("int64", "float32")


def test_the_best_do_not_depend_on_what_stands_behind_them() -> None:
    """Tables of one content and two sizes give one list, ties and all."""
    scores = np.ones(3_000, np.float32)
    scores[::7] = 2.0
    padded = np.concatenate([scores, np.zeros(1_111, np.float32)])
    assert best(scores, 900).items.tolist() == best(padded, 900).items.tolist()


def test_a_list_is_kept_for_its_time() -> None:
    small = world(clicks(*many("a", 3)))
    index, now_ms = ItemIndex(small.plan, small.fold.items), small.now_ms
    first = index.popular(1, 10, now_ms)
    small.add(clicks(*many("b", 9), at_ms=now_ms))
    index.update(None)
    assert index.popular(1, 10, now_ms + 999) is first
    assert index.popular(1, 11, now_ms + 999) is not first, "another width is another list"
    assert small.names(index.popular(1, 10, now_ms + 1_000)) == ["b", "a"]
    assert small.names(index.popular(1, 10, now_ms)) == ["b", "a"]


def test_a_clock_that_goes_back_makes_the_list_anew() -> None:
    small = world(clicks(*many("a", 3)))
    index = ItemIndex(small.plan, small.fold.items)
    later = index.popular(1, 10, small.now_ms + 60_000)
    assert index.popular(1, 10, small.now_ms) is not later


def test_lists_are_longer_than_their_width_so_that_what_was_seen_can_be_skipped() -> None:
    small = world(clicks(*[(f"u{n}", f"i{n}") for n in range(30)]))
    assert len(small.view.index.popular(1, 5, small.now_ms)) == 20


@pytest.mark.parametrize("items", [10, 1_100, 5_000])
def test_the_index_grows_with_the_table(items: int) -> None:
    small = world(Step(START_MS, PutItems([Item(id="first", categories=["c"])])))
    before = small.view.index.content[1].copy()
    small.add(Step(START_MS, PutItems([Item(id=f"i{n}", categories=["c"]) for n in range(items)])))
    index = small.view.index
    assert index.content_items == items + 1
    assert len(index.content) == len(index.has_content) == len(small.fold.items.dirty)
    assert (index.content[1] == before).all()
    assert (index.content[items + 1] == before).all()


def test_an_index_by_changes_equals_one_made_anew() -> None:
    small = world()
    rng = np.random.default_rng(3)
    for k in range(30):
        put = [
            Item(id=f"i{rng.integers(40)}", categories=[f"c{rng.integers(5)}"] if rng.random() < 0.7 else [])
            for _ in range(5)
        ]
        small.add(Step(START_MS + k, PutItems(put)))
    anew = ItemIndex(small.plan, small.fold.items)
    count = small.fold.items.count
    assert small.view.index.content_items == anew.content_items == int(anew.has_content.sum())
    assert (small.view.index.has_content[:count] == anew.has_content[:count]).all()
    has = np.flatnonzero(anew.has_content)
    assert (small.view.index.content[has] == anew.content[has]).all()


def test_a_live_view_moves_on_with_the_epochs(tmp_path: Path) -> None:
    config = Config()
    plan = compile_plan(config)
    state = LmdbState(tmp_path / "state", plan, writable=True)
    fold, log = Fold(plan, state), Written(config)
    live = LiveView(plan, state)
    assert (live.item_offset, live.refresh()) == (0, False)
    log.add([Step(START_MS, PutItems([Item(id="a", categories=["c"])])), clicks(("u", "a"))])
    for block in log.blocks():
        fold.apply(block)
    fold.commit(epoch=False)
    assert not live.refresh()
    assert live.table.count == 1
    fold.commit(epoch=True)
    assert live.refresh()
    assert live.item_offset == log.log.last_offset
    assert live.index.content_items == 1
    memory = FoldView(plan, fold)
    assert (
        live.index.popular(0, 5, START_MS).items.tolist() == memory.index.popular(0, 5, START_MS).items.tolist() == [1]
    )
    state.close()


def test_an_empty_table_has_empty_lists() -> None:
    plan = world().plan
    index = ItemIndex(plan, ItemTable(plan.layout, capacity=1))
    assert len(index.popular(0, 5, 0)) == len(index.fresh(1, 5, 0)) == len(index.popular_in_segment(0, 1, 5, 0)) == 0
