"""``[[rules]]`` as text: taken out of a configuration file and put back, with the rest of the file as it was, byte for byte."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from headwater.schema.errors import ConfigurationError
from headwater.schema.rules import Rule
from headwater.schema.strict import key_and_reason, read_toml, suggestion, unknown_keys

_HEADER = re.compile(r"\s*\[")
_OF_RULES = re.compile(r"\s*\[\[?\s*rules\s*[].]")
_RULE = re.compile(r"\s*\[\[\s*rules\s*\]\]")
_SILENT = re.compile(r"\s*(#.*)?$")
_AT_LINE = re.compile(r"at line (\d+)")


class ParsedRule(Struct, frozen=True):
    """A rule of a text: the ``line`` where it begins (from 1), what it is called, and itself; None: ``problem`` says why not."""

    line: int
    name: str
    rule: Rule | None
    problem: str = ""


def rules_in(text: str) -> str:
    """The rules of a configuration ``text`` as they stand there, comments between them included; empty when there are none.

    Raises:
        ConfigurationError: they do not stand there as ``[[rules]]`` tables.
    """
    lines = text.splitlines(keepends=True)
    found = "\n".join("".join(lines[begin:end]).rstrip("\n") + "\n" for begin, end in _spans(lines))
    if not found and tomllib.loads(text).get("rules"):
        raise ConfigurationError("rules: They stand in the file as an inline array; write each as a [[rules]] table")
    return found


def with_rules(text: str, rules: str) -> str:
    """``text``, a configuration, with ``rules`` in the place of its own; all else stays as it is.

    Raises:
        ConfigurationError: the file is written in a way that this would damage, or ``rules`` holds something else too.
    """
    before, wanted = read_toml(text, "the configuration"), read_toml(rules, "the rules")
    if more := [key for key in wanted if key != "rules"]:
        raise ConfigurationError(f"the rules: Expected [[rules]] tables and nothing else, got `{more[0]}` too")
    rules_in(text)
    lines = text.splitlines(keepends=True)
    spans = list(_spans(lines))
    fresh = rules.strip("\n") + "\n" if rules.strip() else ""
    if not spans:
        made = f"{text.rstrip()}\n\n{fresh}" if fresh else text
    else:
        first = spans[0][0]
        for begin, end in reversed(spans):
            lines[begin:end] = [fresh] if begin == first else []
        made = "".join(lines)
    refused = ConfigurationError("rules: They cannot be told from the rest of the file; put them at its end")
    try:
        after = tomllib.loads(made)
    except tomllib.TOMLDecodeError as error:
        raise refused from error
    if after.pop("rules", []) != wanted.get("rules", []) or after != {k: v for k, v in before.items() if k != "rules"}:
        raise refused
    return made


def parse_rules(text: str) -> list[ParsedRule]:
    """Each rule of ``text``, by itself, so that one that is wrong does not hide the others.

    Raises:
        ConfigurationError: the text is no TOML, or holds something else; the message names the line where it can.
    """
    raw = read_toml(text, "the rules")
    if more := [key for key in raw if key != "rules"]:
        raise ConfigurationError(f"the rules: Expected [[rules]] tables and nothing else, got `{more[0]}` too")
    tables = raw.get("rules", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError("the rules: Expected [[rules]] tables")
    begins = [number for number, line in enumerate(text.splitlines(), 1) if _RULE.match(line)]
    if len(begins) != len(tables):  # an inline array, or a text with such a line in it
        begins = [1] * len(tables)
    return [_parsed(number, line, table) for number, (line, table) in enumerate(zip(begins, tables, strict=True), 1)]


def line_of(error: ConfigurationError) -> int:
    """The line that an error about TOML names; 0: it names none."""
    found = _AT_LINE.search(str(error))
    return int(found[1]) if found else 0


def _parsed(number: int, line: int, table: dict[str, object]) -> ParsedRule:
    name = str(table.get("name") or f"rule {number}")
    for key, owner in unknown_keys(table, Rule):
        return ParsedRule(line, name, None, f"Unknown key `{key}`{suggestion(key, owner, Rule)}")
    try:
        return ParsedRule(line, name, msgspec.convert(table, Rule))
    except ConfigurationError as error:
        return ParsedRule(line, name, None, str(error))
    except msgspec.ValidationError as error:
        key, reason = key_and_reason(error)
        return ParsedRule(line, name, None, f"{key + ': ' if key else ''}{reason}")


def _spans(lines: list[str]) -> Iterator[tuple[int, int]]:
    """The lines [begin, end) of each stretch of rules. Comments and blank lines behind the last rule belong to what follows."""
    begin, last = -1, -1
    for number, line in enumerate(lines):
        if _HEADER.match(line) and (_OF_RULES.match(line) is not None) != (begin >= 0):
            if begin >= 0:
                yield begin, last + 1
                begin = -1
            else:
                begin = number
        if not _SILENT.match(line.rstrip("\n")):
            last = number
    if begin >= 0:
        yield begin, last + 1
