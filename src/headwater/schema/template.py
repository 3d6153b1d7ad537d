"""The commented ``headwater.toml`` that ``headwater init`` writes: every key, at its default or as a preset has it."""

from __future__ import annotations

import json
import re
from importlib import resources

from headwater.schema.presets import CHANGES, Preset

_TABLE = re.compile(r"^\[([a-z_.]+)\]")
_KEY = re.compile(r'^(?P<key>[a-z_]+) = (?P<value>"[^"]*"|[^\s#]+)(?P<gap>\s*)(?P<comment>#.*)?$')


def config_template(preset: Preset = Preset.BALANCED) -> str:
    """TOML text that loads to ``Config()``, but for what ``preset`` changes; a test holds it to that."""
    text = resources.files("headwater.schema").joinpath("headwater.toml").read_text(encoding="utf-8")
    changes, table, lines = dict(CHANGES[preset]), "", []
    for line in text.splitlines():
        if found := _TABLE.match(line):
            table = f"{found[1]}."
        elif (found := _KEY.match(line)) and f"{table}{found['key']}" in changes:
            value = json.dumps(changes.pop(f"{table}{found['key']}"))  # JSON texts, numbers and booleans are TOML too
            gap = " " * max(len(found["value"]) + len(found["gap"]) - len(value), 1)
            line = f"{found['key']} = {value}" + (f"{gap}{found['comment']}" if found["comment"] else "")
        lines.append(line)
    assert not changes, f"the template lacks {', '.join(changes)}"  # noqa: S101  (a mistake of ours, not of data)
    return "\n".join(lines) + "\n"
