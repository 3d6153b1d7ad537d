"""Tables on disk, and a data directory to load them into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from headwater.log.batch import TableRecord
from headwater.log.lmdb import LmdbLog
from headwater.log.record import Kind
from headwater.log.writer import open_writer
from headwater.schema.config import Config, Features, load_config
from headwater.schema.items import Item
from headwater.schema.tables import TableSource

START_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MODULE = """
from headwater.features.declare import table

features = [
    table("item_score", "item", "quality", "score", max_age="2d", default=-1.0),
    table("item_reviews", "item", "quality", "reviews", max_age="7d"),
]
"""
SOURCE = TableSource(name="quality", path="quality.parquet", entity="item", key="id", valid_from="at")


def configured(folder: Path, module: str = MODULE, tables: str | None = None, more: str = "") -> Config:
    """A configuration file in ``folder`` with a module beside it."""
    (folder / "mine.py").write_text(module)
    if tables is None:
        tables = (
            '[[tables]]\nname = "quality"\npath = "quality*.parquet"\nentity = "item"\nkey = "id"\nvalid_from = "at"\n'
        )
    (folder / "headwater.toml").write_text(
        f'{more}\n[features]\nmodule = "mine.py"\n[log]\nmap_size_gib = 0.125\n{tables}'
    )
    return load_config(folder / "headwater.toml")


def plain(folder: Path, **fields: Any) -> Config:
    """A configuration without a file: one table at ``folder``."""
    source = msgspec.structs.replace(SOURCE, path=str(folder / "quality*.parquet"), columns=("score",), **fields)
    return Config(features=Features(), tables=(source,))


def table(folder: Path, rows: Sequence[tuple[str, int, float | None]], name: str = "quality.parquet") -> Path:
    """A file of (id, valid from, score); reviews are ten times that."""
    frame = pl.DataFrame(
        {
            "id": [row[0] for row in rows],
            "at": [row[1] for row in rows],
            "score": [row[2] for row in rows],
            "reviews": [None if row[2] is None else round(10 * row[2]) for row in rows],
        },
        schema={"id": pl.String, "at": pl.Int64, "score": pl.Float64, "reviews": pl.Int64},
    )
    frame.write_parquet(folder / name)
    return folder / name


def with_items(data: Path, names: list[str], at_ms: int = START_MS) -> None:
    """Put items into the catalogue of a data directory."""
    with open_writer(data, clock=lambda: at_ms, map_size=1 << 27) as writer:
        writer.put_items([Item(id=name) for name in names])


def loaded(data: Path) -> list[tuple[int, int, int, int, str, dict[str, float | None]]]:
    """Every ``TABLE`` record: user, item, valid from, received, table, values."""
    log = LmdbLog(data / "log", readonly=True)
    try:
        found = []
        after = 0
        while (block := log.read(after)) is not None:
            for i, record in enumerate(block.records):
                if record["kind"] == Kind.TABLE:
                    row = msgspec.msgpack.decode(block.payload(i), type=TableRecord)
                    at, received = int(record["time_ms"]), int(record["received_ms"])
                    found.append((int(record["user"]), int(record["item"]), at, received, row.table, row.values))
            after = block.last_offset
        return found
    finally:
        log.close()
