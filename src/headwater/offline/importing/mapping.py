"""Which column of a file is which field: ``--map``, ``--set``, ``--event-type``, ``--time-unit``."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct

from headwater.schema.errors import HeadwaterError
from headwater.schema.events import MAX_ATTRIBUTES, Event
from headwater.schema.items import Item

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]
ATTRIBUTE = "attributes."
CHUNK_ROWS = 65_536

EVENT_FIELDS = tuple(name for name in Event.__struct_fields__ if name != "attributes")
ITEM_FIELDS = tuple(name for name in Item.__struct_fields__ if name != "attributes")
EVENT_REQUIRED = ("user", "item", "type", "time")
ITEM_REQUIRED = ("id",)


class ImportFailedError(HeadwaterError):
    """The file or its mapping is wrong as a whole; single wrong rows are rejects, not errors."""


class Mapping(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How rows become events or items.

    ``columns``: column → field; a column that bears a field's name needs no entry. ``constants``:
    field → value for every row. ``event_types``: type in the file → type of the configuration.
    ``time_unit`` None: milliseconds for numbers, ISO 8601 for text. ``separator`` splits lists in text columns.
    """

    columns: dict[str, str] = {}
    constants: dict[str, str] = {}
    event_types: dict[str, str] = {}
    time_unit: TimeUnit | None = None
    separator: str = "|"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A mapping laid over the columns of one file: where each field comes from, and what is left over."""

    sources: dict[str, str]  # field → column
    constants: dict[str, str]  # field → value
    ignored: tuple[str, ...]  # columns that no field takes

    @property
    def columns(self) -> list[str]:
        """The columns that have to be read, each once."""
        return list(dict.fromkeys(self.sources.values()))


def parse_assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """``["user_id=user"]`` → ``{"user_id": "user"}``.

    Raises:
        ImportFailedError: an entry has no ``=``, an empty side, or repeats a left side.
    """
    found: dict[str, str] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        if not equals or not left or not right:
            raise ImportFailedError(f"{option} {text}: Expected NAME=NAME")
        if left in found:
            raise ImportFailedError(f"{option} {text}: `{left}` is given twice")
        found[left] = right
    return found


def mapping_digest(kind: str, mapping: Mapping, *, sort: bool) -> str:
    """Hash of all that decides what rows of a file become: part of the identity of an imported range."""
    text = msgspec.json.encode({"kind": kind, "mapping": mapping, "sort": sort, "chunk": CHUNK_ROWS}, order="sorted")
    return hashlib.sha256(text).hexdigest()[:32]


def resolve(
    mapping: Mapping, available: Sequence[str] | None, fields: Sequence[str], required: Sequence[str]
) -> Resolved:
    """Lay ``mapping`` over the columns of a file (None: not known before the rows, as in JSON lines).

    Raises:
        ImportFailedError: a field or column does not exist, two columns claim one field, or a required field has none.
    """
    if not mapping.separator:
        raise ImportFailedError("--separator: Expected at least one character")
    sources: dict[str, str] = {}
    for column, field in mapping.columns.items():
        _check_field("--map", f"{column}={field}", field, fields)
        if available is not None and column not in available:
            raise ImportFailedError(
                f"--map {column}={field}: The file has no column `{column}`{_nearest(column, available)}"
            )
        if field in sources:
            raise ImportFailedError(f"--map {column}={field}: `{sources[field]}` is mapped to `{field}` already")
        sources[field] = column
    for field in mapping.constants:
        _check_field("--set", f"{field}={mapping.constants[field]}", field, fields)
        if field in sources:
            raise ImportFailedError(
                f"--set {field}={mapping.constants[field]}: a column is mapped to `{field}` already"
            )
    for column in available or ():
        named = column in fields or (column.startswith(ATTRIBUTE) and len(column) > len(ATTRIBUTE))
        if named and column not in mapping.columns and column not in sources and column not in mapping.constants:
            sources[column] = column
    if available is not None:
        for field in required:
            if field not in sources and field not in mapping.constants:
                raise ImportFailedError(
                    f"No column gives `{field}`: use --map COLUMN={field} or --set {field}=VALUE "
                    f"(columns: {', '.join(available)})"
                )
    attributes = [field for field in (*sources, *mapping.constants) if field.startswith(ATTRIBUTE)]
    if len(attributes) > MAX_ATTRIBUTES:
        raise ImportFailedError(f"--map: Expected at most {MAX_ATTRIBUTES} attributes, got {len(attributes)}")
    used = set(sources.values())
    ignored = tuple(column for column in available or () if column not in used)
    return Resolved(sources, dict(mapping.constants), ignored)


def check_event_types(mapping: Mapping, known: Sequence[str]) -> None:
    """Raise :class:`ImportFailedError` where the mapping leads to a type that the configuration does not have."""
    targets = [(f"--event-type {old}={new}", new) for old, new in mapping.event_types.items()]
    if (constant := mapping.constants.get("type")) is not None:
        targets.append((f"--set type={constant}", mapping.event_types.get(constant, constant)))
    for text, target in targets:
        if target not in known:
            raise ImportFailedError(f"{text}: The configuration has no event type `{target}`{_nearest(target, known)}")


def _check_field(option: str, text: str, field: str, fields: Sequence[str]) -> None:
    if field.startswith(ATTRIBUTE):
        if not 1 <= len(field.removeprefix(ATTRIBUTE)) <= 64:
            raise ImportFailedError(f"{option} {text}: Expected an attribute's name of 1 to 64 characters")
    elif field not in fields:
        raise ImportFailedError(
            f"{option} {text}: There is no field `{field}`{_nearest(field, (*fields, 'attributes.NAME'))}"
        )


def _nearest(text: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else f" (there are {', '.join(known)})"
