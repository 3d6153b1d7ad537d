"""The archived part of the log, and the log as a whole: the same bytes as before anything was archived or trimmed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from headwater.log.archived import open_log
from headwater.log.dedup import DedupWindow
from headwater.log.environment import StoreError
from headwater.log.identity import MemoryIdentity
from headwater.log.lake import LakeLog, lake_dir, to_block, to_table
from headwater.log.lmdb import LmdbLog
from headwater.log.memory import MemoryLog
from headwater.log.protocol import CorruptLogError, EventLog, TrimmedError
from headwater.log.record import RECORD, Namespace, RecordBlock
from headwater.log.seek import last_before
from headwater.log.writer import LogWriter
from headwater.offline.archive import Archiver
from headwater.schema.errors import HeadwaterError
from tests.offline.sites import KEYS, MAP, START_MS, Clock, fill, folded, records_of, writer_of


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of some 800 records, archived in files of a few row groups; the archive ends before the log does."""
    monkeypatch.setattr("headwater.offline.archive.ROW_GROUP", 50)
    clock = Clock()
    with writer_of(tmp_path, clock) as writer:
        fill(writer, clock, commits=90, seed=1)
        _archive(tmp_path)
        fill(writer, clock, commits=10, seed=2)
    return tmp_path


def _archive(data: Path, commit_bytes: int = 12_000) -> None:
    archiver = Archiver(data, commit_bytes=commit_bytes)
    try:
        archiver.run()
    finally:
        archiver.close()


def _trim(data: Path, upto: int) -> int:
    log = LmdbLog(data / "log", map_size=MAP)
    removed = 0
    while part := log.trim(upto):
        removed += part
    log.close()
    return removed


def _same(one: EventLog, other: EventLog, after: int, limit: int) -> None:
    ours, theirs = one.read(after, limit), other.read(after, limit)
    assert ours is not None
    assert theirs is not None
    assert ours.records.tobytes() == theirs.records.tobytes()
    assert ours.heap.tobytes() == theirs.heap.tobytes()


def test_any_range_of_the_lake_is_the_same_bytes_as_in_the_log(data: Path) -> None:
    log, lake = LmdbLog(data / "log", readonly=True), LakeLog(lake_dir(data))
    assert len(lake.files) > 3
    assert (lake.first_offset, lake.log_id) == (1, log.log_id)
    assert lake.last_offset < log.last_offset
    rng = np.random.default_rng(5)
    for _ in range(60):
        after = int(rng.integers(0, lake.last_offset))
        _same(lake, log, after, min(int(rng.integers(1, 300)), lake.last_offset - after))
    assert lake.read(lake.last_offset) is None
    assert records_of(lake) == records_of(log)[: lake.last_offset]
    log.close()


def test_terms_and_imports_are_in_the_records(data: Path) -> None:
    _archive(data)
    log, lake = LmdbLog(data / "log", readonly=True), LakeLog(lake_dir(data))
    for namespace in Namespace:
        assert lake.vocabulary().texts(namespace) == log.vocabulary().texts(namespace)
    assert log.imported("file-1", "m")
    for name in ("file-1", "file-2", "none"):
        assert lake.imported(name, "m") == log.imported(name, "m")
    log.close()


def test_a_trimmed_log_reads_as_it_was(data: Path, tmp_path: Path) -> None:
    before = LmdbLog(data / "log", readonly=True)
    whole, last = records_of(before, limit=37), before.last_offset
    state = folded(before, tmp_path / "state-before")
    times = [last_before(before, START_MS + hours * 3_600_000) for hours in range(0, 20, 3)]
    before.close()
    archived = LakeLog(lake_dir(data)).last_offset
    assert _trim(data, archived - 5) > 300
    log = open_log(data)
    with pytest.raises(TrimmedError, match="headwater archive"):
        LmdbLog(data / "log", readonly=True).read(0)
    assert (log.first_offset, log.last_offset) == (1, last)
    for limit in (1, 37, 16_384):
        assert records_of(log, limit=limit) == whole
    assert folded(log, tmp_path / "state-after") == state
    assert [last_before(log, START_MS + hours * 3_600_000) for hours in range(0, 20, 3)] == times
    first = LmdbLog(data / "log", readonly=True).first_offset
    for after, limit in ((first - 5, 10), (first - 2, 1), (first - 1, 10), (first - 2, 2)):
        block = log.read(after, limit)  # across the boundary
        assert block is not None
        assert block.records["offset"].tolist() == list(range(after + 1, after + 1 + limit))
    log.close()


def test_a_reader_that_was_there_before_the_trim_goes_on(data: Path) -> None:
    log = open_log(data)
    block = log.read(0, 10)
    assert block is not None
    archived = LakeLog(lake_dir(data)).last_offset
    log.close()
    log = open_log(data)
    log.close()
    writing = LmdbLog(data / "log", map_size=MAP)
    log = open_log(data)  # shares the environment
    assert log.read(0, 10) is not None
    while writing.trim(archived):
        pass
    again = log.read(0, 10)
    assert again is not None
    assert again.records.tobytes() == block.records.tobytes()
    log.close()
    writing.close()


def test_a_trim_without_an_archive_is_said_where_it_hurts(tmp_path: Path) -> None:
    clock = Clock()
    with writer_of(tmp_path, clock) as writer:
        fill(writer, clock, commits=10, seed=1)
        last = writer.last_offset
    _trim(tmp_path, last)
    log = open_log(tmp_path)
    assert 1 < log.first_offset <= last
    with pytest.raises(TrimmedError, match=f"before offset {log.first_offset}"):
        log.read(0)
    newest = log.read(log.first_offset - 1)
    assert newest is not None  # the newest block stays
    assert newest.last_offset == last
    log.close()


def test_records_between_lake_and_log_that_are_nowhere_are_noticed(data: Path) -> None:
    archived = LakeLog(lake_dir(data)).last_offset
    _trim(data, archived + 20)
    with pytest.raises(CorruptLogError, match=f"the lake .* ends at offset {archived}"):
        open_log(data).read(0)
    with pytest.raises(HeadwaterError, match="lost to both"):
        _archive(data)


def test_the_lake_of_another_log_is_refused(data: Path, tmp_path: Path) -> None:
    clock = Clock()
    other = tmp_path / "other"
    with writer_of(other, clock) as writer:
        fill(writer, clock, commits=100, seed=9)
    (other / "lake").mkdir()
    lake_dir(data).rename(lake_dir(other))
    with pytest.raises(StoreError, match="is that of log"):
        _archive(other)
    _trim(other, 50)
    with pytest.raises(StoreError, match="is that of log"):
        open_log(other).read(0)


def test_a_log_that_went_back_in_time_is_noticed(tmp_path: Path) -> None:
    """The same log id, other records: a copy of the log went on by itself."""
    clock = Clock()
    data, twin = tmp_path / "a", tmp_path / "b"
    with writer_of(data, clock) as writer:
        fill(writer, clock, commits=10, seed=1)
    shutil.copytree(data, twin)
    for folder, seed in ((data, 2), (twin, 3)):
        with writer_of(folder, Clock(clock.now_ms)) as writer:
            fill(writer, clock, commits=10 if folder == data else 30, seed=seed)
    _archive(data)
    (twin / "lake").mkdir()
    lake_dir(data).rename(lake_dir(twin))
    with pytest.raises(StoreError, match="different records at offset"):
        _archive(twin)


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_in_the_lake_goes_unnoticed(data: Path, seed: int) -> None:
    lake = LakeLog(lake_dir(data))
    original = records_of(lake)
    file = lake.files[seed]
    path = lake_dir(data) / file.path
    good = path.read_bytes()
    rng = np.random.default_rng(seed)
    named = 0
    for bit in rng.choice(8 * len(good), 150, replace=False).tolist():
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        fresh = LakeLog(lake_dir(data))
        try:
            block = fresh.read(file.first - 1, file.last - file.first + 1)
        except CorruptLogError:
            named += 1
            continue
        assert block is not None
        found = RecordBlock(block.records, block.heap)
        records = found.records.copy()
        records["payload_at"] = 0
        assert [(records[k : k + 1].tobytes(), found.payload(k)) for k in range(len(found))] == original[
            file.first - 1 : file.last
        ]
    assert named > 60  # the others fell on what a reader does not use
    path.write_bytes(good)


def test_every_bit_of_a_header_survives(tmp_path: Path) -> None:
    """Numbers without sign, odd NaNs: columns of the lake hold what the header held."""
    rng = np.random.default_rng(3)
    records = np.frombuffer(rng.bytes(RECORD.itemsize * 500), RECORD).copy()
    records["payload_size"] = rng.integers(0, 40, 500)
    records["payload_at"] = np.cumsum(records["payload_size"]) - records["payload_size"]
    block = RecordBlock(records, np.frombuffer(rng.bytes(int(records["payload_size"].sum())), np.uint8))
    back = to_block(to_table([block]))
    assert back.records.tobytes() == records.tobytes()
    assert back.heap.tobytes() == block.heap.tobytes()


def test_memory_logs_are_trimmed_by_whole_blocks() -> None:
    log, clock = MemoryLog(), Clock()
    fill(LogWriter(log, MemoryIdentity(), clock=clock, segment_keys=KEYS, dedup_window=100), clock, commits=9, seed=1)
    whole = records_of(log)
    assert log.trim(0) == 0
    removed = log.trim(30)
    assert 0 < removed <= 30
    assert log.first_offset == removed + 1
    assert records_of(log, after=removed) == whole[removed:]
    with pytest.raises(TrimmedError):
        log.read(removed - 1)
    log.trim(10_000)
    assert log.last_offset == len(whole)
    assert log.read(log.first_offset - 1) is not None


def test_the_dedup_window_of_a_trimmed_log_is_what_is_left(data: Path) -> None:
    log = LmdbLog(data / "log", map_size=MAP)
    whole = DedupWindow(100)
    whole.rebuild(log)
    log.trim(log.last_offset - 260)
    trimmed = DedupWindow(100)
    trimmed.rebuild(log)
    assert len(trimmed) == len(whole) > 80
    log.trim(log.last_offset)
    small = DedupWindow(100)
    small.rebuild(log)
    assert len(small) < len(whole)
    log.close()
