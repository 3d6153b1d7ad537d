"""Users and items of the slow fold as rows of a plan, as the kernels keep them."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from headwater.features.aggregations import (
    Affinity,
    Attribute,
    Counted,
    Decayed,
    Distinct,
    Entity,
    Extreme,
    LastTime,
    LastValue,
    TableValue,
    Windowed,
)
from headwater.features.layout import (
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
    U_ZONE,
    WIDE,
)
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.testing.oracle import SlowFold
from headwater.testing.oracle_cells import SlowRow, number_code, number_of, registers, text_code
from headwater.testing.oracle_factors import PLACES, SlowFactors


def _cells(plan: Plan, row: SlowRow, entity: Entity, i8: list[int], f4: list[float], u4: list[int]) -> None:
    """All aggregations of a row, each where the plan put it."""
    for cell, (at, other) in plan.positions.items():
        if cell.entity != entity or isinstance(cell, Affinity):
            continue
        if isinstance(cell, Decayed):
            f4[at] = row.sums.get(cell, 0.0)
            if other:
                f4[other] = row.rest(cell)
        elif isinstance(cell, Windowed):
            for tile, value in row.tiles.get(cell, {}).items():
                f4[at + tile % cell.tiles] = value
                if other:
                    f4[other + tile % cell.tiles] = row.rest((cell, tile))
        elif isinstance(cell, Counted):
            u4[at] = row.counts.get(cell, 0)
        elif isinstance(cell, LastTime):
            i8[at] = row.latest.get(cell, 0)
        elif isinstance(cell, LastValue):
            i8[other], f4[at] = row.last.get(cell, (0, 0.0))
        elif isinstance(cell, Extreme):
            extreme = row.extremes.get(cell)
            u4[at] = number_code(extreme if extreme is None or cell.largest else -extreme)
        elif isinstance(cell, Distinct):
            packed = bytes(registers(row.shown.get(cell, ()), cell.precision))
            u4[at : at + other] = np.frombuffer(packed, "<u4").tolist()
        elif isinstance(cell, Attribute):
            said = row.attributes.get(cell)
            u4[at] = number_code(number_of(said)) if cell.kind == "number" else text_code(said)
        else:
            _table(row, cell, i8, u4, at, other)


def _table(row: SlowRow, cell: TableValue, i8: list[int], u4: list[int], at: int, other: int) -> None:
    i8[other], values = row.tables.get(cell.table, (0, {}))
    u4[at] = number_code(values.get(cell.column))


def _vector(plan: Plan, factors: SlowFactors, what: Hashable, f4: list[float], at: int) -> None:
    vector = factors.vectors.get(what)
    if vector is not None and plan.factors.size:
        f4[at : at + len(vector.values) + 1] = [*vector.values, vector.squares]


def user_row(plan: Plan, fold: SlowFold, number: int) -> User:
    """The user as the kernels keep it; one that is not known is a row of zeros."""
    layout, user = plan.layout, fold.users.get(number)
    i8, f4, u4 = [0] * layout.user_i8, [0.0] * layout.user_f4, [0] * layout.user_u4
    if user is not None:
        i8[U_CLOCK], i8[U_FIRST] = user.clock, user.first
        _cells(plan, user, "user", i8, f4, u4)
        _vector(plan, fold.factors, ("user", number), f4, plan.factors.user_f4)
        u4[U_SEGMENT : U_SEGMENT + 2] = user.segments
        u4[U_ZONE] = user.zone
        for cell, keys in user.liked.items():
            weights_at, keys_at = plan.positions[cell]
            for k, liked in enumerate(keys):
                f4[weights_at + k], u4[keys_at + k], u4[keys_at + cell.slots + k] = (
                    liked.weight, liked.key, liked.time_s,
                )  # fmt: skip
        for k, shown in enumerate(user.untouched):
            u4[layout.untouched + k] = shown.item << 8 | shown.count
            u4[layout.untouched + layout.untouched_size + k] = shown.time_s
        u4[U_RECENT_LENGTH] = len(user.recent)
        for k, entry in enumerate(user.recent):
            u4[layout.recent_keys + k] = entry.item | entry.slot << ITEM_BITS
            u4[layout.recent_times + k] = entry.time_s
        size, added = layout.seen_size, len(user.seen)
        u4[U_SEEN_LENGTH] = added if added < 2 * size else size + added % size
        for k, item in enumerate(user.seen):
            u4[layout.seen + k % size] = item
    return User(np.array(i8, np.int64), np.array(f4, np.float32), np.array(u4, np.uint32))


def _learnt(plan: Plan, factors: SlowFactors, number: int, f4: list[float], u4: list[int]) -> None:
    """What row ``number`` holds of online factors: of the item, of the segments of this number, of the input and the unit before it, and an entry of the ring."""
    program = plan.factors
    if not program.size:
        return
    names: list[Hashable] = [
        ("candidate", number), *(("recent", number, place) for place in range(PLACES)),
        ("segment", 0, number), ("segment", 1, number),
    ]  # fmt: skip
    for block, name in enumerate(names):
        _vector(plan, factors, name, f4, program.item_f4 + block * (program.size + 1))
    if program.hidden:
        at = program.item_f4 + len(names) * (program.size + 1)
        _vector(plan, factors, ("input", number - 1), f4, at)
        _vector(plan, factors, ("unit", number - 1), f4, at + program.hidden + 1)
    u4[program.item_u4] = factors.ring.get(number - 1, 0) if number else factors.count
    if not number:
        u4[program.item_u4 + 1] = factors.highest


def item_row(plan: Plan, fold: SlowFold, number: int) -> User:
    """The item as the kernels keep it (the three parts of a row, as of a user); of one that is not known only what others put there."""
    layout, item = plan.layout, fold.items.get(number)
    i8, f4, u4 = [0] * layout.item_i8, [0.0] * layout.item_f4, [0] * layout.item_u4
    _learnt(plan, fold.factors, number, f4, u4)
    if item is not None:
        i8[I_CLOCK], i8[I_FIRST], i8[I_CO_CLOCK] = item.clock, item.first, item.co_clock
        i8[I_PUBLISHED], i8[I_EXPIRES] = item.published, item.expires
        _cells(plan, item, "item", i8, f4, u4)
        for attribute, at in plan.item_attributes:  # among them those that are only keys of an affinity
            said = item.said.get(attribute.name)
            u4[at] = number_code(number_of(said)) if attribute.kind == "number" else text_code(said)
        flags = ((item.known, FLAG_KNOWN), (item.hidden, FLAG_HIDDEN), (item.content is not None, FLAG_CONTENT))
        u4[I_FLAGS] = sum(flag for is_set, flag in flags if is_set)
        u4[I_CATEGORIES : I_CATEGORIES + len(item.categories)] = item.categories
        u4[I_REGIONS : I_REGIONS + len(item.regions)] = item.regions
        for key, cells in item.segments.items():
            for segment, value in cells.items():
                at = layout.segment_f4 + WIDE * (key * layout.segment_size + segment)
                f4[at : at + WIDE] = [value, item.rest((key, segment))]
        f4[layout.co_total_f4 : layout.co_total_f4 + 2] = [item.co_total, item.co_fast_total]
        f4[layout.price_f4] = item.price
        for k, partner in enumerate(item.partners):
            u4[layout.co_u4 + k], f4[layout.co_f4 + k], f4[layout.co_fast_f4 + k] = (
                partner.key, partner.weight, partner.fast,
            )  # fmt: skip
        if item.content is not None:
            f4[layout.content_f4 : layout.content_f4 + layout.content_size] = item.content
    return User(np.array(i8, np.int64), np.array(f4, np.float32), np.array(u4, np.uint32))
