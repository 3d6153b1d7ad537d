"""The whole log of a data directory: what is archived in the lake, then what LMDB still holds."""

from __future__ import annotations

from pathlib import Path

from headwater.log.environment import StoreError
from headwater.log.lake import LakeLog, join, lake_dir
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import READ_LIMIT, Commit, CorruptLogError, TrimmedError, Vocabulary
from headwater.log.record import RecordBlock


class ArchivedLog:
    """The log of a data directory, whole: what retention took out of it is read from the lake.

    The lake is opened when it is needed first, so a log that was never trimmed costs nothing. ``append`` and ``trim``
    are the writer's, on the log itself.
    """

    def __init__(self, log: LmdbLog, lake: Path) -> None:
        self._log = log
        self._path = lake
        self._lake: LakeLog | None = None

    @property
    def log_id(self) -> str:
        return self._log.log_id

    @property
    def first_offset(self) -> int:
        first = self._log.first_offset
        if first == 1 or not (self._path / "_delta_log").is_dir():
            return first
        return min(first, self._reach(first).first_offset)

    @property
    def last_offset(self) -> int:
        return self._log.last_offset

    @property
    def last_received_ms(self) -> int:
        return self._log.last_received_ms

    def append(self, commit: Commit) -> None:
        raise StoreError(f"This log was opened for reading: {len(commit.block)} records are refused")

    def trim(self, upto: int) -> int:
        raise StoreError(f"This log was opened for reading; it cannot be trimmed to offset {upto}")

    def read(self, after: int, limit: int = READ_LIMIT) -> RecordBlock | None:
        try:
            return self._log.read(after, limit)
        except TrimmedError as error:
            if not (self._path / "_delta_log").is_dir():
                raise
            first = error.first
        old = self._reach(first).read(after, min(limit, first - 1 - after))
        if old is None or len(old) == limit or old.last_offset < first - 1:
            return old
        try:
            new = self._log.read(old.last_offset, limit - len(old))
        except TrimmedError:  # trimmed further at this moment: the next call finds it in the lake
            return old
        return old if new is None else join([old, new])

    def _reach(self, first: int) -> LakeLog:
        """The lake, which must hold everything before ``first``, where the log begins."""
        if self._lake is None:
            self._lake = LakeLog(self._path)
            check_same(self._log, self._lake)
        if self._lake.last_offset < first - 1:
            self._lake.refresh()
        if self._lake.last_offset < first - 1:
            raise CorruptLogError(
                self._lake.last_offset + 1,
                f"the lake {self._path} ends at offset {self._lake.last_offset}, the log begins with {first}",
            )
        return self._lake

    def vocabulary(self) -> Vocabulary:
        return self._log.vocabulary()

    def imported(self, file_sha256: str, mapping: str) -> list[tuple[int, int]]:
        return self._log.imported(file_sha256, mapping)

    def close(self) -> None:
        if self._lake is not None:
            self._lake.close()
        self._log.close()


def open_log(data: Path) -> ArchivedLog:
    """The whole log of a data directory, for reading: lake first, then what LMDB still holds.

    Raises:
        StoreError: there is no log yet.
    """
    return ArchivedLog(LmdbLog(data / "log", readonly=True), lake_dir(data))


def check_same(log: LmdbLog, lake: LakeLog) -> None:
    """See that the lake holds this log's records and no others.

    Raises:
        StoreError: it is another log's, or was archived from records that this log does not hold.
    """
    if log.log_id and lake.log_id != log.log_id:
        raise StoreError(f"The lake {lake.path} is that of log {lake.log_id}, this one is {log.log_id}")
    at = lake.last_offset
    if at > log.last_offset:
        raise StoreError(
            f"The lake {lake.path} reaches to offset {at}, the log only to {log.last_offset}: the log was put back to "
            "an earlier time. Restore both from one backup"
        )
    if log.first_offset <= at and lake.files:
        ours, theirs = log.read(at - 1, 1), lake.read(at - 1, 1)
        if ours is None or theirs is None or ours.records["crc"][0] != theirs.records["crc"][0]:
            raise StoreError(
                f"Lake and log hold different records at offset {at}: the log was put back to an earlier time and "
                f"went on. Move {lake.path} away and archive again, or restore both from one backup"
            )
