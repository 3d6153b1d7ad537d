"""From declarations to a plan: where every cell of a state row lies, and the programs of the two kernels.

A row of an entity is three small arrays: ``i8`` (times in ms), ``f4`` (sums) and ``u4`` (ids, counts, codes). Every user
row and every item row of a plan has the same widths. Item row 0 stands for all items together, so that
shares and lifts need no second structure.

User row
    i8: clock, first, latest times…, times of last values…, times of tables…
    f4: decayed cells…, windows…, last values…, affinity weights…, block of online factors
    u4: recent length, seen length, segment × 2, zone, counts…, extremes…, distinct…, attributes…, tables…,
        affinity keys and times…, untouched items and times…, recent keys, recent times, seen
Item row
    i8: clock, first, published, expires, co-visit clock, latest times…, times of last values…, times of tables…
    f4: decayed cells…, windows…, last values…, segment cells, co-visit weights, the same at the fast half-life,
        their two totals, price, content vector, blocks of online factors (``factors``). Decayed and segment cells have their rest (``sums``) behind them, windows
        the rests of all tiles behind the tiles
    u4: flags, categories × 8, regions × 8, counts…, extremes…, distinct…, attributes…, tables…, co-visit keys, two cells of factors
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from headwater.features.aggregations import (
    FOLLOWED,
    SERVED,
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
from headwater.features.decay import FOREVER_MS, PERIOD
from headwater.features.defaults import default_affinity
from headwater.features.definitions import Column, Side, popularity_cell, version_of
from headwater.features.factors import CELLS, FactorProgram, inputs, item_numbers
from headwater.features.layout import (
    I_CATEGORIES,
    I_COUNTS,
    I_TIMES,
    U_COUNTS,
    U_TIMES,
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
    Int32,
    Layout,
    Lives,
    ReadProgram,
    TypeProgram,
)
from headwater.features.module import configured_columns
from headwater.features.outcomes import OutcomeCells, kept_outcomes
from headwater.features.reads import compile_reads
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.items import MAX_CATEGORIES

Kind = TypeVar("Kind", bound=Aggregation)

STATE_VERSION = 4
MAX_LIVES = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the fold and the assembly need to know, decided before the first row."""

    hash: str
    columns: tuple[str, ...]
    versions: tuple[str, ...]  # one a column
    declared: tuple[Column, ...]
    event_types: tuple[str, ...]
    segment_keys: tuple[str, ...]
    layout: Layout
    lives: Lives
    types: TypeProgram
    users: CellProgram
    items: CellProgram
    everybody: CellProgram  # of item row 0: what some term reads of everybody
    affinities: AffinityProgram
    factors: FactorProgram
    reads: ReadProgram
    positions: dict[Aggregation, tuple[int, int]]  # where each aggregation lies, and its second part (0: it has none)
    item_attributes: tuple[tuple[Attribute, int], ...]
    user_attributes: tuple[tuple[Attribute, int], ...]
    tables: dict[tuple[str, str], tuple[int, dict[str, int]]]  # (entity, table): i8 position, u4 position by column
    popular_cells: tuple[int, ...]  # f4 position of the positive weight, one a configured half-life
    popular_lives: tuple[int, ...]
    half_lives: tuple[str, ...]
    outcomes: OutcomeCells | None  # None: nothing asks for them


def compile_plan(config: Config, columns: tuple[Column, ...] | None = None) -> Plan:
    """Lay out the state and compile the kernels' programs for ``columns`` (default: those of the configuration).

    Raises:
        ConfigurationError: a declaration cannot be compiled; the message names the feature.
    """
    columns = configured_columns(config) if columns is None else columns
    features, names = config.features, tuple(t.name for t in config.events)
    popular = [popularity_cell(config, parse_duration(text)) for text in features.item_half_lives]
    outcomes = kept_outcomes(config)
    declared: list[Aggregation] = [default_affinity(config), *popular, *(outcomes or ())]
    declared += [a for column in columns for a in column.reads]
    keyed = [Attribute("item", a.key, "category") for a in declared if isinstance(a, Affinity) and a.key != "category"]
    cells = list(dict.fromkeys([*declared, *keyed]))

    co = features.co_visits
    segment_ms, co_ms, co_fast_ms = (
        parse_duration(t) for t in (features.segment_half_life, co.half_life, co.fast_half_life)
    )
    own = [c.half_life_ms for c in cells if isinstance(c, Decayed | Affinity)]
    lives_ms = list(dict.fromkeys([*own, segment_ms, co_ms, co_fast_ms]))
    if len(lives_ms) > MAX_LIVES:
        raise ConfigurationError(f"features: {len(lives_ms)} different half-lives; the fold keeps at most {MAX_LIVES}")

    spans = list(dict.fromkeys((c.tile_ms, c.tiles) for c in cells if isinstance(c, Windowed)))
    users, items = _Cells(cells, "user"), _Cells(cells, "item")
    affinities = _Affinities([c for c in cells if isinstance(c, Affinity)], users.f4_end, users.u4_end)
    fatigue = config.fatigue
    untouched, untouched_size = affinities.u4_end, fatigue.size if fatigue.impressions else 0
    recent_keys = untouched + 2 * untouched_size
    seen = recent_keys + 2 * features.recent
    segment_f4 = items.f4_end
    co_f4 = segment_f4 + WIDE * len(config.segments.keys) * features.segment_slots
    co_fast, co_total = co_f4 + co.neighbours, co_f4 + 2 * co.neighbours
    factor_f4, factor_u4 = co_total + 3 + features.content_size, items.u4_end + co.neighbours
    learnt = features.factors
    block = learnt.size + 1 if learnt.size else 0
    layout = Layout(
        user_i8=users.i8_end,
        user_f4=affinities.f4_end + block,
        user_u4=seen + features.seen,
        item_i8=items.i8_end,
        item_f4=factor_f4 + item_numbers(learnt.size, learnt.hidden),
        item_u4=factor_u4 + (CELLS if block else 0),
        recent_size=features.recent,
        recent_keys=recent_keys,
        recent_times=recent_keys + features.recent,
        seen_size=features.seen,
        seen=seen,
        segment_size=features.segment_slots,
        segment_f4=segment_f4,
        segment_life=lives_ms.index(segment_ms),
        co_size=co.neighbours,
        co_f4=co_f4,
        co_fast_f4=co_fast,
        co_total_f4=co_total,
        co_u4=items.u4_end,
        co_depth=co.depth,
        co_window_s=parse_duration(co.window) // 1000,
        co_life=lives_ms.index(co_ms),
        co_fast_life=lives_ms.index(co_fast_ms),
        price_f4=co_total + 2,
        content_f4=co_total + 3,
        content_size=features.content_size,
        idle_ms=0 if features.idle_after == "never" else parse_duration(features.idle_after),
        untouched_size=untouched_size,
        untouched=untouched,
        untouched_window_s=parse_duration(fatigue.window) // 1000 if untouched_size else 0,
    )
    shown = fatigue.types if untouched_size else ()
    touching = [t.name for t in config.events if untouched_size and t.weight > 0.0 and t.name not in shown]
    positions = {**users.at, **items.at, **affinities.at}
    of_all = of_everybody(columns) | ({outcomes.traffic} if outcomes is not None else set())
    positive = np.array([0, *(t.positive for t in config.events)], np.uint8)
    versions = tuple(version_of(column) for column in columns)
    # what a configuration leaves out is not described: such a plan is the one that it always was
    described = {
        "state": STATE_VERSION,
        "columns": list(zip((c.name for c in columns), versions, strict=True)),
        "cells": [msgspec.to_builtins(cell) for cell in cells],
        "layout": list(layout if untouched_size else layout[:-3]),
        "lives": lives_ms,
        "events": [msgspec.to_builtins(t) for t in config.events],
        "segments": list(config.segments.keys),
    }
    described |= {"shown": list(shown)} if untouched_size else {}
    described |= {"factors": msgspec.to_builtins(learnt)} if block else {}
    digest = hashlib.sha256(msgspec.json.encode(described, order="deterministic")).hexdigest()[:16]
    return Plan(
        hash=digest,
        columns=tuple(column.name for column in columns),
        versions=versions,
        declared=columns,
        event_types=names,
        segment_keys=config.segments.keys,
        layout=layout,
        lives=Lives(
            np.array([1.0 / ms if ms else 0.0 for ms in lives_ms], np.float64),
            np.array([PERIOD * ms if ms else FOREVER_MS for ms in lives_ms], np.int64),
            np.array([tile_ms for tile_ms, _ in spans], np.int64),
            np.array([tiles for _, tiles in spans], np.int64),
        ),
        types=TypeProgram(
            weight=np.array([0.0, *(t.weight for t in config.events)], np.float64),
            positive=positive,
            seen=np.array([0, *(bool(t.seen) for t in config.events)], np.uint8),
            sequence=np.array([0, *(bool(t.sequence) for t in config.events)], np.uint8),
            shown=np.array([0, *(name in shown for name in names)], np.uint8),
            touch=np.array([0, *(name in touching for name in names)], np.uint8),
        ),
        users=users.program(names, lives_ms, spans),
        items=items.program(names, lives_ms, spans),
        everybody=items.program(names, lives_ms, spans, of_all),
        affinities=affinities.program(names, lives_ms, items.at),
        factors=FactorProgram(
            learnt.size, learnt.hidden, inputs(learnt.size), learnt.negatives, factor_f4, factor_u4, affinities.f4_end, learnt.learning_rate, learnt.regularisation,
            math.log(learnt.negatives), positive,
        ),
        reads=compile_reads(columns, positions, lives_ms, affinities.groups, layout, learnt.size),
        positions=positions,
        item_attributes=tuple((c, items.at[c][0]) for c in items.of(Attribute)),
        user_attributes=tuple((c, users.at[c][0]) for c in users.of(Attribute)),
        tables={**users.tables(), **items.tables()},
        popular_cells=tuple(items.at[cell][0] for cell in popular),
        popular_lives=tuple(lives_ms.index(cell.half_life_ms) for cell in popular),
        half_lives=features.item_half_lives,
        outcomes=None if outcomes is None else OutcomeCells(
            items.at[outcomes.shown][0], items.at[outcomes.liked][0], items.at[outcomes.traffic][0],
            lives_ms.index(outcomes.traffic.half_life_ms), SERVED in outcomes.shown.types,
        ),
    )  # fmt: skip


def of_everybody(columns: tuple[Column, ...]) -> frozenset[Aggregation]:
    """What item row 0 keeps, besides segments: the aggregations that some term reads of everybody."""
    terms = (term for column in columns for term in column.terms if term.side is Side.EVERYBODY)
    return frozenset(term.reads for term in terms if term.reads is not None)


class _Cells:
    """The aggregations of one entity and where each has its cells."""

    def __init__(self, cells: list[Aggregation], entity: Entity) -> None:
        self.cells = [c for c in cells if c.entity == entity and not isinstance(c, Affinity)]
        self.entity: Entity = entity
        self.at: dict[Aggregation, tuple[int, int]] = {}
        i8, u4 = (U_TIMES, U_COUNTS) if entity == "user" else (I_TIMES, I_COUNTS)
        f4, wide = 0, entity == "item"
        for decayed in self.of(Decayed):
            self.at[decayed], f4 = (f4, f4 + 1 if wide else 0), f4 + (WIDE if wide else 1)
        for window in self.of(Windowed):
            rests = f4 + window.tiles
            self.at[window], f4 = (f4, rests if wide else 0), rests + (window.tiles if wide else 0)
        for timed in self.of(LastTime):
            self.at[timed], i8 = (i8, 0), i8 + 1
        for last in self.of(LastValue):
            self.at[last], f4, i8 = (f4, i8), f4 + 1, i8 + 1
        for counted in self.of(Counted):
            self.at[counted], u4 = (u4, 0), u4 + 1
        for extreme in self.of(Extreme):
            self.at[extreme], u4 = (u4, 0), u4 + 1
        for distinct in self.of(Distinct):
            words = (1 << distinct.precision) // 4
            self.at[distinct], u4 = (u4, words), u4 + words
        for attribute in self.of(Attribute):
            self.at[attribute], u4 = (u4, 0), u4 + 1
        valid: dict[str, int] = {}
        for value in self.of(TableValue):
            if value.table not in valid:
                valid[value.table], i8 = i8, i8 + 1
            self.at[value], u4 = (u4, valid[value.table]), u4 + 1
        self.i8_end, self.f4_end, self.u4_end = i8, f4, u4

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [c for c in self.cells if isinstance(c, kind)]

    def tables(self) -> dict[tuple[str, str], tuple[int, dict[str, int]]]:
        found: dict[tuple[str, str], tuple[int, dict[str, int]]] = {}
        for value in self.of(TableValue):
            u4, i8 = self.at[value]
            found.setdefault((self.entity, value.table), (i8, {}))[1][value.column] = u4
        return found

    def program(
        self, types: tuple[str, ...], lives_ms: list[int], spans: list[tuple[int, int]],
        only: frozenset[Aggregation] | None = None,
    ) -> CellProgram:  # fmt: skip
        names = (*types, FOLLOWED, SERVED)  # these slots stand behind all configured types
        bumps: list[list[tuple[int, float]]] = [[] for _ in range(len(names) + 1)]
        extras: list[list[tuple[int, int, int, float, int]]] = [[] for _ in range(len(names) + 1)]
        chosen = [c for c in self.cells if only is None or c in only]
        for cell in chosen:
            position, other = self.at[cell]
            for k, name in enumerate(getattr(cell, "types", ())):
                slot = names.index(name) + 1
                if isinstance(cell, Decayed) and cell.of == "one":
                    bumps[slot].append((position, cell.weights[k]))
                elif isinstance(cell, Decayed):
                    op = X_VALUE if cell.of == "value" else X_GIVEN
                    extras[slot].append((op, position, 0, cell.weights[k], lives_ms.index(cell.half_life_ms)))
                elif isinstance(cell, Windowed):
                    op = {"one": X_WINDOW, "value": X_WINDOW_VALUE, "given": X_WINDOW_GIVEN}[cell.of]
                    extras[slot].append((op, position, spans.index((cell.tile_ms, cell.tiles)), cell.weights[k], 0))
                elif isinstance(cell, Extreme):
                    extras[slot].append((X_LARGEST if cell.largest else X_SMALLEST, position, 0, 1.0, 0))
                elif isinstance(cell, LastValue):
                    extras[slot].append((X_LAST, position, other, 1.0, 0))
                elif isinstance(cell, Distinct):
                    op = {"user": X_DISTINCT_USER, "item": X_DISTINCT_ITEM, "category": X_DISTINCT_CATEGORY}[cell.of]
                    extras[slot].append((op, position, 1 << cell.precision, 1.0, 0))
        counts = [[self.at[c][0] for c in chosen if isinstance(c, Counted) and name in c.types] for name in names]
        times = [[self.at[c][0] for c in chosen if isinstance(c, LastTime) and name in c.types] for name in names]
        flat, more = [b for group in bumps for b in group], [x for group in extras for x in group]
        lives = [lives_ms.index(c.half_life_ms) for c in self.of(Decayed)]
        life_of = np.repeat(np.array(lives, np.int32), WIDE if self.entity == "item" else 1)
        return CellProgram(
            cells=len(life_of),
            life_of=life_of,
            bump_start=_starts([len(group) for group in bumps]),
            bump_cell=_int32([position for position, _ in flat]),
            bump_weight=np.array([weight for _, weight in flat], np.float64),
            count_start=_starts([0, *(len(group) for group in counts)]),
            count_cell=_int32([p for group in counts for p in group]),
            time_start=_starts([0, *(len(group) for group in times)]),
            time_cell=_int32([p for group in times for p in group]),
            extra_start=_starts([len(group) for group in extras]),
            extra_op=_int32([x[0] for x in more]),
            extra_cell=_int32([x[1] for x in more]),
            extra_other=_int32([x[2] for x in more]),
            extra_weight=np.array([x[3] for x in more], np.float64),
            extra_life=_int32([x[4] for x in more]),
            windows=np.array(
                [(self.at[c][0], spans.index((c.tile_ms, c.tiles))) for c in self.of(Windowed)], np.int64
            ).reshape(-1, 2),
            counts=_int32([self.at[c][0] for c in self.of(Counted)]),
            maxima=_int32([self.at[c][0] for c in self.of(Extreme)]),
            lasts=_int32([p for c in self.of(LastValue) for p in self.at[c]]).reshape(-1, 2),
            distincts=_int32([p for c in self.of(Distinct) for p in self.at[c]]).reshape(-1, 2),
            times=_int32([self.at[c][0] for c in self.of(LastTime)]),
        )


class _Affinities:
    """The user's keyed sums: weights at the end of f4, keys and times in u4 in front of the recent sequence."""

    def __init__(self, groups: list[Affinity], f4: int, u4: int) -> None:
        self.groups = groups
        self.at: dict[Aggregation, tuple[int, int]] = {}
        for group in groups:
            self.at[group] = (f4, u4)
            f4, u4 = f4 + group.slots, u4 + 2 * group.slots
        self.f4_end, self.u4_end = f4, u4

    def program(
        self, types: tuple[str, ...], lives_ms: list[int], item_at: dict[Aggregation, tuple[int, int]]
    ) -> AffinityProgram:
        weight = np.zeros((len(self.groups), len(types) + 1), np.float64)
        for g, group in enumerate(self.groups):
            for name, value in zip(group.types, group.weights, strict=True):
                weight[g, types.index(name) + 1] = value
        keys = [
            (I_CATEGORIES, MAX_CATEGORIES)
            if g.key == "category"
            else (item_at[Attribute("item", g.key, "category")][0], 1)
            for g in self.groups
        ]
        return AffinityProgram(
            f4=_int32([self.at[g][0] for g in self.groups]),
            u4=_int32([self.at[g][1] for g in self.groups]),
            size=_int32([g.slots for g in self.groups]),
            life=_int32([lives_ms.index(g.half_life_ms) for g in self.groups]),
            key=_int32([at for at, _ in keys]),
            keys=_int32([count for _, count in keys]),
            weight=weight,
        )


def _int32(values: list[int]) -> Int32:
    return np.array(values, np.int32)


def _starts(sizes: list[int]) -> Int32:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
