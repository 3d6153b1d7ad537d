"""Batches of validated events as columns, and the payloads that records carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Struct

from headwater.log.protocol import RefusedError
from headwater.log.record import FLAG_RETRACT, FLAG_TRIAL, SEGMENT_KEYS
from headwater.schema.events import Event, EventDetail
from headwater.schema.items import Item
from headwater.schema.segments import segment_of

_ENCODER = msgspec.msgpack.Encoder()

_COLUMNS: dict[str, tuple[str, int]] = {  # dtype and width of every column, in wire order
    "user": ("<u4", 1),
    "item": ("<u4", 1),
    "type": ("<u2", 1),
    "surface": ("<u2", 1),
    "segment": ("<u2", SEGMENT_KEYS),
    "time_ms": ("<i8", 1),
    "value": ("<f4", 1),
    "event_key": ("<u8", 1),
    "flags": ("<u2", 1),
    "detail_size": ("<u4", 1),
}


class ItemRecord(Struct, frozen=True, array_like=True):
    """Payload of an ``ITEM`` record: the item, and its categories and regions as dense indexes."""

    item: Item
    categories: list[int]
    regions: list[int]


class TableRecord(Struct, frozen=True, array_like=True):
    """Payload of a ``TABLE`` record: the table's name and the values of its columns (``None``: missing)."""

    table: str
    values: dict[str, float | None]


class WireBatch(Struct, frozen=True, array_like=True, tag=False):
    """An :class:`EventBatch` between two processes: the texts, and every column as little-endian bytes."""

    users: list[str]
    items: list[str]
    types: list[str]
    surfaces: list[str]
    segments: list[str]
    columns: list[bytes]
    detail: bytes
    received_from_time: bool


@dataclass(frozen=True, slots=True)
class EventBatch:
    """``n`` validated events as columns; texts stand once, rows refer to them by position.

    The first entry of ``surfaces`` and of ``segments`` is "" and means none; a segment is "key=value".
    ``time_ms`` −1 means "when received", ``value`` NaN none, ``event_key`` 0 none. ``detail`` holds one
    MessagePack :class:`EventDetail` a row, back to back (size 0: nothing in it).
    ``received_from_time``: an import, whose ``received_ms`` is the event's own time.
    """

    users: Sequence[str]
    items: Sequence[str]
    types: Sequence[str]
    surfaces: Sequence[str]
    segments: Sequence[str]
    user: npt.NDArray[np.uint32]
    item: npt.NDArray[np.uint32]
    type: npt.NDArray[np.uint16]
    surface: npt.NDArray[np.uint16]
    segment: npt.NDArray[np.uint16]
    time_ms: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    event_key: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint16]
    detail: npt.NDArray[np.uint8]
    detail_size: npt.NDArray[np.uint32]
    received_from_time: bool = False

    def __len__(self) -> int:
        return len(self.user)

    def check(self) -> None:
        """Raise :class:`RefusedError` unless lengths, dtypes and positions hold together."""
        n = len(self.user)
        for name, (dtype, width) in _COLUMNS.items():
            column = getattr(self, name)
            shape = (n,) if width == 1 else (n, width)
            if column.dtype != np.dtype(dtype) or column.shape != shape:
                raise RefusedError(f"Column `{name}` is {column.dtype}{column.shape}, expected {dtype}{shape}")
        if n == 0:
            return
        for name, texts in (
            ("user", self.users),
            ("item", self.items),
            ("type", self.types),
            ("surface", self.surfaces),
            ("segment", self.segments),
        ):
            if int(getattr(self, name).max()) >= len(texts):
                raise RefusedError(f"Column `{name}` points outside its {len(texts)} texts")
        if self.surfaces[0] or self.segments[0]:
            raise RefusedError("The first surface and the first segment must be empty")
        if int(self.detail_size.sum(dtype=np.int64)) != len(self.detail):
            raise RefusedError("`detail_size` does not add up to the size of `detail`")

    def to_wire(self) -> WireBatch:
        """The batch as it travels."""
        columns = [np.ascontiguousarray(getattr(self, name)).tobytes() for name in _COLUMNS]
        return WireBatch(
            list(self.users),
            list(self.items),
            list(self.types),
            list(self.surfaces),
            list(self.segments),
            columns,
            self.detail.tobytes(),
            self.received_from_time,
        )

    @staticmethod
    def from_wire(wire: WireBatch) -> EventBatch:
        """The batch that arrived; raises :class:`RefusedError` when its columns don't hold together."""
        if len(wire.columns) != len(_COLUMNS):
            raise RefusedError(f"Expected {len(_COLUMNS)} columns, got {len(wire.columns)}")
        columns: dict[str, Any] = {}
        for (name, (dtype, width)), data in zip(_COLUMNS.items(), wire.columns, strict=True):
            if len(data) % (np.dtype(dtype).itemsize * width):
                raise RefusedError(f"Column `{name}` has a size of {len(data)} bytes, not a whole number of rows")
            column = np.frombuffer(data, dtype)
            columns[name] = column if width == 1 else column.reshape(-1, width)
        batch = EventBatch(
            users=wire.users,
            items=wire.items,
            types=wire.types,
            surfaces=wire.surfaces,
            segments=wire.segments,
            detail=np.frombuffer(wire.detail, np.uint8),
            received_from_time=wire.received_from_time,
            **columns,
        )
        batch.check()
        return batch


def event_key(event_id: str) -> int:
    """64-bit hash (xxh64) of an ``event_id``; never 0, which means "none"."""
    return xxhash.xxh64_intdigest(event_id.encode()) or 1


def encode_detail(event: Event) -> bytes:
    """The fields that no kernel reads, as MessagePack; empty when there are none."""
    if (
        event.event_id is None
        and event.request_id is None
        and event.position is None
        and event.session is None
        and event.attributes is None
    ):
        return b""
    return _ENCODER.encode(
        EventDetail(event.event_id, event.request_id, event.position, event.session, event.attributes)
    )


class _Positions(dict[str, int]):
    """Text → position in order of first appearance."""

    def __missing__(self, text: str) -> int:
        position = self[text] = len(self)
        return position


def events_to_batch(
    events: Sequence[Event], segment_keys: Sequence[str], *, received_from_time: bool = False, trial: bool = False
) -> EventBatch:
    """Columns of ``events``; a segment is what ``attributes`` say of each of the (at most two) ``segment_keys``.

    ``trial``: they are tried out, and neither learnt from nor measured.
    """
    if len(segment_keys) > SEGMENT_KEYS:
        raise ValueError(f"Expected at most {SEGMENT_KEYS} segment keys, got {len(segment_keys)}")
    n = len(events)
    users, items, types = _Positions(), _Positions(), _Positions()
    surfaces, segments = _Positions({"": 0}), _Positions({"": 0})
    segment = np.zeros((n, SEGMENT_KEYS), np.uint16)
    details = [encode_detail(event) for event in events]
    tried = FLAG_TRIAL if trial else 0
    for row, event in enumerate(events):
        if event.attributes is None:
            continue
        for column, key in enumerate(segment_keys):
            chosen = segment_of(key, event.attributes.get)
            if chosen is not None:
                segment[row, column] = _small(segments[chosen])
    return EventBatch(
        user=np.array([users[event.user] for event in events], np.uint32),
        item=np.array([items[event.item] for event in events], np.uint32),
        type=np.array([_small(types[event.type]) for event in events], np.uint16),
        surface=np.array([_small(surfaces[event.surface or ""]) for event in events], np.uint16),
        segment=segment,
        time_ms=np.array([-1 if event.time is None else event.time for event in events], np.int64),
        value=np.array([math.nan if event.value is None else event.value for event in events], np.float32),
        event_key=np.array([0 if event.event_id is None else event_key(event.event_id) for event in events], np.uint64),
        flags=np.array([tried | (FLAG_RETRACT if event.retract else 0) for event in events], np.uint16),
        detail=np.frombuffer(b"".join(details), np.uint8),
        detail_size=np.array([len(detail) for detail in details], np.uint32),
        users=list(users),
        items=list(items),
        types=list(types),
        surfaces=list(surfaces),
        segments=list(segments),
        received_from_time=received_from_time,
    )


def _small(position: int) -> int:
    if position > 65_535:
        raise RefusedError(
            "A batch holds at most 65,535 different event types, surfaces or segments; send smaller ones"
        )
    return position
