"""Blocks as bytes: header of 32 bytes, records, heap; and the kernels that take them apart.

The header says how many records and heap bytes follow and carries its own CRC-32; each record carries
the CRC of itself and its payload. ``payload_at`` is relative to the block's own heap and is the one
field outside the record's CRC, so a block can be moved into another heap without hashing it again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from headwater.jit import inline, kernel
from headwater.log.protocol import CorruptLogError
from headwater.log.record import CRC_AT, HEADER_SIZE, PAYLOAD_AT, RECORD, VERSION, RecordBlock, crc32_update

MAGIC = 0x31425748  # "HWB1", little-endian
BLOCK_HEADER = struct.Struct("<IHHIIQII")  # magic, version, 0, records, heap bytes, first offset, 0, CRC of these
MAX_RECORDS = 16_384
MAX_HEAP = 8 * 1024 * 1024

_HEAD = BLOCK_HEADER.size
_HEAD_CRC_AT = _HEAD - 4
_PAYLOAD_SIZE_AT = PAYLOAD_AT + 4
_VERSION_AT = int(RECORD.fields["version"][1]) if RECORD.fields else 0

_OK, _SHORT, _BAD_HEADER, _GAP, _BAD_CRC, _OUTSIDE, _BAD_VERSION = range(7)
_WHAT = {
    _SHORT: "a block is not as long as its header says",
    _BAD_HEADER: "a block's header does not match its checksum",
    _GAP: "the offsets are not contiguous",
    _BAD_CRC: "a record does not match its checksum",
    _OUTSIDE: "a payload lies outside its block",
    _BAD_VERSION: "a record has a version that this release does not know",
}


def encode_blocks(block: RecordBlock) -> Iterator[tuple[int, bytes]]:
    """Yield (first offset, bytes) of ``block``, split so that no part exceeds ``MAX_RECORDS`` or ``MAX_HEAP``.

    The payloads must lie in record order without gaps. A single payload above ``MAX_HEAP`` gets a
    part of its own.
    """
    sizes = block.records["payload_size"].astype(np.int64)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(block.records):
        base = int(ends[start] - sizes[start])
        stop = int(np.searchsorted(ends, base + MAX_HEAP, side="right"))
        stop = min(max(stop, start + 1), start + MAX_RECORDS, len(block.records))
        part = block.records[start:stop].copy()
        part["payload_at"] -= np.uint32(base)
        heap = block.heap[base : int(ends[stop - 1])]
        first = int(part["offset"][0])
        head = BLOCK_HEADER.pack(MAGIC, VERSION, 0, len(part), len(heap), first, 0, 0)[:_HEAD_CRC_AT]
        yield first, b"".join((head, zlib.crc32(head).to_bytes(4, "little"), part.tobytes(), heap.tobytes()))
        start = stop


def count_of(value: bytes | memoryview, key: int) -> int:
    """How many records a stored block claims to hold. Raises :class:`CorruptLogError` when its length says otherwise."""
    if len(value) >= _HEAD:
        fields = BLOCK_HEADER.unpack_from(value)
        if len(value) == _HEAD + int(fields[3]) * HEADER_SIZE + int(fields[4]):
            return int(fields[3])
    raise CorruptLogError(key, _WHAT[_SHORT])


def decode_blocks(values: Sequence[bytes | memoryview], first_key: int, after: int, limit: int) -> RecordBlock | None:
    """The records with offset > ``after``, at most ``limit``, out of consecutive stored blocks.

    ``first_key`` is the offset under which the first of them is stored. Checks headers, contiguity and
    the CRC of every record that is returned. None when no record qualifies.

    Raises
    ------
    CorruptLogError
        With the offset of the record (or block) at fault.
    """
    joined = values[0] if len(values) == 1 else b"".join(values)
    data = np.frombuffer(joined, np.uint8)
    span = np.zeros(4, np.int64)
    fault = int(_measure(data, first_key, after, limit, span))
    if fault != _OK:
        raise CorruptLogError(int(span[3]), _WHAT[fault])
    count, heap_size = int(span[0]), int(span[1])
    if count == 0:
        return None
    records = np.empty(count, RECORD)
    heap = np.empty(heap_size, np.uint8)
    fault = int(_extract(data, after, records.view(np.uint8).reshape(count, HEADER_SIZE), heap, span))
    if fault != _OK:
        raise CorruptLogError(int(span[3]), _WHAT[fault])
    return RecordBlock(records, heap)


@inline
def _u32(data: npt.NDArray[np.uint8], at: int | np.int64) -> np.int64:
    return (
        np.int64(data[at])
        | (np.int64(data[at + 1]) << 8)
        | (np.int64(data[at + 2]) << 16)
        | (np.int64(data[at + 3]) << 24)
    )


@inline
def _u64(data: npt.NDArray[np.uint8], at: int | np.int64) -> np.int64:
    return _u32(data, at) | (_u32(data, at + 4) << 32)


@kernel
def _measure(data: npt.NDArray[np.uint8], first_key: int, after: int, limit: int, span: npt.NDArray[np.int64]) -> int:
    """Walk the blocks: ``span`` = (records, heap bytes, 0, offset at fault) of the asked range."""
    at, expected = np.int64(0), np.int64(first_key)
    while at < len(data):
        span[3] = expected
        if at + _HEAD > len(data):
            return _SHORT
        crc = crc32_update(np.uint32(0xFFFFFFFF), data, at, at + _HEAD_CRC_AT) ^ np.uint32(0xFFFFFFFF)
        if _u32(data, at) != MAGIC or np.int64(crc) != _u32(data, at + _HEAD_CRC_AT):
            return _BAD_HEADER
        count, heap_size, first = _u32(data, at + 8), _u32(data, at + 12), _u64(data, at + 16)
        if count == 0 or at + _HEAD + count * HEADER_SIZE + heap_size > len(data):
            return _SHORT
        if first != expected:
            return _GAP
        records_at = at + _HEAD
        heap_at = records_at + count * HEADER_SIZE
        for i in range(int(max(np.int64(0), after + 1 - first)), int(count)):
            if span[0] == limit:
                return _OK
            record = records_at + i * HEADER_SIZE
            payload_at, size = _u32(data, record + PAYLOAD_AT), _u32(data, record + _PAYLOAD_SIZE_AT)
            if payload_at + size > heap_size:
                span[3] = first + i
                return _OUTSIDE
            span[0] += 1
            span[1] += size
        expected = first + count
        at = heap_at + heap_size
    return _OK


@kernel
def _extract(
    data: npt.NDArray[np.uint8],
    after: int,
    records: npt.NDArray[np.uint8],
    heap: npt.NDArray[np.uint8],
    span: npt.NDArray[np.int64],
) -> int:
    """Copy the range that ``_measure`` found into ``records`` (uint8[n, 80]) and ``heap``, checking every CRC."""
    at, out, heap_out = np.int64(0), 0, np.int64(0)
    while out < len(records):
        count, heap_size, first = _u32(data, at + 8), _u32(data, at + 12), _u64(data, at + 16)
        records_at = at + _HEAD
        heap_at = records_at + count * HEADER_SIZE
        for i in range(int(max(np.int64(0), after + 1 - first)), int(count)):
            if out == len(records):
                break
            record = records_at + i * HEADER_SIZE
            span[3] = first + i
            for k in range(HEADER_SIZE):
                records[out, k] = data[record + k]
            size = _u32(data, record + _PAYLOAD_SIZE_AT)
            source = heap_at + _u32(data, record + PAYLOAD_AT)
            crc = np.uint32(0xFFFFFFFF)
            crc = crc32_update(crc, records[out], 0, PAYLOAD_AT)
            crc = crc32_update(crc, records[out], PAYLOAD_AT + 4, CRC_AT)
            crc = crc32_update(crc, data, source, source + size) ^ np.uint32(0xFFFFFFFF)
            if np.int64(crc) != _u32(data, record + CRC_AT):
                return _BAD_CRC
            if _u64(data, record) != first + i:
                return _GAP
            if data[record + _VERSION_AT] != VERSION:
                return _BAD_VERSION
            for k in range(size):
                heap[heap_out + k] = data[source + k]
            for k in range(4):
                records[out, PAYLOAD_AT + k] = np.uint8((heap_out >> (8 * k)) & 0xFF)
            heap_out += size
            out += 1
        at = heap_at + heap_size
    return _OK
