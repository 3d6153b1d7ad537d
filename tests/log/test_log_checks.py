"""What the writer does not take on a full disk, and entries without a checksum that do not agree with each other."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from headwater.log.batch import events_to_batch
from headwater.log.commands import Appended, AppendEvents, EraseUsers, Ping, PutItems, TrimLog
from headwater.log.environment import StoreError
from headwater.log.identity import LmdbIdentity, MemoryIdentity
from headwater.log.lmdb import LmdbLog
from headwater.log.memory import MemoryLog
from headwater.log.protocol import CorruptTermError
from headwater.log.record import Namespace
from headwater.log.space import FullError, room_check
from headwater.log.writer import LogWriter, open_writer
from headwater.schema.events import Event
from headwater.schema.items import Item

EVENT = AppendEvents(events_to_batch([Event(user="u", item="i", type="view", event_id="e")], ()))


def test_a_full_disk_takes_nothing_but_what_makes_room() -> None:
    full: list[FullError] = []
    log = MemoryLog()
    writer = LogWriter(log, MemoryIdentity(), clock=lambda: 1, room=lambda: full[0] if full else None)
    writer.commit(EVENT)
    before = log.last_offset
    full.append(FullError("The disk is full"))
    outcomes = writer.commit_group([PutItems([Item(id="new")]), Ping(), EraseUsers(["u"]), TrimLog(1), EVENT])
    assert [isinstance(outcome, Appended) for outcome in outcomes] == [False, True, True, True, False]
    assert log.last_offset == before + 1, "the erasure"
    with pytest.raises(FullError, match="The disk is full"):
        writer.commit(EVENT)
    full.clear()
    assert writer.commit(PutItems([Item(id="new")])).accepted == 1


def test_the_reserve_is_what_is_free(tmp_path: Path) -> None:
    assert room_check(tmp_path, 0)() is None
    error = room_check(tmp_path, 1 << 60)()
    assert error is not None
    assert "log.min_free_mb" in str(error)


def spoil(path: Path, table: bytes) -> None:
    """Change one bit of the last value of a table."""
    with lmdb.open(str(path), max_dbs=16, map_size=1 << 30) as environment:
        opened = environment.open_db(table, create=False)
        with environment.begin(write=True, db=opened) as txn, txn.cursor() as cursor:
            assert cursor.last()
            key, value = cursor.item()
            txn.put(key, value[:-1] + bytes((value[-1] ^ 1,)))


def test_texts_and_users_that_lead_elsewhere_are_not_served(tmp_path: Path) -> None:
    with open_writer(tmp_path, map_size=1 << 30) as writer:
        writer.put_items([Item(id="first"), Item(id="second")])
        writer.append_events(events_to_batch([Event(user="ada", item="first", type="view")], ()))
    spoil(tmp_path / "log", b"texts")
    log = LmdbLog(tmp_path / "log", readonly=True)
    try:
        with pytest.raises(CorruptTermError, match="event_type 1"):
            log.vocabulary().texts(Namespace.EVENT_TYPE)
    finally:
        log.close()
    for table in (b"users", b"surrogates"):
        spoil(tmp_path / "identity", table)
        identity = LmdbIdentity(tmp_path / "identity", readonly=True)
        try:
            with pytest.raises(StoreError, match="do not agree"):
                identity.lookup("ada")
        finally:
            identity.close()
        spoil(tmp_path / "identity", table)  # the same bit again: as it was
    identity = LmdbIdentity(tmp_path / "identity", readonly=True)
    assert identity.lookup("ada") is not None
    identity.close()
