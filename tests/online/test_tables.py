"""A served system loads its tables by itself, when rows are due, and serves what they say."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl

from headwater.evaluation.verify import verify
from headwater.features.plan import compile_plan
from headwater.log.lmdb import LmdbLog
from headwater.offline.tables.standing import read_standing
from tests.online.running import CONFIG, PATIENCE_S, Running, catalogue, publish_ranker

MODULE = """
from headwater.features.declare import table

features = [table("quality", "item", "quality", "score", max_age="1d", default=-1.0)]
"""
TABLES = """
[features]
module = "mine.py"

[[tables]]
name = "quality"
path = "quality*.parquet"
entity = "item"
key = "id"
valid_from = "at"
refresh = "200ms"
"""


def write(folder: Path, name: str, at_ms: int, score: float) -> None:
    rows = {"id": [f"item-{i}" for i in range(20)], "at": [at_ms] * 20, "score": [score + i for i in range(20)]}
    pl.DataFrame(rows).write_parquet(folder / f"{name}.part")
    (folder / f"{name}.part").rename(folder / f"{name}.parquet")


def wait_for(system: Running, newest_ms: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while (standing := read_standing(system.data).get("quality")) is None or standing.newest_ms != newest_ms:
        assert time.monotonic() < until, system.log_path.read_text()[-3000:]
        time.sleep(0.02)


def test_a_server_loads_its_tables_and_replay_agrees(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    system = Running(tmp_path, CONFIG + TABLES)
    publish_ranker(system.data, system.config, seed=1, created_ms=1)
    with system:
        assert len(system.pids("tables")) == 1
        system.ingest("/v1/items", catalogue(20))
        system.recommend(k=5)
        now_ms = time.time_ns() // 1_000_000
        write(tmp_path, "quality-1", now_ms - 60_000, 100.0)
        wait_for(system, now_ms - 60_000)
        system.kill("tables")
        soon_ms = time.time_ns() // 1_000_000 + 3_000
        write(tmp_path, "quality-2", soon_ms, 200.0)
        wait_for(system, soon_ms)
        loaded_ms = time.time_ns() // 1_000_000
        assert loaded_ms >= soon_ms
        log = LmdbLog(system.data / "log", readonly=True)
        offset = log.last_offset
        system.reflected(str(offset))
        for user in range(4):
            system.recommend(k=5, user=f"u{user}")
        assert system.stop() == 0
    plan = compile_plan(system.config)
    report = verify(log, plan)
    log.close()
    assert report.requests >= 5, report.skipped
    assert report.mismatched_bytes == 0
