"""The fields of rules, read from the state that a worker holds: item rows as columns, the user row, the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.features.attributes import attribute_code
from headwater.features.layout import (
    I_CATEGORIES,
    I_EXPIRES,
    I_FIRST,
    I_PUBLISHED,
    I_REGIONS,
    U_RECENT_LENGTH,
    Layout,
)
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.log.protocol import Vocabulary
from headwater.log.record import Namespace
from headwater.policy.fields import Field, Fields, Kind
from headwater.policy.rules import ID
from headwater.schema.config import Config
from headwater.schema.items import MAX_CATEGORIES, MAX_REGIONS
from headwater.schema.segments import JOIN

DAY_MS = 86_400_000
_MONDAY = 3  # days from Monday to 1 January 1970, a Thursday

HASH = "hash"
SPACES = {"id": Namespace.ITEM, "category": Namespace.CATEGORY, "region": Namespace.REGION}

_NOT_KEPT = (
    "the state keeps no {what} of items, only the content vector made of them; put it into a category or an attribute"
)
_REFUSED = {
    "title": _NOT_KEPT.format(what="titles"),
    "text": _NOT_KEPT.format(what="texts"),
    "tags": _NOT_KEPT.format(what="tags"),
    "tag": _NOT_KEPT.format(what="tags"),
    "vector": "vectors do not compare; items near the user's recent ones come from the source `content`",
    "available": "items that are not available never show, whatever the rules say",
    "attributes.": (
        'no feature reads the item attribute "{name}", so the state does not keep it: declare '
        'attribute(…, "item", "{name}", kind="category") (or kind="number") in the feature module'
    ),
    "tables.": 'no feature reads the table column "{name}" of items, so the state does not keep it: declare it with table(…) in the feature module',
    "user.": (
        'no feature reads the profile attribute "{name}", so the state does not keep it: declare '
        'attribute(…, "user", "{name}", kind="category") (or kind="number") in the feature module; keys of segments.keys are '
        "context fields"
    ),
    "context.": 'of a request\'s context the keys in segments.keys are kept, and hour, weekday and surface: add "{name}" to segments.keys',
}

Columns = tuple[Any, Any]
ItemReader = Callable[[Rows, npt.NDArray[np.int64], int], Columns]


def rule_fields(config: Config, plan: Plan) -> Fields:
    """Every field that rules may ask about under ``plan``."""
    known = [
        Field(ID, Kind.TEXT, True, "its id", optional=False, space="id"),
        Field("category", Kind.TEXT, True, "its categories", many=True, space="category"),
        Field("region", Kind.TEXT, True, "where it may be shown; missing: everywhere", many=True, space="region"),
        Field("price", Kind.NUMBER, True, "the state keeps 0 for an item without a price", optional=False, low=0.0),
        Field("published", Kind.TIME, True, "from when on it is shown"),
        Field("expires", Kind.TIME, True, "until when it is shown"),
        Field("age", Kind.DURATION, True, "since it was published, or else first seen", low=0.0, moves=True),
    ]
    for attribute, _ in plan.item_attributes:
        known.append(_attribute(f"attributes.{attribute.name}", attribute.kind, per_item=True))
    for (entity, table), (_, columns) in plan.tables.items():
        if entity == "item":
            known += [
                Field(f"tables.{table}.{column}", Kind.NUMBER, True, "of the table, as loaded last")
                for column in columns
            ]
    surfaces = tuple(surface.name for surface in config.surfaces)
    known += [
        Field("context.surface", Kind.TEXT, False, optional=False, choices=surfaces),
        Field("context.hour", Kind.NUMBER, False, "by the user's clock", optional=False, low=0.0, high=23.0),
        Field("context.weekday", Kind.NUMBER, False, "Monday is 0", optional=False, low=0.0, high=6.0),
        Field("user.events", Kind.NUMBER, False, "in the recent sequence", optional=False, low=0.0),
    ]
    taken = {field.name for field in known}
    keys = [f"context.{key}" for key in plan.segment_keys if JOIN not in key]  # a joined key is no name in a rule
    known += [Field(key, Kind.TEXT, False, "of the request, else as last known") for key in keys if key not in taken]
    known += [_attribute(f"user.{a.name}", a.kind, per_item=False) for a, _ in plan.user_attributes]
    return Fields(known, _REFUSED)


def _attribute(name: str, kind: str, *, per_item: bool) -> Field:
    whose = "of the item" if per_item else "of the profile"
    if kind == "number":
        return Field(name, Kind.NUMBER, per_item, f"an attribute {whose}")
    return Field(name, Kind.TEXT, per_item, f"an attribute {whose}", space=HASH)


class ItemColumns:
    """How each field of items is read from their rows, all of a list at once."""

    def __init__(self, plan: Plan) -> None:
        layout = plan.layout
        self._readers: dict[str, ItemReader] = {
            ID: lambda _, ids, __: (ids, np.bool_(True)),
            "category": _texts(I_CATEGORIES, MAX_CATEGORIES),
            "region": _texts(I_REGIONS, MAX_REGIONS),
            "price": _price(layout),
            "published": _time(I_PUBLISHED),
            "expires": _time(I_EXPIRES),
            "age": _age,
        }
        for attribute, at in plan.item_attributes:
            reader = _number(at) if attribute.kind == "number" else _text(at)
            self._readers.setdefault(f"attributes.{attribute.name}", reader)
        for (entity, table), (_, columns) in plan.tables.items():
            if entity == "item":
                for column, at in columns.items():
                    self._readers[f"tables.{table}.{column}"] = _number(at)

    def read(self, field: Field, rows: Rows, ids: npt.NDArray[np.int64], now_ms: int) -> Columns:
        """Values of ``field`` of items ``ids``, and which of them are there."""
        return self._readers[field.name](rows, ids, now_ms)


class RequestValues:
    """How each fact of a request is read."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._segments = {f"context.{key}": place for place, key in enumerate(plan.segment_keys)}
        self._attributes = {f"user.{a.name}": (at, a.kind) for a, at in plan.user_attributes}

    def read(self, field: Field, user: User, surface: str, segments: tuple[int, int], local_ms: int) -> Columns:
        """The value of ``field``, and whether it is there."""
        name = field.name
        if name == "context.surface":
            return surface, True
        if name == "context.hour":
            return np.float32(local_ms // 3_600_000 % 24), True
        if name == "context.weekday":
            return np.float32((local_ms // DAY_MS + _MONDAY) % 7), True
        if name == "user.events":
            return np.float32(user.u4[U_RECENT_LENGTH]), True
        if name in self._segments:
            text = self._vocabulary.text(Namespace.SEGMENT, segments[self._segments[name]]) or ""
            return text.partition("=")[2], bool(text)
        at, kind = self._attributes[name]
        code = user.u4[at]
        return numbers_of(user.u4[at : at + 1])[0] if kind == "number" else code, bool(code)


class Codes:
    """The codes of texts. One that nothing is called yet is looked up again when item columns have moved on."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: dict[tuple[str, str], int] = {}
        self._unknown: set[tuple[str, str]] = set()
        self._item_offset = -1

    def moved_to(self, item_offset: int) -> bool:
        """Item columns stand at ``item_offset`` now: a text that was unknown may have come with them. Whether they moved."""
        if item_offset == self._item_offset:
            return False
        self._item_offset = item_offset
        self._unknown.clear()
        return True

    def code(self, field: Field, text: str) -> int | str:
        """What a column of ``field`` holds for ``text``; 0 when no item can have it."""
        if not field.space:
            return text
        key = (field.space, text)
        found = self._known.get(key, 0)
        if found or key in self._unknown:
            return found
        if field.space == HASH:
            found = attribute_code(text, "category")
        else:
            found = self._vocabulary.index(SPACES[field.space], text)
        if found:
            self._known[key] = found
        else:
            self._unknown.add(key)
        return found


def numbers_of(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """The numbers behind ``features.sketch.encode_number``, NaN for 0: all at once."""
    top = np.uint32(0x80000000)
    found = np.where(codes & top, codes ^ top, ~codes).view(np.float32)
    return np.where(codes == 0, np.float32(np.nan), found)


def _texts(at: int, size: int) -> ItemReader:
    def read(rows: Rows, ids: npt.NDArray[np.int64], _: int) -> Columns:
        codes = rows.u4[ids, at : at + size]
        return codes, codes[:, 0] != 0

    return read


def _text(at: int) -> ItemReader:
    def read(rows: Rows, ids: npt.NDArray[np.int64], _: int) -> Columns:
        codes = rows.u4[ids, at]
        return codes, codes != 0

    return read


def _number(at: int) -> ItemReader:
    def read(rows: Rows, ids: npt.NDArray[np.int64], _: int) -> Columns:
        codes = rows.u4[ids, at]
        return numbers_of(codes), codes != 0

    return read


def _price(layout: Layout) -> ItemReader:
    return lambda rows, ids, _: (rows.f4[ids, layout.price_f4], np.bool_(True))


def _time(at: int) -> ItemReader:
    def read(rows: Rows, ids: npt.NDArray[np.int64], _: int) -> Columns:
        times = rows.i8[ids, at]
        return times, times != 0

    return read


def _age(rows: Rows, ids: npt.NDArray[np.int64], now_ms: int) -> Columns:
    published = rows.i8[ids, I_PUBLISHED]
    born = np.where(published != 0, published, rows.i8[ids, I_FIRST])
    return np.maximum(now_ms - born, 0), born != 0
