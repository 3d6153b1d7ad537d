"""Where everything lies inside a state row: positions that no plan changes, and the tuples that kernels take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.schema.items import MAX_CATEGORIES, MAX_REGIONS

ITEM_BITS = 24
MAX_ITEMS = (1 << ITEM_BITS) - 1

U_CLOCK, U_FIRST, U_TIMES = 0, 1, 2
U_RECENT_LENGTH, U_SEEN_LENGTH, U_SEGMENT, U_ZONE, U_COUNTS = 0, 1, 2, 4, 5
I_CLOCK, I_FIRST, I_PUBLISHED, I_EXPIRES, I_CO_CLOCK, I_TIMES = 0, 1, 2, 3, 4, 5
I_FLAGS, I_CATEGORIES, I_REGIONS, I_COUNTS = 0, 1, 1 + MAX_CATEGORIES, 1 + MAX_CATEGORIES + MAX_REGIONS

FLAG_KNOWN = 1  # an upsert has been folded
FLAG_HIDDEN = 2  # not available, or deleted
FLAG_CONTENT = 4  # the content vector is set

WIDE = 2  # cells of a sum in an item row: the sum, and its rest (``sums``)

# What an event does to a row beside decayed sums of ones, counts and latest times.
X_VALUE, X_GIVEN, X_WINDOW, X_WINDOW_VALUE, X_WINDOW_GIVEN, X_LARGEST, X_SMALLEST, X_LAST = range(8)
X_DISTINCT_USER, X_DISTINCT_ITEM, X_DISTINCT_CATEGORY = range(8, 11)

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]


class Lives(NamedTuple):
    """The distinct half-lives of a plan (``decay`` says what a landmark is) and its distinct kinds of windows (spans)."""

    rate: Float64  # (lives,) 1 / half_life_ms; 0: never fades
    period_ms: Int64  # (lives,) from one landmark to the next
    tile_ms: Int64  # (spans,) length of a tile
    tiles: Int64  # (spans,) tiles of the window


class CellProgram(NamedTuple):
    """Which cells of an entity an event of a type touches (compressed rows by type slot), and what else it holds."""

    cells: int  # decayed cells at the front of f4; in an item row each with its rest behind it
    life_of: Int32  # (cells,)
    bump_start: Int32  # (types + 2,)
    bump_cell: Int32
    bump_weight: Float64
    count_start: Int32
    count_cell: Int32  # position in u4
    time_start: Int32
    time_cell: Int32  # position in i8
    extra_start: Int32
    extra_op: Int32  # X_…
    extra_cell: Int32
    extra_other: Int32  # span of a window, time of a last value, registers of a distinct count
    extra_weight: Float64
    extra_life: Int32
    windows: Int64  # (windows, 2) f4 position, span
    counts: Int32  # u4 positions, for merging two rows
    maxima: Int32  # u4 positions of extremes and such: the larger one stays
    lasts: Int32  # (lasts, 2) f4 and i8 positions
    distincts: Int32  # (distincts, 2) u4 position, words
    times: Int32  # i8 positions


class AffinityProgram(NamedTuple):
    """The user's keyed sums: one entry a group."""

    f4: Int32  # (groups,) first weight
    u4: Int32  # first key; the latest times (in seconds) stand behind the keys
    size: Int32
    life: Int32
    key: Int32  # u4 position of the item's first key
    keys: Int32  # how many keys an item has at most
    weight: Float64  # (groups, types + 1)


class Layout(NamedTuple):
    """Positions and sizes inside the rows."""

    user_i8: int
    user_f4: int
    user_u4: int
    item_i8: int
    item_f4: int
    item_u4: int
    recent_size: int
    recent_keys: int
    recent_times: int
    seen_size: int
    seen: int
    segment_size: int  # sums of one key, each with its rest behind it
    segment_f4: int
    segment_life: int
    co_size: int
    co_f4: int
    co_fast_f4: int
    co_total_f4: int  # and the fast total behind it
    co_u4: int
    co_depth: int
    co_window_s: int
    co_life: int
    co_fast_life: int
    price_f4: int
    content_f4: int
    content_size: int
    idle_ms: int  # a user row that was idle for longer is as good as none; 0: never
    untouched_size: int  # items that the user was shown and did not touch; 0: not kept
    untouched: int  # u4 position: item and count (``bounded.COUNT_BITS``), the latest times (in seconds) behind them
    untouched_window_s: int


class TypeProgram(NamedTuple):
    """What an event of each type slot means; slot 0 is "not configured"."""

    weight: Float64  # (types + 1,)
    positive: UInt8
    seen: UInt8
    sequence: UInt8
    shown: UInt8  # an impression, where those are counted
    touch: UInt8  # ends the count


class ReadProgram(NamedTuple):
    """The terms (each read once) and the columns of the assembled row."""

    op: Int32  # (terms,)
    side: Int32
    cell: Int32
    other: Int32
    life: Int32
    tile_ms: Int64
    parameter: Float64
    formula: Int32  # (columns,)
    term: Int32  # (columns, 3)
    constants: Float64  # (columns, 2)
    default: Float64  # (columns,)
    at: Int32  # (term ops,) the term of each op that takes no parameters, -1: not asked for
    item_lives: Int32  # the half-lives that terms of the candidate read
    crosses: int  # whether any term looks at recent items and candidate together
    contents: int  # … at their content
