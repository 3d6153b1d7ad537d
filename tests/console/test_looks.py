"""What pages are made of: maps of vectors, distributions, titles, charts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.console.desk import _templates as environment
from headwater.console.drifts import DRIFTED, PSI, PSI_NULL, SKEW_CHECKED, Drift, read_drifts, read_psi
from headwater.console.pages.catalogue_map import COLOURS, scatter
from headwater.console.pages.features import histogram, over_time
from headwater.console.pages.items import _fields
from headwater.console.sessions import Visitor
from headwater.features.plan import compile_plan
from headwater.log.batch import ItemRecord
from headwater.log.identity import LmdbIdentity
from headwater.monitoring.history import HISTORY_FILE, History
from headwater.monitoring.samples import sample
from headwater.online.console_features import BINS, described, distribution
from headwater.online.console_items import Titles
from headwater.online.console_map import projected
from headwater.schema.config import Config
from headwater.schema.items import Item
from headwater.schema.keys import Scope
from headwater.schema.looks import CatalogueMap, ItemPromise, ItemState, MapPoint


def _run(looking: Coroutine[Any, Any, None]) -> None:
    """In a thread: where a browser was opened before, this one has a loop already."""
    with ThreadPoolExecutor(1) as apart:
        apart.submit(asyncio.run, looking).result()


def test_the_map_is_the_first_two_principal_components() -> None:
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(500, 6)) * [9, 5, 1, 1, 0.5, 0.1] + 7).astype(np.float32)
    exact = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(exact, full_matrices=False)
    found = projected(vectors)
    for axis in range(2):
        assert np.abs(found.places[:, axis]) == pytest.approx(np.abs(left[:, axis] * sizes[axis]), rel=1e-3, abs=1e-3)
    assert found.kept == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), rel=1e-4)
    assert np.array_equal(found.places, projected(vectors).places)


def test_maps_of_little() -> None:
    assert projected(np.zeros((0, 4), np.float32)).places.shape == (0, 2)
    assert projected(np.ones((3, 4), np.float32)).kept == 0.0
    assert projected(np.arange(5, dtype=np.float32)[:, None]).places.shape == (5, 2)


def test_categories_beyond_the_largest_share_a_colour_and_points_lead_to_items() -> None:
    points = [
        MapPoint(float(number), 0.0, f"a/{group}?", f"title {group}", f"topic {group:02d}")
        for group in range(COLOURS + 3)
        for number in range(COLOURS + 3 - group)
    ]
    drawn = scatter(
        CatalogueMap(of="content", items=len(points), points=[*points, MapPoint(0, 0, "x", "", "")], kept=0.5)
    )
    names = [series["name"] for series in drawn["series"]]
    assert names == [*(f"topic {group:02d}" for group in range(COLOURS)), "other"]
    assert sum(len(series["data"]) for series in drawn["series"]) == len(points) + 1
    assert drawn["series"][0]["data"][0]["href"] == "/console/items/a/0%3F"
    assert len({series["itemStyle"]["color"] for series in drawn["series"]}) == COLOURS + 1
    assert "empty" in scatter(CatalogueMap(of="content", items=0, points=[], kept=0.0))


def test_a_distribution_counts_every_row_and_knows_what_is_missing() -> None:
    values = np.array([0.0] * 25 + list(range(1, 76)), np.float32)
    found = distribution(values, 0.0)
    assert (found.count, found.missing, sum(found.counts)) == (100, 0.25, 100)
    assert found.mean == pytest.approx(values.mean())
    assert found.quantiles["0.5"] == pytest.approx(np.quantile(values, 0.5))
    assert len(found.edges) == BINS + 1 == len(found.counts) + 1
    same = distribution(np.full(9, 2.0, np.float32), 0.0)
    assert (sum(same.counts), same.missing) == (9, 0.0)
    rare = distribution(np.array([0.0] * 999 + [5.0], np.float32), 0.0)  # the percentiles are the same number
    assert (rare.edges[-1], rare.counts[-1]) == (5.0, 1)
    assert len(histogram(rare, "events")["xAxis"]["data"]) == BINS


def test_features_are_told_as_the_command_tells_them() -> None:
    plan = compile_plan(Config())
    columns = {column.name: column for column in described(plan)}
    assert tuple(columns) == plan.columns
    affinity = columns["affinity"]
    assert (affinity.entity, affinity.kind, affinity.item_bytes) == ("user × item", "affinities", 0)
    assert affinity.user_bytes > 0
    assert "half-life 3d" in columns["item_click_rate"].formula


def test_titles_are_read_once_and_again_when_they_are_old() -> None:
    names = ["", *(f"item-{number}" for number in range(1, 6))]
    read: list[int] = []
    now = [0.0]

    def record(item: int) -> ItemRecord | None:
        read.append(item)
        return None if item == 5 else ItemRecord(Item(id=names[item], title=f"Title {item} of {now[0]:g}"), [], [])

    async def look() -> None:
        titles = Titles(record, lambda: now[0])
        await titles.follow(names, 4)
        assert read == [1, 2, 3]
        assert np.flatnonzero(titles.found("TITLE 2", 6)).tolist() == [2]
        assert np.flatnonzero(titles.found("item-", 6)).tolist() == [1, 2, 3]  # the others were not read yet
        await titles.follow(names, 6)
        assert read == [1, 2, 3, 4, 5]
        assert np.flatnonzero(titles.found("item-5", 6)).tolist() == [5]
        await titles.follow(names, 6)
        assert len(read) == 5
        now[0] = 1_000.0
        await titles.follow(names, 6)
        await asyncio.sleep(0)
        assert len(read) == 10
        assert titles.found("of 1000", 6).sum() == 4

    _run(look())


def test_a_store_that_is_away_is_asked_again() -> None:
    away = [True]

    def record(_: int) -> ItemRecord | None:
        if away[0]:
            raise ConnectionError("away")
        return None

    async def look() -> None:
        titles = Titles(record)
        await titles.follow(["", "a"], 2)
        assert len(titles) == 0
        away[0] = False
        await titles.follow(["", "a"], 2)
        assert len(titles) == 1

    _run(look())


def test_drifts_come_from_the_history_or_it_is_said_why_not(tmp_path: Path) -> None:
    assert "no history yet" in read_drifts(tmp_path).why_none
    assert "empty" in over_time(read_psi(tmp_path, "a", 0, 9_000))
    history = History(tmp_path / HISTORY_FILE)
    assert "compared no features" in read_drifts(tmp_path).why_none
    for time_ms, psi in ((5_000, 0.1), (6_000, 0.4)):
        found = [sample(PSI, psi, feature="a"), sample(PSI_NULL, 0.05, feature="a"), sample(DRIFTED, 1.0, feature="a")]
        history.append(time_ms, [*found, sample(PSI, 0.0, feature="b"), sample(SKEW_CHECKED, 9.0)])
    history.close()
    drifts = read_drifts(tmp_path)
    assert (drifts.taken_ms, drifts.why_none) == (6_000, "")
    assert drifts.get("a") == Drift(psi=0.4, null=0.05, drifted=True, skew=0.0)
    assert drifts.get("b") == Drift(psi=0.0, skew=0.0)
    assert drifts.get("c") == Drift()
    drawn = over_time(read_psi(tmp_path, "a", 0, 9_000))
    assert {series["name"]: series["data"] for series in drawn["series"]} == {
        "PSI": [[5_000, 0.1], [6_000, 0.4]],
        "chance": [[5_000, 0.05], [6_000, 0.05]],
    }


def test_a_user_is_found_by_the_number_that_history_knows(tmp_path: Path) -> None:
    identity = LmdbIdentity(tmp_path / "identity")
    identity.assign(["ann", "bob"])
    ann = identity.lookup("ann")
    assert ann is not None
    assert identity.with_surrogate(ann.surrogate) == ann
    assert identity.with_surrogate(ann.surrogate ^ 1) is None
    identity.begin_erasure(["ann"])
    identity.finish_erasure()
    assert identity.with_surrogate(ann.surrogate) is None
    identity.close()


def _item(may_change: bool) -> str:
    """The head of an item's page as somebody sees it who may change things, or may not."""
    record = Item(id="a/b", title="<b>bold</b>", categories=["topic"], attributes={"maker": "x & y"})
    state = ItemState(
        item="a/b", number=1, record=record, status="shown", born_ms=0, last_ms=0, offset=5, readings=[],
        promise=ItemPromise(state="behind", shown=3, liked=1, impressions=50, until_ms=9_000),
    )  # fmt: skip
    scopes = frozenset({Scope.READ, Scope.ADMIN} if may_change else {Scope.READ})
    template = environment().get_template("item_head.html")
    return template.render(
        visitor=Visitor("key:1", "somebody", scopes, "token"), item="a/b", state=state, problem="", fields={"maker": "x & y"}, now_ms=10
    )  # fmt: skip


def test_an_attribute_may_be_called_as_a_field_is() -> None:
    record = Item(id="a", published=1_000, attributes={"published": "soon", "expires": 1e300, "maker": "x"})
    state = ItemState(
        item="a", number=1, record=record, status="shown", born_ms=0, last_ms=0, offset=5, readings=[], promise=None
    )
    fields = _fields(state)
    assert fields == {
        "published": 1_000, "attributes.published": "soon", "attributes.expires": 1e300, "maker": "x",
    }  # fmt: skip
    html = environment().get_template("item_head.html").render(
        visitor=Visitor("key:1", "x", frozenset(Scope), "token"), item="a", state=state, problem="", fields=fields, now_ms=10
    )  # fmt: skip
    assert "1970-01-01 00:00:01" in html
    assert "soon" in html


def test_who_may_only_look_is_offered_no_change_and_texts_are_escaped() -> None:
    looks, changes = _item(False), _item(True)
    assert "data-opens" not in looks
    assert "<form" not in looks
    assert {"item-hide", "item-delete"} <= set(re.findall(r'data-opens="([^"]+)"', changes))
    for html in (looks, changes):
        assert "<b>bold</b>" not in html
        assert "x &amp; y" in html
        assert "3 of 50 impressions" in html
