"""The packed form of a user row: only what is not zero.

``clock`` (two words) · a bitmap of the fixed words · the fixed words that are not zero · the used part of the recent
keys, recent times and the seen ring · CRC-32. A word has 32 bits, little-endian. The fixed words are those of ``i8``
behind the clock, of ``f4``, and of ``u4`` in front of the recent sequence.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from headwater.features.layout import U_RECENT_LENGTH, U_SEEN_LENGTH, Layout
from headwater.features.rowset import Rows
from headwater.jit import inline, kernel
from headwater.schema.errors import HeadwaterError

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]


class CorruptStateError(HeadwaterError):
    """A stored state row does not match its checksum."""


@inline
def _fixed(layout: Layout) -> int:
    return 2 * (layout.user_i8 - 1) + layout.user_f4 + layout.recent_keys


@inline
def most_words(layout: Layout) -> int:
    """Words of a packed row in which nothing is zero, without its checksum."""
    fixed = _fixed(layout)
    return 2 + (fixed + 31) // 32 + fixed + 2 * layout.recent_size + layout.seen_size


@inline
def _part(start: int, row: UInt32, first: int, out: UInt32, bitmap: int, at: int) -> int:
    """Write the words of ``row`` from ``first`` on that are not zero; ``start`` is the number of its first fixed word."""
    for k in range(first, len(row)):
        word = row[k]
        if word != 0:
            number = start + k - first
            out[bitmap + number // 32] |= np.uint32(1) << np.uint32(number % 32)
            out[at] = word
            at += 1
    return at


@inline
def pack_row(rows: Rows, slot: int, layout: Layout, out: UInt32, at: int) -> int:
    """Write row ``slot`` into ``out`` from ``at`` on, without a checksum; returns where it ends."""
    i8, f4, u4 = rows.i8[slot].view(np.uint32), rows.f4[slot].view(np.uint32), rows.u4[slot]
    out[at], out[at + 1] = i8[0], i8[1]
    bitmap = at + 2
    at = bitmap + (_fixed(layout) + 31) // 32
    for k in range(bitmap, at):
        out[k] = np.uint32(0)
    at = _part(0, i8, 2, out, bitmap, at)
    start = len(i8) - 2
    at = _part(start, f4, 0, out, bitmap, at)
    at = _part(start + len(f4), u4[: layout.recent_keys], 0, out, bitmap, at)
    recent = int(u4[U_RECENT_LENGTH])
    seen = min(int(u4[U_SEEN_LENGTH]), layout.seen_size)
    for k in range(recent):
        out[at + k] = u4[layout.recent_keys + k]
        out[at + recent + k] = u4[layout.recent_times + k]
    at += 2 * recent
    for k in range(seen):
        out[at + k] = u4[layout.seen + k]
    return int(at + seen)


@inline
def unpack_row(words: UInt32, rows: Rows, slot: int, layout: Layout) -> None:
    """Fill row ``slot`` from packed words (without their checksum)."""
    i8, f4, u4 = rows.i8[slot].view(np.uint32), rows.f4[slot].view(np.uint32), rows.u4[slot]
    i8[0], i8[1] = words[0], words[1]
    fixed = _fixed(layout)
    at = 2 + (fixed + 31) // 32
    f4_start = len(i8) - 2
    u4_start = f4_start + len(f4)
    u4[:] = np.uint32(0)
    for number in range(fixed):
        word = np.uint32(0)
        if words[2 + number // 32] >> np.uint32(number % 32) & np.uint32(1):
            word = words[at]
            at += 1
        if number < f4_start:
            i8[2 + number] = word
        elif number < u4_start:
            f4[number - f4_start] = word
        else:
            u4[number - u4_start] = word
    recent = int(u4[U_RECENT_LENGTH])
    seen = min(int(u4[U_SEEN_LENGTH]), layout.seen_size)
    for k in range(recent):
        u4[layout.recent_keys + k] = words[at + k]
        u4[layout.recent_times + k] = words[at + recent + k]
    at += 2 * recent
    for k in range(seen):
        u4[layout.seen + k] = words[at + k]


@inline
def clear_row(rows: Rows, slot: int) -> None:
    """An empty row."""
    rows.i8[slot, :] = 0
    rows.f4[slot, :] = np.float32(0.0)
    rows.u4[slot, :] = np.uint32(0)


@kernel
def _pack(rows: Rows, slots: Int64, layout: Layout, out: UInt32, ends: Int64) -> None:
    at = 0
    for k in range(len(slots)):
        at = pack_row(rows, slots[k], layout, out, at) + 1
        ends[k] = at


@kernel
def _unpack(words: UInt32, rows: Rows, slot: int, layout: Layout) -> None:
    unpack_row(words, rows, slot, layout)


def pack_users(rows: Rows, slots: Int64, layout: Layout) -> list[bytes]:
    """Rows ``slots`` as they are stored, each with its CRC-32 at the end."""
    packed: list[bytes] = []
    chunk = 1024
    out, ends = np.empty(chunk * (most_words(layout) + 1), np.uint32), np.empty(chunk, np.int64)
    for start in range(0, len(slots), chunk):
        part = slots[start : start + chunk]
        _pack(rows, part, layout, out, ends)
        raw, begin = out.view(np.uint8).data, 0
        for end in ends[: len(part)].tolist():
            body = bytes(raw[4 * begin : 4 * end - 4])
            packed.append(body + zlib.crc32(body).to_bytes(4, "little"))
            begin = end
    return packed


def unpack_users(packed: bytes | memoryview, rows: Rows, slot: int, layout: Layout) -> None:
    """Fill row ``slot`` from a stored row.

    Raises:
        CorruptStateError: the checksum does not match.
    """
    view = memoryview(packed)
    if len(view) < 8 or zlib.crc32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise CorruptStateError("a stored user row does not match its checksum; rebuild the state from the log")
    _unpack(np.frombuffer(view[:-4], np.uint32), rows, slot, layout)


def packed_clock(packed: bytes | memoryview) -> int:
    """The clock of a stored user row, without unpacking it."""
    return int.from_bytes(memoryview(packed)[:8], "little")
