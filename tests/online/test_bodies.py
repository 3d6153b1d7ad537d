"""Bodies of batches: every good entry is kept, every bad one is accounted for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.online.bodies import BatchDecoder, event_check
from headwater.online.errors import RefusalError
from headwater.schema.events import MAX_BATCH, Event

DECODER = BatchDecoder(Event, event_check(["click", "view"]))
GOOD = {"user": "u", "item": "i", "type": "click"}
BROKEN: list[Any] = [
    {}, None, 3, "text", [], [GOOD], {"user": "u", "item": "i"}, {**GOOD, "user": ""}, {**GOOD, "type": "clck"},
    {**GOOD, "value": "much"}, {**GOOD, "position": -1}, {**GOOD, "unknown": 1}, {**GOOD, "time": 1.5},
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just(GOOD), st.sampled_from(BROKEN)), min_size=1, max_size=30))
def test_sums_are_exact(entries: list[Any]) -> None:
    bad = [index for index, entry in enumerate(entries) if entry is not GOOD]
    body = msgspec.json.encode(entries)
    if len(bad) == len(entries):
        with pytest.raises(RefusalError) as refused:
            DECODER.decode(body)
        rejected = refused.value.rejected
        assert refused.value.status == 400
    else:
        decoded = DECODER.decode(body)
        assert len(decoded.good) == len(entries) - len(bad)
        rejected = decoded.rejected
    assert [entry.index for entry in rejected] == bad
    assert all(entry.field and entry.reason for entry in rejected)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_politely_or_taken(body: bytes) -> None:
    refusals = []
    try:
        DECODER.decode(body)
    except RefusalError as refusal:
        refusals.append(refusal)
    for refused in refusals:
        assert refused.status == 400
        assert msgspec.json.decode(refused.body())["error"]["reason"]


def test_an_unknown_type_names_the_nearest() -> None:
    check = event_check(["click", "view"])
    assert check(Event(user="u", item="i", type="click")) is None
    wrong = check(Event(user="u", item="i", type="clikc"))
    assert wrong is not None
    assert wrong[0] == "type"
    assert 'did you mean "click"' in wrong[1]
    far = check(Event(user="u", item="i", type="zzz"))
    assert far is not None
    assert "there are click, view" in far[1]


def test_too_many_entries_are_refused_whole() -> None:
    with pytest.raises(RefusalError) as refused:
        DECODER.decode(msgspec.json.encode([GOOD] * (MAX_BATCH + 1)))
    assert refused.value.status == 413
