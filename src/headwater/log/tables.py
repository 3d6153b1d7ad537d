"""What ``PutTable`` brings: held to its rules, and encoded as payloads of ``TABLE`` records."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from headwater.log.batch import TableRecord
from headwater.log.commands import PutTable
from headwater.log.protocol import RefusedError
from headwater.log.staging import check_text
from headwater.schema.tables import MAX_TABLE_COLUMNS

MAX_ID = 128
LARGEST = float(np.finfo(np.float32).max)

_ENCODER = msgspec.msgpack.Encoder()


def check_table(command: PutTable, received_ms: int) -> None:
    """Raise :class:`RefusedError` unless every row could be recorded at ``received_ms``.

    A row that is valid from a later moment than that is refused: it would hide the value that is valid until then.
    """
    check_text(command.table)
    if command.entity not in ("user", "item"):
        raise RefusedError(f'A table has values of "user" or of "item", not of "{command.entity}"')
    if not 1 <= len(command.columns) <= MAX_TABLE_COLUMNS or len(set(command.columns)) != len(command.columns):
        raise RefusedError(f"A table has 1 to {MAX_TABLE_COLUMNS} different columns, got {len(command.columns)}")
    for column in command.columns:
        check_text(column)
    if not len(command.ids) == len(command.valid_from_ms) == len(command.values):
        raise RefusedError(
            f"{len(command.ids)} ids, {len(command.valid_from_ms)} times and {len(command.values)} rows of values "
            "are no table"
        )
    for text in command.ids:
        check_text(text)
        if len(text) > MAX_ID:
            raise RefusedError(f"An id has at most {MAX_ID} characters, got {len(text)}")
    if command.valid_from_ms:
        earliest, latest = min(command.valid_from_ms), max(command.valid_from_ms)
        if earliest < 1:
            raise RefusedError(f"Values cannot be valid from {earliest} ms on: times are Unix milliseconds")
        if latest > received_ms:
            raise RefusedError(
                f"Values that are valid from {latest} ms on cannot be recorded at {received_ms} ms: hold them back until then"
            )
    for row in command.values:
        if len(row) != len(command.columns):
            raise RefusedError(f"A row of {len(row)} values for {len(command.columns)} columns")
        for value in row:
            if value is not None and not (math.isfinite(value) and abs(value) <= LARGEST):
                raise RefusedError("A value is a finite number of 32 bits, or none")


def table_payloads(command: PutTable, rows: Sequence[int]) -> list[bytes]:
    """Payloads of the chosen rows."""
    columns, values = command.columns, command.values
    return [_ENCODER.encode(TableRecord(command.table, dict(zip(columns, values[row], strict=True)))) for row in rows]
