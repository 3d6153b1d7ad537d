"""Rows of a file as items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from headwater.offline.importing.lines import RecordReader, explain, number_of, wrong
from headwater.offline.importing.mapping import Mapping
from headwater.schema.items import Item

TIMES = ("published", "expires")
_TEXT_LISTS = ("categories", "tags", "regions")
_BOOLS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class ParsedItems:
    """The items that were accepted, and (position, reason) of the refused rows."""

    items: Sequence[Item]
    refused: Sequence[tuple[int, str]]


def parse_item_rows(rows: Iterable[dict[str, Any]], reader: RecordReader, mapping: Mapping) -> ParsedItems:
    """Items of table rows: texts become numbers, lists and truth values where the field is one."""
    return _parse((lambda row=row: _typed(reader.from_row(_given(row)), mapping)) for row in rows)


def parse_item_lines(lines: Iterable[bytes], reader: RecordReader) -> ParsedItems:
    """Items of JSON lines, taken strictly as they are."""
    return _parse((lambda line=line: reader.from_line(line)) for line in lines)


def _parse(records: Iterable[Any]) -> ParsedItems:
    items: list[Item] = []
    refused: list[tuple[int, str]] = []
    for position, record in enumerate(records):
        try:
            items.append(msgspec.convert(record(), Item))
        except msgspec.DecodeError as error:
            refused.append((position, explain(error)))
    return ParsedItems(items, refused)


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """Without empty texts: a table has no other way to say "none"."""
    return {name: value for name, value in row.items() if value != ""}


def _typed(record: dict[str, Any], mapping: Mapping) -> dict[str, Any]:
    for field in _TEXT_LISTS:
        if isinstance(text := record.get(field), str):
            record[field] = [part.strip() for part in text.split(mapping.separator) if part.strip()]
    if isinstance(text := record.get("price"), str):
        record["price"] = number_of(float, text, "price")
    if isinstance(text := record.get("vector"), str):
        record["vector"] = [number_of(float, part, "vector") for part in text.split(mapping.separator)]
    if isinstance(text := record.get("available"), str):
        if text.lower() not in _BOOLS:
            raise wrong("available", "Expected true or false")
        record["available"] = _BOOLS[text.lower()]
    return record
