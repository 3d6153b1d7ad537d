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

from headwater.features.bounded import forget, left, like, remember, see, show, touch
from headwater.features.co_visits import co_visit, rescale, stretch
from headwater.features.factors import CONTEXTS, DEPTH, FactorProgram, learn, new_units
from headwater.features.layout import (
    I_CATEGORIES,
    I_CLOCK,
    I_FIRST,
    ITEM_BITS,
    U_CLOCK,
    U_FIRST,
    U_SEGMENT,
    WIDE,
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
from headwater.features.sums import add, held, hold
from headwater.jit import inline, kernel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]
UInt8 = npt.NDArray[np.uint8]

RETRACT, TRIAL = 1, 2  # of `log.record`
MOST = np.uint32(0xFFFFFFFF)  # a count stays there: some weeks of everybody's events, were they many


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
    everybody: CellProgram  # the items' program for row 0
    affinities: AffinityProgram
    factors: FactorProgram


class Workspace(NamedTuple):
    """Reused memory of a fold: the event's moment by half-life, and by kind of window."""

    start: Int64  # (lives,) landmark
    grow: Float64  # (lives,) 2^((time - landmark) / half_life)
    factors: Float64  # (lives,) that for the landmark of a row
    scales: Float64  # (lives,) what a row's sums are multiplied with when its clock moves
    tile: Int64  # (spans,) number of the tile
    place: Int64  # (spans,) and its place in the ring
    contexts: Float64  # (CONTEXTS, size) of online factors
    units: Float64  # and of their hidden layer
    latest: Int64  # (2, DEPTH) recent items in a context, and their ages


def new_workspace(lives: Lives, factors: FactorProgram) -> Workspace:
    """Memory for a plan with these half-lives and factors."""
    count, spans = len(lives.rate), len(lives.tile_ms)
    return Workspace(
        np.zeros(count, np.int64), np.zeros(count, np.float64), np.zeros(count, np.float64),
        np.zeros(count, np.float64), np.zeros(spans, np.int64), np.zeros(spans, np.int64),
        np.zeros((CONTEXTS, factors.size), np.float64), new_units(factors), np.zeros((2, DEPTH), np.int64),
    )  # fmt: skip


@inline
def set_moment(workspace: Workspace, lives: Lives, time_ms: int) -> tuple[int, int]:
    """Landmarks, powers and tiles of an event at ``time_ms``.

    Returns (the latest landmark, the earliest end of a period): a row whose clock lies between the two needs no
    rescaling. Divisions are dear, and the next event mostly lies in the same period and tile as the one before.
    """
    latest, earliest = 0, 1 << 62
    for h in range(len(lives.rate)):
        begin, period = workspace.start[h], lives.period_ms[h]
        if time_ms < begin or time_ms - begin >= period:
            begin = time_ms // period * period
            workspace.start[h] = begin
        workspace.grow[h] = stretch(time_ms - begin, lives.rate[h])
        latest = max(latest, int(begin))
        earliest = min(earliest, int(begin + period))
    for w in range(len(lives.tile_ms)):
        begin = workspace.tile[w] * lives.tile_ms[w]
        if time_ms < begin or time_ms - begin >= lives.tile_ms[w]:
            workspace.tile[w] = time_ms // lives.tile_ms[w]
            workspace.place[w] = workspace.tile[w] % lives.tiles[w]
    return latest, earliest


@inline
def _tiles(
    f4: Float32, clock_ms: int, program: CellProgram, lives: Lives, workspace: Workspace, rests: bool
) -> None:  # fmt: skip
    """Empty the tiles that the windows of a row move over as its clock goes to the event's moment."""
    for k in range(len(program.windows)):
        at, w = program.windows[k, 0], program.windows[k, 1]
        now, tiles = workspace.tile[w], lives.tiles[w]
        if clock_ms < now * lives.tile_ms[w]:
            place = workspace.place[w]
            for _ in range(min(now - clock_ms // lives.tile_ms[w], tiles)):
                f4[at + place] = np.float32(0.0)
                if rests:
                    f4[at + tiles + place] = np.float32(0.0)
                place = place - 1 if place > 0 else tiles - 1


@inline
def _advance_cells(
    f4: Float32, clock_ms: int, time_ms: int, program: CellProgram, lives: Lives, workspace: Workspace
) -> None:  # fmt: skip
    """Bring the decayed cells of a row from its clock to ``time_ms`` (later); ``scales`` holds the powers afterwards."""
    for h in range(len(lives.rate)):
        workspace.scales[h] = 1.0 if clock_ms >= workspace.start[h] else rescale(clock_ms, time_ms, lives.period_ms[h])
    for c in range(program.cells):
        f4[c] = np.float32(f4[c] * workspace.scales[program.life_of[c]])


@inline
def _powers(clock_ms: int, time_ms: int, earliest: int, lives: Lives, workspace: Workspace) -> None:
    """What an event adds to a row with this clock, by half-life; a late one may belong to an earlier period."""
    for h in range(len(lives.rate)):
        workspace.factors[h] = workspace.grow[h]
    if clock_ms >= earliest:
        for h in range(len(lives.rate)):
            workspace.factors[h] *= rescale(time_ms, clock_ms, lives.period_ms[h])


@inline
def _bump(
    i8: Int64, f4: Float32, u4: UInt32, slot: int, sign: float, time_ms: int, clock_ms: int, value: float,
    user: int, item: int, category: int, program: CellProgram, lives: Lives, workspace: Workspace, rests: bool,
) -> None:  # fmt: skip
    for k in range(program.bump_start[slot], program.bump_start[slot + 1]):
        c = program.bump_cell[k]
        add(f4, c, c + 1, sign * program.bump_weight[k] * workspace.factors[program.life_of[c]], sign, rests)
    for k in range(program.count_start[slot], program.count_start[slot + 1]):
        c = program.count_cell[k]
        if sign > 0:
            u4[c] += np.uint32(u4[c] != MOST)
        elif u4[c] > 0:
            u4[c] -= np.uint32(1)
    if sign > 0:
        for k in range(program.time_start[slot], program.time_start[slot + 1]):
            c = program.time_cell[k]
            i8[c] = max(i8[c], time_ms)
    for k in range(program.extra_start[slot], program.extra_start[slot + 1]):
        _extra(i8, f4, u4, k, sign, time_ms, clock_ms, value, user, item, category, program, lives, workspace, rests)


@inline
def _extra(
    i8: Int64, f4: Float32, u4: UInt32, k: int, sign: float, time_ms: int, clock_ms: int, value: float,
    user: int, item: int, category: int, program: CellProgram, lives: Lives, workspace: Workspace, rests: bool,
) -> None:  # fmt: skip
    """The rarer aggregations; ``NaN`` is an event without a value."""
    op, c, other = program.extra_op[k], program.extra_cell[k], program.extra_other[k]
    given = not np.isnan(value)
    if op in (X_VALUE, X_GIVEN):
        if given:
            amount = program.extra_weight[k] * workspace.factors[program.extra_life[k]]
            if op == X_VALUE:
                hold(f4, c, c + 1, rests, held(f4, c, c + 1, rests) + sign * value * amount)
            else:
                add(f4, c, c + 1, sign * amount, sign, rests)
    elif op in (X_WINDOW, X_WINDOW_VALUE, X_WINDOW_GIVEN):
        # `other` is the kind of window; an event that is not late lies in the row's newest tile
        inside = time_ms == clock_ms or (workspace.tile[other] > clock_ms // lives.tile_ms[other] - lives.tiles[other])
        if inside and (given or op == X_WINDOW):
            at = c + workspace.place[other]
            rest = at + lives.tiles[other]
            amount = sign * program.extra_weight[k]
            if op == X_WINDOW_VALUE:
                hold(f4, at, rest, rests, held(f4, at, rest, rests) + value * amount)
            else:
                add(f4, at, rest, amount, sign, rests)
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
def advance_user(
    i8: Int64, f4: Float32, time_ms: int, latest: int, program: CellProgram, affinities: AffinityProgram, lives: Lives,
    workspace: Workspace,
) -> None:  # fmt: skip
    """Move a user row's clock to ``time_ms``, later than it is. ``latest`` is the latest landmark of that moment."""
    clock = i8[U_CLOCK]
    if clock < latest:
        _advance_cells(f4, clock, time_ms, program, lives, workspace)
        for g in range(len(affinities.f4)):
            factor = workspace.scales[affinities.life[g]]
            for c in range(affinities.f4[g], affinities.f4[g] + affinities.size[g]):
                f4[c] = np.float32(f4[c] * factor)
    _tiles(f4, clock, program, lives, workspace, False)
    i8[U_CLOCK] = time_ms


@inline
def _advance_item(
    i8: Int64, f4: Float32, time_ms: int, latest: int, program: CellProgram, layout: Layout, lives: Lives,
    workspace: Workspace,
) -> None:  # fmt: skip
    clock = i8[I_CLOCK]
    if clock < latest:
        _advance_cells(f4, clock, time_ms, program, lives, workspace)
        factor = workspace.scales[layout.segment_life]
        for c in range(layout.segment_f4, layout.co_f4):
            f4[c] = np.float32(f4[c] * factor)
    _tiles(f4, clock, program, lives, workspace, True)
    i8[I_CLOCK] = time_ms


@inline
def idle(clock_ms: int, now_ms: int, layout: Layout) -> bool:
    """Whether a user row was left alone for so long that it is as good as none."""
    return layout.idle_ms > 0 and clock_ms > 0 and now_ms - clock_ms > layout.idle_ms


@inline
def begin_anew(i8: Int64, f4: Float32, u4: UInt32, received_ms: int, layout: Layout) -> None:
    """Empty the row of a user who was idle for too long when something was received of them."""
    if idle(i8[U_CLOCK], received_ms, layout):
        i8[:] = 0
        f4[:] = np.float32(0.0)
        u4[:] = np.uint32(0)


@inline
def _fold_item(
    i8: Int64, f4: Float32, u4: UInt32, slot: int, sign: float, time_ms: int, value: float, person: int, item: int,
    category: int, followed: bool, weight: float, positive: bool, segment_0: int, segment_1: int, latest: int,
    earliest: int, workspace: Workspace, layout: Layout, lives: Lives, program: CellProgram, types: int,
) -> None:  # fmt: skip
    """An event into the row of its item, or of everybody."""
    if i8[I_FIRST] == 0:
        i8[I_FIRST] = time_ms
    if time_ms > i8[I_CLOCK]:
        _advance_item(i8, f4, time_ms, latest, program, layout, lives, workspace)
    _powers(i8[I_CLOCK], time_ms, earliest, lives, workspace)
    clock = i8[I_CLOCK]
    for k in range(1 + followed):
        _bump(i8, f4, u4, slot if k == 0 else types, sign, time_ms, clock, value, person, item, category, program, lives,
              workspace, True)  # fmt: skip
    if positive:
        amount = sign * weight * workspace.factors[layout.segment_life]
        at, segment = layout.segment_f4, segment_0
        while at < layout.co_f4:  # one group of sums a segment key, its first is the total
            total = held(f4, at, at + 1, True) + amount
            hold(f4, at, at + 1, True, left(total, amount) if sign < 0 else max(total, 0.0))
            if 0 < segment < layout.segment_size:
                own = at + WIDE * segment
                total = held(f4, own, own + 1, True) + amount
                hold(f4, own, own + 1, True, left(total, amount) if sign < 0 else max(total, 0.0))
            at += WIDE * layout.segment_size
            segment = segment_1


@inline
def fold_event(
    events: Events, e: int, users: Rows, items: Rows, layout: Layout, lives: Lives, types: TypeProgram,
    user_program: CellProgram, item_program: CellProgram, everybody: CellProgram, affinities: AffinityProgram,
    factors: FactorProgram, workspace: Workspace, dirty_users: UInt8, dirty_items: UInt8,
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
    latest, earliest = set_moment(workspace, lives, time_ms)

    # the user's segments: the event's own, else the last known ones
    i8, f4, u4 = users.i8[user], users.f4[user], users.u4[user]
    begin_anew(i8, f4, u4, events.received_ms[e], layout)
    for k in range(2):
        if events.segments[e, k] != 0:
            u4[U_SEGMENT + k] = np.uint32(events.segments[e, k])
    segment_0, segment_1 = int(u4[U_SEGMENT]), int(u4[U_SEGMENT + 1])

    followed = False
    counts = events.flags[e] & TRIAL == 0  # a trial moves the row of its user and none that others are judged by
    if counts and positive and sign > 0:
        followed = (
            co_visit(
                u4, items, item, time_ms, workspace.start, workspace.grow, layout, lives, types.positive, dirty_items
            )
            > 0
        )
        if factors.size > 0:
            learn(u4, f4, items, item, time_ms, segment_0, segment_1, layout, factors, workspace.contexts,
                  workspace.units, workspace.latest, dirty_items)  # fmt: skip
    if counts:
        for row, program in ((np.int64(0), everybody), (item, item_program)):
            _fold_item(items.i8[row], items.f4[row], items.u4[row], slot, sign, time_ms, value, person, item, category,
                       followed, weight, positive, segment_0, segment_1, latest, earliest, workspace, layout, lives,
                       program, len(types.weight))  # fmt: skip
        dirty_items[item] = 1
        dirty_items[0] = 1

    if i8[U_FIRST] == 0:
        i8[U_FIRST] = time_ms
    if time_ms > i8[U_CLOCK]:
        advance_user(i8, f4, time_ms, latest, user_program, affinities, lives, workspace)
    _powers(i8[U_CLOCK], time_ms, earliest, lives, workspace)
    for k in range(1 + followed):  # what follows another event of the visit counts as a type of its own, too
        _bump(i8, f4, u4, slot if k == 0 else len(types.weight), sign, time_ms, i8[U_CLOCK], value, person, item,
              category, user_program, lives, workspace, False)  # fmt: skip
    for g in range(len(affinities.f4)):
        taste = affinities.weight[g, slot]
        if taste != 0.0:
            amount = sign * taste * workspace.factors[affinities.life[g]]
            for c in range(affinities.keys[g]):
                key = int(items.u4[item, affinities.key[g] + c])
                if key == 0:
                    break
                like(f4, u4, key, amount, time_ms // 1000, sign < 0, affinities.f4[g], affinities.u4[g],
                      affinities.size[g])  # fmt: skip
    key = item | (slot << ITEM_BITS)
    if sign > 0:
        if types.sequence[slot]:
            remember(u4, key, time_ms // 1000, layout)
        if types.seen[slot]:
            see(u4, item, layout)
        if types.shown[slot]:
            show(u4, item, 1, time_ms // 1000, layout)
        elif types.touch[slot]:
            touch(u4, item, layout)
    elif types.sequence[slot]:
        forget(u4, key, layout)
    dirty_users[user] = 1


@kernel
def fold_events(
    events: Events, begin: int, end: int, users: Rows, items: Rows, programs: Programs, workspace: Workspace,
    dirty_users: UInt8, dirty_items: UInt8,
) -> int:  # fmt: skip
    """Fold events ``begin … end - 1`` of a run; returns how many were skipped because their type is not configured.

    ``dirty_users`` and ``dirty_items`` are set to 1 for rows that changed. Item row 0 ("all items") changes with
    every event, but for a trial, which changes its user's row alone.
    """
    layout, lives, types, affinities = programs.layout, programs.lives, programs.types, programs.affinities
    user_program, item_program, everybody = programs.users, programs.items, programs.everybody
    factors = programs.factors
    skipped = 0
    for e in range(begin, end):
        if events.type[e] == 0:
            skipped += 1
        else:
            fold_event(events, e, users, items, layout, lives, types, user_program, item_program, everybody, affinities, factors, workspace,
                       dirty_users, dirty_items)  # fmt: skip
    return skipped


@kernel
def fold_shown(
    shown: Int64, time_ms: int, items: Rows, programs: Programs, workspace: Workspace, dirty_items: UInt8
) -> None:  # fmt: skip
    """Fold the places of a served list of items ``shown`` into their rows and that of everybody: the type slot behind ``FOLLOWED``."""
    layout, lives, types = programs.layout, programs.lives, len(programs.types.weight)
    item_program, everybody = programs.items, programs.everybody
    latest, earliest = set_moment(workspace, lives, time_ms)
    for k in range(len(shown)):
        item = shown[k]
        for row, program in ((np.int64(0), everybody), (item, item_program)):
            _fold_item(items.i8[row], items.f4[row], items.u4[row], types + 1, 1.0, time_ms, np.nan, 0, item, 0, False, 0.0, False,
                       0, 0, latest, earliest, workspace, layout, lives, program, types)  # fmt: skip
        dirty_items[item] = 1
        dirty_items[0] = 1


@kernel
def touch_user(users: Rows, user: int, now_ms: int, programs: Programs, workspace: Workspace) -> None:
    """Note that something was said of a user at ``now_ms``: the row starts anew if it was idle, and is not idle now."""
    i8, f4, u4 = users.i8[user], users.f4[user], users.u4[user]
    begin_anew(i8, f4, u4, now_ms, programs.layout)
    latest, _ = set_moment(workspace, programs.lives, now_ms)
    if now_ms > i8[U_CLOCK]:
        advance_user(i8, f4, now_ms, latest, programs.users, programs.affinities, programs.lives, workspace)
