"""MovieLens as downloaded: today's layout (``ratings.csv``, ``movies.csv``) and the older one (``ratings.dat``, ...).

A rating of at least ``positive_from`` is a ``like``, a lower one a ``view``: the film was chosen and seen
either way. Its value is the rating. Ratings go in the order of time. Genres are categories; a film is
published on 1 January of the year in its title, where that can be read and is 1970 or later.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headwater.log.commands import PutItems, PutProfiles
from headwater.log.protocol import ImportRange
from headwater.offline.importing.files import CsvTable, identify
from headwater.offline.importing.jobs import ITEM_ROWS, WRONG_WIDTH, Target, send_event_tables
from headwater.offline.importing.lines import explain, wrong
from headwater.offline.importing.mapping import (
    EVENT_FIELDS,
    EVENT_REQUIRED,
    ImportFailedError,
    Mapping,
    check_event_types,
    mapping_digest,
    resolve,
)
from headwater.offline.importing.run import ImportReport, ImportRun
from headwater.offline.importing.sources import table_ranges
from headwater.schema.items import MAX_CATEGORIES, Item
from headwater.schema.users import UserProfile

POSITIVE_FROM = 4.0
_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
_USERS = ("userId", "gender", "age", "occupation", "zip")
_NO_GENRES = "(no genres listed)"
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_GENDERS = {"F": "female", "M": "male"}
_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a folder as tables. ``users`` only in the older layout."""

    ratings: CsvTable
    movies: CsvTable
    users: CsvTable | None
    paths: dict[str, Path]


def import_movielens(folder: Path, target: Target, *, positive_from: float = POSITIVE_FROM) -> ImportReport:
    """Films, then people (older layout), then ratings by time.

    Raises:
        ImportFailedError: the folder holds neither layout, or the configuration has no ``like`` and ``view``.
    """
    files = _open(folder)
    change = _with_type(positive_from)
    mapping = Mapping(
        columns={"userId": "user", "movieId": "item", "rating": "value", "timestamp": "time", "type": "type"},
        constants={},
        event_types={"like": "like", "view": "view"},
        time_unit="s",
    )
    check_event_types(mapping, [event.name for event in target.config.events])
    resolved = resolve(mapping, [*files.ratings.columns, "type"], EVENT_FIELDS, EVENT_REQUIRED)
    identities = {name: identify(path, count_lines=True) for name, path in files.paths.items()}
    run, rejects = target.run(folder.name, identities["ratings"].sha256)
    with rejects, run:
        ranges = table_ranges(files.ratings, resolved, sort=True, sort_unit="s", change=change)
        first = next(ranges, None)
        at_ms = _first_ms(first.table) if first is not None else None
        _send_rows(run, target, "movies", files.movies, identities["movies"].sha256, _item, _put_items, at_ms)
        if files.users is not None:
            _send_rows(run, target, "users", files.users, identities["users"].sha256, _profile, _put_profiles, at_ms)
        target.progress.begin(files.paths["ratings"].name, identities["ratings"].lines)
        digest = mapping_digest(f"movielens {positive_from:g}", mapping, sort=True)
        if first is not None:
            whole = (part for parts in ((first,), ranges) for part in parts)
            sha256 = identities["ratings"].sha256
            send_event_tables(run, target.config, whole, files.ratings, resolved, mapping, sha256, digest)
        return run.finish()


def _open(folder: Path) -> _Files:
    new = {"ratings": folder / "ratings.csv", "movies": folder / "movies.csv"}
    old = {"ratings": folder / "ratings.dat", "movies": folder / "movies.dat"}
    if all(path.is_file() for path in new.values()):
        ratings, movies = CsvTable(new["ratings"]), CsvTable(new["movies"])
        for table, path, names in ((ratings, new["ratings"], _RATINGS), (movies, new["movies"], _MOVIES)):
            missing = [name for name in names if name not in table.columns]
            if missing:
                raise ImportFailedError(f"{path}: The columns {', '.join(missing)} are missing; is it MovieLens?")
        return _Files(ratings, movies, None, new)
    if all(path.is_file() for path in old.values()):
        users = folder / "users.dat"
        paths = {**old, "users": users} if users.is_file() else old
        return _Files(
            _dat(old["ratings"], _RATINGS),
            _dat(old["movies"], _MOVIES),
            _dat(users, _USERS) if users.is_file() else None,
            paths,
        )
    raise ImportFailedError(
        f"{folder}: Expected ratings.csv and movies.csv (today's MovieLens) or ratings.dat and movies.dat (older)"
    )


def _dat(path: Path, names: Sequence[str]) -> CsvTable:
    """A ``::`` file of the older layout; its text is Latin-1."""
    content = path.read_bytes().replace(b"\t", b" ").replace(b"::", b"\t")
    text = content.decode("latin-1").encode()
    return CsvTable(path, delimiter="\t", content=text, names=names, quote=False)


def _with_type(positive_from: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        ratings = pc.cast(
            pc.if_else(pc.match_substring_regex(table.column("rating"), r"^[0-9]+(\.[0-9]+)?$"), table["rating"], "0"),
            pa.float64(),
        )
        return table.append_column("type", pc.if_else(pc.greater_equal(ratings, positive_from), "like", "view"))

    return change


def _first_ms(table: pa.Table) -> int | None:
    """The first time of a table that is sorted by it, as far as it can be read."""
    for text in table.column("timestamp").to_pylist():
        if text.isdigit():
            return int(text) * 1_000
    return None


def _item(row: dict[str, str]) -> Item:
    title = row["title"].strip()
    found = _YEAR.search(title)
    year = int(found.group(1)) if found is not None else None
    genres = [genre for genre in row["genres"].split("|") if genre and genre != _NO_GENRES]
    published = dt.datetime(year, 1, 1, tzinfo=dt.UTC) if year is not None and 1970 <= year <= 2099 else None
    record: dict[str, Any] = {
        "id": row["movieId"],
        "title": title,
        "categories": genres[:MAX_CATEGORIES],
        "tags": genres[MAX_CATEGORIES:],
    }
    if year is not None:
        record["attributes"] = {"year": year}
    if published is not None:
        record["published"] = int(published.timestamp()) * 1_000
    return msgspec.convert(record, Item)


def _profile(row: dict[str, str]) -> UserProfile:
    if row["age"] not in _AGES:
        raise wrong("age", "Not an age band of MovieLens")
    attributes = {"age_band": _AGES[row["age"]], "occupation": row["occupation"]}
    record = {"id": row["userId"], "attributes": attributes, "gender": _GENDERS.get(row["gender"], row["gender"])}
    return msgspec.convert(record, UserProfile)


def _put_items(items: list[Any], at_ms: int | None, source: ImportRange) -> PutItems:
    return PutItems(items, at_ms, source)


def _put_profiles(profiles: list[Any], at_ms: int | None, source: ImportRange) -> PutProfiles:
    return PutProfiles(profiles, at_ms, source)


def _send_rows(
    run: ImportRun,
    target: Target,
    kind: str,
    table: CsvTable,
    sha256: str,
    make: Callable[[dict[str, str]], Item | UserProfile],
    put: Callable[[list[Any], int | None, ImportRange], PutItems | PutProfiles],
    at_ms: int | None,
) -> None:
    """Films or people, by row."""
    digest = mapping_digest(f"movielens {kind}", Mapping(), sort=False)
    recorded = run.recorded(sha256, digest)
    target.progress.begin(kind, None)
    start = 0
    for chunk in table.chunks(table.columns, ITEM_ROWS):
        end = start + chunk.num_rows
        if (start, end) in recorded:
            run.skip(end - start)
        else:
            made: list[Item | UserProfile] = []
            refused: list[tuple[int | None, str, Any]] = []
            for position, row in enumerate(chunk.to_pylist()):
                try:
                    made.append(make(row))
                except msgspec.DecodeError as error:
                    refused.append((start + position + 1, explain(error), row))
            run.refuse(refused)
            run.others(put(made, at_ms, ImportRange(sha256, start, end, digest)), end - start)
        start = end
    run.refuse((None, WRONG_WIDTH, row.text) for row in table.malformed)
