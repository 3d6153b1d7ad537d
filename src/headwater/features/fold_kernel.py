"""The fold: one event after the other, in log order, into user rows and item rows.

The same kernel runs nearline, in training and in replay; nothing else changes state because of an event.
Times: ``time_ms`` never lies after ``received_ms``; a row's clock only moves forward; a late
contribution is decayed by its age against the clock, so the order of arrival does not matter to a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.decay import decay
from headwater.features.plan import (
    I_CATEGORIES,
    I_CLOCK,
    I_CO_CLOCK,
    I_FIRST,
    ITEM_BITS,
    MAX_ITEMS,
    U_CLOCK,
    U_FIRST,
    U_RECENT_LENGTH,
    U_SEEN_LENGTH,
    U_SEGMENT,
    CellProgram,
    Layout,
    TypeProgram,
)
from headwater.jit import inline, kernel
from headwater.schema.items import MAX_CATEGORIES

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
UInt32 = npt.NDArray[np.uint32]
UInt8 = npt.NDArray[np.uint8]

MAX_HALF_LIVES = 16
BACKWARD = 0.15  # weight of a co-visit against its direction: what comes next matters more than what came before
RETRACT = 1


class Rows(NamedTuple):
    """State rows of one entity: ``int64[n, a]``, ``float32[n, b]``, ``uint32[n, c]``."""

    i8: Int64
    f4: Float32
    u4: UInt32


class Events(NamedTuple):
    """Columns of the events of one run, all of length ``n``."""

    user: Int64  # row of the user table
    item: Int64  # row of the item table
    type: Int64  # type slot, 0: not configured, skipped
    time_ms: Int64
    flags: npt.NDArray[np.uint16]
    segments: npt.NDArray[np.uint16]  # (n, 2)


@inline
def _advance(
    row_i8: Int64, row_f4: Float32, clock_at: int, time_ms: int, program: CellProgram,
    extra_at: int, extra_size: int, extra_half_life: int, factors: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    """Move a row's clock to ``time_ms`` (or age the contribution): ``factors`` is the weight to add by half-life."""
    clock = row_i8[clock_at]
    lives = len(program.rate)
    if time_ms > clock:
        for h in range(lives):
            factors[h] = decay(time_ms - clock, program.rate[h])
        for c in range(program.cells):
            row_f4[c] = np.float32(row_f4[c] * factors[program.half_life_of[c]])
        factor = factors[extra_half_life]
        for c in range(extra_at, extra_at + extra_size):
            row_f4[c] = np.float32(row_f4[c] * factor)
        row_i8[clock_at] = time_ms
        for h in range(lives):
            factors[h] = 1.0
    else:
        for h in range(lives):
            factors[h] = decay(clock - time_ms, program.rate[h])


@inline
def _bump(
    row_i8: Int64, row_f4: Float32, row_u4: UInt32, slot: int, sign: float, time_ms: int,
    program: CellProgram, factors: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    for k in range(program.bump_start[slot], program.bump_start[slot + 1]):
        c = program.bump_cell[k]
        value = row_f4[c] + sign * program.bump_weight[k] * factors[program.half_life_of[c]]
        # a retraction may leave a rounding error below zero where nothing is left
        row_f4[c] = np.float32(max(value, 0.0)) if sign < 0 else np.float32(value)
    for k in range(program.count_start[slot], program.count_start[slot + 1]):
        c = program.count_cell[k]
        if sign > 0:
            row_u4[c] += np.uint32(1)
        elif row_u4[c] > 0:
            row_u4[c] -= np.uint32(1)
    if sign > 0:
        for k in range(program.time_start[slot], program.time_start[slot + 1]):
            c = program.time_cell[k]
            row_i8[c] = max(row_i8[c], time_ms)


@inline
def _mix(a: int, b: int, c: int) -> float:
    """A number in [0, 1) that depends on all three (splitmix64 finaliser)."""
    z = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F) ^ np.uint64(c)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inline
def _pair(items: Rows, a: int, b: int, weight: float, time_ms: int, layout: Layout) -> None:
    """Add ``weight`` to the co-visit ``a → b``.

    A row keeps its ``co_size`` heaviest partners. A newcomer to a full row takes the lightest place with
    probability ``w / (w + lightest)`` and then carries both slow weights (random admission, Ben Basat et al.
    2017): frequent partners get in, rare ones do not wash the row out. The "random" number is a hash.
    """
    i8, f4, u4 = items.i8[a], items.f4[a], items.u4[a]
    weights, fast_weights, keys, total = layout.co_f4, layout.co_fast_f4, layout.co_u4, layout.co_total_f4
    fast = weight
    clock = i8[I_CO_CLOCK]
    if time_ms > clock:
        factor = decay(time_ms - clock, layout.co_rate)
        fast_factor = decay(time_ms - clock, layout.co_fast_rate)
        for k in range(layout.co_size):
            f4[weights + k] = np.float32(f4[weights + k] * factor)
            f4[fast_weights + k] = np.float32(f4[fast_weights + k] * fast_factor)
        f4[total] = np.float32(f4[total] * factor)
        f4[total + 1] = np.float32(f4[total + 1] * fast_factor)
        i8[I_CO_CLOCK] = time_ms
    else:
        weight = weight * decay(clock - time_ms, layout.co_rate)
        fast = fast * decay(clock - time_ms, layout.co_fast_rate)
    f4[total] = np.float32(f4[total] + weight)
    f4[total + 1] = np.float32(f4[total + 1] + fast)
    lightest = 0
    for k in range(layout.co_size):
        key = u4[keys + k]
        if key == b:
            f4[weights + k] = np.float32(f4[weights + k] + weight)
            f4[fast_weights + k] = np.float32(f4[fast_weights + k] + fast)
            return
        if key == 0:  # places fill from the front, so the partner is not further back
            u4[keys + k] = np.uint32(b)
            f4[weights + k] = np.float32(weight)
            f4[fast_weights + k] = np.float32(fast)
            return
        if f4[weights + k] < f4[weights + lightest]:
            lightest = k
    least = f4[weights + lightest]
    if _mix(a, b, time_ms) * (weight + least) < weight:
        u4[keys + lightest] = np.uint32(b)
        f4[weights + lightest] = np.float32(least + weight)
        f4[fast_weights + lightest] = np.float32(fast)


@inline
def _co_visit(
    users: Rows, items: Rows, user: int, item: int, time_ms: int,
    layout: Layout, types: TypeProgram, dirty_items: UInt8,
) -> int:  # fmt: skip
    """Pair the event with the latest distinct positive items of its visit; returns how many there were."""
    u4 = users.u4[user]
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
        if other == item or types.positive[kind] == 0:
            continue
        weight = 1.0 / (1.0 + found)
        _pair(items, other, item, weight, time_ms, layout)
        _pair(items, item, other, BACKWARD * weight, time_ms, layout)
        dirty_items[other] = 1
        found += 1
    return found


@inline
def _remember(u4: UInt32, key: int, time_s: int, layout: Layout) -> None:
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
def _forget(u4: UInt32, key: int, layout: Layout) -> None:
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
def _see(u4: UInt32, item: int, layout: Layout) -> None:
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
def _like(f4: Float32, u4: UInt32, categories: UInt32, weight: float, layout: Layout) -> None:
    """Add ``weight`` to the affinity of each category; a full row gives its lightest place to a heavier newcomer."""
    for c in range(MAX_CATEGORIES):
        category = categories[I_CATEGORIES + c]
        if category == 0:
            break
        place, lightest = -1, 0
        for k in range(layout.affinity_size):
            key = u4[layout.affinity_u4 + k]
            if key == category or key == 0:
                place = k
                break
            if f4[layout.affinity_f4 + k] < f4[layout.affinity_f4 + lightest]:
                lightest = k
        if place < 0:
            if f4[layout.affinity_f4 + lightest] >= weight:
                continue
            place = lightest
            f4[layout.affinity_f4 + place] = np.float32(0.0)
        elif u4[layout.affinity_u4 + place] == 0 and weight <= 0:
            continue
        u4[layout.affinity_u4 + place] = category
        value = np.float32(f4[layout.affinity_f4 + place] + weight)
        f4[layout.affinity_f4 + place] = max(value, np.float32(0.0))


@kernel
def fold_events(
    events: Events, users: Rows, items: Rows, layout: Layout, types: TypeProgram,
    user_program: CellProgram, item_program: CellProgram, dirty_users: UInt8, dirty_items: UInt8,
) -> int:  # fmt: skip
    """Fold all events of a run; returns how many were skipped because their type is not configured.

    ``dirty_users`` and ``dirty_items`` are set to 1 for rows that changed. Item row 0 ("all items") is
    always dirty.
    """
    user_factors = np.empty(MAX_HALF_LIVES, np.float64)
    item_factors = np.empty(MAX_HALF_LIVES, np.float64)
    segment_cells = layout.co_f4 - layout.segment_f4
    skipped = 0
    for e in range(len(events.user)):
        slot = events.type[e]
        if slot == 0:
            skipped += 1
            continue
        user, item, time_ms = events.user[e], events.item[e], events.time_ms[e]
        sign = -1.0 if events.flags[e] & RETRACT else 1.0
        weight = types.weight[slot]
        positive = types.positive[slot] == 1

        # the user's segments: the event's own, else the last known ones
        u4 = users.u4[user]
        for k in range(2):
            if events.segments[e, k] != 0:
                u4[U_SEGMENT + k] = np.uint32(events.segments[e, k])

        followed = False
        if positive and sign > 0:
            followed = _co_visit(users, items, user, item, time_ms, layout, types, dirty_items) > 0

        for row in (np.int64(0), item):
            i8, f4 = items.i8[row], items.f4[row]
            if i8[I_FIRST] == 0:
                i8[I_FIRST] = time_ms
            _advance(i8, f4, I_CLOCK, time_ms, item_program, layout.segment_f4, segment_cells,
                     layout.segment_half_life, item_factors)  # fmt: skip
            _bump(i8, f4, items.u4[row], slot, sign, time_ms, item_program, item_factors)
            if followed:
                _bump(i8, f4, items.u4[row], len(types.weight), sign, time_ms, item_program, item_factors)
            if positive:
                amount = sign * weight * item_factors[layout.segment_half_life]
                at = layout.segment_f4
                while at < layout.co_f4:  # one group of cells a segment key, its cell 0 is the total
                    k = (at - layout.segment_f4) // layout.segment_size
                    f4[at] = np.float32(max(f4[at] + amount, 0.0))
                    segment = np.int64(u4[U_SEGMENT + k])
                    if 0 < segment < layout.segment_size:
                        f4[at + segment] = np.float32(max(f4[at + segment] + amount, 0.0))
                    at += layout.segment_size

        i8, f4 = users.i8[user], users.f4[user]
        if i8[U_FIRST] == 0:
            i8[U_FIRST] = time_ms
        _advance(i8, f4, U_CLOCK, time_ms, user_program, layout.affinity_f4, layout.affinity_size,
                 layout.affinity_half_life, user_factors)  # fmt: skip
        _bump(i8, f4, u4, slot, sign, time_ms, user_program, user_factors)
        if weight != 0.0:
            _like(f4, u4, items.u4[item], sign * weight * user_factors[layout.affinity_half_life], layout)
        key = item | (slot << ITEM_BITS)
        if sign > 0:
            if types.sequence[slot]:
                _remember(u4, key, time_ms // 1000, layout)
            if types.seen[slot]:
                _see(u4, item, layout)
        elif types.sequence[slot]:
            _forget(u4, key, layout)
        dirty_users[user] = 1
        dirty_items[item] = 1
    if len(events.user) > skipped:
        dirty_items[0] = 1
    return skipped


@kernel
def merge_user(users: Rows, source: int, target: int, layout: Layout, program: CellProgram) -> None:
    """Add everything of row ``source`` (an anonymous session) to row ``target``, then empty ``source``.

    Decayed cells meet at the later of the two clocks; the sequences interleave by time; counts add.
    """
    factors = np.empty(MAX_HALF_LIVES, np.float64)
    s_i8, s_f4, s_u4 = users.i8[source], users.f4[source], users.u4[source]
    t_i8, t_f4, t_u4 = users.i8[target], users.f4[target], users.u4[target]
    clock = max(s_i8[U_CLOCK], t_i8[U_CLOCK])
    for row_i8, row_f4 in ((s_i8, s_f4), (t_i8, t_f4)):
        _advance(row_i8, row_f4, U_CLOCK, clock, program, layout.affinity_f4, layout.affinity_size,
                 layout.affinity_half_life, factors)  # fmt: skip
    if t_i8[U_FIRST] == 0 or 0 < s_i8[U_FIRST] < t_i8[U_FIRST]:
        t_i8[U_FIRST] = s_i8[U_FIRST]
    for c in range(U_FIRST + 1, len(t_i8)):
        t_i8[c] = max(t_i8[c], s_i8[c])
    for c in range(program.cells):
        t_f4[c] = np.float32(t_f4[c] + s_f4[c])
    for k in range(2):
        if t_u4[U_SEGMENT + k] == 0:
            t_u4[U_SEGMENT + k] = s_u4[U_SEGMENT + k]
    for c in range(U_SEGMENT + 2, layout.affinity_u4):
        t_u4[c] += s_u4[c]
    category = np.zeros(I_CATEGORIES + MAX_CATEGORIES, np.uint32)
    for k in range(layout.affinity_size):
        if s_u4[layout.affinity_u4 + k] != 0:
            category[I_CATEGORIES] = s_u4[layout.affinity_u4 + k]
            _like(t_f4, t_u4, category, np.float64(s_f4[layout.affinity_f4 + k]), layout)
    for k in range(np.int64(s_u4[U_RECENT_LENGTH])):
        _remember(t_u4, int(s_u4[layout.recent_keys + k]), int(s_u4[layout.recent_times + k]), layout)
    added = int(s_u4[U_SEEN_LENGTH])
    for k in range(max(added - layout.seen_size, 0), added):  # oldest first: a full ring drops its oldest
        _see(t_u4, int(s_u4[layout.seen + k % layout.seen_size]), layout)
    s_i8[:] = 0
    s_f4[:] = np.float32(0.0)
    s_u4[:] = np.uint32(0)
