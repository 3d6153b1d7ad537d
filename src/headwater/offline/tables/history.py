"""Training rows from before a table was first loaded: their columns of the table come from its files.

The log knows a table from its first record on: rows from there on have what the state said. A row in front of it would
have nothing, although the value was there in the world; it gets what the state would have said, had every row of the
table been loaded when it was due (:func:`headwater.learning.tables.join_tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
from msgspec import Struct

from headwater.features.aggregations import TableValue
from headwater.features.asof import Questions
from headwater.features.plan import Plan
from headwater.learning.tables import TableFeature, TableRows, join_tables, table_features
from headwater.log.batch import TableRecord
from headwater.log.identity import UserKey
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, Namespace
from headwater.offline.tables.read import read_table
from headwater.schema.config import Config
from headwater.schema.durations import parse_delay
from headwater.schema.errors import HeadwaterError
from headwater.schema.tables import TableSource

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Lookup = Callable[[str], UserKey | None]
Cell = tuple[str, str, str]  # entity, table, column

_decode = msgspec.msgpack.Decoder(TableRecord).decode


class TableOrigins(Struct, frozen=True):
    """Where rows have the columns of a table from: ``log``, its state as it was; ``joined``, the table's files."""

    log: int
    joined: int


@dataclass(frozen=True, slots=True)
class _Patch:
    """One column's values for the rows in front of ``first``, which are the first ones."""

    column: int
    values: Float32


@dataclass(frozen=True, slots=True)
class TableHistory:
    """What takes the place of some columns of the first rows, and what is told of it, by table."""

    patches: Sequence[_Patch]
    origins: dict[str, TableOrigins]

    def over(self, answers: Iterable[tuple[int, int, Float32]]) -> Iterator[tuple[int, int, Float32]]:
        """Pass ``answers`` on, with the joined values where they belong."""
        for start, stop, rows in answers:
            for patch in self.patches:
                end = min(stop, len(patch.values))
                if start < end:
                    rows[: end - start, patch.column] = patch.values[start:end]
            yield start, stop, rows


def table_history(
    config: Config, plan: Plan, log: EventLog, questions: Questions, lookup: Lookup | None
) -> TableHistory:  # fmt: skip
    """What tables say of the rows that ``questions`` ask for.

    ``lookup`` finds a user's number; a table of users needs it.

    Raises:
        HeadwaterError: a table that is needed cannot be read, or a formula over a table's value is asked for rows
            from before it was loaded.
    """
    cells = {_cell(read): None for column in plan.declared for read in column.reads if isinstance(read, TableValue)}
    if not cells:
        return TableHistory((), {})
    first = _first_offsets(log, set(cells), int(questions.offset.max(initial=0)))
    end = np.iinfo(np.int64).max
    before = {cell: int(np.searchsorted(questions.offset, first.get(cell, end))) for cell in cells}
    features = table_features(plan.declared)
    _check_formulas(plan, {feature.name for feature in features}, before, first)
    wanted = [feature for feature in features if before[_of(feature)]]
    sources = {source.name: source for source in config.tables}
    patches: list[_Patch] = []
    for name in dict.fromkeys(feature.table for feature in wanted):
        mine = [feature for feature in wanted if feature.table == name]
        if name not in sources:
            raise HeadwaterError(f'feature {mine[0].name} reads table "{name}", which is not in [[tables]]')
        patches.extend(_joined(plan, sources[name], mine, before, log, questions, lookup))
    total = len(questions.offset)
    joined = {cell[1]: max(before[other] for other in cells if other[1] == cell[1]) for cell in cells}
    return TableHistory(patches, {name: TableOrigins(total - count, count) for name, count in joined.items()})


def _joined(
    plan: Plan, source: TableSource, features: Sequence[TableFeature], before: dict[Cell, int], log: EventLog,
    questions: Questions, lookup: Lookup | None,
) -> Iterator[_Patch]:  # fmt: skip
    columns = list(dict.fromkeys(feature.column for feature in features))
    rows, _ = read_table(source, columns)
    dense = _dense(rows.get_column("key"), source, log, lookup)
    rows = rows.with_columns(key=dense).filter(pl.col("key") > 0)
    table = TableRows(source.name, source.entity, parse_delay(source.available_after), rows)
    most = max(before[_of(feature)] for feature in features)
    asked = questions.user if source.entity == "user" else questions.item
    frame = pl.DataFrame({source.entity: asked[:most], "now_ms": questions.now_ms[:most]})
    joined = join_tables(frame, [table], features)
    for feature in features:
        values = joined.get_column(feature.name).to_numpy()[: before[_of(feature)]]
        yield _Patch(plan.columns.index(feature.name), values.astype(np.float32))


def _dense(keys: pl.Series, source: TableSource, log: EventLog, lookup: Lookup | None) -> pl.Series:
    """The dense number of each key, 0 where the log has none."""
    distinct = keys.unique()
    if source.entity == "item":
        numbers = {text: index for index, text in enumerate(log.vocabulary().texts(Namespace.ITEM)) if index}
        found = [numbers.get(text, 0) for text in distinct]
    elif lookup is None:
        raise HeadwaterError(f'table "{source.name}" has values of users: their numbers are in the identity store')
    else:
        found = [0 if key is None else key.user for key in map(lookup, distinct)]
    return keys.replace_strict(distinct, pl.Series(found, dtype=pl.Int64), return_dtype=pl.Int64)


def _first_offsets(log: EventLog, cells: set[Cell], until: int) -> dict[Cell, int]:
    """The first record up to offset ``until`` that has each cell."""
    found: dict[Cell, int] = {}
    after = log.first_offset - 1
    while after < until and len(found) < len(cells) and (block := log.read(after)) is not None:
        records = block.records
        for i in np.flatnonzero(records["kind"] == Kind.TABLE).tolist():
            row = _decode(block.payload(i))
            entity = "user" if records["user"][i] else "item"
            for column in row.values:
                cell = (entity, row.table, column)
                if cell in cells:
                    found.setdefault(cell, int(records["offset"][i]))
        after = block.last_offset
    return found


def _check_formulas(plan: Plan, plain: set[str], before: dict[Cell, int], first: dict[Cell, int]) -> None:
    for column in plan.declared:
        for read in column.reads:
            if column.name in plain or not isinstance(read, TableValue) or not before[_cell(read)]:
                continue
            since = first.get(_cell(read))
            when = "was never loaded" if since is None else f"was first loaded at offset {since}"
            raise HeadwaterError(
                f'feature {column.name} computes with table "{read.table}", which {when}: rows from before cannot have it. '
                "Ask only for later ones (materialize --from, train --window), or declare the table's value as a feature of its own"
            )


def _cell(read: TableValue) -> Cell:
    return read.entity, read.table, read.column


def _of(feature: TableFeature) -> Cell:
    return feature.entity, feature.table, feature.column
