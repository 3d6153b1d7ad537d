"""Rows of a file as batches of events: a columnar way for CSV and Parquet, a way by line for JSON lines.

Both hold to the limits of ``schema.events`` and give the same batches. They differ in one thing: in a
table an empty text means "none", in JSON it is a text that is too short.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.log.batch import EventBatch, event_key, events_to_batch
from headwater.log.record import FLAG_RETRACT, SEGMENT_KEYS
from headwater.offline.importing import columns
from headwater.offline.importing.columns import MISSING, Coded
from headwater.offline.importing.details import PLAIN_FIELDS, encode_details
from headwater.offline.importing.lines import RecordReader, explain
from headwater.offline.importing.mapping import ATTRIBUTE, ImportFailedError, Mapping, Resolved
from headwater.offline.importing.rejects import Verdicts
from headwater.schema.events import Event
from headwater.schema.segments import JOIN, parts_of

_MAX_TEXTS = 65_536  # positions are 16 bits wide

UNKNOWN_TYPE = "type: Not an event type of the configuration"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A chunk of rows: the events that were accepted, and (position, reason) of the refused rows."""

    batch: EventBatch
    refused: Sequence[tuple[int, str]]


def parse_table(
    table: pa.Table, resolved: Resolved, mapping: Mapping, event_types: Sequence[str], segment_keys: Sequence[str]
) -> Parsed:
    """Events of a table.

    Raises:
        ImportFailedError: a column as a whole cannot be what it is mapped to.
    """
    n = table.num_rows
    verdicts = Verdicts(n)

    def column(field: str) -> pa.ChunkedArray | None:
        if field in resolved.sources:
            return table.column(resolved.sources[field])
        if field in resolved.constants:
            return pa.chunked_array([pa.repeat(pa.scalar(resolved.constants[field]), n)])
        return None

    def required(field: str) -> pa.ChunkedArray:
        found = column(field)
        return found if found is not None else pa.chunked_array([pa.nulls(n)])

    user = columns.texts(required("user"), "user", verdicts, required=True)
    item = columns.texts(required("item"), "item", verdicts, required=True)
    kind = columns.names(required("type"), "type", verdicts, required=True)
    kind = Coded([mapping.event_types.get(text, text) for text in kind.values], kind.codes)
    verdicts.refuse(kind.rows_where(lambda text: text not in event_types), UNKNOWN_TYPE)
    time_ms = columns.times(required("time"), "time", verdicts, mapping.time_unit)
    nothing = Coded([], np.full(n, -1, np.int64))
    value_column, surface_column, retract_column = column("value"), column("surface"), column("retract")
    value = np.full(n, np.nan) if value_column is None else columns.numbers(value_column, "value", verdicts)
    surface = nothing if surface_column is None else columns.names(surface_column, "surface", verdicts)
    retract = np.zeros(n, np.bool_) if retract_column is None else columns.truths(retract_column, "retract", verdicts)
    plain: dict[str, Coded] = {}
    for field in PLAIN_FIELDS:
        found = column(field)
        if found is not None:
            parse = columns.positions if field == "position" else columns.texts
            plain[field] = parse(found, field, verdicts)
    attributes: dict[str, Coded] = {}
    for field in (*resolved.sources, *resolved.constants):
        found = column(field) if field.startswith(ATTRIBUTE) else None
        if found is not None:
            attributes[field.removeprefix(ATTRIBUTE)] = columns.scalars(found, field, verdicts)

    kept = np.flatnonzero(verdicts.accepted)
    plain, attributes = _take(plain, kept), _take(attributes, kept)
    detail, detail_size = encode_details(plain, attributes, len(kept))
    segments, segment = _segments(attributes, segment_keys, len(kept))
    batch = EventBatch(
        users=user.values,
        items=item.values,
        types=kind.values,
        surfaces=["", *surface.values],
        segments=segments,
        user=user.codes[kept].astype(np.uint32),
        item=item.codes[kept].astype(np.uint32),
        type=kind.codes[kept].astype(np.uint16),
        surface=(surface.codes[kept] + 1).astype(np.uint16),
        segment=segment,
        time_ms=time_ms[kept],
        value=value[kept].astype(np.float32),
        event_key=_event_keys(plain.get("event_id"), len(kept)),
        flags=np.where(retract[kept], FLAG_RETRACT, 0).astype(np.uint16),
        detail=detail,
        detail_size=detail_size,
        received_from_time=True,
    )
    return Parsed(batch, verdicts.refused())


def parse_lines(
    lines: Sequence[bytes], reader: RecordReader, event_types: Sequence[str], segment_keys: Sequence[str]
) -> Parsed:
    """Events of JSON lines."""
    events: list[Event] = []
    refused: list[tuple[int, str]] = []
    for position, line in enumerate(lines):
        try:
            event = msgspec.convert(reader.from_line(line), Event)
        except msgspec.DecodeError as error:
            refused.append((position, explain(error)))
            continue
        if event.time is None:
            refused.append((position, f"time: {MISSING}"))
        elif event.type not in event_types:
            refused.append((position, UNKNOWN_TYPE))
        else:
            events.append(event)
    reader.check_unit()
    return Parsed(events_to_batch(events, segment_keys, received_from_time=True), refused)


def _take(coded: MappingOf[str, Coded], kept: npt.NDArray[np.intp]) -> dict[str, Coded]:
    return {name: Coded(column.values, column.codes[kept]) for name, column in coded.items()}


def _segments(
    attributes: MappingOf[str, Coded], segment_keys: Sequence[str], n: int
) -> tuple[list[str], npt.NDArray[np.uint16]]:
    """The texts "key=value" ("" first) and ``uint16[n, 2]`` positions among them, 0 where there is none.

    Raises:
        ImportFailedError: more texts than positions can tell apart.
    """
    texts: list[str] = [""]
    positions = np.zeros((n, SEGMENT_KEYS), np.uint16)
    for column, key in enumerate(segment_keys):
        if not all(part in attributes for part in parts_of(key)):
            continue
        coded = _joined([attributes[part] for part in parts_of(key)])
        base = len(texts)
        texts.extend(f"{key}={value}" for value in coded.values)
        if len(texts) > _MAX_TEXTS:
            raise ImportFailedError(f"attributes.{key}: Too many different values for a key of [segments]")
        positions[:, column] = np.where(coded.codes >= 0, coded.codes + base, 0)
    return texts, positions


def _joined(parts: Sequence[Coded]) -> Coded:
    """The combinations of the parts' values that occur, as texts; none where a part has none."""
    joined = parts[0]
    for part in parts[1:]:
        pairs = np.where((joined.codes >= 0) & (part.codes >= 0), joined.codes * len(part.values) + part.codes, -1)
        found, codes = np.unique(pairs, return_inverse=True)
        absent = int(np.searchsorted(found, 0))  # 1 where some row has no combination
        values = [
            f"{joined.values[pair // len(part.values)]}{JOIN}{part.values[pair % len(part.values)]}"
            for pair in found[absent:].tolist()
        ]
        joined = Coded(values, codes.astype(np.int64) - absent)
    return joined


def _event_keys(event_id: Coded | None, n: int) -> npt.NDArray[np.uint64]:
    """``uint64[n]``: xxh64 of each event id, 0 where there is none."""
    if event_id is None:
        return np.zeros(n, np.uint64)
    return np.array([*map(event_key, event_id.values), 0], np.uint64)[event_id.codes]
