"""Co-visits: decayed item-to-item counts, kept in the item rows and updated by the fold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.features.decay import PERIOD, power, whole_power
from headwater.features.layout import I_CO_CLOCK, ITEM_BITS, MAX_ITEMS, U_RECENT_LENGTH, Layout, Lives
from headwater.features.rowset import Rows
from headwater.jit import inline

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]
UInt8 = npt.NDArray[np.uint8]

BACKWARD = 0.15  # weight of a co-visit against its direction: what comes next matters more than what came before


@inline
def stretch(past_ms: int, per_half_life: float) -> float:
    """``2^(past_ms / half_life)``: what an event weighs in a sum kept for a landmark ``past_ms`` before it."""
    return power(past_ms * per_half_life)


@inline
def rescale(from_ms: int, to_ms: int, period_ms: int) -> float:
    """What turns a sum for the landmark of ``from_ms`` into one for that of ``to_ms`` (not before it): exact."""
    return whole_power(-PERIOD * (to_ms // period_ms - from_ms // period_ms))


@inline
def mix(a: int, b: int, c: int) -> float:
    """A number in [0, 1) that depends on all three (splitmix64 finaliser)."""
    z = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F) ^ np.uint64(c)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inline
def _pair(
    items: Rows, a: int, b: int, weight: float, time_ms: int, start: Int64, grow: Float64,
    layout: Layout, lives: Lives,
) -> None:  # fmt: skip
    """Add ``weight`` to the co-visit ``a → b``.

    A row keeps its ``co_size`` heaviest partners. A newcomer to a full row takes the lightest place with
    probability ``w / (w + lightest)`` and then carries both slow weights (random admission, Ben Basat et al.
    2017): frequent partners get in, rare ones do not wash the row out. The "random" number is a hash.
    """
    f4, u4 = items.f4[a], items.u4[a]
    weights, fast_weights, keys, total = layout.co_f4, layout.co_fast_f4, layout.co_u4, layout.co_total_f4
    slow_life, fast_life = layout.co_life, layout.co_fast_life
    slow, fast = weight * grow[slow_life], weight * grow[fast_life]
    clock = items.i8[a, I_CO_CLOCK]
    if time_ms > clock:
        if clock < start[slow_life] or clock < start[fast_life]:
            slower = rescale(clock, time_ms, lives.period_ms[slow_life])
            faster = rescale(clock, time_ms, lives.period_ms[fast_life])
            for k in range(layout.co_size):
                f4[weights + k] = np.float32(f4[weights + k] * slower)
                f4[fast_weights + k] = np.float32(f4[fast_weights + k] * faster)
            f4[total] = np.float32(f4[total] * slower)
            f4[total + 1] = np.float32(f4[total + 1] * faster)
        items.i8[a, I_CO_CLOCK] = time_ms
    else:
        slow *= rescale(time_ms, clock, lives.period_ms[slow_life])
        fast *= rescale(time_ms, clock, lives.period_ms[fast_life])
    f4[total] = np.float32(f4[total] + slow)
    f4[total + 1] = np.float32(f4[total + 1] + fast)
    found = -1
    for k in range(layout.co_size):  # no way out of the loop: eight compares at a time are cheaper than a branch each
        if u4[keys + k] == np.uint32(b):
            found = k
    if found < 0 and u4[keys + layout.co_size - 1] == 0:
        found = 0  # places fill from the front
        for k in range(layout.co_size):
            found += u4[keys + k] != 0
        u4[keys + found] = np.uint32(b)
    if found >= 0:
        f4[weights + found] = np.float32(f4[weights + found] + slow)
        f4[fast_weights + found] = np.float32(f4[fast_weights + found] + fast)
        return
    lightest = 0
    for k in range(layout.co_size):
        if f4[weights + k] < f4[weights + lightest]:
            lightest = k
    least = f4[weights + lightest]
    if mix(a, b, time_ms) * (slow + least) < slow:
        u4[keys + lightest] = np.uint32(b)
        f4[weights + lightest] = np.float32(least + slow)
        f4[fast_weights + lightest] = np.float32(fast)


@inline
def co_visit(
    u4: UInt32, items: Rows, item: int, time_ms: int, start: Int64, grow: Float64,
    layout: Layout, lives: Lives, positive: UInt8, dirty_items: UInt8,
) -> int:  # fmt: skip
    """Pair the event with the latest distinct positive items of the visit of user row ``u4``; returns how many."""
    length = np.int64(u4[U_RECENT_LENGTH])
    time_s = time_ms // 1000
    found = 0
    for k in range(length - 1, -1, -1):
        if found == layout.co_depth:
            break
        then = np.int64(u4[layout.recent_times + k])
        if then > time_s:
            continue
        if time_s - then > layout.co_window_s:
            break
        key = int(u4[layout.recent_keys + k])
        other, kind = key & MAX_ITEMS, key >> ITEM_BITS
        if other == item or positive[kind] == 0:
            continue
        weight = 1.0 / (1.0 + found)
        _pair(items, other, item, weight, time_ms, start, grow, layout, lives)
        _pair(items, item, other, BACKWARD * weight, time_ms, start, grow, layout, lives)
        dirty_items[other] = 1
        found += 1
    return found
