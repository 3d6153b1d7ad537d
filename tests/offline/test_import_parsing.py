"""The columnar way equals the way by row; wrong rows are refused with the field and why."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.log.batch import encode_detail
from headwater.offline.importing import columns
from headwater.offline.importing.columns import Coded, iso_millis, texts, times
from headwater.offline.importing.details import encode_details
from headwater.offline.importing.events import Parsed, parse_lines, parse_table
from headwater.offline.importing.lines import RecordReader, to_millis
from headwater.offline.importing.mapping import EVENT_FIELDS, EVENT_REQUIRED, ImportFailedError, Mapping, resolve
from headwater.offline.importing.rejects import Verdicts
from headwater.schema.events import Event

from .import_samples import START_MS, plain_events

TYPES = ["click", "view"]
KEYS = ("country", "device+country")  # a key, and one that joins two attributes
IDS = ("user", "item", "event_id", "request_id", "session")

short = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
event_rows = st.fixed_dictionaries(
    {
        "user": short,
        "item": st.one_of(short, st.integers(0, 2**40)),
        "type": st.sampled_from(["click", "view", "kill"]),
        "time": st.integers(START_MS, START_MS + 10**9),
    },
    optional={
        "event_id": short,
        "value": st.floats(-1e13, 1e13, allow_nan=False),
        "surface": st.sampled_from(["home", "cart", "not a name"]),
        "request_id": short,
        "position": st.integers(-5, 100_005),
        "session": short,
        "retract": st.booleans(),
        "attributes.country": st.sampled_from(["de", "fr"]),
        "attributes.device": st.integers(0, 3),
        "attributes.long": st.integers(1, 600).map("x".__mul__),
    },
)


def columnar(table: pa.Table, mapping: Mapping | None = None) -> Parsed:
    chosen = mapping or Mapping()
    resolved = resolve(chosen, table.column_names, EVENT_FIELDS, EVENT_REQUIRED)
    return parse_table(table, resolved, chosen, TYPES, KEYS)


def by_row(rows: list[dict[str, Any]], mapping: Mapping | None = None) -> Parsed:
    chosen = mapping or Mapping()
    resolved = resolve(chosen, None, EVENT_FIELDS, EVENT_REQUIRED)
    reader = RecordReader(chosen, resolved, fields=EVENT_FIELDS, ids=IDS, times=("time",))
    return parse_lines([msgspec.json.encode(row) for row in rows], reader, TYPES, KEYS)


@given(st.lists(event_rows, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_table_gives_the_events_that_its_rows_give(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys([*(name for row in rows for name in row), "user", "item", "type", "time"]))
    table = pa.table(
        {
            name: [str(row[name]) if name == "item" else row.get(name) for row in rows]
            for name in names
            if any(row.get(name) is not None for row in rows)
        }
    )
    fast, slow = columnar(table), by_row(rows)
    assert [row for row, _ in fast.refused] == [row for row, _ in slow.refused]
    # attribute order follows the columns in a table, the object in JSON
    assert [row[:9] for row in plain_events(fast.batch)] == [row[:9] for row in plain_events(slow.batch)]
    for one, other in zip(plain_events(fast.batch), plain_events(slow.batch), strict=True):
        decode = msgspec.msgpack.decode
        assert (decode(one[9]) if one[9] else None) == (decode(other[9]) if other[9] else None)
    fast.batch.check()


def test_details_are_the_bytes_of_one_event_at_a_time() -> None:
    wide: dict[str, Any] = {f"a{i}": i for i in range(17)}
    events = [
        Event(user="u", item="i", type="t"),
        Event(user="u", item="i", type="t", session="s" * 40, position=70_000),
        Event(user="u", item="i", type="t", event_id="e", attributes={"a0": "x", "a3": 2.5}),
        Event(user="u", item="i", type="t", request_id="r", attributes={"a1": True}),
        Event(user="u", item="i", type="t", attributes=wide),
    ]

    def coded(values: list[Any]) -> Coded:
        known = list(dict.fromkeys((type(value), value) for value in values if value is not None))
        codes = [known.index((type(value), value)) if value is not None else -1 for value in values]
        return Coded([value for _, value in known], np.array(codes, np.int64))

    plain = {
        name: coded([getattr(event, name) for event in events])
        for name in ("event_id", "request_id", "position", "session")
    }
    attributes = {name: coded([(event.attributes or {}).get(name) for event in events]) for name in wide}
    heap, sizes = encode_details(plain, attributes, len(events))
    ends = np.cumsum(sizes, dtype=np.int64)
    found = [heap[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]
    assert found == [encode_detail(event) for event in events]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"user": ""}, "user: missing"),
        ({"item": None}, "item: missing"),
        ({"user": "x" * 129}, "user: Expected `str` of length <= 128"),
        ({"type": "buy"}, "type: Not an event type of the configuration"),
        ({"type": ""}, "type: missing"),
        ({"time": ""}, "time: missing"),
        ({"time": "soon"}, "time: Expected a time"),
        ({"time": "-5"}, "time: Expected a time from 1970 to 2099"),
        ({"time": "99999999999999999999"}, "time: Expected a time from 1970 to 2099"),
        ({"value": "much"}, "value: Expected a number"),
        ({"value": "1e13"}, "value: Expected `float` from -1e12 to 1e12"),
        ({"surface": "a b"}, "surface: Expected letters, digits and _ . : -"),
        ({"position": "1.5"}, "position: Expected a whole number"),
        ({"position": "100001"}, "position: Expected `int` from 0 to 100000"),
        ({"retract": "perhaps"}, "retract: Expected true or false"),
        ({"session": "x" * 129}, "session: Expected `str` of length <= 128"),
        ({"attributes.note": "x" * 513}, "attributes.note: Expected `str` of length <= 512"),
    ],
)
def test_a_wrong_row_is_refused_and_its_neighbour_kept(row: dict[str, str | None], reason: str) -> None:
    good = {"user": "u", "item": "i", "type": "click", "time": str(START_MS), **dict.fromkeys(row, "")}
    good |= {"user": "u", "item": "i", "type": "click", "time": str(START_MS)}
    bad = {**good, **row}
    parsed = columnar(pa.table({name: pa.array([good[name], bad[name]], pa.string()) for name in good}))
    assert parsed.refused == [(1, reason)]
    assert len(parsed.batch) == 1


def test_empty_optional_texts_of_a_table_mean_none() -> None:
    table = pa.table(
        {name: [value] for name, value in {"user": "u", "item": "i", "type": "click", "time": str(START_MS)}.items()}
        | {name: [""] for name in ("value", "surface", "position", "session", "retract", "event_id", "attributes.x")}
    )
    parsed = columnar(table)
    assert not parsed.refused
    ((*_, value, key, flags, detail),) = plain_events(parsed.batch)
    assert math.isnan(np.frombuffer(value, np.float32)[0])
    assert (key, flags, detail) == (0, 0, b"")


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        (pa.array([START_MS]), None, START_MS),
        (pa.array([1_506_816_000]), "s", START_MS),
        (pa.array([1_506_816_000.0256]), "s", START_MS + 26),
        (pa.array([START_MS * 1_000 + 999]), "us", START_MS),
        (pa.array([START_MS * 1_000_000 + 999_999]), "ns", START_MS),
        (pa.array([str(START_MS)]), None, START_MS),
        (pa.array(["1506816000.5"]), "s", START_MS + 500),
        (pa.array(["2017-10-01"]), None, START_MS),
        (pa.array(["2017-10-01T02:00:00.125+02:00"]), None, START_MS + 125),
        (pa.array([dt.datetime(2017, 10, 1)]), None, START_MS),
        (pa.array([dt.datetime(2017, 10, 1, tzinfo=dt.UTC)]), None, START_MS),
        (pa.array([dt.date(2017, 10, 1)]), None, START_MS),
        (pa.array([dt.date(1971, 1, 1)]), None, 365 * 86_400_000),
        (pa.array([5]), "ms", 5),
    ],
)
def test_times(values: pa.Array, unit: Any, expected: int) -> None:
    verdicts = Verdicts(1)
    assert times(pa.chunked_array([values]), "time", verdicts, unit).tolist() == [expected]
    assert verdicts.accepted.all()
    assert to_millis(values.to_pylist()[0], unit, "time") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2017-10-01", "2017-10-01T00:00:00+00:00"),
        ("2017-10-01 12:30", "2017-10-01T12:30:00+00:00"),
        ("2017-10-01T12:30:45Z", "2017-10-01T12:30:45+00:00"),
        ("2017-10-01 12:30:45.678", "2017-10-01T12:30:45.678+00:00"),
        ("2017-10-01T12:30:45+0530", "2017-10-01T12:30:45+05:30"),
        ("2017-10-01T12:30:45-03:00", "2017-10-01T12:30:45-03:00"),
        ("2017-10-01T12:30+02", "2017-10-01T12:30:00+02:00"),
    ],
)
def test_iso_texts(text: str, expected: str) -> None:
    wanted = int(dt.datetime.fromisoformat(expected).timestamp() * 1_000)
    assert iso_millis(pl.Series([text])).to_list() == [wanted]
    assert to_millis(text, None, "time") == wanted


@pytest.mark.parametrize("text", ["yesterday", "2017-13-01", "2017-10-01T25:00:00", "10/01/2017"])
def test_what_is_no_iso_text(text: str) -> None:
    assert iso_millis(pl.Series([text])).to_list() == [None]
    with pytest.raises(msgspec.ValidationError, match="Expected a time"):
        to_millis(text, "iso", "time")


def test_undeclared_seconds_are_noticed() -> None:
    with pytest.raises(ImportFailedError, match=r"end in 1970-01-18.*--time-unit"):
        times(pa.chunked_array([pa.array([1_506_816_000])]), "time", Verdicts(1), None)
    with pytest.raises(ImportFailedError, match="--time-unit"):
        by_row([{"user": "u", "item": "i", "type": "click", "time": 1_506_816_000}])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([7, 7]), ["7", "7"]),
        (pa.array(["007", "7"]), ["007", "7"]),
        (pa.array([7.0, None]), ["7", None]),
        (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
        (pa.array(["ä", ""], pa.large_string()), ["ä", None]),
    ],
)
def test_ids_are_text(array: pa.Array, expected: list[str | None]) -> None:
    coded = texts(pa.chunked_array([array]), "user", Verdicts(2))
    assert [None if code < 0 else coded.values[code] for code in coded.codes] == expected


def test_ids_that_are_fractions_are_refused() -> None:
    verdicts = Verdicts(3)
    texts(pa.chunked_array([pa.array([1.5, 2.0, math.inf])]), "user", verdicts)
    assert [row for row, _ in verdicts.refused()] == [0, 2]


def test_a_column_that_cannot_be_the_field_is_an_error() -> None:
    nested = pa.chunked_array([pa.array([{"a": 1}])])
    for parse in (texts, columns.scalars, columns.numbers):
        with pytest.raises(ImportFailedError, match="The column of `x` holds struct"):
            parse(nested, "x", Verdicts(1))
    with pytest.raises(ImportFailedError, match="expected times"):
        times(nested, "x", Verdicts(1), None)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (Mapping(columns={"usr": "user"}), "The file has no column `usr`; did you mean `user`?"),
        (Mapping(columns={"user": "usr"}), "There is no field `usr`; did you mean `user`?"),
        (Mapping(columns={"user": "item"}), "No column gives `user`"),
        (Mapping(columns={"user": "time", "item": "time"}), "`user` is mapped to `time` already"),
        (Mapping(columns={"user": "attributes."}), "Expected an attribute's name"),
        (Mapping(columns={"x": "user"}, constants={"user": "me"}), "a column is mapped to `user` already"),
    ],
)
def test_a_wrong_mapping_is_explained(mapping: Mapping, message: str) -> None:
    with pytest.raises(ImportFailedError, match=message.replace("?", r"\?")):
        resolve(mapping, ["user", "item", "type", "time", "x"], EVENT_FIELDS, EVENT_REQUIRED)


def test_json_lines_may_be_nested_and_mapped(tmp_path: Path) -> None:
    mapping = Mapping(
        columns={"actor.id": "user", "ts": "time", "kind": "type", "geo.cc": "attributes.country"},
        constants={"surface": "home"},
        event_types={"read": "view"},
        time_unit="s",
    )
    row = {"actor": {"id": 5}, "item": "a", "ts": 1_506_816_000, "kind": "read", "geo": {"cc": "de"}, "noise": 1}
    parsed = by_row([row, {**row, "actor": None}], mapping)
    assert parsed.refused == [(1, "user: missing")]
    ((user, item, kind, surface, segments, time_ms, *_),) = plain_events(parsed.batch)
    assert (user, item, kind, surface, segments[0], time_ms) == ("5", "a", "view", "home", "country=de", START_MS)
