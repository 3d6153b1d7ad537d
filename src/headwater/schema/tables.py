"""``[[tables]]``: tables that are computed elsewhere, and where their parts are found."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from headwater.schema.durations import Delay, Duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name

MAX_TABLE_COLUMNS = 256

ColumnName = Annotated[str, Meta(min_length=1, max_length=128)]


class TableSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of values of users or items: each row says what is known of ``key`` from ``valid_from`` on.

    ``path`` names a Parquet file, a pattern of them, or the folder of a Delta table. ``columns`` empty: those that
    features read. A row counts from ``valid_from + available_after`` on, which is when its producer has published it.
    New rows are looked for every ``refresh``.
    """

    name: Name
    path: Annotated[str, Meta(min_length=1, max_length=4_096)]
    entity: Literal["user", "item"]
    key: ColumnName
    valid_from: ColumnName
    columns: Annotated[tuple[ColumnName, ...], Meta(max_length=MAX_TABLE_COLUMNS)] = ()
    available_after: Delay = "0s"
    refresh: Duration = "10m"

    def __post_init__(self) -> None:
        taken = [self.key, self.valid_from, *self.columns]
        for index, column in enumerate(taken):
            if column in taken[:index]:
                raise ConfigurationError(
                    f'tables: table "{self.name}" names the column "{column}" twice: key, valid_from and columns are '
                    "different columns"
                )
