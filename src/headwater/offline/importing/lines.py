"""A JSON object, or a row of a table, as the record that a mapping makes of it: the way by row.

Items go this way from every format (there are tens of thousands of them, not millions); events do from
JSON lines, where each line has to be parsed on its own anyway.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from headwater.offline.importing.columns import EARLIEST_LIKELY_MS, MISSING
from headwater.offline.importing.mapping import ATTRIBUTE, ImportFailedError, Mapping, Resolved, TimeUnit
from headwater.schema.events import field_of

_DECODER = msgspec.json.Decoder(dict[str, Any])
_UNIT_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
MAX_IGNORED = 64


class RecordReader:
    """Applies ``mapping`` to rows. A column may be a path into nested objects: ``--map actor.id=user``.

    ``fields`` are the names a record may have (``attributes`` always), ``ids`` those whose numbers become
    text, ``times`` those that ``time_unit`` speaks of. ``ignored`` collects the names that no field takes.
    """

    def __init__(
        self,
        mapping: Mapping,
        resolved: Resolved,
        *,
        fields: Collection[str],
        ids: Collection[str],
        times: Collection[str],
    ) -> None:
        self._mapping = mapping
        self._sources = resolved.sources
        self._constants = resolved.constants
        self._mapped_columns = frozenset(resolved.sources.values())
        self._fields = frozenset(fields)
        self._ids = ids
        self._times = times
        self._latest_bare_ms = -1
        self.ignored: dict[str, None] = {}

    def from_line(self, line: bytes) -> dict[str, Any]:
        """The record of a JSON line.

        Raises:
            msgspec.DecodeError: the line is no JSON object, or a time cannot be read.
        """
        return self.from_row(_DECODER.decode(line))

    def from_row(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The record of an object; nulls are left out. Raises ``msgspec.ValidationError`` for an unreadable time."""
        found: dict[str, Any] = {}
        attributes: dict[str, Any] = {}
        for name, value in raw.items():
            if name in self._mapped_columns:
                continue
            if name == "attributes" and isinstance(value, dict):
                attributes.update(value)
            elif name in self._fields:
                found[name] = value
            elif name.startswith(ATTRIBUTE):
                attributes[name.removeprefix(ATTRIBUTE)] = value
            elif value is not None and name not in self.ignored and len(self.ignored) < MAX_IGNORED:
                self.ignored[name] = None
        for field, column in self._sources.items():
            _place(found, attributes, field, _pull(raw, column))
        for field, constant in self._constants.items():
            _place(found, attributes, field, constant)
        found = {name: value for name, value in found.items() if value is not None}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        if attributes:
            found["attributes"] = attributes
        return self._converted(found)

    def _converted(self, record: dict[str, Any]) -> dict[str, Any]:
        for field in self._ids:
            value = record.get(field)
            if isinstance(value, int) and not isinstance(value, bool):
                record[field] = str(value)
        for field in self._times:
            if field in record:
                bare = isinstance(record[field], int | float)
                record[field] = to_millis(record[field], self._mapping.time_unit, field)
                if bare:
                    self._latest_bare_ms = max(self._latest_bare_ms, record[field])
        if self._mapping.event_types and isinstance(kind := record.get("type"), str):
            record["type"] = self._mapping.event_types.get(kind, kind)
        return record

    def check_unit(self) -> None:
        """Raise :class:`ImportFailedError` when all numbers seen so far look like seconds that nobody declared."""
        if self._mapping.time_unit is None and 0 <= self._latest_bare_ms < EARLIEST_LIKELY_MS:
            raise ImportFailedError(
                "The times lie before 1973 when read as milliseconds; "
                "are they seconds? Give --time-unit s, ms, us, ns or iso"
            )


def to_millis(value: object, unit: TimeUnit | None, field: str) -> int:
    """Unix milliseconds of a number, an ISO 8601 text or a date; without an offset it is UTC.

    Raises:
        msgspec.ValidationError: ``value`` is no time.
    """
    if isinstance(value, dt.datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
        return (aware - _EPOCH) // _MILLISECOND
    if isinstance(value, dt.date):
        return (dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC) - _EPOCH) // _MILLISECOND
    if isinstance(value, str):
        number = None if unit == "iso" else _number(value.strip())
        if number is None:
            try:
                return to_millis(dt.datetime.fromisoformat(value.strip()), unit, field)
            except ValueError as error:
                raise wrong(field, "Expected a time") from error
        value = number
    if isinstance(value, int) and not isinstance(value, bool) and unit != "iso":
        return value * 1_000 if unit == "s" else value // _UNIT_PER_MS[unit or "ms"]
    if isinstance(value, float) and math.isfinite(value) and unit != "iso":
        return round(value * 1_000 if unit == "s" else value / _UNIT_PER_MS[unit or "ms"])
    raise wrong(field, "Expected a time")


def wrong(field: str, reason: str) -> msgspec.ValidationError:
    """A validation error in the form that msgspec gives them."""
    return msgspec.ValidationError(f"{reason} - at `$.{field}`")


def explain(error: msgspec.DecodeError) -> str:
    """The reason that is counted, starting with the field: ``user: missing``."""
    if not isinstance(error, msgspec.ValidationError):
        return "line: Not valid JSON"
    field, reason = field_of(error)
    if reason.startswith("Object missing required field"):
        reason = MISSING
    whole = field in ("$", "object")  # "Expected `object`, got `array`" names no field
    return f"{'line' if whole else field}: {reason}"


def number_of(convert: Callable[[str], float], text: str, field: str) -> float:
    """A number of a text column. Raises ``msgspec.ValidationError``."""
    try:
        return convert(text)
    except ValueError as error:
        raise wrong(field, "Expected a number") from error


def _number(text: str) -> int | float | None:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return None


def _place(found: dict[str, Any], attributes: dict[str, Any], field: str, value: object) -> None:
    if field.startswith(ATTRIBUTE):
        attributes[field.removeprefix(ATTRIBUTE)] = value
    else:
        found[field] = value


def _pull(raw: dict[str, Any], path: str) -> object:
    """``raw[path]``, else the value that the dotted path leads to, else None."""
    if path in raw:
        return raw[path]
    value: Any = raw
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value
