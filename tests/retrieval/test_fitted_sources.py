"""The trained baselines keep the contract of fitted sources, and score as slow code does."""

from __future__ import annotations

import io

import numpy as np
import pytest

from headwater.features.layout import MAX_ITEMS, U_RECENT_LENGTH
from headwater.learning.fitting import FITTERS
from headwater.retrieval.fitted import OPENERS, SourceError, open_sources
from headwater.retrieval.latest import Latest, Recency
from headwater.retrieval.neighbours import NeighbourSettings, neighbour_files
from headwater.schema.config import Config, Features, FittedConfig, Sources
from headwater.testing.events import START_MS
from headwater.testing.source_contract import FittedSourceContract, taste_world
from tests.retrieval.worlds import MINUTE_MS, clicks, world


class TestItemKnn(FittedSourceContract):
    name = "item_knn"


class TestEase(FittedSourceContract):
    name = "ease"


class TestAls(FittedSourceContract):
    name = "als"


class TestNarrowEase(FittedSourceContract):
    """With offers cut short and a recent sequence that overflows."""

    name = "ease"
    config = Config(features=Features(recent=3), sources=Sources(ease=FittedConfig(enabled=True, width=2)))


def test_what_can_be_opened_can_be_trained() -> None:
    assert set(FITTERS) == set(OPENERS)


def test_recency_falls_by_place_and_by_pause() -> None:
    small = world(
        clicks(("me", "a"), at_ms=START_MS),
        clicks(("me", "b"), at_ms=START_MS + 60 * MINUTE_MS),
        clicks(("me", "c"), at_ms=START_MS + 61 * MINUTE_MS),
        clicks(("me", "b"), at_ms=START_MS + 62 * MINUTE_MS),
    )
    latest = Latest(small.plan.layout, Recency(depth=9, discount=0.5, gap_s=1_800, across=0.1))
    items, weights = latest.of(small.user("me"))
    assert items.tolist() == small.log.items("b", "c", "a")
    assert weights.tolist() == pytest.approx([1.0, 0.5, 0.025])
    shallow = Latest(small.plan.layout, Recency(depth=2, discount=0.5, gap_s=1_800, across=0.1))
    assert shallow.of(small.user("me"))[0].tolist() == small.log.items("b", "c")
    assert not len(shallow.of(small.user("nobody"))[0])


def test_neighbours_are_summed_as_by_hand() -> None:
    """Negative weights, sums that cancel out, partners of several items, items without partners."""
    config = Config(sources=Sources(ease=FittedConfig(enabled=True, width=50)))
    made = taste_world(config)
    count = made.view.table.count
    rng = np.random.default_rng(4)
    dense = np.where(rng.random((count, count)) < 0.4, rng.integers(-4, 5, (count, count)), 0).astype(np.float32)
    dense[0], dense[:, 0], dense[5] = 0.0, 0.0, 0.0
    rows, columns = np.nonzero(dense)
    starts = np.searchsorted(rows, np.arange(count + 1)).astype(np.int64)
    recency = Recency(depth=40, discount=0.5, gap_s=10, across=1.0)
    files = neighbour_files("ease", starts, columns.astype(np.int32), dense[rows, columns], recency)
    (source,) = open_sources(("ease",), files, config, made.plan)
    for person in range(20):
        asked = made.asked(f"p{person}")
        u4, layout = asked.user.u4, made.plan.layout
        recent = (u4[layout.recent_keys : layout.recent_keys + u4[U_RECENT_LENGTH]] & MAX_ITEMS).tolist()
        expected, seen = np.zeros(count), list(dict.fromkeys(reversed(recent)))
        for place, item in enumerate(seen):
            expected += 0.5**place * dense[item]
        out = np.zeros(count, np.float32)
        source.score(asked, made.view.index, np.arange(count), out)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        offered = source.fetch(asked, made.view.index).ranked
        assert set(offered.items.tolist()) == set(np.flatnonzero(expected > 1e-5).tolist())


def test_files_that_do_not_fit_together_are_refused() -> None:
    config = Config()
    plan = taste_world(config).plan
    recency = Recency(10, 0.5, 10, 1.0)
    starts = np.array([0, 0, 2, 3], np.int64)
    good = neighbour_files("item_knn", starts, np.array([2, 1, 1], np.int32), np.ones(3, np.float32), recency)
    open_sources(("item_knn",), good, config, plan)
    for part, wrong in (
        ("partners", np.array([2, 3, 1], np.int32)),
        ("partners", np.array([2, 0, 1], np.int32)),
        ("partners", np.array([2, 1], np.int32)),
        ("partners", np.array([2, 1, 1], np.int64)),
        ("starts", np.array([0, 0, 3, 2], np.int64)),
        ("starts", np.array([0, 1, 2, 3], np.int64)),
        ("weights", np.array([1.0, np.nan, 1.0], np.float32)),
        ("weights", np.ones((3, 1), np.float32)),
    ):
        out = io.BytesIO()
        np.save(out, wrong)
        with pytest.raises(SourceError):
            open_sources(("item_knn",), {**good, f"item_knn_{part}.npy": out.getvalue()}, config, plan)
    assert NeighbourSettings(3, *recency).items == 3
