"""How large the rows of a plan are, part by part, and which bytes of them a feature has to itself."""

from __future__ import annotations

from msgspec import Struct

from headwater.features.aggregations import (
    Affinity,
    Aggregation,
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
from headwater.features.factors import CELLS, item_numbers
from headwater.features.layout import I_COUNTS, I_TIMES, U_COUNTS, U_TIMES, WIDE, Layout
from headwater.features.packing import most_words
from headwater.features.plan import Plan, compile_plan
from headwater.schema.config import Config

TIME, NUMBER, CODE = 8, 4, 4  # bytes of an entry of i8, f4, u4
_CHECKSUM = 4


class Sizes(Struct, frozen=True):
    """Bytes of a user row at full width (as the fold works on it) and of an item row, part by part.

    ``user_packed_most`` bounds a stored user row; one takes what is in it, which depends on what the user did.
    """

    user: int
    user_parts: dict[str, int]
    user_packed_most: int
    item: int
    item_parts: dict[str, int]


class Share(Struct, frozen=True):
    """Bytes of full-width rows that a column reads, and those that would go if it alone were taken out."""

    user: int
    item: int
    own_user: int
    own_item: int


def widths(layout: Layout) -> tuple[int, int]:
    """Bytes of a user row and of an item row at full width."""
    user = TIME * layout.user_i8 + NUMBER * layout.user_f4 + CODE * layout.user_u4
    return user, TIME * layout.item_i8 + NUMBER * layout.item_f4 + CODE * layout.item_u4


def bytes_of(cell: Aggregation) -> int:
    """Bytes of an aggregation in a row at full width (a table's valid time, which its columns share, is not counted)."""
    wide = WIDE if cell.entity == "item" else 1
    match cell:
        case Decayed():
            return NUMBER * wide
        case Windowed():
            return NUMBER * wide * cell.tiles
        case LastTime():
            return TIME
        case LastValue():
            return NUMBER + TIME
        case Distinct():
            return 1 << cell.precision
        case Affinity():
            return cell.slots * (NUMBER + 2 * CODE)
        case _:
            return 4


def sizes(plan: Plan) -> Sizes:
    """Sizes of the rows of ``plan``; the parts of a row add up to it."""
    layout = plan.layout
    user, item = widths(layout)
    segments = NUMBER * WIDE * len(plan.segment_keys) * layout.segment_size
    size = plan.factors.size
    block = NUMBER * (size + 1) if size else 0
    return Sizes(
        user=user,
        user_parts=_without_empty(
            {"clock and first": TIME * U_TIMES, "lengths, segments, zone": CODE * U_COUNTS}
            | _cells(plan, "user")
            | {
                "online factors": block,
                "untouched items": 2 * CODE * layout.untouched_size,
                "recent sequence": 2 * CODE * layout.recent_size,
                "seen ring": CODE * layout.seen_size,
            }
        ),
        user_packed_most=4 * most_words(layout) + _CHECKSUM,
        item=item,
        item_parts=_without_empty(
            {"clocks, first, published, expires": TIME * I_TIMES, "flags, categories, regions": CODE * I_COUNTS}
            | _cells(plan, "item")
            | {
                "segments": segments,
                "co-visits": (2 * NUMBER + CODE) * layout.co_size + 2 * NUMBER,
                "price": NUMBER,
                "content": NUMBER * layout.content_size,
                "online factors": NUMBER * item_numbers(size, plan.factors.hidden) + (CODE * CELLS if size else 0),
            }
        ),
    )


def share_of(plan: Plan, config: Config, name: str) -> Share:
    """What column ``name`` takes: its aggregations' bytes, and the difference to the plan without it."""
    column = plan.declared[plan.columns.index(name)]
    reads = set(column.reads)
    user, item = widths(plan.layout)
    others = tuple(other for other in plan.declared if other.name != name)
    without_user, without_item = widths(compile_plan(config, others).layout)
    return Share(
        user=sum(bytes_of(cell) for cell in reads if cell.entity == "user"),
        item=sum(bytes_of(cell) for cell in reads if cell.entity == "item"),
        own_user=user - without_user,
        own_item=item - without_item,
    )


def _cells(plan: Plan, entity: Entity) -> dict[str, int]:
    """Bytes of the aggregations of an entity by kind, and of its tables' valid times."""
    parts: dict[str, int] = {}
    for cell in plan.positions:
        if cell.entity == entity:
            parts[_PARTS[type(cell)]] = parts.get(_PARTS[type(cell)], 0) + bytes_of(cell)
    tables = sum(1 for owner, _ in plan.tables if owner == entity)
    if tables:
        parts["tables"] += TIME * tables
    return parts


_PARTS: dict[type, str] = {
    Decayed: "decayed sums",
    Windowed: "windows",
    Counted: "counts",
    LastTime: "latest times",
    Extreme: "extremes",
    LastValue: "last values",
    Distinct: "distinct",
    Affinity: "affinities",
    Attribute: "attributes",
    TableValue: "tables",
}


def _without_empty(parts: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}
