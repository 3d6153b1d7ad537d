"""From declarations to a plan: where every cell of a state row lies, and the programs of the two kernels.

A row of an entity is three small arrays: ``i8`` (times in ms), ``f4`` (decayed weights), ``u4`` (ids and
counts). Every user row and every item row of a plan has the same widths. Item row 0 stands for all
items together, so that shares and lifts need no second structure.

User row
    i8: clock, first, latest times…          f4: decayed cells…, affinity weights
    u4: recent length, seen length, segment × 2, counts…, affinity keys, recent keys, recent times, seen
Item row
    i8: clock, first, published, expires, co-visit clock, latest times…
    f4: decayed cells…, segment cells, co-visit weights, the same at the fast half-life, their two totals, price, content vector
    u4: flags, categories × 8, regions × 8, counts…, co-visit keys
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.definitions import (
    FOLLOWED,
    Aggregation,
    Column,
    Counted,
    Decayed,
    Entity,
    LastTime,
    Op,
    default_columns,
    popularity_cell,
)
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.items import MAX_CATEGORIES, MAX_REGIONS

STATE_VERSION = 1
ITEM_BITS = 24
MAX_ITEMS = (1 << ITEM_BITS) - 1

U_CLOCK, U_FIRST, U_TIMES = 0, 1, 2
U_RECENT_LENGTH, U_SEEN_LENGTH, U_SEGMENT, U_COUNTS = 0, 1, 2, 4
I_CLOCK, I_FIRST, I_PUBLISHED, I_EXPIRES, I_CO_CLOCK, I_TIMES = 0, 1, 2, 3, 4, 5
I_FLAGS, I_CATEGORIES, I_REGIONS, I_COUNTS = 0, 1, 1 + MAX_CATEGORIES, 1 + MAX_CATEGORIES + MAX_REGIONS

FLAG_KNOWN = 1  # an upsert has been folded
FLAG_HIDDEN = 2  # not available, or deleted
FLAG_CONTENT = 4  # the content vector is set

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]


class CellProgram(NamedTuple):
    """Which cells of an entity an event of a type touches (compressed rows by type slot) and how they decay."""

    cells: int  # decayed cells at the front of f4
    rate: Float64  # (half_lives,) 1 / half_life_ms
    half_life_of: Int32  # (cells,)
    bump_start: Int32  # (types + 2,)
    bump_cell: Int32
    bump_weight: Float64
    count_start: Int32
    count_cell: Int32  # position in u4
    time_start: Int32
    time_cell: Int32  # position in i8


class Layout(NamedTuple):
    """Positions and sizes inside the rows; the kernels take it as it is."""

    user_i8: int
    user_f4: int
    user_u4: int
    item_i8: int
    item_f4: int
    item_u4: int
    affinity_size: int
    affinity_f4: int
    affinity_u4: int
    affinity_half_life: int  # index into the user's half-lives
    recent_size: int
    recent_keys: int
    recent_times: int
    seen_size: int
    seen: int
    segment_size: int  # cells of one key
    segment_f4: int
    segment_half_life: int  # index into the item's half-lives
    co_size: int
    co_f4: int
    co_fast_f4: int
    co_total_f4: int  # and the fast total behind it
    co_u4: int
    co_depth: int
    co_window_s: int
    co_rate: float
    co_fast_rate: float
    price_f4: int
    content_f4: int
    content_size: int


class TypeProgram(NamedTuple):
    """What an event of each type slot means; slot 0 is "not configured"."""

    weight: Float64  # (types + 1,)
    positive: npt.NDArray[np.uint8]
    seen: npt.NDArray[np.uint8]
    sequence: npt.NDArray[np.uint8]


class ReadProgram(NamedTuple):
    """The columns of the assembled row."""

    op: Int32  # (d,)
    cell: Int32  # (d, 2) positions
    rate: Float64  # (d, 2) 1 / half_life_ms of the cells
    parameter: Float64  # (d, 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the fold and the assembly need to know, decided before the first row."""

    hash: str
    columns: tuple[str, ...]
    declared: tuple[Column, ...]
    event_types: tuple[str, ...]
    segment_keys: tuple[str, ...]
    layout: Layout
    types: TypeProgram
    users: CellProgram
    items: CellProgram
    reads: ReadProgram
    popular_cells: tuple[int, ...]  # f4 position of the positive weight, one a configured half-life
    popular_rates: tuple[float, ...]
    half_lives: tuple[str, ...]


def compile_plan(config: Config, columns: tuple[Column, ...] | None = None) -> Plan:
    """Lay out the state and compile the kernels' programs for ``columns`` (default: the default set)."""
    columns = default_columns(config) if columns is None else columns
    features = config.features
    names = tuple(t.name for t in config.events)
    popular = [popularity_cell(config, parse_duration(text)) for text in features.item_half_lives]
    reads: list[Aggregation] = [a for column in columns for a in column.reads]
    cells = list(dict.fromkeys([*popular, *reads]))

    affinity_ms = parse_duration(features.affinity_half_life)
    segment_ms = parse_duration(features.segment_half_life)
    user_half_lives = _half_lives(cells, "user", affinity_ms)
    item_half_lives = _half_lives(cells, "item", segment_ms)
    user_cells = _Cells(cells, "user", U_COUNTS, U_TIMES)
    item_cells = _Cells(cells, "item", I_COUNTS, I_TIMES)

    affinity_u4 = U_COUNTS + len(user_cells.counted)
    recent_keys = affinity_u4 + features.affinity
    seen = recent_keys + 2 * features.recent
    segment_f4 = len(item_cells.decayed)
    co_f4 = segment_f4 + len(config.segments.keys) * features.segment_slots
    co = features.co_visits
    co_fast = co_f4 + co.neighbours
    co_total = co_fast + co.neighbours
    co_u4 = I_COUNTS + len(item_cells.counted)
    layout = Layout(
        user_i8=U_TIMES + len(user_cells.timed),
        user_f4=len(user_cells.decayed) + features.affinity,
        user_u4=seen + features.seen,
        item_i8=I_TIMES + len(item_cells.timed),
        item_f4=co_total + 3 + features.content_size,
        item_u4=co_u4 + co.neighbours,
        affinity_size=features.affinity,
        affinity_f4=len(user_cells.decayed),
        affinity_u4=affinity_u4,
        affinity_half_life=user_half_lives.index(affinity_ms),
        recent_size=features.recent,
        recent_keys=recent_keys,
        recent_times=recent_keys + features.recent,
        seen_size=features.seen,
        seen=seen,
        segment_size=features.segment_slots,
        segment_f4=segment_f4,
        segment_half_life=item_half_lives.index(segment_ms),
        co_size=co.neighbours,
        co_f4=co_f4,
        co_fast_f4=co_fast,
        co_total_f4=co_total,
        co_u4=co_u4,
        co_depth=co.depth,
        co_window_s=parse_duration(co.window) // 1000,
        co_rate=1.0 / parse_duration(co.half_life),
        co_fast_rate=1.0 / parse_duration(co.fast_half_life),
        price_f4=co_total + 2,
        content_f4=co_total + 3,
        content_size=features.content_size,
    )
    types = TypeProgram(
        weight=np.array([0.0, *(t.weight for t in config.events)], np.float64),
        positive=np.array([0, *(t.positive for t in config.events)], np.uint8),
        seen=np.array([0, *(bool(t.seen) for t in config.events)], np.uint8),
        sequence=np.array([0, *(bool(t.sequence) for t in config.events)], np.uint8),
    )
    described = {
        "state": STATE_VERSION,
        "columns": [msgspec.to_builtins(column) for column in columns],
        "layout": list(layout),
        "events": [msgspec.to_builtins(t) for t in config.events],
        "segments": list(config.segments.keys),
        "half_lives": [user_half_lives, item_half_lives],
    }
    digest = hashlib.sha256(msgspec.json.encode(described, order="deterministic")).hexdigest()[:16]
    return Plan(
        hash=digest,
        columns=tuple(column.name for column in columns),
        declared=columns,
        event_types=names,
        segment_keys=config.segments.keys,
        layout=layout,
        types=types,
        users=user_cells.program(names, user_half_lives),
        items=item_cells.program(names, item_half_lives),
        reads=_read_program(columns, user_cells, item_cells, layout, 1.0 / segment_ms),
        popular_cells=tuple(item_cells.decayed.index(cell) for cell in popular),
        popular_rates=tuple(1.0 / cell.half_life_ms for cell in popular),
        half_lives=features.item_half_lives,
    )


def _half_lives(cells: list[Aggregation], entity: Entity, extra: int) -> list[int]:
    found = [c.half_life_ms for c in cells if isinstance(c, Decayed) and c.entity == entity]
    return list(dict.fromkeys([*found, extra]))


class _Cells:
    """The aggregations of one entity and where each has its cell."""

    def __init__(self, cells: list[Aggregation], entity: Entity, counts_at: int, times_at: int) -> None:
        mine = [c for c in cells if c.entity == entity]
        self.decayed = [c for c in mine if isinstance(c, Decayed)]
        self.counted = [c for c in mine if isinstance(c, Counted)]
        self.timed = [c for c in mine if isinstance(c, LastTime)]
        self.counts_at, self.times_at = counts_at, times_at

    def position(self, cell: Aggregation) -> int:
        if isinstance(cell, Decayed):
            return self.decayed.index(cell)
        if isinstance(cell, Counted):
            return self.counts_at + self.counted.index(cell)
        return self.times_at + self.timed.index(cell)

    def program(self, types: tuple[str, ...], half_lives: list[int]) -> CellProgram:
        names = (*types, FOLLOWED)  # the last slot stands behind all configured types
        bumps: list[list[tuple[int, float]]] = [[] for _ in range(len(names) + 1)]
        for position, decayed in enumerate(self.decayed):
            for name, weight in zip(decayed.types, decayed.weights, strict=True):
                bumps[names.index(name) + 1].append((position, weight))
        counts = [[self.position(c) for c in self.counted if name in c.types] for name in names]
        times = [[self.position(c) for c in self.timed if name in c.types] for name in names]
        flat = [pair for group in bumps for pair in group]
        return CellProgram(
            cells=len(self.decayed),
            rate=np.array([1.0 / ms for ms in half_lives], np.float64),
            half_life_of=np.array([half_lives.index(c.half_life_ms) for c in self.decayed], np.int32),
            bump_start=_starts(bumps),
            bump_cell=np.array([position for position, _ in flat], np.int32),
            bump_weight=np.array([weight for _, weight in flat], np.float64),
            count_start=_starts([[], *counts]),
            count_cell=np.array([p for group in counts for p in group], np.int32),
            time_start=_starts([[], *times]),
            time_cell=np.array([p for group in times for p in group], np.int32),
        )


def _starts(groups: list[list[tuple[int, float]]] | list[list[int]]) -> Int32:
    return np.concatenate([[0], np.cumsum([len(group) for group in groups])]).astype(np.int32)


def _read_program(
    columns: tuple[Column, ...], users: _Cells, items: _Cells, layout: Layout, segment_rate: float
) -> ReadProgram:
    d = len(columns)
    cell, rate = np.zeros((d, 2), np.int32), np.zeros((d, 2), np.float64)
    parameter = np.zeros((d, 2), np.float64)
    for i, column in enumerate(columns):
        for k, aggregation in enumerate(column.reads):
            owner = users if aggregation.entity == "user" else items
            cell[i, k] = owner.position(aggregation)
            if isinstance(aggregation, Decayed):
                rate[i, k] = 1.0 / aggregation.half_life_ms
        parameter[i, : len(column.parameters)] = column.parameters
        if column.op in (Op.SEGMENT_SHARE, Op.SEGMENT_LIFT):
            cell[i, 0] = layout.segment_f4 + int(column.parameters[0]) * layout.segment_size
            rate[i, 0] = segment_rate
    return ReadProgram(np.array([int(c.op) for c in columns], np.int32), cell, rate, parameter)
