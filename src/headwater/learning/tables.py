"""Values of tables beside rows of the past: what the state would have said, had every row been loaded when it was due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import polars as pl

from headwater.features.aggregations import TableValue
from headwater.features.definitions import Column, Formula, TermOp
from headwater.schema.errors import HeadwaterError

_ROW, _DUE, _VALID = "__row", "__due_ms", "__valid_ms"


class TableFeature(NamedTuple):
    """A feature that is a value of a table. ``max_age_ms`` 0: any age."""

    name: str
    entity: Literal["user", "item"]
    table: str
    column: str
    max_age_ms: int
    default: float


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table, in the order in which they would have been loaded.

    ``rows`` has ``key``, ``valid_ms`` and a column of numbers for each column of the table (null: missing). A row counts
    from ``valid_ms + available_after_ms`` on.
    """

    name: str
    entity: Literal["user", "item"]
    available_after_ms: int
    rows: pl.DataFrame


def table_features(columns: Sequence[Column]) -> list[TableFeature]:
    """Those of ``columns`` that are values of tables; formulas over such values are not among them."""
    found = []
    for column in columns:
        term = column.terms[0] if column.terms else None
        if column.formula is Formula.VALUE and term is not None and term.op is TermOp.TABLE:
            if not isinstance(term.reads, TableValue):
                raise HeadwaterError(f"feature {column.name} reads no table")
            cell = term.reads
            entity: Literal["user", "item"] = "user" if cell.entity == "user" else "item"
            age = int(term.parameters[0])
            found.append(TableFeature(column.name, entity, cell.table, cell.column, age, column.default))
    return found


def join_tables(
    frame: pl.DataFrame, tables: Sequence[TableRows], features: Sequence[TableFeature], *, now: str = "now_ms",
    user: str = "user", item: str = "item",
) -> pl.DataFrame:  # fmt: skip
    """``frame`` with a ``Float32`` column for each of ``features``, as of ``now`` (Unix ms) of each row.

    Of the rows of the entity that are due (``valid_ms + available_after_ms <= now``), the one with the latest ``valid_ms``
    counts, of two with one time the later in the table; its value stands unless it is missing or
    ``now - valid_ms > max_age_ms``: then ``default`` does. ``user`` and ``item`` name the columns that ``key`` is looked for in.

    Raises:
        HeadwaterError: a feature reads a table or a column that is not among ``tables``.
    """
    by_name = {(table.entity, table.name): table for table in tables}
    made: dict[str, pl.Series] = {}
    for where, table in by_name.items():
        wanted = [feature for feature in features if (feature.entity, feature.table) == where]
        if wanted:
            made.update(_join(frame, table, wanted, now, user if table.entity == "user" else item))
    for feature in features:
        if feature.name not in made:
            raise HeadwaterError(f"feature {feature.name} reads table {feature.table}, which is not among the tables")
    return frame.with_columns(made[feature.name].alias(feature.name) for feature in features)


def _join(
    frame: pl.DataFrame, table: TableRows, features: Sequence[TableFeature], now: str, key: str
) -> dict[str, pl.Series]:
    columns = list(dict.fromkeys(feature.column for feature in features))
    for column in columns:
        if column not in table.rows.columns:
            raise HeadwaterError(f'table {table.name} has no column "{column}"')
    right = (
        table.rows.select(
            pl.col("key").alias(key),
            (pl.col("valid_ms") + table.available_after_ms).alias(_DUE),
            pl.col("valid_ms").alias(_VALID),
            *(_as_stored(column).alias(f"__{k}") for k, column in enumerate(columns)),
        )
        .drop_nulls([key, _DUE])
        .unique([key, _DUE], keep="last", maintain_order=True)
        .sort(_DUE)
    )
    left = frame.select(pl.col(key), pl.col(now)).with_row_index(_ROW).sort(now)
    joined = left.join_asof(
        right, left_on=now, right_on=_DUE, by=key, strategy="backward", check_sortedness=False
    ).sort(_ROW)
    made = {}
    for feature in features:
        value = pl.col(f"__{columns.index(feature.column)}")
        if feature.max_age_ms:
            value = pl.when(pl.col(now) - pl.col(_VALID) <= feature.max_age_ms).then(value)
        made[feature.name] = joined.select(
            value.fill_null(pl.lit(feature.default, pl.Float64).cast(pl.Float32)).alias(feature.name)
        ).to_series()
    return made


def _as_stored(column: str) -> pl.Expr:
    """A number as a row of state keeps it: 32 bits, no -0, NaN is none."""
    number = pl.col(column).cast(pl.Float64).fill_nan(None)
    return pl.when(number == 0.0).then(0.0).otherwise(number).cast(pl.Float32)
