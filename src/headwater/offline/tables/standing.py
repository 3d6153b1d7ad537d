"""How up to date each table is, as its loader saw it last: ``run/tables.json`` of the data directory."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

FILE = Path("run") / "tables.json"


class Standing(Struct, frozen=True):
    """``newest_ms``: the latest valid-from time that was loaded (None: nothing was); ``looked_ms``: when somebody looked."""

    newest_ms: int | None = None
    looked_ms: int = 0
    max_age_ms: int | None = None
    held: int = 0


def read_standing(data: Path) -> dict[str, Standing]:
    """By table; empty when nothing was loaded, or the file is not what it should be (the next look writes it anew)."""
    try:
        return msgspec.json.decode((data / FILE).read_bytes(), type=dict[str, Standing])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def write_standing(data: Path, table: str, standing: Standing) -> None:
    """Put down what is true of one table."""
    path = data / FILE
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f"{path.name}.{os.getpid()}")
    made.write_bytes(msgspec.json.encode({**read_standing(data), table: standing}))
    made.replace(path)
