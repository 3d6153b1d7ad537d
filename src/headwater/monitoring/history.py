"""What was measured, kept for looking back: one writer, any number of readers, a bounded file.

A row holds all series of one metric at one moment, packed: a round of a thousand series is a hundred rows and a
millisecond. What is older is kept at fewer moments (the last of each interval, which is exact for counters) and then not
at all; see :data:`AGES`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from headwater.monitoring.samples import Sample
from headwater.schema.errors import HeadwaterError

HISTORY_FILE = Path("monitoring", "history.sqlite")  # in the data directory
HOUR_MS = 3_600_000
AGES = ((HOUR_MS, 60_000), (24 * HOUR_MS, 600_000), (30 * 24 * HOUR_MS, 0))
"""(age, interval): what is older than ``age`` is kept once per ``interval`` ms; 0: not at all."""
MAX_BYTES = 256 << 20
MAX_SERIES = 20_000
_VERSION = 1
_ANY: Mapping[str, str] = {}

_TABLES = """
CREATE TABLE IF NOT EXISTS names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, name INTEGER NOT NULL, labels TEXT NOT NULL, UNIQUE (name, labels));
CREATE TABLE IF NOT EXISTS points (
    name INTEGER NOT NULL, time_ms INTEGER NOT NULL, ids BLOB NOT NULL, vals BLOB NOT NULL, PRIMARY KEY (name, time_ms)
) WITHOUT ROWID;
"""

log = structlog.get_logger()


class HistoryError(HeadwaterError):
    """The history is not there yet, or its file cannot be read."""


@dataclass(slots=True)
class Series:
    """The values of one series, oldest first. Of a counter they are what it stood at; :func:`rates` makes rates of them."""

    labels: dict[str, str]
    times_ms: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class History:
    """The history at ``path``; may be used from several threads. ``readonly``: for looking only.

    A writer that finds a damaged file puts it aside (``.damaged``) and begins anew: it is derived, and serving needs none of it.

    Raises:
        HistoryError: ``readonly``, and there is none.
    """

    def __init__(self, path: Path, *, readonly: bool = False, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()
        self._names: dict[str, int] = {}
        self._series: dict[tuple[int, tuple[tuple[str, str], ...]], int] = {}
        self._full = False
        self._thinned: dict[int, int] = {}
        if readonly:
            if not path.exists():
                raise HistoryError(f"{path}: There is no history yet: a server with [monitoring] enabled writes it")
            self._open(f"{path.resolve().as_uri()}?mode=ro")
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._open_to_write()
        except (sqlite3.DatabaseError, HistoryError) as error:
            log.error("history_damaged", reason=str(error), hint=f"it is put aside as {path.name}.damaged")
            with contextlib.suppress(AttributeError):
                self._db.close()
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            path.replace(path.with_name(path.name + ".damaged"))
            self._open_to_write()

    def append(self, time_ms: int, samples: Iterable[Sample]) -> None:
        """Keep ``samples`` as of ``time_ms``; of a series that comes twice the last counts. NaN is no value.

        Raises:
            HistoryError: the disk did not take them.
        """
        with self._lock, self._changing():
            by_name: defaultdict[int, dict[int, float]] = defaultdict(dict)
            for sample in samples:
                name = self._name_id(sample.name)
                series = self._series_id(name, sample.labels)
                if series is not None and sample.value == sample.value:
                    by_name[name][series] = sample.value
            self._db.executemany(
                "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)",
                [
                    (name, time_ms, np.fromiter(found, "<u4").tobytes(), np.fromiter(found.values(), "<f8").tobytes())
                    for name, found in by_name.items()
                ],
            )

    def latest(self, name: str) -> list[tuple[dict[str, str], int, float]]:
        """(labels, time, value) of each series of ``name`` at the last moment at which there was one of them."""
        row = self._ask(
            "SELECT time_ms, ids, vals FROM points WHERE name = (SELECT id FROM names WHERE name = ?) "
            "ORDER BY time_ms DESC LIMIT 1", (name,),
        )  # fmt: skip
        if not row:
            return []
        time_ms, ids, values = row[0]
        labels = self._labels(name)
        return [(labels[i], time_ms, v) for i, v in zip(_ids(ids), _values(values), strict=True) if i in labels]

    def rates(self, name: str, *, since_ms: int, until_ms: int) -> list[Series]:
        """What the counters ``name`` gained a second, as :func:`rates` says."""
        return [rates(series) for series in self.series(name, since_ms=since_ms, until_ms=until_ms)]

    def series(
        self, name: str, *, since_ms: int, until_ms: int, labels: Mapping[str, str] = _ANY
    ) -> list[Series]:  # fmt: skip
        """The series of ``name`` that have ``labels`` (all of them without) from ``since_ms`` to ``until_ms``, both included; none has no values."""
        rows = self._ask(
            "SELECT time_ms, ids, vals FROM points WHERE name = (SELECT id FROM names WHERE name = ?) "
            "AND time_ms BETWEEN ? AND ? ORDER BY time_ms", (name, since_ms, until_ms),
        )  # fmt: skip
        said = {number: has for number, has in self._labels(name).items() if labels.items() <= has.items()}
        wanted, found = np.fromiter(said, np.uint32, len(said)), dict[int, Series]()
        for time_ms, packed_ids, packed in rows:
            ids = np.frombuffer(packed_ids, "<u4")
            places = np.flatnonzero(np.isin(ids, wanted))
            for number, value in zip(ids[places].tolist(), np.frombuffer(packed, "<f8")[places].tolist(), strict=True):
                if (series := found.get(number)) is None:
                    series = found[number] = Series(said[number])
                series.times_ms.append(time_ms)
                series.values.append(value)
        return list(found.values())

    def names(self) -> list[str]:
        """Every metric that was ever kept, by name."""
        return [name for (name,) in self._ask("SELECT name FROM names ORDER BY name", ())]

    def prune(self, now_ms: int) -> None:
        """Thin out what is old, drop what is too old, and then the oldest while the file is larger than it may be.

        Raises:
            HistoryError: the disk did not take the change.
        """
        with self._lock, self._changing():
            for age, interval in AGES:
                until = now_ms - age
                if not interval:
                    self._db.execute("DELETE FROM points WHERE time_ms < ?", (until,))
                    continue
                until -= until % interval  # whole intervals, so that the next call begins where this one ended
                since = self._thinned.get(interval, 0)
                if until > since:
                    self._db.execute(
                        "DELETE FROM points WHERE time_ms >= ? AND time_ms < ? AND (name, time_ms) NOT IN (SELECT name, "
                        "max(time_ms) FROM points WHERE time_ms >= ? AND time_ms < ? GROUP BY name, time_ms / ?)",
                        (since, until, since, until, interval),
                    )
                    self._thinned[interval] = until
            while self._bytes() > self._max_bytes:
                first, last = self._db.execute("SELECT min(time_ms), max(time_ms) FROM points").fetchone()
                if first is None or first == last:
                    break
                log.warning("history_cut", bytes=self._bytes(), limit=self._max_bytes)
                self._db.execute("DELETE FROM points WHERE time_ms <= ?", (first + (last - first) // 10,))

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    # -- inside ----------------------------------------------------------------------------------------

    def _open(self, uri: str) -> None:
        self._db = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=5.0, isolation_level=None)

    def _open_to_write(self) -> None:
        self._open(self._path.resolve().as_uri())
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rounds, never the file
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise HistoryError(f"{self._path} is of format {version}, this program writes {_VERSION}")
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._read_ids()

    def _read_ids(self) -> None:
        self._names = {name: number for number, name in self._db.execute("SELECT id, name FROM names")}
        self._series = {
            (name, tuple((key, value) for key, value in json.loads(labels))): number
            for number, name, labels in self._db.execute("SELECT id, name, labels FROM series")
        }

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                self._read_ids()
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise HistoryError(f"{self._path}: {error}") from error

    def _name_id(self, name: str) -> int:
        if (found := self._names.get(name)) is None:
            found = self._names[name] = self._inserted("INSERT INTO names (name) VALUES (?)", (name,))
        return found

    def _series_id(self, name: int, labels: tuple[tuple[str, str], ...]) -> int | None:
        """None: there are so many series that new ones are not kept."""
        if (found := self._series.get((name, labels))) is None:
            if len(self._series) >= MAX_SERIES:
                if not self._full:
                    log.error(
                        "history_full", series=MAX_SERIES, hint="a label has too many values; new series are not kept"
                    )
                self._full = True
                return None
            text = json.dumps(labels)
            found = self._inserted("INSERT INTO series (name, labels) VALUES (?, ?)", (name, text))
            self._series[name, labels] = found
        return found

    def _inserted(self, statement: str, values: tuple[object, ...]) -> int:
        number = self._db.execute(statement, values).lastrowid
        assert number is not None  # noqa: S101  (an INSERT has one)
        return number

    def _bytes(self) -> int:
        page, pages, free = (
            self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_size", "page_count", "freelist_count")
        )
        return int(page * (pages - free))

    def _ask(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise HistoryError(f"{self._path}: {error}") from error

    def _labels(self, name: str) -> dict[int, dict[str, str]]:
        rows = self._ask("SELECT id, labels FROM series WHERE name = (SELECT id FROM names WHERE name = ?)", (name,))
        return {number: dict(json.loads(labels)) for number, labels in rows}


def rates(series: Series) -> Series:
    """What a counter gained a second between each two of its moments, at the later one. One that fell began anew at 0."""
    made = Series(series.labels, series.times_ms[1:])
    for i in range(1, len(series.values)):
        gained = series.values[i] - series.values[i - 1]
        seconds = (series.times_ms[i] - series.times_ms[i - 1]) / 1e3
        made.values.append((gained if gained >= 0.0 else series.values[i]) / seconds)
    return made


def _ids(packed: bytes) -> list[int]:
    found: list[int] = np.frombuffer(packed, "<u4").tolist()
    return found


def _values(packed: bytes) -> list[float]:
    found: list[float] = np.frombuffer(packed, "<f8").tolist()
    return found
