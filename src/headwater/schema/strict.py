"""Files are read strictly: a key that nobody knows is an error that names the nearest known one."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from headwater.schema.errors import ConfigurationError


def read_toml(text: str, source: str, refused: type[ConfigurationError] = ConfigurationError) -> dict[str, Any]:
    """The table in TOML ``text``; ``source`` is what errors call it. Raises ``refused``: it is not valid."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refused(f"{source}: Not valid TOML: {error}") from error


def key_and_reason(error: msgspec.ValidationError) -> tuple[str, str]:
    """The dotted key that ``error`` is about ("": the whole), and what it says of it."""
    reason, _, where = str(error).rpartition(" - at `")
    return where.rstrip("`").removeprefix("$").removeprefix("."), reason or str(error)


def walk_keys(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every dotted key that a file of ``kind`` may hold, in order, each with the struct that it belongs to."""
    for field in msgspec.structs.fields(kind):
        inner, repeated = _struct_in(field.type)
        name = f"{prefix}{field.encode_name}"
        if inner is None:
            yield name, kind
        else:
            yield from walk_keys(inner, f"{name}[]." if repeated else f"{name}.")


def _struct_in(annotation: Any) -> tuple[type | None, bool]:
    """The struct that a field holds (or may hold), and whether it holds a tuple of them."""
    if get_origin(annotation) in (Union, UnionType):
        inside = [_struct_in(part) for part in get_args(annotation)]
        return next((found for found in inside if found[0] is not None), (None, False))
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return annotation, False
    if get_origin(annotation) is tuple:
        first = get_args(annotation)[0]
        if isinstance(first, type) and issubclass(first, Struct):
            return first, True
    return None, False


def unknown_keys(raw: dict[str, Any], kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted keys of ``raw`` that ``kind`` does not have, each with the struct that it was looked for in."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, value in raw.items():
        if name not in fields:
            yield f"{prefix}{name}", kind
            continue
        inner, repeated = _struct_in(fields[name].type)
        if inner is None:
            continue
        if repeated and isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from unknown_keys(entry, inner, f"{prefix}{name}[{index}].")
        elif not repeated and isinstance(value, dict):
            yield from unknown_keys(value, inner, f"{prefix}{name}.")


def suggestion(key: str, owner: type, root: type) -> str:
    """What to put for an unknown ``key`` that was looked for in ``owner``: the nearest key in the same table; failing that, the table of
    ``root`` where a key of that name does exist.
    """
    table, _, name = key.rpartition(".")
    siblings = [field.encode_name for field in msgspec.structs.fields(owner)]
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{table + '.' if table else ''}{close[0]}`?"
    everywhere = {full.rpartition(".")[2]: full for full in reversed([known for known, _ in walk_keys(root)])}
    close = difflib.get_close_matches(name, everywhere, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{everywhere[close[0]]}`?"
    best = max(siblings, key=lambda sibling: difflib.SequenceMatcher(None, name, sibling).ratio())
    return f"; the nearest known key is `{table + '.' if table else ''}{best}` (known here: {', '.join(siblings)})"


def nearest(text: str, known: Sequence[str]) -> str:
    """Words to put behind an unknown name: the one that was meant, or all that there are."""
    close = difflib.get_close_matches(text, known, n=1)
    return f', did you mean "{close[0]}"?' if close else f" (there are {', '.join(known)})"
