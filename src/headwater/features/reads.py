"""The read half of a plan: every distinct term once, then the columns over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwater.features.aggregations import Affinity, Aggregation, Decayed, Distinct, Extreme, Windowed
from headwater.features.definitions import Column, Side, Term, TermOp
from headwater.features.layout import WIDE, Layout, ReadProgram
from headwater.schema.errors import ConfigurationError

_CROSSES = (
    TermOp.CO_LAST, TermOp.CO_SUM, TermOp.CO_COUNT, TermOp.CO_WEIGHT, TermOp.CO_FAST_LAST, TermOp.CO_FAST_SUM,
)  # fmt: skip
_CONTENTS = (TermOp.CONTENT_LAST, TermOp.CONTENT_MEAN)
_FACTORS = (TermOp.FACTORS, TermOp.FACTORS_RECENT, TermOp.FACTORS_SEGMENTS, TermOp.FACTORS_USER)


def compile_reads(
    columns: tuple[Column, ...], positions: dict[Aggregation, tuple[int, int]], lives_ms: list[int],
    affinities: Sequence[Affinity], layout: Layout, factors: int,
) -> ReadProgram:  # fmt: skip
    """Unite the terms of all columns, and say where each finds its cells. ``factors``: the size of vectors of online factors, 0: none are kept."""
    terms = list(dict.fromkeys(term for column in columns for term in column.terms))
    for column in columns:
        for term in column.terms:
            _check(column, term, layout, factors)
    count = len(terms)
    cell, other, life = (np.zeros(count, np.int32) for _ in range(3))
    tile_ms, parameter = np.zeros(count, np.int64), np.zeros(count, np.float64)
    for t, term in enumerate(terms):
        aggregation = term.reads
        if term.parameters:
            parameter[t] = term.parameters[0]
        if isinstance(aggregation, Affinity):
            cell[t] = affinities.index(aggregation)
        elif aggregation is not None:
            cell[t], other[t] = positions[aggregation]
        if isinstance(aggregation, Decayed):
            life[t] = lives_ms.index(aggregation.half_life_ms)
        elif isinstance(aggregation, Windowed):
            other[t], tile_ms[t] = aggregation.tiles, aggregation.tile_ms
        elif isinstance(aggregation, Distinct):
            other[t] = 1 << aggregation.precision
        elif isinstance(aggregation, Extreme):
            parameter[t] = 1.0 if aggregation.largest else -1.0
        elif term.op in (TermOp.SEGMENT_WEIGHT, TermOp.SEGMENT_SHARE, TermOp.SEGMENT_LIFT):
            cell[t] = layout.segment_f4 + WIDE * int(parameter[t]) * layout.segment_size
        elif term.op is TermOp.EMBEDDING:
            cell[t] = layout.content_f4 + int(parameter[t])
    index = np.zeros((len(columns), 3), np.int32)
    constants = np.zeros((len(columns), 2), np.float64)
    for d, column in enumerate(columns):
        index[d, : len(column.terms)] = [terms.index(term) for term in column.terms]
        constants[d, : len(column.parameters)] = column.parameters
    return ReadProgram(
        op=np.array([int(term.op) for term in terms], np.int32),
        side=np.array([int(term.side) for term in terms], np.int32),
        cell=cell,
        other=other,
        life=life,
        tile_ms=tile_ms,
        parameter=parameter,
        formula=np.array([int(column.formula) for column in columns], np.int32),
        term=index,
        constants=constants,
        default=np.array([column.default for column in columns], np.float64),
        at=np.array([_index(terms, op) for op in TermOp], np.int32),
        item_lives=np.array(_item_lives(terms, lives_ms, layout), np.int32),
        crosses=int(any(term.op in _CROSSES for term in terms)),
        contents=int(any(term.op in _CONTENTS for term in terms)),
    )


def _index(terms: list[Term], op: TermOp) -> int:
    return next((t for t, term in enumerate(terms) if term.op is op), -1)


def _item_lives(terms: list[Term], lives_ms: list[int], layout: Layout) -> list[int]:
    lives = [
        lives_ms.index(term.reads.half_life_ms)
        for term in terms
        if term.side is Side.ITEM and isinstance(term.reads, Decayed)
    ]
    if any(term.op.name.startswith("SEGMENT") for term in terms):
        lives.append(layout.segment_life)
    return sorted(set(lives))


def _check(column: Column, term: Term, layout: Layout, factors: int) -> None:
    if term.op in _FACTORS and not factors:
        raise ConfigurationError(
            f'feature "{column.name}" reads online factors, and none are kept: set features.factors.size, such as 24'
        )
    limits = {
        TermOp.EMBEDDING: (layout.content_size, "features.content_size"),
        TermOp.RECENT_ITEM: (layout.recent_size, "features.recent"),
        TermOp.RECENT_TYPE: (layout.recent_size, "features.recent"),
        TermOp.RECENT_AGE: (layout.recent_size, "features.recent"),
    }
    if term.op in limits and term.parameters[0] >= limits[term.op][0]:
        limit, key = limits[term.op]
        raise ConfigurationError(
            f'feature "{column.name}": entry {int(term.parameters[0])} does not exist, {key} is {limit}'
        )
