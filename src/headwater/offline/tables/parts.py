"""Where the rows of a table lie: Parquet files, found by name, by pattern or through a Delta log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.offline.importing.files import ParquetTable, identify
from headwater.offline.importing.mapping import ImportFailedError
from headwater.schema.errors import HeadwaterError
from headwater.schema.tables import TableSource


class TableError(HeadwaterError):
    """A table as a whole cannot be read: it is not there, or its columns are not what the configuration says."""


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a table, in the order in which equal times are settled, and the Delta version they belong to."""

    files: tuple[Path, ...]
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One file as it is now: the hash of its bytes and how many rows it has."""

    path: Path
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class _Known:
    signature: tuple[int, int, int]
    part: Part


class Parts:
    """Finds the files of tables; a file that has not changed since the last look is not hashed again."""

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}

    def of(self, source: TableSource) -> tuple[list[Part], int | None]:
        """The parts of a table and its Delta version.

        Raises:
            TableError: nothing is there, or a file changed while it was read.
        """
        found = find_files(source)
        return [self._part(source, path) for path in found.files], found.version

    def _part(self, source: TableSource, path: Path) -> Part:
        before = _signature(source, path)
        known = self._known.get(path)
        if known is not None and known.signature == before:
            return known.part
        try:
            rows = ParquetTable(path).rows
            sha256 = identify(path, count_lines=False).sha256
        except (ImportFailedError, OSError) as error:
            raise TableError(f'table "{source.name}": {error}') from error
        part = Part(path, sha256, rows)
        self._known[path] = _Known(before, part)
        self.check(source, part)
        return part

    def check(self, source: TableSource, part: Part) -> None:
        """Raise :class:`TableError` when the file is not what it was when it was hashed."""
        if _signature(source, part.path) != self._known[part.path].signature:
            del self._known[part.path]
            raise TableError(
                f'table "{source.name}": {part.path} changed while it was read; write to another name and rename the '
                "file when it is complete"
            )


def find_files(source: TableSource) -> Found:
    """The files of a table, by its path: a pattern's in the order of their names, a Delta table's oldest first.

    Raises:
        TableError: there are none, or the Delta table cannot be read file by file.
    """
    path = Path(source.path)
    if path.is_dir():
        if not (path / "_delta_log").is_dir():
            raise TableError(
                f'table "{source.name}": {path} is a folder without a Delta log; for a folder of Parquet files say '
                f'path = "{path.name}/*.parquet"'
            )
        return _delta_files(source, path)
    if path.is_file():
        return Found((path,))
    whole = path.absolute()
    files = tuple(sorted(p for p in Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))) if p.is_file()))
    if not files:
        raise TableError(f'table "{source.name}": There is no file {source.path}')
    return Found(files)


def _delta_files(source: TableSource, path: Path) -> Found:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(path)
        partitions = table.metadata().partition_columns
        features = table.protocol().reader_features or []
        actions = table.get_add_actions(flatten=True)
        names = actions.column("path").to_pylist()
        times = actions.column("modification_time").to_pylist()
        version = table.version()
    except (DeltaError, OSError) as error:
        raise TableError(f'table "{source.name}": {path} is no Delta table that can be read: {error}') from error
    if "deletionVectors" in features:
        raise TableError(
            f'table "{source.name}": {path} has deletion vectors; purge them (REORG TABLE ... APPLY (PURGE)) and turn them off'
        )
    for column in (source.key, source.valid_from, *source.columns):
        if column in partitions:
            raise TableError(
                f'table "{source.name}": "{column}" partitions {path}, so the files do not hold it; keep a copy of it '
                "under another name"
            )
    ordered = sorted(zip(times, names, strict=True), key=lambda entry: (str(entry[0]), entry[1]))
    return Found(tuple(path / name for _, name in ordered), version)


def _signature(source: TableSource, path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise TableError(f'table "{source.name}": {path}: {error.strerror}') from error
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
