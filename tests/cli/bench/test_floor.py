"""The floor computes what it says, the ratio is taken of it, and a site of any ranker can be configured."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from headwater.cli.bench.floor import ANSWER_BYTES, _bare, floor_at, http_ms, kernels
from headwater.cli.bench.floor_models import COLUMNS, LENGTH, SIZE, encoder, ranker
from headwater.cli.bench.measure import one_core
from headwater.cli.bench.population import ASKERS, write_askers, write_everybody
from headwater.cli.bench.schedule import Arrival, http_request
from headwater.cli.bench.serve import against_floor
from headwater.cli.bench.setups import RankerKind, tables_of
from headwater.cli.bench.tradeoffs import drawing, measured
from headwater.cli.bench.workload import Requests, Size
from headwater.cli.local import make_site, write_world
from headwater.log.archived import open_log
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind
from headwater.ranking.deep import session
from headwater.schema.config import load_config


def test_the_encoder_looks_at_the_order_of_what_came_before() -> None:
    model = session(encoder(), "the encoder")
    recent = np.random.default_rng(3).standard_normal((1, LENGTH, SIZE)).astype(np.float32)
    first = model.run(None, {"recent": recent})[0]
    assert first.shape == (1, SIZE)
    assert np.isfinite(first).all()
    assert not np.allclose(first, model.run(None, {"recent": recent[:, ::-1].copy()})[0], atol=1e-3)


def test_the_ranker_gives_each_row_its_own_score() -> None:
    model = session(ranker(8), "the ranker")
    rows = np.random.default_rng(3).standard_normal((8, COLUMNS)).astype(np.float32)
    scores = model.run(None, {"rows": rows})[0]
    assert scores.shape == (8, 1)
    assert len(np.unique(scores)) == 8
    assert np.allclose(model.run(None, {"rows": rows[::-1].copy()})[0][::-1], scores, atol=1e-6)


def test_each_part_of_the_floor_takes_time() -> None:
    found = kernels(5)
    assert set(found) == {"scan", "encoder", "ranker"}
    assert all(ms > 0.0 for ms in found.values()), found
    assert http_ms(None, 100) > 0.0


def test_the_floor_as_a_server_computes_all_of_it_for_each_request() -> None:
    calls = Mock()
    sent: list[dict[str, Any]] = []

    async def receive() -> None:
        calls.body()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    for _ in range(3):
        asyncio.run(_bare([calls.scan, calls.encoder, calls.ranker], {"path": "/v1/recommend"}, receive, send))
    assert [name for name, *_ in calls.method_calls] == 3 * ["body", "scan", "encoder", "ranker"]
    assert [len(message.get("body", b"")) for message in sent] == 3 * [0, ANSWER_BYTES]


def test_the_floor_as_a_server_is_measured_under_arrivals() -> None:
    raw = http_request("POST", "/v1/recommend", b"{}")
    found = floor_at(None, [Arrival(0.01 * n, "lists", raw) for n in range(50)])
    assert set(found) == {"cpu_ms", "p50_ms", "p99_ms"}
    assert all(ms is not None and ms > 0.0 for ms in found.values())


def test_the_ratio_is_taken_of_the_mean_of_both_floors() -> None:
    found = against_floor(4.0, [{"scan": 1.0, "http": 0.0, "all": 1.0}, {"scan": 2.0, "http": 1.0, "all": 3.0}])
    assert found["floor_ms"] == 2.0
    assert found["cpu_over_floor"] == 2.0
    assert found["floor_parts_ms"] == {"scan": 1.5, "http": 0.5}
    assert against_floor(4.0, [])["cpu_over_floor"] is None


def test_a_core_is_left_alone_meanwhile() -> None:
    before = os.sched_getaffinity(0)
    with one_core() as core:
        assert (core is None) == (len(before) < 2)
        assert os.sched_getaffinity(0) == before - {core}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("kind", list(RankerKind))
def test_a_site_ranks_as_it_is_told(tmp_path: Path, kind: RankerKind) -> None:
    config = load_config(make_site(tmp_path, tables_of(kind, 500, 300)).config)
    assert (config.ranker.kind, config.ranker.candidates) == (kind.value, 500)
    assert config.ranker.light_keep == (300 if kind is RankerKind.DEEP else 0)
    assert config.sources.sequence.enabled == (kind is RankerKind.DEEP)
    assert 6 * config.sources.covisit.width >= 500


def test_everybody_has_clicked_and_askers_often(tmp_path: Path) -> None:
    size = Size(seed=3, users=300, items=400, events=3_000, recent=5)
    world, site = size.world(), make_site(tmp_path, tables_of(RankerKind.NONE, 100, 100))
    before = write_everybody(site, world, size.seed)
    lately = write_askers(site, world, size.recent, size.seed)
    assert lately == 300 * 5
    log = LmdbLog(site.data / "log", readonly=True)
    block = log.read(0, 1_000_000)
    assert block is not None
    log.close()
    events = block.records[block.records["kind"] == Kind.EVENT]
    assert len(events) == before + lately
    clicks = np.bincount(events["user"])[1:]
    assert len(clicks) == 300
    assert clicks.min() > 5  # one at least beside those of lately
    assert (np.diff(block.records["received_ms"].astype(np.int64)) >= 0).all()
    some = Requests(world, 5, "tag", askers=True).recommend([0.0] * 50)
    assert all(b"user-" in arrival.raw or b"stranger-" in arrival.raw for arrival in some)
    assert ASKERS >= 1_000


def test_a_drawing_holds_every_point() -> None:
    curves = [
        {"ranker": kind, "candidates": count, "ndcg@10": 0.3 + 0.01 * n, "ci95": [0.29, 0.35], "p50_ms": 1.0 + n}
        for n, (kind, count) in enumerate([("none", 100), ("none", 200), ("deep", 100)])
    ]
    drawn = drawing(curves, 0.25)
    assert drawn.count("<circle") == 3
    assert drawn.count("<polyline") == 2
    assert "recent popularity" in drawn


def test_every_combination_answers_the_same_questions(tmp_path: Path) -> None:
    world = Size(seed=3, users=150, items=200, events=3_000).world()
    site = make_site(tmp_path, tables_of(RankerKind.NONE, 100, 100))
    write_world(site, world, lambda _: None)
    log = open_log(site.data)
    try:
        split_ms = world.end_ms - 6 * 3_600_000
        found = measured(load_config(site.config), log, ["none"], [50, 150], split_ms, 0.5, 1, 7)
    finally:
        log.close()
    assert found["n"] > 5
    assert [(each["ranker"], each["candidates"]) for each in found["curves"]] == [("none", 50), ("none", 150)]
    for each in (*found["curves"], found["recent_popularity"]):
        assert 0.0 <= each["ci95"][0] <= each["ndcg@10"] <= each["ci95"][1] <= 1.0
        assert 0.0 < each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"]
