"""Users and items of the slow fold as rows of a plan, as the kernels keep them."""

from __future__ import annotations

import numpy as np

from headwater.features.assemble import User
from headwater.features.definitions import Aggregation, Counted, Decayed, LastTime
from headwater.features.plan import (
    FLAG_CONTENT,
    FLAG_HIDDEN,
    FLAG_KNOWN,
    I_CATEGORIES,
    I_CLOCK,
    I_CO_CLOCK,
    I_EXPIRES,
    I_FIRST,
    I_FLAGS,
    I_PUBLISHED,
    I_REGIONS,
    ITEM_BITS,
    U_CLOCK,
    U_FIRST,
    U_RECENT_LENGTH,
    U_SEEN_LENGTH,
    U_SEGMENT,
    Plan,
)
from headwater.testing.oracle import SlowItem, SlowRow, SlowUser


def positions(plan: Plan) -> dict[Aggregation, int]:
    """Where the plan put the cell of each aggregation, as its columns read it."""
    found: dict[Aggregation, int] = {}
    for column, cells in zip(plan.declared, plan.reads.cell.tolist(), strict=True):
        found.update(zip(column.reads, cells, strict=False))
    return found


def _cells(row: SlowRow, extra: dict[Aggregation, int], i8: list[int], f4: list[float], u4: list[int]) -> None:
    for cell, at in extra.items():
        if isinstance(cell, Decayed) and cell in row.decayed:
            f4[at] = row.decayed[cell]
        elif isinstance(cell, Counted) and cell in row.counts:
            u4[at] = row.counts[cell]
        elif isinstance(cell, LastTime) and cell in row.latest:
            i8[at] = row.latest[cell]


def user_row(plan: Plan, user: SlowUser | None) -> User:
    """The user as the kernels keep it; ``None`` is a row of zeros."""
    layout = plan.layout
    i8, f4, u4 = [0] * layout.user_i8, [0.0] * layout.user_f4, [0] * layout.user_u4
    if user is not None:
        i8[U_CLOCK], i8[U_FIRST] = user.clock, user.first
        _cells(user, {cell: at for cell, at in positions(plan).items() if cell.entity == "user"}, i8, f4, u4)
        u4[U_SEGMENT : U_SEGMENT + 2] = user.segments
        for k, liked in enumerate(user.affinity):
            f4[layout.affinity_f4 + k], u4[layout.affinity_u4 + k] = liked.weight, liked.key
        u4[U_RECENT_LENGTH] = len(user.recent)
        for k, entry in enumerate(user.recent):
            u4[layout.recent_keys + k] = entry.item | entry.slot << ITEM_BITS
            u4[layout.recent_times + k] = entry.time_s
        size, added = layout.seen_size, len(user.seen)
        u4[U_SEEN_LENGTH] = added if added < 2 * size else size + added % size
        for k, item in enumerate(user.seen):
            u4[layout.seen + k % size] = item
    return User(np.array(i8, np.int64), np.array(f4, np.float32), np.array(u4, np.uint32))


def item_row(plan: Plan, item: SlowItem | None) -> User:
    """The item as the kernels keep it (the three parts of a row, as of a user); ``None`` is a row of zeros."""
    layout = plan.layout
    i8, f4, u4 = [0] * layout.item_i8, [0.0] * layout.item_f4, [0] * layout.item_u4
    if item is not None:
        i8[I_CLOCK], i8[I_FIRST], i8[I_CO_CLOCK] = item.clock, item.first, item.co_clock
        i8[I_PUBLISHED], i8[I_EXPIRES] = item.published, item.expires
        _cells(item, {cell: at for cell, at in positions(plan).items() if cell.entity == "item"}, i8, f4, u4)
        flags = ((item.known, FLAG_KNOWN), (item.hidden, FLAG_HIDDEN), (item.content is not None, FLAG_CONTENT))
        u4[I_FLAGS] = sum(flag for is_set, flag in flags if is_set)
        u4[I_CATEGORIES : I_CATEGORIES + len(item.categories)] = item.categories
        u4[I_REGIONS : I_REGIONS + len(item.regions)] = item.regions
        for key, cells in item.segments.items():
            for segment, value in cells.items():
                f4[layout.segment_f4 + key * layout.segment_size + segment] = value
        f4[layout.co_total_f4 : layout.co_total_f4 + 2] = [item.co_total, item.co_fast_total]
        f4[layout.price_f4] = item.price
        for k, partner in enumerate(item.partners):
            u4[layout.co_u4 + k], f4[layout.co_f4 + k], f4[layout.co_fast_f4 + k] = (
                partner.key, partner.weight, partner.fast,
            )  # fmt: skip
        if item.content is not None:
            f4[layout.content_f4 : layout.content_f4 + layout.content_size] = item.content
    return User(np.array(i8, np.int64), np.array(f4, np.float32), np.array(u4, np.uint32))
