"""The envelope of a record, and blocks of records.

A record is a fixed header of 80 bytes plus a payload. Headers of a block stand together as one numpy
array, so that the fold reads columns instead of objects; payloads stand behind them in one heap.
A CRC-32 (the zlib polynomial) covers the header, except the CRC itself and ``payload_at``, and the payload.

Index 0 of every dense number means "none": users, items, types, surfaces and segments count from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from headwater.jit import inline, kernel

VERSION = 1

RECORD = np.dtype(
    [
        ("offset", "<u8"),  # contiguous, from 1
        ("received_ms", "<i8"),  # set when appended; never decreases
        ("time_ms", "<i8"),  # when it happened
        ("surrogate", "<u8"),  # random number that stands for the user
        ("event_key", "<u8"),  # hash of event_id, 0: none
        ("user", "<u4"),  # dense user index
        ("item", "<u4"),  # dense item index (TERM: the index that is assigned)
        ("value", "<f4"),  # NaN: none
        ("payload_at", "<u4"),  # position in the block's heap
        ("payload_size", "<u4"),
        ("type", "<u2"),  # dense event type (TERM: the Namespace)
        ("surface", "<u2"),
        ("segments", "<u2", (2,)),  # dense segment terms, one a key of [segments]
        ("kind", "u1"),
        ("version", "u1"),
        ("flags", "<u2"),
        ("zone", "<u4"),  # PROFILE: dense segment term of the time zone, 0: none
        ("crc", "<u4"),
    ]
)
HEADER_SIZE = RECORD.itemsize
SEGMENT_KEYS = 2

FLAG_RETRACT = 1
FLAG_TRIAL = 2  # tried out by whoever runs the system, in the console's playground; clients cannot set it


class Kind(IntEnum):
    """What a record says."""

    EVENT = 1  # an interaction; payload: EventDetail
    ITEM = 2  # item upsert; payload: ItemRecord
    ITEM_DELETED = 3
    PROFILE = 4  # user profile; payload encrypted with the user's key, segments in the header
    SERVED = 5  # payload: ServedList
    EXPOSURE = 6  # a user got a list from where the variants of an experiment part; payload: ExposureRecord
    ERASURE = 7  # the user's key, mapping and state row are destroyed
    LOGIN = 8  # `user` is the known user, payload the dense index of the anonymous one (<u4)
    TERM = 9  # assigns dense index `item` to the payload's text in Namespace `type`
    IMPORT = 10  # a range of rows of a file was imported; payload: ImportRange
    TABLE = 11  # values of one of the [[tables]] for `user` or `item`, valid from `time_ms`; payload: TableRecord
    SHADOW = 12  # a list that a shadow would have given, and nobody got; payload: ShadowList


class Namespace(IntEnum):
    """What a dense number counts."""

    ITEM = 1
    EVENT_TYPE = 2
    SURFACE = 3
    CATEGORY = 4
    REGION = 5
    SEGMENT = 6  # the text is "key=value"


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """Records with contiguous offsets: ``records`` has dtype ``RECORD``, ``heap`` holds their payloads."""

    records: npt.NDArray[np.void]
    heap: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def first_offset(self) -> int:
        return int(self.records["offset"][0])

    @property
    def last_offset(self) -> int:
        return int(self.records["offset"][-1])

    def payload(self, index: int) -> bytes:
        record = self.records[index]
        at = int(record["payload_at"])
        return self.heap[at : at + int(record["payload_size"])].tobytes()

    def head(self, count: int) -> RecordBlock:
        """The first ``count`` records (the heap is shared)."""
        return RecordBlock(self.records[:count], self.heap)

    def tail(self, start: int) -> RecordBlock:
        """The records from position ``start`` on (the heap is shared)."""
        return RecordBlock(self.records[start:], self.heap)


def of_people(records: npt.NDArray[np.void], kind: Kind) -> npt.NDArray[np.bool_]:
    """Which ``records`` (dtype ``RECORD``, ``[n]``) are of ``kind`` and no trial: what is learnt from and measured. ``bool[n]``."""
    chosen: npt.NDArray[np.bool_] = (records["kind"] == kind) & ((records["flags"] & FLAG_TRIAL) == 0)
    return chosen


def _crc_table() -> npt.NDArray[np.uint32]:
    table = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        table[0, byte] = value
    for byte in range(256):
        for k in range(1, 8):
            previous = int(table[k - 1, byte])
            table[k, byte] = (previous >> 8) ^ int(table[0, previous & 0xFF])
    return table


CRC_TABLE = _crc_table()
CRC_AT = HEADER_SIZE - 4
PAYLOAD_AT = int(RECORD.fields["payload_at"][1]) if RECORD.fields else 0


@inline
def crc32_update(crc: np.uint32, data: npt.NDArray[np.uint8], start: int | np.int64, stop: int | np.int64) -> np.uint32:
    """Slicing-by-8 CRC-32 over ``data[start:stop]``; ``crc`` is the inverted running value."""
    position = start
    while position + 8 <= stop:
        low = crc ^ (
            np.uint32(data[position])
            | (np.uint32(data[position + 1]) << np.uint32(8))
            | (np.uint32(data[position + 2]) << np.uint32(16))
            | (np.uint32(data[position + 3]) << np.uint32(24))
        )
        crc = (
            CRC_TABLE[7, low & np.uint32(0xFF)]
            ^ CRC_TABLE[6, (low >> np.uint32(8)) & np.uint32(0xFF)]
            ^ CRC_TABLE[5, (low >> np.uint32(16)) & np.uint32(0xFF)]
            ^ CRC_TABLE[4, low >> np.uint32(24)]
            ^ CRC_TABLE[3, data[position + 4]]
            ^ CRC_TABLE[2, data[position + 5]]
            ^ CRC_TABLE[1, data[position + 6]]
            ^ CRC_TABLE[0, data[position + 7]]
        )
        position += 8
    while position < stop:
        crc = (crc >> np.uint32(8)) ^ CRC_TABLE[0, (crc ^ np.uint32(data[position])) & np.uint32(0xFF)]
        position += 1
    return crc


@kernel
def record_crcs(
    headers: npt.NDArray[np.uint8],
    payload_at: npt.NDArray[np.uint32],
    payload_size: npt.NDArray[np.uint32],
    heap: npt.NDArray[np.uint8],
    out: npt.NDArray[np.uint32],
) -> int:
    """CRC of every record of a block.

    ``headers`` is ``uint8[n, 80]``. Returns the number of records whose payload does not lie inside
    ``heap`` (their CRC is left 0).
    """
    outside = 0
    for i in range(len(headers)):
        at, size = np.int64(payload_at[i]), np.int64(payload_size[i])
        if at + size > len(heap):
            out[i] = 0
            outside += 1
            continue
        crc = np.uint32(0xFFFFFFFF)
        crc = crc32_update(crc, headers[i], 0, PAYLOAD_AT)
        crc = crc32_update(crc, headers[i], PAYLOAD_AT + 4, CRC_AT)
        crc = crc32_update(crc, heap, at, at + size)
        out[i] = crc ^ np.uint32(0xFFFFFFFF)
    return outside


def crcs_of(block: RecordBlock) -> tuple[npt.NDArray[np.uint32], int]:
    """The CRC that every record of ``block`` should carry, and how many payloads lie outside the heap."""
    records = np.ascontiguousarray(block.records)
    headers = records.view(np.uint8).reshape(len(records), HEADER_SIZE)
    out = np.zeros(len(records), np.uint32)
    outside = record_crcs(
        headers,
        np.ascontiguousarray(records["payload_at"]),
        np.ascontiguousarray(records["payload_size"]),
        block.heap,
        out,
    )
    return out, int(outside)
