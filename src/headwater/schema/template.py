"""The commented ``headwater.toml`` that ``headwater init`` writes: every key, at its default."""

from __future__ import annotations

from importlib import resources


def config_template() -> str:
    """TOML text that loads to ``Config()``; a test holds it to that."""
    return resources.files("headwater.schema").joinpath("headwater.toml").read_text(encoding="utf-8")
