"""The LMDB log: the contract, and what only a log on disk can get wrong."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import numpy as np
import pytest

from headwater.log.batch import events_to_batch
from headwater.log.commands import Appended
from headwater.log.environment import StoreError
from headwater.log.identity import MemoryIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import CorruptLogError
from headwater.log.record import Namespace
from headwater.log.writer import LogWriter, WriterFailedError, WriterRunningError, open_writer
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.testing.log_contract import LogContract

MAP = 1 << 30


class TestLmdbLog(LogContract):
    def make_log(self, folder: Path) -> LmdbLog:
        return LmdbLog(folder, map_size=MAP)


def _fill(folder: Path) -> None:
    log = LmdbLog(folder, map_size=MAP)
    writer = LogWriter(log, MemoryIdentity(), clock=lambda: 5, dedup_window=100)
    for number in range(3):
        writer.append_events(
            events_to_batch([Event(user="u", item=f"i{number}", type="view", event_id=f"e{number}")], ())
        )
    log.close()


def test_everything_survives_reopening(tmp_path: Path) -> None:
    _fill(tmp_path)
    log = LmdbLog(tmp_path, map_size=MAP)
    assert (log.last_offset, log.last_received_ms) == (7, 5)
    assert log.vocabulary().texts(Namespace.ITEM) == ["", "i0", "i1", "i2"]
    log.close()


def test_a_log_keeps_its_id(tmp_path: Path) -> None:
    _fill(tmp_path / "a")
    _fill(tmp_path / "b")
    ids = []
    for name, readonly in (("a", True), ("a", False), ("b", True)):
        log = LmdbLog(tmp_path / name, map_size=MAP, readonly=readonly)
        ids.append(log.log_id)
        log.close()
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 32


def test_a_log_of_before_there_were_ids_gets_one_when_it_is_next_written(tmp_path: Path) -> None:
    _fill(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=16, map_size=MAP) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            assert txn.delete(b"id", db=meta)
    log = LmdbLog(tmp_path, map_size=MAP, readonly=True)
    assert log.log_id == ""
    log.close()
    log = LmdbLog(tmp_path, map_size=MAP)
    assert len(log.log_id) == 32
    log.close()


def test_dedup_survives_a_restart(tmp_path: Path) -> None:
    _fill(tmp_path)
    log = LmdbLog(tmp_path, map_size=MAP)
    writer = LogWriter(log, MemoryIdentity(), clock=lambda: 5, dedup_window=2)
    old = [Event(user="u", item="new", type="view", event_id=f"e{number}") for number in (1, 2)]
    assert writer.append_events(events_to_batch(old, ())) == Appended(0, 2, 7)
    assert log.vocabulary().index(Namespace.ITEM, "new") == 0
    forgotten = events_to_batch([Event(user="u", item="i0", type="view", event_id="e0")], ())
    assert writer.append_events(forgotten).accepted == 1
    log.close()


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, seed: int) -> None:
    """Either the read raises, naming an offset, or what it returns is what was written."""
    _fill(tmp_path)
    log = LmdbLog(tmp_path, map_size=MAP)
    original = log.read(0)
    assert original is not None
    payloads = [original.payload(k) for k in range(len(original))]
    with lmdb_blocks(log) as (env, blocks):
        with env.begin(db=blocks) as txn:
            stored = [(bytes(k), bytes(v)) for k, v in txn.cursor()]
        key, value = stored[seed]
        rng = np.random.default_rng(seed)
        named: list[int] = []
        for bit in rng.choice(8 * len(value), 300, replace=False).tolist():
            damaged = bytearray(value)
            damaged[bit // 8] ^= 1 << (bit % 8)
            with env.begin(db=blocks, write=True) as txn:
                txn.put(key, bytes(damaged))
            try:
                block = log.read(0)
            except CorruptLogError as error:
                named.append(error.offset)
            else:  # `payload_at` of a record without payload says nothing
                assert block is not None
                assert [block.payload(k) for k in range(len(block))] == payloads
    assert len(named) > 280
    assert set(named) <= set(range(int.from_bytes(key, "big"), original.last_offset + 1))
    log.close()


def test_a_torn_or_missing_block_is_noticed(tmp_path: Path) -> None:
    _fill(tmp_path)
    log = LmdbLog(tmp_path, map_size=MAP)
    with lmdb_blocks(log) as (env, blocks):
        with env.begin(db=blocks) as txn:
            keys = [bytes(k) for k, _ in txn.cursor()]
            second = bytes(txn.get(keys[1]) or b"")
        for torn in (second[:10], second[:50], second[:-1], b""):
            with env.begin(db=blocks, write=True) as txn:
                txn.put(keys[1], torn)
            with pytest.raises(CorruptLogError, match=f"offset {int.from_bytes(keys[1], 'big')}"):
                log.read(0)
        with env.begin(db=blocks, write=True) as txn:
            txn.delete(keys[1])
        with pytest.raises(CorruptLogError, match="contiguous"):
            log.read(0)
        with env.begin(db=blocks, write=True) as txn:
            txn.delete(keys[2])
        with pytest.raises(CorruptLogError, match="missing"):
            log.read(int.from_bytes(keys[1], "big") - 1)
    log.close()


def test_reading_never_creates_a_log(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="start the writer first"):
        LmdbLog(tmp_path / "none", readonly=True)
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_environment_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1_000)
    with pytest.raises(StoreError, match="cannot be opened"):
        LmdbLog(tmp_path, map_size=MAP)


def test_reader_and_writer_share_one_environment(tmp_path: Path) -> None:
    _fill(tmp_path)
    log = LmdbLog(tmp_path, map_size=MAP)
    reader = LmdbLog(tmp_path, readonly=True)
    log.close()
    assert reader.last_offset == 7
    writer = LogWriter(reader, MemoryIdentity(), clock=lambda: 5, dedup_window=10)
    with pytest.raises(StoreError, match="opened for reading"):
        writer.put_items([Item(id="i")])
    with pytest.raises(WriterFailedError):  # never again after a failed commit
        writer.ping()
    reader.close()


def test_a_read_only_environment_is_not_written(tmp_path: Path) -> None:
    _fill(tmp_path)
    reader = LmdbLog(tmp_path, readonly=True)
    with pytest.raises(StoreError, match="close it before writing"):
        LmdbLog(tmp_path)
    reader.close()


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    first = open_writer(tmp_path, clock=lambda: 1, map_size=MAP, dedup_window=10)
    with pytest.raises(WriterRunningError, match=str(os.getpid())):
        open_writer(tmp_path, map_size=MAP)
    first.close()
    open_writer(tmp_path, clock=lambda: 1, map_size=MAP, dedup_window=10).close()


class lmdb_blocks:  # noqa: N801 (reads as a function)
    """The environment that ``log`` has open, to damage it."""

    def __init__(self, log: LmdbLog) -> None:
        self._log = log

    def __enter__(self) -> tuple[lmdb.Environment, lmdb._Database]:
        return self._log._env, self._log._blocks

    def __exit__(self, *_: object) -> None:
        """The log closes it."""
