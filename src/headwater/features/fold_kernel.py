"""The fold: one event after the other, in log order, into user rows and item rows.

The same kernel runs nearline, in training and in replay; nothing else changes state because of an event.
Times: ``time_ms`` never lies after ``received_ms``; a row's clock only moves forward. Decayed sums are kept for the
landmark of the clock (``decay``), so an event touches only the cells it adds to, and the order of arrival does not
matter to a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.co_visits import co_visit, rescale, stretch
from headwater.features.layout import (
    I_CATEGORIES,
    I_CLOCK,
    I_FIRST,
    ITEM_BITS,
    U_CLOCK,
    U_FIRST,
    U_RECENT_LENGTH,
    U_SEEN_LENGTH,
    U_SEGMENT,
    U_ZONE,
    X_DISTINCT_CATEGORY,
    X_DISTINCT_ITEM,
    X_DISTINCT_USER,
    X_GIVEN,
    X_LARGEST,
    X_LAST,
    X_SMALLEST,
    X_VALUE,
    X_WINDOW,
    X_WINDOW_GIVEN,
    X_WINDOW_VALUE,
    AffinityProgram,
    CellProgram,
    Layout,
    Lives,
    TypeProgram,
)
from headwater.features.rowset import Rows
from headwater.features.sketch import encode_number, register
from headwater.jit import inline, kernel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]
UInt8 = npt.NDArray[np.uint8]

RETRACT = 1
REST = 2.0**-20  # of what a retraction takes off: less than that is rounding


class Events(NamedTuple):
    """Columns of the events of one run, all of length ``n``."""

    user: Int64  # row of the user table
    item: Int64  # row of the item table
    type: Int64  # type slot, 0: not configured, skipped
    time_ms: Int64
    received_ms: Int64
    value: Float32  # NaN: none
    flags: npt.NDArray[np.uint16]
    segments: npt.NDArray[np.uint16]  # (n, 2)
    person: Int64  # dense user


class Programs(NamedTuple):
    """Everything of a plan that the fold runs on."""

    layout: Layout
    lives: Lives
    types: TypeProgram
    users: CellProgram
    items: CellProgram
    affinities: AffinityProgram


class Workspace(NamedTuple):
    """Reused memory of a fold, by half-life."""

    start: Int64  # landmark of the event's moment
    grow: Float64  # 2^((time - landmark) / half_life)
    factors: Float64  # that for the landmark of a row


def new_workspace(lives: Lives) -> Workspace:
    """Memory for a plan with these half-lives."""
    count = len(lives.rate)
    return Workspace(np.zeros(count, np.int64), np.zeros(count, np.float64), np.zeros(count, np.float64))


@inline
def set_moment(start: Int64, grow: Float64, lives: Lives, time_ms: int) -> tuple[int, int]:
    """Landmarks and powers of an event at ``time_ms``.

    Returns (the latest landmark, the earliest end of a period): a row whose clock lies between the two needs no
    rescaling.
    """
    latest, earliest = 0, 1 << 62
    for h in range(len(lives.rate)):
        begin = time_ms // lives.period_ms[h] * lives.period_ms[h]
        start[h] = begin
        grow[h] = stretch(time_ms - begin, lives.rate[h])
        latest = max(latest, int(begin))
        earliest = min(earliest, int(begin + lives.period_ms[h]))
    return latest, earliest


@inline
def _tiles(f4: Float32, clock_ms: int, time_ms: int, program: CellProgram) -> None:
    """Empty the tiles that the windows of a row move over as its clock goes to ``time_ms``."""
    for w in range(len(program.windows)):
        at, tiles, tile_ms = program.windows[w, 0], program.windows[w, 1], program.windows[w, 2]
        before, now = clock_ms // tile_ms, time_ms // tile_ms
        for tile in range(max(before + 1, now - tiles + 1), now + 1):
            f4[at + tile % tiles] = np.float32(0.0)


@inline
def _advance_cells(i8: Int64, f4: Float32, clock_at: int, time_ms: int, program: CellProgram, lives: Lives) -> None:
    """Bring the decayed cells and the windows of a row from its clock to ``time_ms`` (later than the clock)."""
    clock = i8[clock_at]
    for c in range(program.cells):
        h = program.life_of[c]
        f4[c] = np.float32(f4[c] * rescale(clock, time_ms, lives.period_ms[h]))
    _tiles(f4, clock, time_ms, program)


@inline
def _powers(clock_ms: int, time_ms: int, earliest: int, grow: Float64, lives: Lives, factors: Float64) -> None:
    """What an event adds to a row with this clock, by half-life; a late one may belong to an earlier period."""
    if clock_ms < earliest:
        for h in range(len(grow)):
            factors[h] = grow[h]
    else:
        for h in range(len(grow)):
            factors[h] = grow[h] * rescale(time_ms, clock_ms, lives.period_ms[h])


@inline
def _left(total: float, part: float) -> float:
    """What a sum of ones holds after ``part`` was taken off: nothing where rounding may have left it.

    An item that somebody liked and took back would else have the whole of nothing: shares and means of tiny rests.
    """
    return total if total > abs(part) * REST else 0.0


@inline
def _bump(
    i8: Int64, f4: Float32, u4: UInt32, slot: int, sign: float, time_ms: int, clock_ms: int, value: float,
    user: int, item: int, category: int, program: CellProgram, factors: Float64,
) -> None:  # fmt: skip
    for k in range(program.bump_start[slot], program.bump_start[slot + 1]):
        c = program.bump_cell[k]
        amount = sign * program.bump_weight[k] * factors[program.life_of[c]]
        f4[c] = np.float32(_left(f4[c] + amount, amount)) if sign < 0 else np.float32(f4[c] + amount)
    for k in range(program.count_start[slot], program.count_start[slot + 1]):
        c = program.count_cell[k]
        if sign > 0:
            u4[c] += np.uint32(1)
        elif u4[c] > 0:
            u4[c] -= np.uint32(1)
    if sign > 0:
        for k in range(program.time_start[slot], program.time_start[slot + 1]):
            c = program.time_cell[k]
            i8[c] = max(i8[c], time_ms)
    for k in range(program.extra_start[slot], program.extra_start[slot + 1]):
        _extra(i8, f4, u4, k, sign, time_ms, clock_ms, value, user, item, category, program, factors)


@inline
def _extra(
    i8: Int64, f4: Float32, u4: UInt32, k: int, sign: float, time_ms: int, clock_ms: int, value: float,
    user: int, item: int, category: int, program: CellProgram, factors: Float64,
) -> None:  # fmt: skip
    """The rarer aggregations; ``NaN`` is an event without a value."""
    op, c, other = program.extra_op[k], program.extra_cell[k], program.extra_other[k]
    given = not np.isnan(value)
    if op in (X_VALUE, X_GIVEN):
        if given:
            amount = program.extra_weight[k] * factors[program.extra_life[k]]
            if op == X_VALUE:
                f4[c] = np.float32(f4[c] + sign * value * amount)
            else:
                f4[c] = np.float32(_left(f4[c] - amount, amount)) if sign < 0 else np.float32(f4[c] + amount)
    elif op in (X_WINDOW, X_WINDOW_VALUE, X_WINDOW_GIVEN):
        tile, head = time_ms // program.extra_tile_ms[k], clock_ms // program.extra_tile_ms[k]
        if tile > head - other and (given or op == X_WINDOW):
            at = c + tile % other
            amount = sign * program.extra_weight[k]
            if op == X_WINDOW_VALUE:
                f4[at] = np.float32(f4[at] + value * amount)
            else:
                f4[at] = np.float32(_left(f4[at] + amount, amount)) if sign < 0 else np.float32(f4[at] + amount)
    elif sign > 0:
        if op == X_DISTINCT_USER:
            register(u4, c, other, user)
        elif op == X_DISTINCT_ITEM:
            register(u4, c, other, item)
        elif op == X_DISTINCT_CATEGORY:
            if category != 0:
                register(u4, c, other, category)
        elif given:
            if op == X_LARGEST:
                u4[c] = max(u4[c], encode_number(value))
            elif op == X_SMALLEST:
                u4[c] = max(u4[c], encode_number(-value))
            elif op == X_LAST and time_ms >= i8[other]:
                f4[c] = np.float32(value)
                i8[other] = time_ms


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
def _like(
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
    f4[weights + place] = np.float32(_left(total, weight) if retract else max(total, 0.0))
    if not retract:
        u4[keys + size + place] = max(u4[keys + size + place], np.uint32(time_s))


@inline
def _advance_user(
    i8: Int64, f4: Float32, time_ms: int, latest: int, program: CellProgram, affinities: AffinityProgram, lives: Lives
) -> None:  # fmt: skip
    """Move a user row's clock to ``time_ms``, later than it is. ``latest`` is the latest landmark of that moment."""
    clock = i8[U_CLOCK]
    if clock < latest:
        _advance_cells(i8, f4, U_CLOCK, time_ms, program, lives)
        for g in range(len(affinities.f4)):
            factor = rescale(clock, time_ms, lives.period_ms[affinities.life[g]])
            for c in range(affinities.f4[g], affinities.f4[g] + affinities.size[g]):
                f4[c] = np.float32(f4[c] * factor)
    else:
        _tiles(f4, clock, time_ms, program)
    i8[U_CLOCK] = time_ms


@inline
def _advance_item(
    i8: Int64, f4: Float32, time_ms: int, latest: int, program: CellProgram, layout: Layout, lives: Lives
) -> None:  # fmt: skip
    clock = i8[I_CLOCK]
    if clock < latest:
        _advance_cells(i8, f4, I_CLOCK, time_ms, program, lives)
        factor = rescale(clock, time_ms, lives.period_ms[layout.segment_life])
        for c in range(layout.segment_f4, layout.co_f4):
            f4[c] = np.float32(f4[c] * factor)
    else:
        _tiles(f4, clock, time_ms, program)
    i8[I_CLOCK] = time_ms


@inline
def idle(clock_ms: int, now_ms: int, layout: Layout) -> bool:
    """Whether a user row was left alone for so long that it is as good as none."""
    return layout.idle_ms > 0 and clock_ms > 0 and now_ms - clock_ms > layout.idle_ms


@inline
def _begin_anew(i8: Int64, f4: Float32, u4: UInt32, received_ms: int, layout: Layout) -> None:
    """Empty the row of a user who was idle for too long when something was received of them."""
    if idle(i8[U_CLOCK], received_ms, layout):
        i8[:] = 0
        f4[:] = np.float32(0.0)
        u4[:] = np.uint32(0)


@inline
def _fold_item(
    i8: Int64, f4: Float32, u4: UInt32, slot: int, sign: float, time_ms: int, value: float, person: int, item: int,
    category: int, followed: bool, weight: float, positive: bool, segment_0: int, segment_1: int, latest: int,
    earliest: int, grow: Float64, factors: Float64, layout: Layout, lives: Lives, program: CellProgram, types: int,
) -> None:  # fmt: skip
    """An event into the row of its item, or of everybody."""
    if i8[I_FIRST] == 0:
        i8[I_FIRST] = time_ms
    if time_ms > i8[I_CLOCK]:
        _advance_item(i8, f4, time_ms, latest, program, layout, lives)
    _powers(i8[I_CLOCK], time_ms, earliest, grow, lives, factors)
    clock = i8[I_CLOCK]
    _bump(i8, f4, u4, slot, sign, time_ms, clock, value, person, item, category, program, factors)
    if followed:
        _bump(i8, f4, u4, types, sign, time_ms, clock, value, person, item, category, program, factors)
    if positive:
        amount = sign * weight * factors[layout.segment_life]
        at, segment = layout.segment_f4, segment_0
        while at < layout.co_f4:  # one group of cells a segment key, its cell 0 is the total
            total = f4[at] + amount
            f4[at] = np.float32(_left(total, amount) if sign < 0 else max(total, 0.0))
            if 0 < segment < layout.segment_size:
                total = f4[at + segment] + amount
                f4[at + segment] = np.float32(_left(total, amount) if sign < 0 else max(total, 0.0))
            at += layout.segment_size
            segment = segment_1


@inline
def fold_event(
    events: Events, e: int, users: Rows, items: Rows, layout: Layout, lives: Lives, types: TypeProgram,
    user_program: CellProgram, item_program: CellProgram, affinities: AffinityProgram, start: Int64, grow: Float64,
    factors: Float64, dirty_users: UInt8, dirty_items: UInt8,
) -> None:  # fmt: skip
    """Fold event ``e``, whose type is configured.

    The programs come one by one: a kernel takes them out of their tuple once, not with every event (each array that is
    taken out of a tuple is counted up and down again).
    """
    slot = events.type[e]
    user, item, time_ms = events.user[e], events.item[e], events.time_ms[e]
    sign = -1.0 if events.flags[e] & RETRACT else 1.0
    value = np.float64(events.value[e])
    person = events.person[e]
    weight = types.weight[slot]
    positive = types.positive[slot] == 1
    category = int(items.u4[item, I_CATEGORIES])
    latest, earliest = set_moment(start, grow, lives, time_ms)

    # the user's segments: the event's own, else the last known ones
    i8, f4, u4 = users.i8[user], users.f4[user], users.u4[user]
    _begin_anew(i8, f4, u4, events.received_ms[e], layout)
    for k in range(2):
        if events.segments[e, k] != 0:
            u4[U_SEGMENT + k] = np.uint32(events.segments[e, k])
    segment_0, segment_1 = int(u4[U_SEGMENT]), int(u4[U_SEGMENT + 1])

    followed = False
    if positive and sign > 0:
        followed = co_visit(u4, items, item, time_ms, start, grow, layout, lives, types.positive, dirty_items) > 0
    for row in (np.int64(0), item):
        _fold_item(items.i8[row], items.f4[row], items.u4[row], slot, sign, time_ms, value, person, item, category,
                   followed, weight, positive, segment_0, segment_1, latest, earliest, grow, factors, layout, lives,
                   item_program, len(types.weight))  # fmt: skip

    if i8[U_FIRST] == 0:
        i8[U_FIRST] = time_ms
    if time_ms > i8[U_CLOCK]:
        _advance_user(i8, f4, time_ms, latest, user_program, affinities, lives)
    _powers(i8[U_CLOCK], time_ms, earliest, grow, lives, factors)
    _bump(i8, f4, u4, slot, sign, time_ms, i8[U_CLOCK], value, person, item, category, user_program, factors)
    if followed:
        _bump(i8, f4, u4, len(types.weight), sign, time_ms, i8[U_CLOCK], value, person, item, category, user_program,
              factors)  # fmt: skip
    for g in range(len(affinities.f4)):
        taste = affinities.weight[g, slot]
        if taste != 0.0:
            amount = sign * taste * factors[affinities.life[g]]
            for c in range(affinities.keys[g]):
                key = int(items.u4[item, affinities.key[g] + c])
                if key == 0:
                    break
                _like(f4, u4, key, amount, time_ms // 1000, sign < 0, affinities.f4[g], affinities.u4[g],
                      affinities.size[g])  # fmt: skip
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
    dirty_items[0] = 1


@kernel
def fold_events(
    events: Events, begin: int, end: int, users: Rows, items: Rows, programs: Programs, workspace: Workspace,
    dirty_users: UInt8, dirty_items: UInt8,
) -> int:  # fmt: skip
    """Fold events ``begin … end - 1`` of a run; returns how many were skipped because their type is not configured.

    ``dirty_users`` and ``dirty_items`` are set to 1 for rows that changed. Item row 0 ("all items") changes with
    every event.
    """
    layout, lives, types, affinities = programs.layout, programs.lives, programs.types, programs.affinities
    user_program, item_program = programs.users, programs.items
    start, grow, factors = workspace.start, workspace.grow, workspace.factors
    skipped = 0
    for e in range(begin, end):
        if events.type[e] == 0:
            skipped += 1
        else:
            fold_event(events, e, users, items, layout, lives, types, user_program, item_program, affinities, start,
                       grow, factors, dirty_users, dirty_items)  # fmt: skip
    return skipped


@kernel
def touch_user(users: Rows, user: int, now_ms: int, programs: Programs, workspace: Workspace) -> None:
    """Note that something was said of a user at ``now_ms``: the row starts anew if it was idle, and is not idle now."""
    i8, f4, u4 = users.i8[user], users.f4[user], users.u4[user]
    _begin_anew(i8, f4, u4, now_ms, programs.layout)
    latest, _ = set_moment(workspace.start, workspace.grow, programs.lives, now_ms)
    if now_ms > i8[U_CLOCK]:
        _advance_user(i8, f4, now_ms, latest, programs.users, programs.affinities, programs.lives)


@kernel
def merge_user(
    users: Rows, source: int, target: int, received_ms: int, programs: Programs, workspace: Workspace
) -> None:  # fmt: skip
    """Add everything of row ``source`` (an anonymous session) to row ``target``, then empty ``source``.

    Decayed sums and windows meet at the later of the two clocks; the sequences interleave by time; counts add; of
    two latest values the later one stays (the target's at one time). Attributes and table values stay the target's.
    A row that was idle for too long at ``received_ms`` is as good as none.
    """
    layout, program, affinities = programs.layout, programs.users, programs.affinities
    s_i8, s_f4, s_u4 = users.i8[source], users.f4[source], users.u4[source]
    t_i8, t_f4, t_u4 = users.i8[target], users.f4[target], users.u4[target]
    _begin_anew(s_i8, s_f4, s_u4, received_ms, layout)
    _begin_anew(t_i8, t_f4, t_u4, received_ms, layout)
    clock = max(s_i8[U_CLOCK], t_i8[U_CLOCK])
    latest, _ = set_moment(workspace.start, workspace.grow, programs.lives, clock)
    for i8, f4 in ((s_i8, s_f4), (t_i8, t_f4)):
        if clock > i8[U_CLOCK]:
            _advance_user(i8, f4, clock, latest, program, affinities, programs.lives)
    if t_i8[U_FIRST] == 0 or 0 < s_i8[U_FIRST] < t_i8[U_FIRST]:
        t_i8[U_FIRST] = s_i8[U_FIRST]
    for c in program.times:
        t_i8[c] = max(t_i8[c], s_i8[c])
    for c in range(program.cells):
        t_f4[c] = np.float32(t_f4[c] + s_f4[c])
    for w in range(len(program.windows)):
        for c in range(program.windows[w, 0], program.windows[w, 0] + program.windows[w, 1]):
            t_f4[c] = np.float32(t_f4[c] + s_f4[c])
    for k in range(len(program.lasts)):
        f4_at, i8_at = program.lasts[k, 0], program.lasts[k, 1]
        if s_i8[i8_at] > t_i8[i8_at]:
            t_f4[f4_at], t_i8[i8_at] = s_f4[f4_at], s_i8[i8_at]
    for k in range(2):
        if t_u4[U_SEGMENT + k] == 0:
            t_u4[U_SEGMENT + k] = s_u4[U_SEGMENT + k]
    if t_u4[U_ZONE] == 0:
        t_u4[U_ZONE] = s_u4[U_ZONE]
    for c in program.counts:
        t_u4[c] += s_u4[c]
    for c in program.maxima:
        t_u4[c] = max(t_u4[c], s_u4[c])
    for k in range(len(program.distincts)):
        for c in range(program.distincts[k, 0], program.distincts[k, 0] + program.distincts[k, 1]):
            for byte in range(4):
                mask = np.uint32(0xFF) << np.uint32(8 * byte)
                t_u4[c] = (t_u4[c] & ~mask) | max(t_u4[c] & mask, s_u4[c] & mask)
    for g in range(len(affinities.f4)):
        weights, keys, size = affinities.f4[g], affinities.u4[g], affinities.size[g]
        for k in range(size):
            if s_u4[keys + k] != 0:
                _like(t_f4, t_u4, int(s_u4[keys + k]), float(s_f4[weights + k]),
                      int(s_u4[keys + size + k]), False, weights, keys, size)  # fmt: skip
    for k in range(np.int64(s_u4[U_RECENT_LENGTH])):
        _remember(t_u4, int(s_u4[layout.recent_keys + k]), int(s_u4[layout.recent_times + k]), layout)
    added = int(s_u4[U_SEEN_LENGTH])
    for k in range(max(added - layout.seen_size, 0), added):  # oldest first: a full ring drops its oldest
        _see(t_u4, int(s_u4[layout.seen + k % layout.seen_size]), layout)
    s_i8[:] = 0
    s_f4[:] = np.float32(0.0)
    s_u4[:] = np.uint32(0)
