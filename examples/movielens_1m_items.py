"""Films of MovieLens-1M as items for ``headwater import items``: title, plot, genres as categories, people and decade as tags.

    python examples/movielens_1m_items.py movielens-1m items.jsonl

reads ``movies.dat`` and, if it is there, ``movies_extra.parquet`` (year, director, actors, plot).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import polars as pl

MOST_CATEGORIES = 8
YEAR = re.compile(r"\((\d{4})\)\s*$")


def items(folder: Path) -> list[dict[str, object]]:
    """One item a film, in the order of ``movies.dat``."""
    extra: dict[int, dict[str, str | None]] = {}
    if (folder / "movies_extra.parquet").exists():
        extra = {row["movieId"]: row for row in pl.read_parquet(folder / "movies_extra.parquet").to_dicts()}
    made = []
    for line in (folder / "movies.dat").read_text(encoding="latin-1").splitlines():
        movie, title, genres = line.split("::")
        more = extra.get(int(movie), {})
        year = YEAR.search(title)
        tags = [f"decade {int(year[1]) // 10 * 10}"] if year else []
        for role in ("director", "actors"):
            tags += [f"{role} {name.strip()}"[:128] for name in (more.get(role) or "").split(",") if name.strip()]
        named = [genre for genre in genres.split("|") if genre]
        made.append(
            {
                "id": movie,
                "title": YEAR.sub("", title).strip(),
                "text": more.get("plot") or "",
                "categories": named[:MOST_CATEGORIES],
                "tags": list(dict.fromkeys([*named[MOST_CATEGORIES:], *tags]))[:64],
            }
        )
    return made


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text("".join(json.dumps(item) + "\n" for item in items(source)), encoding="utf-8")
