"""Retention: what leaves the log is in the lake, what leaves the lake is in the states, or somebody insisted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headwater.features.fold import Fold
from headwater.features.paths import state_dir
from headwater.features.plan import compile_plan
from headwater.features.recovery import open_state
from headwater.features.replay import fold_to
from headwater.log.archived import open_log
from headwater.log.lake import LakeLog, lake_dir
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import TrimmedError
from headwater.log.socket import SyncWriterClient
from headwater.offline.archive import Archiver
from headwater.offline.retain import NotCoveredError, RetainReport, retain
from headwater.schema.config import Config
from headwater.schema.stores import Log
from tests.offline.sites import CONFIG, DAY_MS, Clock, fill, folded, records_of, writer_of

SETTINGS = Config(log=Log(map_size_gib=1.0, dedup_window=1_000))
HOUR_MS = 3_600_000


def archive(data: Path) -> int:
    archiver = Archiver(data, commit_bytes=40_000)
    report = archiver.run()
    archiver.close()
    return report.last_offset


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def data(tmp_path: Path, clock: Clock) -> Path:
    """Some 5,000 records of four days."""
    with writer_of(tmp_path, clock) as writer:
        fill(writer, clock, commits=700, seed=1, step_ms=4 * DAY_MS // 700)
    return tmp_path


def kept(data: Path, clock: Clock, *, log: int | None, lake: int | None = None, force: bool = False) -> RetainReport:
    return retain(data, SETTINGS, log_ms=log, lake_ms=lake, now_ms=clock.now_ms, force=force)


def test_nothing_leaves_the_log_that_is_nowhere_else(data: Path, clock: Clock) -> None:
    report = kept(data, clock, log=DAY_MS)
    assert (report.log_removed, report.first_offset, report.lake_files_removed) == (0, 1, 0)
    assert report.held_by == "the archive stands at offset 0"


def test_the_log_keeps_what_is_young_and_the_dedup_window(data: Path, clock: Clock, tmp_path: Path) -> None:
    before = open_log(data)
    whole = records_of(before)
    before.close()
    archive(data)
    report = kept(data, clock, log=2 * DAY_MS)
    assert report.log_removed > 1_500
    assert (report.held_by, report.first_offset) == ("", 1)
    log = LmdbLog(data / "log", readonly=True)
    assert log.first_offset == report.log_removed + 1 == report.log_first_offset
    oldest = log.read(log.first_offset - 1, 1)
    assert oldest is not None
    assert clock.now_ms - 2 * DAY_MS - HOUR_MS < int(oldest.records["received_ms"][0]) <= clock.now_ms
    log.close()
    assert kept(data, clock, log=2 * DAY_MS).log_removed == 0
    more = kept(data, clock, log=HOUR_MS)
    assert more.held_by.startswith("the dedup window")
    after = open_log(data)
    assert after.last_offset - 2_000 <= more.log_first_offset - 1 + 20
    assert records_of(after) == whole
    after.close()


def test_no_state_misses_a_record(data: Path, clock: Clock) -> None:
    """A fold that lags holds back the log; once it caught up, the log is trimmed behind it."""
    archive(data)
    plan = compile_plan(CONFIG)
    log = open_log(data)
    state = open_state(state_dir(data, plan.hash), plan, log)
    fold = Fold(plan, state)
    fold_to(log, fold, 600)
    fold.commit(epoch=True)
    state.close()
    log.close()
    report = kept(data, clock, log=2 * DAY_MS)
    assert report.held_by == f"the state {plan.hash} stands at offset 600"
    assert report.log_first_offset <= 601
    trimmed = LmdbLog(data / "log", readonly=True)  # LMDB alone is enough for it
    state = open_state(state_dir(data, plan.hash), plan, trimmed)
    fold = Fold(plan, state)
    assert fold.offset == 600
    fold_to(trimmed, fold, trimmed.last_offset)
    fold.commit(epoch=True)
    state.close()
    trimmed.close()
    assert kept(data, clock, log=2 * DAY_MS).log_removed > 1_000


SERVE = """
import asyncio, sys
from pathlib import Path
from headwater.log.socket import serve_writer
from headwater.log.writer import open_writer
data = Path(sys.argv[1])
writer = open_writer(data, map_size=1 << 30, dedup_window=1_000)
asyncio.run(serve_writer(writer, data / "run" / "writer.sock", stop=asyncio.Event()))
"""


def test_through_a_running_writer(data: Path, clock: Clock) -> None:
    archive(data)
    before = open_log(data)
    whole = records_of(before)
    before.close()
    with subprocess.Popen([sys.executable, "-c", SERVE, str(data)], stdout=subprocess.DEVNULL) as process:
        try:
            with SyncWriterClient(data / "run" / "writer.sock", connect_timeout_s=30.0) as client:
                client.ping()
                assert kept(data, clock, log=2 * DAY_MS).log_removed > 1_500
                assert client.trim_log(10**9).accepted > 0  # whatever it is asked, it keeps what it needs
                assert client.trim_log(10**9).accepted == 0
        finally:
            process.terminate()
            process.wait(30)
    log = open_log(data)
    first = LmdbLog(data / "log", readonly=True).first_offset
    assert log.last_offset - 2_020 <= first <= log.last_offset - 1_999
    assert records_of(log) == whole
    log.close()


def test_the_lake_lets_go_of_what_is_folded(data: Path, clock: Clock, tmp_path: Path) -> None:
    archive(data)
    files = len(LakeLog(lake_dir(data)).files)
    kept(data, clock, log=DAY_MS)
    with pytest.raises(NotCoveredError, match=r"there is no state at all.*--force"):
        kept(data, clock, log=None, lake=2 * DAY_MS)
    assert len(LakeLog(lake_dir(data)).files) == files
    log = open_log(data)
    plan = compile_plan(CONFIG)
    rows = folded(log, state_dir(data, plan.hash), 300)
    log.close()
    with pytest.raises(NotCoveredError, match=f"{plan.hash} at offset 300"):
        kept(data, clock, log=None, lake=2 * DAY_MS)
    log = open_log(data)
    state = open_state(state_dir(data, plan.hash), plan, log)
    fold = Fold(plan, state)
    fold_to(log, fold, log.last_offset)
    fold.commit(epoch=True)
    state.close()
    assert rows
    whole = records_of(log)
    log.close()
    report = kept(data, clock, log=None, lake=2 * DAY_MS)
    assert report.lake_files_removed > 0
    assert report.lake_removed == report.first_offset - 1 > 0
    assert any(plan.hash in text for text in report.lost)
    assert len(list(lake_dir(data).glob("*.parquet"))) == files - report.lake_files_removed
    log = open_log(data)
    assert log.first_offset == report.first_offset
    assert records_of(log, report.first_offset - 1) == whole[report.first_offset - 1 :]
    with pytest.raises(TrimmedError, match=f"before offset {report.first_offset}"):
        log.read(0)
    log.close()
    clock.now_ms += 1_000
    with writer_of(data, clock) as writer:  # the archive goes on behind
        fill(writer, clock, commits=5, seed=2)
    last = archive(data)
    lake = LakeLog(lake_dir(data))
    assert (lake.first_offset, lake.last_offset) == (report.first_offset, last)
    assert kept(data, clock, log=None, lake=2 * DAY_MS).lake_files_removed == 0


def test_force_lets_go_of_anything_old(data: Path, clock: Clock) -> None:
    archive(data)
    kept(data, clock, log=DAY_MS)
    report = kept(data, clock, log=None, lake=2 * DAY_MS, force=True)
    assert report.first_offset > 1
    assert "none" in report.lost[1]


def test_what_the_log_still_holds_is_not_lost(data: Path, clock: Clock) -> None:
    archive(data)
    report = kept(data, clock, log=None, lake=2 * DAY_MS)
    assert report.lake_files_removed > 0
    assert (report.first_offset, report.lost) == (1, [])
