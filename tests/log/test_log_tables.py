"""``PutTable``: rows of a user's own tables as records, each range once; what is no table is refused as a whole."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from headwater.log.batch import TableRecord
from headwater.log.commands import Appended, PutItems, PutTable
from headwater.log.frames import Refused, decode_request, encode_request
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.protocol import ImportRange, RefusedError
from headwater.log.record import Kind
from headwater.log.writer import LogWriter
from headwater.schema.items import Item

NOW_MS = 1_000_000
GOOD = PutTable("risk", "user", ["churn", "spend"], ["a", "b"], [NOW_MS - 5, NOW_MS], [[0.5, None], [1.0, -2.5]])


class Log:
    def __init__(self) -> None:
        self.log, self.identity, self.now_ms = MemoryLog(), MemoryIdentity(), NOW_MS
        self.writer = LogWriter(self.log, self.identity, clock=lambda: self.now_ms)

    def tables(self) -> list[tuple[int, int, int, int, TableRecord]]:
        block = self.log.read(0)
        if block is None:
            return []
        names = ("user", "item", "time_ms", "received_ms")
        return [
            (*(int(record[name]) for name in names), msgspec.msgpack.decode(block.payload(i), type=TableRecord))  # type: ignore[misc]
            for i, record in enumerate(block.records)
            if record["kind"] == Kind.TABLE
        ]


def change(**fields: Any) -> PutTable:
    return msgspec.structs.replace(GOOD, **fields)


def test_a_row_is_a_record_that_is_valid_from_its_own_time() -> None:
    log = Log()
    assert log.writer.commit(GOOD).accepted == 2
    a, b = log.identity.lookup("a"), log.identity.lookup("b")
    assert a is not None
    assert b is not None
    assert log.tables() == [
        (a.user, 0, NOW_MS - 5, NOW_MS, TableRecord("risk", {"churn": 0.5, "spend": None})),
        (b.user, 0, NOW_MS, NOW_MS, TableRecord("risk", {"churn": 1.0, "spend": -2.5})),
    ]
    block = log.log.read(0)
    assert block is not None
    assert block.records["surrogate"].tolist() == [a.surrogate, b.surrogate]


def test_users_get_numbers_and_unknown_items_do_not() -> None:
    log = Log()
    log.writer.put_items([Item(id="known")])
    rows = change(entity="item", ids=["new", "known"])
    assert log.writer.commit(rows).accepted == 1
    assert [(user, item) for user, item, *_ in log.tables()] == [(0, 1)]
    assert log.writer.commit(change(entity="item", ids=["new", "newer"])).accepted == 0
    assert log.writer.last_offset == 3  # the term, the item, one row
    together = log.writer.commit_group([PutItems([Item(id="new")]), change(entity="item", ids=["new", "known"])])
    assert [one.accepted for one in together if isinstance(one, Appended)] == [1, 2]


def test_a_range_of_a_file_is_recorded_once() -> None:
    log = Log()
    first = change(source=ImportRange("f", 0, 2, "m"))
    assert log.writer.commit(first).accepted == 2
    again = log.writer.commit(first)
    assert again.already
    assert again.accepted == 0
    with pytest.raises(RefusedError, match="imported already"):
        log.writer.commit(change(source=ImportRange("f", 1, 3, "m")))
    unknown = change(entity="item", source=ImportRange("f", 0, 2, "other"))
    assert log.writer.commit(unknown).accepted == 0
    assert log.writer.commit(unknown).already
    assert len(log.tables()) == 2


def test_an_import_says_when_it_was_received() -> None:
    log = Log()
    log.writer.commit(change(at_ms=NOW_MS + 7))
    assert [received for *_, received, _ in log.tables()] == [NOW_MS + 7] * 2
    log.writer.commit(change(at_ms=NOW_MS + 1))  # never before the record in front of it
    assert [received for *_, received, _ in log.tables()] == [NOW_MS + 7] * 4


WRONG: dict[str, dict[str, Any]] = {
    "must not be empty": {"table": ""},
    'not of "crowd"': {"entity": "crowd"},
    "different columns, got 0": {"columns": []},
    "different columns, got 2": {"columns": ["a", "a"]},
    "1 to 256 different columns": {"columns": [f"c{n}" for n in range(257)]},
    "are no table": {"ids": ["a"]},
    "An id must not be empty": {"ids": ["a", ""]},
    "An id is no valid text": {"ids": ["a", "\ud800"]},
    "at most 128 characters": {"ids": ["a", "b" * 129]},
    "valid from 0 ms": {"valid_from_ms": [5, 0]},
    "hold them back": {"valid_from_ms": [5, NOW_MS + 1]},
    "A row of 1 values": {"values": [[1.0, 2.0], [1.0]]},
    "finite number": {"values": [[1.0, 2.0], [1.0, math.nan]]},
    "number of 32 bits": {"values": [[1.0, 2.0], [1e39, 0.0]]},
    "are no range": {"source": ImportRange("f", 3, 2, "m")},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_table_is_refused_as_a_whole(message: str) -> None:
    log = Log()
    with pytest.raises(RefusedError, match=message):
        log.writer.commit(change(**WRONG[message]))
    assert log.writer.last_offset == 0
    assert log.identity.lookup("a") is None


def test_it_travels_and_is_read_strictly() -> None:
    frame = encode_request(3, GOOD)
    assert decode_request(frame[4:]) == (3, GOOD)
    for wrong in (change(entity="crowd"), change(ids=[1, 2]), change(valid_from_ms=[1.5, 2]), change(values=[["x"]])):
        number, refused = decode_request(encode_request(4, wrong)[4:])
        assert number == 4
        assert isinstance(refused, Refused)
