"""The bounded lists of a user row: the recent sequence, the seen ring, the heaviest keys, what was shown and not touched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.layout import U_RECENT_LENGTH, U_SEEN_LENGTH, Layout
from headwater.jit import inline

Float32 = npt.NDArray[np.float32]
UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]

COUNT_BITS = 8  # of an untouched item's word: how often it was shown; the item stands above them
MOST_SHOWN = (1 << COUNT_BITS) - 1

REST = 2.0**-20  # of what a retraction takes off: less than that is rounding


@inline
def left(total: float, part: float) -> float:
    """What a sum of ones holds after ``part`` was taken off: nothing where rounding may have left it.

    An item that somebody liked and took back would else have the whole of nothing: shares and means of tiny rests.
    """
    return total if total > abs(part) * REST else 0.0


@inline
def remember(u4: UInt32, key: int, time_s: int, layout: Layout) -> None:
    """Insert into the recent sequence, ordered by time, ties in log order; the oldest falls out."""
    keys, times, size = layout.recent_keys, layout.recent_times, layout.recent_size
    length = np.int64(u4[U_RECENT_LENGTH])
    if length == size:
        if time_s < np.int64(u4[times]):
            return
        for k in range(size - 1):
            u4[keys + k] = u4[keys + k + 1]
            u4[times + k] = u4[times + k + 1]
        length -= 1
    place = length
    while place > 0 and np.int64(u4[times + place - 1]) > time_s:
        u4[keys + place] = u4[keys + place - 1]
        u4[times + place] = u4[times + place - 1]
        place -= 1
    u4[keys + place] = np.uint32(key)
    u4[times + place] = np.uint32(time_s)
    u4[U_RECENT_LENGTH] = np.uint32(length + 1)


@inline
def forget(u4: UInt32, key: int, layout: Layout) -> None:
    """Take the latest entry ``key`` out of the recent sequence."""
    keys, times = layout.recent_keys, layout.recent_times
    length = np.int64(u4[U_RECENT_LENGTH])
    for place in range(length - 1, -1, -1):
        if np.int64(u4[keys + place]) == key:
            for k in range(place, length - 1):
                u4[keys + k] = u4[keys + k + 1]
                u4[times + k] = u4[times + k + 1]
            u4[keys + length - 1] = np.uint32(0)
            u4[times + length - 1] = np.uint32(0)
            u4[U_RECENT_LENGTH] = np.uint32(length - 1)
            return


@inline
def see(u4: UInt32, item: int, layout: Layout) -> None:
    """Add to the seen ring unless it is there; ``U_SEEN_LENGTH`` counts all that were ever added."""
    length = np.int64(u4[U_SEEN_LENGTH])
    for k in range(min(int(length), layout.seen_size)):
        if np.int64(u4[layout.seen + k]) == item:
            return
    u4[layout.seen + length % layout.seen_size] = np.uint32(item)
    # past twice the size only the remainder matters; keep the number small and the meaning the same
    length += 1
    u4[U_SEEN_LENGTH] = np.uint32(length if length < 2 * layout.seen_size else length - layout.seen_size)


@inline
def like(
    f4: Float32, u4: UInt32, key: int, weight: float, time_s: int, retract: bool, weights: int, keys: int, size: int
) -> None:  # fmt: skip
    """Add ``weight`` to a key; a full row gives its lightest place to a heavier newcomer.

    A retraction changes only a key that is here, and no time.
    """
    place, lightest = -1, 0
    for k in range(size):
        known = np.int64(u4[keys + k])
        if known == key or known == 0:
            place = k
            break
        if f4[weights + k] < f4[weights + lightest]:
            lightest = k
    if place < 0:
        if retract or f4[weights + lightest] >= weight:
            return
        place = lightest
        f4[weights + place] = np.float32(0.0)
        u4[keys + size + place] = np.uint32(0)
    elif u4[keys + place] == 0 and (retract or weight <= 0):
        return
    u4[keys + place] = np.uint32(key)
    total = f4[weights + place] + weight
    f4[weights + place] = np.float32(left(total, weight) if retract else max(total, 0.0))
    if not retract:
        u4[keys + size + place] = max(u4[keys + size + place], np.uint32(time_s))


@inline
def show(u4: UInt32, item: int, count: int, time_s: int, layout: Layout) -> None:
    """Count ``count`` impressions of ``item``, the latest at ``time_s``. Counts start anew once an item was not shown for a window.

    A full list gives the place of what was shown longest ago, unless that is later.
    """
    words, times, size = layout.untouched, layout.untouched + layout.untouched_size, layout.untouched_size
    place, oldest = -1, 0
    for k in range(size):
        word = np.int64(u4[words + k])
        if word == 0 or word >> COUNT_BITS == item:
            place = k
            break
        if u4[times + k] < u4[times + oldest]:
            oldest = k
    if place < 0:
        if time_s < np.int64(u4[times + oldest]):
            return
        place = oldest
        u4[words + place] = np.uint32(0)
    known, last = np.int64(u4[words + place]) & MOST_SHOWN, np.int64(u4[times + place])
    if known > 0:
        if last - time_s > layout.untouched_window_s:
            return
        if time_s - last <= layout.untouched_window_s:
            count += int(known)
            if count > MOST_SHOWN:
                count = MOST_SHOWN
            if last > time_s:
                time_s = int(last)
    u4[words + place] = np.uint32(item << COUNT_BITS | count)
    u4[times + place] = np.uint32(time_s)


@inline
def touch(u4: UInt32, item: int, layout: Layout) -> None:
    """Take ``item`` out of what was not touched."""
    words, times, size = layout.untouched, layout.untouched + layout.untouched_size, layout.untouched_size
    for place in range(size):
        if np.int64(u4[words + place]) >> COUNT_BITS == item:
            for k in range(place, size - 1):
                u4[words + k] = u4[words + k + 1]
                u4[times + k] = u4[times + k + 1]
            u4[words + size - 1] = np.uint32(0)
            u4[times + size - 1] = np.uint32(0)
            return


def tired_of(u4: UInt32, impressions: int, now_ms: int, layout: Layout) -> Int64:
    """The items that this user row was shown ``impressions`` times or more, and did not touch: int64[n]."""
    words = u4[layout.untouched : layout.untouched + layout.untouched_size].astype(np.int64)
    times = u4[layout.untouched + layout.untouched_size : layout.untouched + 2 * layout.untouched_size].astype(np.int64)
    tired = (words & MOST_SHOWN >= impressions) & (now_ms // 1000 - times <= layout.untouched_window_s)
    return np.asarray(words[tired] >> COUNT_BITS)
