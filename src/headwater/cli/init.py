"""``headwater init``: a commented configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.schema.presets import Preset


def register(app: typer.Typer) -> None:
    """Add ``init``."""
    app.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write headwater.toml.")] = Path(),
    preset: Annotated[
        Preset, typer.Option(help="fastest: no ranker; balanced: LightGBM, the defaults; best: deep (docs/latency.md).")
    ] = Preset.BALANCED,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented headwater.toml with every key at its default, or as a preset between speed and quality has it.

    Example: headwater init shop --preset best
    """
    from headwater.schema.errors import ConfigurationError
    from headwater.schema.template import config_template

    path = folder / "headwater.toml"
    if path.exists() and not force:
        raise ConfigurationError(f"{path} is already there; --force replaces it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(config_template(preset), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"Cannot write {path}: {error.strerror}") from error
    typer.echo(f"Wrote {path}: every key, with what it means beside it.")
    typer.echo("Next: headwater import events FILE --map ..., or headwater demo")
