"""docs/features.md, made from the definitions: ``python -m headwater.features.reference docs/features.md``.

What a person has to say stands in ``reference.md`` beside this module; functions, aggregations, terms, formulas and the
default set are filled in.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import get_args

from headwater.features import aggregations, declare
from headwater.features.defaults import default_columns
from headwater.features.definitions import Column, version_of
from headwater.features.factors import ALONE
from headwater.features.factors import DEPTH as VISIT
from headwater.features.plan import MAX_LIVES
from headwater.features.recent import DEPTH, DISCOUNT
from headwater.features.wording import FORMULAS, KINDS, TERMS, entity_of
from headwater.schema.config import MAX_EVENT_TYPES, Config

_WIDTH = 120  # of code
_PROSE = 140  # of text
_BAR = r"\|"  # inside a cell of a table


def reference(config: Config | None = None) -> str:
    """The page, for the default set of ``config`` (default: the default configuration)."""
    columns = default_columns(Config() if config is None else config)
    parts = {
        "{DEPTH}": str(DEPTH),
        "{MAX_EVENT_TYPES}": str(MAX_EVENT_TYPES),
        "{MAX_LIVES}": str(MAX_LIVES),
        "{MAX_SLOTS}": str(declare.MAX_SLOTS),
        "{DISCOUNT}": f"{DISCOUNT:g}",
        "{VISIT}": str(VISIT),
        "{ALONE}": f"{ALONE:g}",
        "{DECLARE}": "\n\n".join(_function(function) for function in declarations()),
        "{AGGREGATIONS}": "\n\n".join(_aggregation(kind) for kind in get_args(aggregations.Aggregation)),
        "{TERMS}": _table(("term", ""), ((f"`{op.name}`", TERMS[op]) for ops in KINDS.values() for op in ops)),
        "{FORMULAS}": _table(("formula", ""), ((f"`{formula.name}`", text) for formula, text in FORMULAS.items())),
        "{COUNT}": str(len(columns)),
        "{DEFAULTS}": _table(
            ("name", "of", "unit", "dtype", "default", "description", "version"), map(_column, columns)
        ),
    }
    text = resources.files("headwater.features").joinpath("reference.md").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


def declarations() -> list[Callable[..., Column | list[Column]]]:
    """The functions that declare features, in the order of their module."""
    found = [
        function
        for name, function in vars(declare).items()
        if inspect.isfunction(function) and function.__module__ == declare.__name__ and not name.startswith("_")
    ]
    return sorted(found, key=lambda function: function.__code__.co_firstlineno)


def _function(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    # as it stands in the source: annotations are texts there
    arguments, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            arguments.append("*")
            starred = True
        default = "" if parameter.default is inspect.Parameter.empty else f" = {_literal(parameter.default)}"
        arguments.append(f"{parameter.name}: {parameter.annotation}{default}".replace("'", '"'))
    arguments.append("**about")
    return f"### `{function.__name__}`\n\n```python\n{_head(function.__name__, arguments, signature)}\n```\n\n{_prose(function)}"


def _head(name: str, arguments: list[str], signature: inspect.Signature) -> str:
    """One line if it fits, else lines of whole arguments."""
    returns = signature.return_annotation
    head = f"def {name}({', '.join(arguments)}) -> {returns}: ..."
    if len(head) <= _WIDTH:
        return head
    lines = [""]
    for argument in arguments:
        if len(lines[-1]) + len(argument) > _WIDTH - 6:
            lines.append("")
        lines[-1] += f"{argument}, "
    return "\n".join([f"def {name}(", *(f"    {line.rstrip()}" for line in lines), f") -> {returns}: ..."])


def _literal(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return "1 << 16" if value == 1 << 16 else str(value)


def _aggregation(kind: type) -> str:
    fields = ", ".join(f"`{name}`" for name in kind.__annotations__)
    return f"### `{kind.__name__}`\n\n{_prose(kind)}\n\nSays: {fields}." if fields else _prose(kind)


def _prose(documented: object) -> str:
    """A docstring as Markdown: double backquotes become single ones, a paragraph becomes a line."""
    text = inspect.getdoc(documented) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.replace("``", "`").split("\n\n")]
    return "\n\n".join(textwrap.fill(p, _PROSE, break_long_words=False, break_on_hyphens=False) for p in paragraphs)


def _column(column: Column) -> tuple[str, ...]:
    cells = (f"`{column.name}`", entity_of(column), column.unit, column.dtype, f"{column.default:g}")
    return (*cells, column.description, f"`{version_of(column)}`")


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(heads)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |" for cells in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
