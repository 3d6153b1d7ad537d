"""Every command of the command line, found and never listed."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer.main

from headwater.cli.main import build_app


def command_tree() -> dict[str, str]:
    """``"import events"`` → its help text, for every command that does something."""
    commands = _leaves(typer.main.get_command(build_app()), ())
    return {name: " ".join((command.help or "").split()) for name, command in commands}


@cache
def command_options() -> dict[str, set[str]]:
    """``"import events"`` → its options, as they are typed."""
    return {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in _leaves(typer.main.get_command(build_app()), ())
    }


def _leaves(command: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(" ".join(path), command)]
    return [leaf for name, child in inner.items() for leaf in _leaves(child, (*path, name))]
