"""The features of a configuration: the default set and what the team's own module declares."""

from __future__ import annotations

import difflib
import importlib.util
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headwater.features.aggregations import FOLLOWED, Affinity, TableValue
from headwater.features.defaults import default_columns
from headwater.features.definitions import Column
from headwater.schema.config import Config
from headwater.schema.errors import ConfigurationError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def configured_columns(config: Config) -> tuple[Column, ...]:
    """The default set (unless ``features.defaults`` is false, less ``features.without``), then ``features.module``.

    Raises:
        ConfigurationError: a name stands there twice or is not one, an event type or a feature is not known, the
            module cannot be run. The message names the feature, and the line of the module where it knows it.
    """
    columns = list(default_columns(config)) if config.features.defaults else []
    names = {column.name for column in columns}
    for index, name in enumerate(config.features.without):
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigurationError(
                f'features.without[{index}]: There is no default feature "{name}"'
                + (f', did you mean "{close[0]}"?' if close else "")
            )
    columns = [column for column in columns if column.name not in config.features.without]
    if config.features.module:
        columns.extend(_declared(Path(config.features.module)))
    if not columns:
        raise ConfigurationError("features: there is no feature at all: keep `defaults`, or name a `module`")
    _check(columns, config)
    return tuple(columns)


def _declared(path: Path) -> list[Column]:
    if not path.is_file():
        raise ConfigurationError(f"features.module: There is no file {path}")
    spec = importlib.util.spec_from_file_location("headwater_feature_module", path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"features.module: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"line {lines[-1]}" if lines else f"line {getattr(error, 'lineno', '?')}"
        raise ConfigurationError(f"{path}, {where}: {error}") from error
    if not isinstance(getattr(module, "features", None), list | tuple):
        raise ConfigurationError(f"{path}: Expected a list named `features`, such as features = [count(...), ...]")
    return list(_flat(module.features, path))


def _flat(found: Any, path: Path) -> Iterator[Column]:
    for entry in found:
        if isinstance(entry, Column):
            yield entry
        elif isinstance(entry, list | tuple):
            yield from _flat(entry, path)
        else:
            raise ConfigurationError(
                f"{path}: `features` holds {entry!r}, which is no feature: make features with headwater.features.declare"
            )


def _check(columns: list[Column], config: Config) -> None:
    types = {t.name for t in config.events}
    seen: set[str] = set()
    for column in columns:
        if not _NAME.fullmatch(column.name) and column.owner != "headwater":
            raise ConfigurationError(
                f'feature "{column.name}": a name is lower-case letters, digits and underscores, at most 64, a letter first'
            )
        if column.name in seen:
            raise ConfigurationError(f'feature "{column.name}" is declared twice: give one of the two another name')
        seen.add(column.name)
        for aggregation in column.reads:
            if isinstance(aggregation, TableValue):
                _check_table(column.name, aggregation, config)
            for name in getattr(aggregation, "types", ()):
                if name not in types and name != FOLLOWED:
                    close = difflib.get_close_matches(name, types, n=1)
                    raise ConfigurationError(
                        f'feature "{column.name}": there is no event type "{name}"'
                        + (f', did you mean "{close[0]}"?' if close else f" (there are {', '.join(sorted(types))})")
                    )
            own = getattr(aggregation, "types", ())
            if isinstance(aggregation, Affinity) and FOLLOWED in own:
                raise ConfigurationError(f'feature "{column.name}": an affinity cannot weigh {FOLLOWED}')
            if len(set(own)) != len(own):
                raise ConfigurationError(f'feature "{column.name}": an event type stands there twice')
        for term in column.terms:
            if term.op.name.startswith("SEGMENT") and int(term.parameters[0]) >= len(config.segments.keys):
                raise ConfigurationError(
                    f'feature "{column.name}": segment key {int(term.parameters[0])} does not exist; [segments] has '
                    f"{len(config.segments.keys)} keys, counted from 0"
                )


def _check_table(feature: str, read: TableValue, config: Config) -> None:
    tables = {table.name: table for table in config.tables}
    table = tables.get(read.table)
    if table is None:
        others = f"[[tables]] has {', '.join(tables)}" if tables else "the configuration has no [[tables]]"
        raise ConfigurationError(
            f'feature "{feature}": there is no table "{read.table}"{_nearest(read.table, list(tables)) or f"; {others}"}'
        )
    if read.entity != table.entity:
        raise ConfigurationError(
            f'feature "{feature}": table "{table.name}" has values of {table.entity}s, not of {read.entity}s'
        )
    if table.columns and read.column not in table.columns:
        raise ConfigurationError(
            f'feature "{feature}": table "{table.name}" has no column "{read.column}"'
            + (_nearest(read.column, table.columns) or f"; its columns are {', '.join(table.columns)}")
        )
    if read.column in (table.key, table.valid_from):
        raise ConfigurationError(
            f'feature "{feature}": "{read.column}" is the key or the time of table "{table.name}", not a value of it'
        )


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f', did you mean "{close[0]}"?' if close else ""
