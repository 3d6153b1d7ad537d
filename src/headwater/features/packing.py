"""The packed form of a user row: what is not zero, in as few bytes as each word needs.

``clock`` (8 bytes) · a bitmap of the fixed words · bytes · CRC-32. The fixed words are those of ``i8`` behind the clock
(two each), of ``f4``, and of ``u4`` in front of the recent sequence. The bytes hold what the bitmap names, then the used
part of the recent keys, the recent times and the seen ring, in groups of four: a byte with two bits for each, then the
four. Two bits say how many bytes a word takes (1 … 4); of an item in the seen ring, that it is that of one of the next
three recent keys, or (3) that four bytes follow.

Words become short where they mostly can, and every one comes back as it was: times in ``i8`` count back from the clock,
times in ``u4`` from the clock or the event behind them, the type of a recent key stands below its item, and the low byte
of a float, zero in small whole numbers, stands on top.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from headwater.features.layout import ITEM_BITS, MAX_ITEMS, U_RECENT_LENGTH, U_SEEN_LENGTH, Layout
from headwater.features.rowset import Rows
from headwater.jit import inline, kernel
from headwater.schema.errors import HeadwaterError

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]

WORD = (1 << 32) - 1
SPAN_MS = 1 << 39  # 17 years
SPAN_S = 1 << 23  # 97 days: together with the numbers below it three bytes
FARTHEST = WORD * 1000 + 999  # a clock whose seconds are a word


class CorruptStateError(HeadwaterError):
    """A stored state row does not match its checksum."""


@inline
def _fixed(layout: Layout) -> int:
    return 2 * (layout.user_i8 - 1) + layout.user_f4 + layout.recent_keys


@inline
def most_words(layout: Layout) -> int:
    """Words that a packed row takes at most, without its checksum."""
    fixed = _fixed(layout)
    words = fixed + 2 * layout.recent_size + layout.seen_size
    return 2 + (fixed + 31) // 32 + words + (words + 15) // 16


@inline
def _near(value: int, clock: int, first: int, span: int) -> int:
    """Exchange the ``span`` values up to the clock, falling, with the numbers from ``first`` on; undoes itself."""
    if clock >= first + 2 * span and clock <= FARTHEST:
        if value > clock - span and value <= clock:
            return first + clock - value
        if value >= first and value < first + span:
            return first + clock - value
    return value


@inline
def _key_down(key: int) -> int:
    """A recent key with the low half of its type below the item."""
    return (key & 0xF0000000) | (key & MAX_ITEMS) << 4 | key >> ITEM_BITS & 0xF


@inline
def _key_up(word: int) -> int:
    return (word & 0xF0000000) | (word & 0xF) << ITEM_BITS | word >> 4 & MAX_ITEMS


@inline
def _write(raw: UInt8, at: int, tag: int, count: int, code: int, size: int, word: int) -> tuple[int, int, int]:
    """Put ``size`` bytes of ``word`` under ``code``; returns what moved: ``at``, ``tag`` and ``count``."""
    if count & 3 == 0:
        tag = at
        raw[tag] = np.uint8(0)
        at += 1
    raw[tag] |= np.uint8(code << 2 * (count & 3))
    for _ in range(size):
        raw[at] = np.uint8(word & 0xFF)
        word >>= 8
        at += 1
    return at, tag, count + 1


@inline
def _write_word(raw: UInt8, at: int, tag: int, count: int, word: int) -> tuple[int, int, int]:
    size = 1 + int(word > 0xFF) + int(word > 0xFFFF) + int(word > 0xFFFFFF)
    return _write(raw, at, tag, count, size - 1, size, word)


@inline
def _bytes(raw: UInt8, at: int, size: int) -> int:
    word = 0
    for k in range(size):
        word |= int(raw[at + k]) << 8 * k
    return word


@inline
def _read_code(raw: UInt8, at: int, tag: int, count: int) -> tuple[int, int, int]:
    """The next two bits; returns (code, at, tag)."""
    if count & 3 == 0:
        tag = at
        at += 1
    return int(raw[tag]) >> 2 * (count & 3) & 3, at, tag


@inline
def pack_row(rows: Rows, slot: int, layout: Layout, out: UInt32, at: int) -> int:
    """Write row ``slot`` into ``out`` from ``at`` on, without a checksum; returns where it ends."""
    i8, f4, u4 = rows.i8[slot], rows.f4[slot].view(np.uint32), rows.u4[slot]
    clock = int(i8[0])
    clock_s = clock // 1000
    out[at], out[at + 1] = np.uint32(clock & WORD), np.uint32(clock >> 32 & WORD)
    bitmap = at + 2
    end = bitmap + (_fixed(layout) + 31) // 32
    for k in range(bitmap, end):
        out[k] = np.uint32(0)
    raw, end, tag, count, number = out.view(np.uint8), 4 * end, 0, 0, 0
    for k in range(1, len(i8)):
        code = _near(int(i8[k]), clock, 1, SPAN_MS)
        for shift in range(0, 64, 32):
            word = code >> shift & WORD
            if word != 0:
                out[bitmap + (number >> 5)] |= np.uint32(1 << (number & 31))
                end, tag, count = _write_word(raw, end, tag, count, word)
            number += 1
    for k in range(len(f4)):
        word = int(f4[k])
        if word != 0:
            out[bitmap + (number >> 5)] |= np.uint32(1 << (number & 31))
            end, tag, count = _write_word(raw, end, tag, count, word >> 8 | (word & 0xFF) << 24)
        number += 1
    for k in range(layout.recent_keys):
        word = int(u4[k])
        if word != 0:
            out[bitmap + (number >> 5)] |= np.uint32(1 << (number & 31))
            end, tag, count = _write_word(raw, end, tag, count, _near(word, clock_s, SPAN_S, SPAN_S))
        number += 1
    recent = int(u4[U_RECENT_LENGTH])
    for k in range(recent):
        end, tag, count = _write_word(raw, end, tag, count, _key_down(int(u4[layout.recent_keys + k])))
    later = clock_s
    for k in range(layout.recent_times + recent - 1, layout.recent_times - 1, -1):
        time_s = int(u4[k])
        end, tag, count = _write_word(raw, end, tag, count, later - time_s & WORD)
        later = time_s
    place = 0
    for k in range(layout.seen, layout.seen + min(int(u4[U_SEEN_LENGTH]), layout.seen_size)):
        item, code = int(u4[k]), 3
        for ahead in range(min(3, recent - place)):
            if int(u4[layout.recent_keys + place + ahead]) & MAX_ITEMS == item:
                code = ahead
                place += ahead + 1
                break
        end, tag, count = _write(raw, end, tag, count, code, 4 if code == 3 else 0, item)
    while end & 3:
        raw[end] = np.uint8(0)
        end += 1
    return end >> 2


@inline
def unpack_row(words: UInt32, rows: Rows, slot: int, layout: Layout) -> None:
    """Fill row ``slot`` from packed words (without their checksum)."""
    i8, f4, u4 = rows.i8[slot], rows.f4[slot].view(np.uint32), rows.u4[slot]
    clock = int(words[0]) | int(words[1]) << 32
    clock_s = clock // 1000
    i8[0] = clock
    i8[1:] = 0
    u4[:] = np.uint32(0)
    fixed = _fixed(layout)
    f4_start = 2 * (len(i8) - 1)
    u4_start = f4_start + len(f4)
    raw, at, tag, count = words.view(np.uint8), 8 + 4 * ((fixed + 31) // 32), 0, 0
    for number in range(fixed):
        word = 0
        if words[2 + (number >> 5)] >> np.uint32(number & 31) & np.uint32(1):
            code, at, tag = _read_code(raw, at, tag, count)
            word = _bytes(raw, at, code + 1)
            at += code + 1
            count += 1
        if number < f4_start:
            i8[1 + (number >> 1)] |= word << 32 * (number & 1)
        elif number < u4_start:
            f4[number - f4_start] = np.uint32(word << 8 & WORD | word >> 24)
        elif word != 0:
            u4[number - u4_start] = np.uint32(_near(word, clock_s, SPAN_S, SPAN_S))
    for k in range(1, len(i8)):
        i8[k] = _near(int(i8[k]), clock, 1, SPAN_MS)
    recent = int(u4[U_RECENT_LENGTH])
    for k in range(layout.recent_keys, layout.recent_keys + recent):
        code, at, tag = _read_code(raw, at, tag, count)
        u4[k] = np.uint32(_key_up(_bytes(raw, at, code + 1)))
        at += code + 1
        count += 1
    later = clock_s
    for k in range(layout.recent_times + recent - 1, layout.recent_times - 1, -1):
        code, at, tag = _read_code(raw, at, tag, count)
        later = later - _bytes(raw, at, code + 1) & WORD
        u4[k] = np.uint32(later)
        at += code + 1
        count += 1
    place = 0
    for k in range(layout.seen, layout.seen + min(int(u4[U_SEEN_LENGTH]), layout.seen_size)):
        code, at, tag = _read_code(raw, at, tag, count)
        count += 1
        if code == 3:
            u4[k] = np.uint32(_bytes(raw, at, 4))
            at += 4
        else:
            place += code + 1
            u4[k] = u4[layout.recent_keys + place - 1] & np.uint32(MAX_ITEMS)


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
