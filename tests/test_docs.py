"""The documentation knows every command, option and configuration key; its links lead somewhere."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.experiments.definitions import parse_experiment
from headwater.schema.alerts import Alert, AlertRule
from headwater.schema.config import Config, known_keys, parse_config
from headwater.schema.errors import ConfigurationError
from headwater.schema.strict import walk_keys
from headwater.simulator.scenario import parse_scenario
from tests.command_tree import command_options, command_tree

ROOT = Path(__file__).parent.parent
DOCS = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in DOCS)
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", command_tree())
def test_every_command_is_in_the_docs(command: str) -> None:
    assert re.search(rf"\bheadwater {re.escape(command)}\b", TEXT), f"no page mentions `headwater {command}`"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_name_options_that_exist(path: Path) -> None:
    """Those of blocks and those inside a sentence: the command is there, and so is each ``--option``."""
    options = command_options()
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ )?(?:\.venv/bin/)?headwater ([a-z][^\n>|&]*)", text, re.MULTILINE)
    lines += re.findall(r"`headwater ([a-z][^`]*)`", text)
    for line in lines:
        command = max((name for name in options if f"{line} ".startswith(f"{name} ")), key=len, default=None)
        if command is None:
            assert any(name.startswith(line.split()[0]) for name in options), f"{path.name}: headwater {line}"
            continue
        named = re.findall(r"(?<![^\s\[])--[a-z][a-z-]*", line)
        assert set(named) <= options[command] | {"--help"}, f"{path.name}: headwater {line}"


@pytest.mark.parametrize("key", known_keys())
def test_every_configuration_key_is_in_the_docs(key: str) -> None:
    assert f"`{key}`" in CONFIGURATION


def test_the_docs_name_no_key_that_is_gone() -> None:
    known = set(known_keys())
    tables = {key.rpartition(".")[0].removesuffix("[]") for key in known}
    named = re.findall(r"^\| `([a-z_.\[\]]+)`", CONFIGURATION, re.MULTILINE)
    assert set(named) <= known | tables


def default_of(key: str, kind: type) -> Any:
    """What ``key`` is when a file does not name it: in ``Config()``, or in an entry of a list."""
    if "[]" not in key:
        return functools.reduce(getattr, key.split("."), Config())
    field = next(field for field in msgspec.structs.fields(kind) if field.encode_name == key.rpartition(".")[2])
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def test_the_defaults_in_the_docs_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.\[\]]+)` \| `([^`]*)` \|", CONFIGURATION, re.MULTILINE))
    assert len(rows) > 150
    for key, kind in walk_keys(Config):
        if key in rows:
            said = tomllib.loads(f"value = {rows[key]}")["value"]
            kind = AlertRule if kind is Alert else kind
            value = msgspec.json.decode(msgspec.json.encode(default_of(key, kind)))
            assert said == value, f"{key}: the page says {said!r}, the code {value!r}"


def test_every_toml_example_loads() -> None:
    examples = [example for path in DOCS for example in re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL)]
    assert examples
    for example in examples:
        if "[project" in example:
            continue
        try:
            if "[[variants]]" in example:
                parse_experiment(example, "the example")
            elif "[[changes]]" in example:
                parse_scenario(example, "the example")
            else:
                parse_config(example)
        except ConfigurationError as error:
            pytest.fail(f"{error}\n{example}")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings give, by the rule that GitHub and the site share."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = [re.sub(r"\]\([^)]*\)", "", head) for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_root_lead_to_headings(path: Path) -> None:
    """Those of docs/ are checked where the site is built."""
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        assert anchor in anchors(page), f"{path.name} links to {target}#{anchor}"


def test_decision_records_are_numbered_without_gaps_or_repeats() -> None:
    numbers = [path.name[:4] for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == "0001"
    for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        text = path.read_text(encoding="utf-8")
        for heading in ("## Context", "## Decision", "## What it costs"):
            assert heading in text, f"{path.name} has no {heading}"
