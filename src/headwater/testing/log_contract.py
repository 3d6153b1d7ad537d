"""The contract of an event log: inherit :class:`LogContract`, say how to make one, run pytest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.log.batch import EventBatch, ItemRecord, events_to_batch
from headwater.log.block import MAX_RECORDS
from headwater.log.commands import (
    Appended,
    AppendEvents,
    AppendExposures,
    AppendServed,
    AppendShadows,
    Command,
    DeleteItems,
    ExposureEntry,
    Login,
    PutItems,
    ServedEntry,
)
from headwater.log.identity import IdentityStore, MemoryIdentity
from headwater.log.protocol import Commit, EventLog, ImportRange, RefusedError
from headwater.log.record import RECORD, Kind, Namespace, RecordBlock, crcs_of
from headwater.log.writer import LogWriter
from headwater.schema.events import Event
from headwater.schema.items import Item
from headwater.schema.users import UserProfile
from headwater.testing.log_oracle import Row, SlowLog

SEGMENT_KEYS = ("country", "device")


class Step(NamedTuple):
    """A group of commands at a moment; events stand as events, so that oracle and writer both take them."""

    now_ms: int
    commands: list[list[Event] | tuple[list[Event], ImportRange] | Command]


def _events() -> st.SearchStrategy[list[Event]]:
    few = st.sampled_from
    event = st.builds(
        Event,
        user=few(["u1", "u2", "ü3"]),
        item=few(["i1", "i2", "i3", "商品", "x" * 128]),
        type=few(["view", "click"]),
        time=st.none() | st.integers(0, 5_000),
        event_id=st.none() | few([f"e{n}" for n in range(12)]),
        value=st.none() | st.floats(-10, 10, width=32),
        surface=st.none() | few(["home", "cart"]),
        request_id=st.none() | few(["r1"]),
        retract=st.booleans(),
        attributes=st.none() | st.dictionaries(few(["country", "device", "other"]), few(["a", "b" * 512, 1, True])),
    )
    return st.lists(event, max_size=8)


def _steps() -> st.SearchStrategy[list[Step]]:
    ids = st.sampled_from(["i1", "i2", "i9"])
    ranges = st.builds(ImportRange, st.sampled_from(["f1", "f2"]), st.just(0), st.just(7), st.sampled_from(["m"]))
    items = st.lists(
        st.builds(Item, id=ids, categories=st.lists(st.sampled_from(["c1", "c2"])), regions=st.just(["r"])), max_size=3
    )
    command = st.one_of(
        _events(),
        _events(),
        st.tuples(_events(), ranges),
        st.builds(PutItems, items),
        st.builds(DeleteItems, st.lists(ids, max_size=2)),
        st.just(Login("anonymous", "u1")),
        st.builds(
            AppendShadows, st.lists(st.builds(ServedEntry, st.just(0), st.just(0), st.binary(max_size=9)), max_size=2)
        ),
        st.builds(
            AppendServed, st.lists(st.builds(ServedEntry, st.just(0), st.just(0), st.binary(max_size=9)), max_size=2)
        ),
        st.builds(
            AppendExposures,
            st.lists(
                st.builds(ExposureEntry, st.just(0), st.just(0), st.sampled_from(["u1", "u7"]), st.binary(max_size=9)),
                max_size=3,
            ),
        ),
    )
    return st.lists(st.builds(Step, st.integers(0, 5_000), st.lists(command, min_size=1, max_size=4)), max_size=8)


class LogContract:
    """Every implementation of :class:`~headwater.log.protocol.EventLog` passes these tests."""

    def make_log(self, folder: Path) -> EventLog:
        """An empty log that may keep its files in ``folder``."""
        raise NotImplementedError

    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[EventLog]:
        made = self.make_log(tmp_path / "log")
        yield made
        made.close()

    @pytest.fixture
    def identity(self) -> IdentityStore:
        return MemoryIdentity()

    @pytest.fixture
    def writer(self, log: EventLog, identity: IdentityStore) -> LogWriter:
        return LogWriter(log, identity, clock=lambda: 1_000, segment_keys=SEGMENT_KEYS, dedup_window=1000)

    def test_is_an_event_log(self, log: EventLog) -> None:
        assert isinstance(log, EventLog)

    def test_empty(self, log: EventLog) -> None:
        assert (log.last_offset, log.last_received_ms) == (0, 0)
        assert log.read(0) is None
        assert log.read(10) is None
        assert log.imported("f", "m") == []
        assert log.vocabulary().index(Namespace.ITEM, "i") == 0
        assert log.vocabulary().text(Namespace.ITEM, 1) is None
        assert log.vocabulary().size(Namespace.ITEM) == 0

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(steps=_steps(), reads=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), max_size=6))
    def test_equals_the_slow_log(self, steps: list[Step], reads: list[tuple[int, int]]) -> None:
        """Any commands in any groups: the same records, terms and answers as the plain list."""
        slow = SlowLog(window=4, segment_keys=SEGMENT_KEYS)
        identity = MemoryIdentity()
        now = [0]
        with tempfile.TemporaryDirectory() as folder:
            log = self.make_log(Path(folder) / "log")
            try:
                writer = LogWriter(log, identity, clock=lambda: now[0], segment_keys=SEGMENT_KEYS, dedup_window=4)
                for step in steps:
                    now[0] = step.now_ms
                    expected = [_expect(slow, command, step.now_ms) for command in step.commands]
                    assert writer.commit_group([_command(command) for command in step.commands]) == expected
                assert log.last_offset == len(slow.rows)
                assert log.last_received_ms == slow.last_received_ms
                for namespace in Namespace:
                    assert log.vocabulary().texts(namespace) == ["", *slow.terms[namespace]]
                for after, limit in [(0, len(slow.rows) + 1), *reads]:
                    block = log.read(after, limit)
                    assert _rows(block) == _expected_rows(slow.rows, after, limit, identity)
            finally:
                log.close()

    def test_reads_any_range_of_large_blocks(self, log: EventLog, writer: LogWriter) -> None:
        n = 2 * MAX_RECORDS + 100
        details = [b"", b"\x90", b"\x91\xa1e"]
        sizes = np.array([len(details[i % 3]) for i in range(n)], np.uint32)
        batch = EventBatch(
            users=["u"],
            items=["i"],
            types=["view"],
            surfaces=[""],
            segments=[""],
            user=np.zeros(n, np.uint32),
            item=np.zeros(n, np.uint32),
            type=np.zeros(n, np.uint16),
            surface=np.zeros(n, np.uint16),
            segment=np.zeros((n, 2), np.uint16),
            time_ms=np.arange(n, dtype=np.int64),
            value=np.full(n, np.nan, np.float32),
            event_key=np.zeros(n, np.uint64),
            flags=np.zeros(n, np.uint16),
            detail=np.frombuffer(b"".join(details[i % 3] for i in range(n)), np.uint8),
            detail_size=sizes,
        )
        assert writer.append_events(batch) == Appended(n, 0, n + 2)  # two terms stand in front
        for after, limit in ((0, 10), (MAX_RECORDS - 5, 10), (MAX_RECORDS + 1, 2 * MAX_RECORDS), (n, 50)):
            block = log.read(after, limit)
            assert block is not None
            assert len(block) == min(limit, n + 2 - after)
            assert block.records["offset"].tolist() == list(range(after + 1, after + 1 + len(block)))
            if after > 2:
                assert [block.payload(k) for k in range(2)] == [details[(after - 2 + k) % 3] for k in range(2)]
        after, seen = 0, 0
        while (block := log.read(after, 5_000)) is not None:
            after, seen = block.last_offset, seen + len(block)
        assert seen == n + 2

    def test_many_small_commits_read_as_one_block(self, log: EventLog, writer: LogWriter) -> None:
        for number in range(30):
            writer.append_events(events_to_batch([Event(user="u", item=f"i{number}", type="view")], ()))
        block = log.read(0)
        assert block is not None
        assert block.last_offset == log.last_offset
        assert block.records["offset"].tolist() == list(range(1, log.last_offset + 1))

    def test_refuses_a_gap(self, log: EventLog) -> None:
        records = np.zeros(1, RECORD)
        records["offset"], records["version"] = 2, 1
        block = RecordBlock(records, np.zeros(0, np.uint8))
        records["crc"] = crcs_of(block)[0]
        with pytest.raises(ValueError, match="Expected a block from offset 1"):
            log.append(Commit(block))

    def test_vocabulary_picks_up_new_terms(self, log: EventLog, writer: LogWriter) -> None:
        vocabulary = log.vocabulary()
        assert vocabulary.index(Namespace.ITEM, "late") == 0
        writer.put_items([Item(id="late", categories=["c"])])
        assert vocabulary.index(Namespace.ITEM, "late") == 1
        assert vocabulary.text(Namespace.CATEGORY, 1) == "c"
        assert vocabulary.text(Namespace.CATEGORY, 2) is None

    def test_an_import_range_counts_once(self, log: EventLog, writer: LogWriter) -> None:
        batch = events_to_batch([Event(user="u", item="i", type="view", time=5)], (), received_from_time=True)
        for start in (0, 10):
            assert writer.append_import(batch, ImportRange("f", start, start + 10, "m")).accepted == 1
        end = log.last_offset
        for start, stop in ((0, 10), (10, 20), (3, 7), (0, 20), (5, 15)):  # in other pieces, too
            assert writer.append_import(batch, ImportRange("f", start, stop, "m")) == Appended(0, 0, end, already=True)
        with pytest.raises(RefusedError, match="imported already"):
            writer.append_import(batch, ImportRange("f", 15, 25, "m"))
        assert writer.append_import(batch, ImportRange("f", 0, 10, "other")).accepted == 1
        assert log.imported("f", "m") == [(0, 10), (10, 20)]

    def test_imports_carry_their_own_time(self, log: EventLog, writer: LogWriter) -> None:
        times = [50, 40, 70, None]
        events = [Event(user="u", item="i", type="view", time=t) for t in times]
        writer.put_items([Item(id="i")], at_ms=10)
        writer.append_import(events_to_batch(events, (), received_from_time=True), ImportRange("f", 0, 4, "m"))
        block = log.read(0)
        assert block is not None
        records = block.records[block.records["kind"] == Kind.EVENT]
        assert records["received_ms"].tolist() == [50, 50, 70, 70]
        assert records["time_ms"].tolist() == [50, 40, 70, 70]
        assert writer.append_events(events_to_batch(events, ())).accepted == 4
        assert log.last_received_ms == 1_000

    def test_a_refused_command_leaves_the_others_alone(self, log: EventLog, writer: LogWriter) -> None:
        types = [Event(user="u", item="i", type=f"t{n}", event_id=f"e{n}") for n in range(256)]
        good = AppendEvents(events_to_batch([Event(user="u", item="good", type="view", event_id="e1")], ()))
        outcomes = writer.commit_group([AppendEvents(events_to_batch(types, ())), good])
        assert isinstance(outcomes[0], RefusedError)
        assert "event_type" in str(outcomes[0])
        assert outcomes[1] == Appended(1, 0, 3)  # its id was not taken by the refused one
        assert log.vocabulary().size(Namespace.EVENT_TYPE) == 1

    def test_payloads_come_back(self, log: EventLog, writer: LogWriter, identity: IdentityStore) -> None:
        item = Item(id="i", title="Title", categories=["b", "a"], regions=["eu"], vector=[0.5, 1.0])
        profile = UserProfile(id="u", country="DE", attributes={"device": "tv"})
        writer.put_items([item])
        writer.put_profiles([profile])
        block = log.read(0)
        assert block is not None
        at = {Kind(kind): row for row, kind in enumerate(block.records["kind"].tolist())}
        stored = msgspec.msgpack.decode(block.payload(at[Kind.ITEM]), type=ItemRecord)
        assert stored == ItemRecord(item, [1, 2], [1])
        user = int(block.records["user"][at[Kind.PROFILE]])
        plain = identity.decrypt(user, block.payload(at[Kind.PROFILE]))
        assert plain is not None
        assert msgspec.msgpack.decode(plain, type=UserProfile) == profile
        segments = block.records["segments"][at[Kind.PROFILE]].tolist()
        assert [log.vocabulary().text(Namespace.SEGMENT, s) for s in segments] == ["country=DE", "device=tv"]

    def test_erasure_is_a_record_and_the_user_is_new_afterwards(
        self, log: EventLog, writer: LogWriter, identity: IdentityStore
    ) -> None:
        writer.append_events(events_to_batch([Event(user="u", item="i", type="view")], ()))
        before = identity.lookup("u")
        assert before is not None
        assert writer.erase_users(["u", "nobody"]).accepted == 1
        block = log.read(log.last_offset - 1)
        assert block is not None
        assert (int(block.records["kind"][0]), int(block.records["user"][0])) == (Kind.ERASURE, before.user)
        assert identity.lookup("u") is None
        writer.append_events(events_to_batch([Event(user="u", item="i", type="view")], ()))
        after = identity.lookup("u")
        assert after is not None
        assert after.user != before.user


def _command(command: list[Event] | tuple[list[Event], ImportRange] | Command) -> Command:
    if isinstance(command, list):
        return AppendEvents(events_to_batch(command, SEGMENT_KEYS))
    if isinstance(command, tuple):
        return AppendEvents(events_to_batch(command[0], SEGMENT_KEYS, received_from_time=True), command[1])
    return command


def _expect(slow: SlowLog, command: list[Event] | tuple[list[Event], ImportRange] | Command, now_ms: int) -> Appended:
    if isinstance(command, list):
        return slow.append_events(command, now_ms)
    if isinstance(command, tuple):
        return slow.append_events(command[0], now_ms, command[1], from_time=True)
    if isinstance(command, PutItems):
        return slow.put_items(command.items, now_ms)
    return slow.other(command, now_ms)


def _rows(block: RecordBlock | None) -> list[tuple[object, ...]]:
    if block is None:
        return []
    return [
        (
            int(r["offset"]),
            Kind(int(r["kind"])),
            int(r["received_ms"]),
            int(r["time_ms"]),
            (int(r["user"]), int(r["surrogate"])),
            int(r["item"]),
            int(r["type"]),
            int(r["surface"]),
            tuple(r["segments"].tolist()),
            int(r["event_key"]),
            int(r["flags"]),
            block.payload(k) if int(r["kind"]) not in (Kind.ITEM, Kind.LOGIN, Kind.IMPORT) else None,
        )
        for k, r in enumerate(block.records)
    ]


def _expected_rows(rows: list[Row], after: int, limit: int, identity: IdentityStore) -> list[tuple[object, ...]]:
    return [
        (
            after + 1 + k,
            row.kind,
            row.received_ms,
            row.time_ms,
            tuple(identity.lookup(row.user) or (-1, -1)) if row.user else (0, 0),
            row.item,
            row.type,
            row.surface,
            row.segments,
            row.event_key,
            row.flags,
            row.payload,
        )
        for k, row in enumerate(rows[after : after + limit])
    ]
