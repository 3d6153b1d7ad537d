"""Every command of the command line, found and never listed."""

from __future__ import annotations

from typing import Any

import typer.main

from headwater.cli.main import build_app


def command_tree() -> dict[str, str]:
    """``"import events"`` → its help text, for every command that does something."""
    return dict(_leaves(typer.main.get_command(build_app()), ()))


def _leaves(command: Any, path: tuple[str, ...]) -> list[tuple[str, str]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(" ".join(path), " ".join((command.help or "").split()))]
    return [leaf for name, child in inner.items() for leaf in _leaves(child, (*path, name))]
