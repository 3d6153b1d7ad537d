"""Event batches: columns of events, over the wire and back, and what is wrong with some."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest

from headwater.log.batch import EventBatch, WireBatch, event_key, events_to_batch
from headwater.log.identity import MemoryIdentity
from headwater.log.memory import MemoryLog
from headwater.log.protocol import INDEX_LIMITS, RefusedError
from headwater.log.record import FLAG_RETRACT, Kind, Namespace
from headwater.log.writer import LogWriter
from headwater.schema.events import Event, EventDetail
from headwater.schema.users import UserProfile

EVENTS = [
    Event(user="u", item="i", type="view", time=7, value=2.5, surface="home", attributes={"country": "DE", "n": 1}),
    Event(user="u", item="j", type="click", event_id="e", retract=True, attributes={"device": True}),
]


def test_a_joined_key_is_a_segment_where_all_of_its_attributes_are_known() -> None:
    events = [*EVENTS, Event(user="u", item="j", type="click", attributes={"country": "DE", "device": True})]
    batch = events_to_batch(events, ("country+device",))
    assert batch.segments == ["", "country+device=DE+True"]
    assert batch.segment.tolist() == [[0, 0], [0, 0], [1, 0]]
    log = MemoryLog()
    with LogWriter(log, MemoryIdentity(), clock=lambda: 1_000, segment_keys=("country+device",)) as writer:
        writer.append_events(batch)
        known = UserProfile(id="a", country="DE", attributes={"device": "tv"})
        writer.put_profiles([known, UserProfile(id="b", attributes={"device": "tv"})])
    assert list(log.vocabulary().texts(Namespace.SEGMENT)[1:]) == ["country+device=DE+True", "country+device=DE+tv"]


def test_columns_of_events() -> None:
    batch = events_to_batch(EVENTS, ("country", "device"))
    batch.check()
    assert batch.users == ["u"]
    assert batch.items == ["i", "j"]
    assert batch.surfaces == ["", "home"]
    assert batch.segments == ["", "country=DE", "device=True"]
    assert batch.segment.tolist() == [[1, 0], [0, 2]]
    assert batch.time_ms.tolist() == [7, -1]
    assert batch.value[0] == 2.5
    assert np.isnan(batch.value[1])
    assert batch.event_key.tolist() == [0, event_key("e")]
    assert batch.flags.tolist() == [0, FLAG_RETRACT]
    size = int(batch.detail_size[0])
    detail = msgspec.msgpack.decode(batch.detail[:size].tobytes(), type=EventDetail)
    assert detail == EventDetail(attributes={"country": "DE", "n": 1})


def test_the_wire_changes_nothing() -> None:
    batch = events_to_batch(EVENTS, ("country", "device"), received_from_time=True)
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(batch.to_wire()), type=WireBatch)
    back = EventBatch.from_wire(wire)
    for field in dataclasses.fields(EventBatch):
        one, other = getattr(batch, field.name), getattr(back, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        else:
            assert one == other


def test_an_empty_batch_is_a_batch() -> None:
    EventBatch.from_wire(events_to_batch([], ()).to_wire()).check()


@pytest.mark.parametrize(
    ("field", "wrong", "reason"),
    [
        ("item", np.zeros(1, np.uint32), "expected <u4"),
        ("item", np.zeros(2, np.int64), "expected <u4"),
        ("segment", np.zeros(2, np.uint16), "expected <u2"),
        ("user", np.array([0, 1], np.uint32), "points outside"),
        ("surfaces", ["home", ""], "must be empty"),
        ("detail_size", np.zeros(2, np.uint32), "add up"),
    ],
)
def test_columns_that_do_not_fit_are_refused(field: str, wrong: Any, reason: str) -> None:
    batch = dataclasses.replace(events_to_batch(EVENTS, ("country",)), **{field: wrong})
    with pytest.raises(RefusedError, match=reason):
        batch.check()


def test_broken_columns_on_the_wire_are_refused() -> None:
    wire = events_to_batch(EVENTS, ()).to_wire()
    with pytest.raises(RefusedError, match="columns"):
        EventBatch.from_wire(msgspec.structs.replace(wire, columns=wire.columns[:-1]))
    with pytest.raises(RefusedError, match="whole number"):
        EventBatch.from_wire(msgspec.structs.replace(wire, columns=[wire.columns[0] + b"x", *wire.columns[1:]]))


def test_a_segment_with_too_many_values_counts_as_unknown_and_the_event_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(INDEX_LIMITS, Namespace.SEGMENT, 2)
    log = MemoryLog()
    with LogWriter(log, MemoryIdentity(), clock=lambda: 1_000, segment_keys=("device",)) as writer:
        events = [Event(user="u", item="i", type="click", attributes={"device": f"d{number}"}) for number in range(4)]
        assert writer.append_events(events_to_batch(events, ("device",))).accepted == 4
    block = log.read(0)
    assert block is not None
    kept = block.records[block.records["kind"] == Kind.EVENT]
    assert kept["segments"][:, 0].tolist() == [1, 2, 0, 0]
