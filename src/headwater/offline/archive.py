"""The archive job: records of the log become files of a Delta table, each record once.

A commit goes in this order: the file is written under another name, synced, given its name; the table's commit names
it together with its last offset (the application transaction); the commit is synced. A process that dies anywhere
leaves a file that no commit names, which the next run removes, or a commit that says how far it came. A commit that
a power cut tore is taken back: nothing was removed from the log on its account, for that happens after the sync only.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from headwater.log.archived import check_same
from headwater.log.environment import StoreError
from headwater.log.lake import (
    ROW_GROUP,
    LakeDescription,
    LakeLog,
    app_id,
    lake_dir,
    lake_schema,
    open_table,
    to_table,
)
from headwater.log.lmdb import LmdbLog
from headwater.log.protocol import TrimmedError
from headwater.log.record import HEADER_SIZE, RecordBlock
from headwater.registry.files import sync_directory, writers_lock
from headwater.schema.errors import HeadwaterError

log = structlog.get_logger()

COMMIT_BYTES = 64 * 1024 * 1024
COMMIT_S = 600.0
POLL_S = 1.0

_CONFIGURATION = {
    # payloads and checksums are of no use as statistics, and would fill the table's log
    "delta.dataSkippingStatsColumns": "offset,received_ms,time_ms",
}


class ArchiveReport(Struct, frozen=True, kw_only=True):
    """What a run did: ``records`` in ``commits``; the lake holds ``first_offset`` to ``last_offset`` now."""

    records: int
    commits: int
    bytes: int
    first_offset: int
    last_offset: int
    version: int
    seconds: float


@contextmanager
def lake_lock(data: Path) -> Iterator[None]:
    """Hold the lake and what of the log is archived as they are: one archives, trims or copies at a time."""
    (data / "lake").mkdir(mode=0o700, parents=True, exist_ok=True)
    with writers_lock(data / "lake" / "LOCK"):
        yield


class Archiver:
    """Archives the log of ``data``. ``on_step`` is told where a commit stands (tests let it die there).

    Raises:
        StoreError: there is no log; the lake cannot be read, or holds other records than the log.
    """

    def __init__(
        self,
        data: Path,
        *,
        commit_bytes: int = COMMIT_BYTES,
        commit_s: float = COMMIT_S,
        seconds: Callable[[], float] = time.monotonic,
        on_step: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._data, self._path = data, lake_dir(data)
        self._commit_bytes, self._commit_s = commit_bytes, commit_s
        self._seconds, self._on_step = seconds, on_step
        self._log = LmdbLog(data / "log", readonly=True)
        if not self._log.log_id:
            self._log.close()
            raise StoreError(
                f"The log in {data / 'log'} is of a release that gave logs no id: start the writer of this one once"
            )
        self._records = self._commits = self._bytes = 0

    def run(self) -> ArchiveReport:
        """Archive everything that is in the log now."""
        began = self._seconds()
        until = self._log.last_offset
        with lake_lock(self._data):
            self._prepare()
            for blocks in self._pieces(self._archived(), until):
                self._commit(blocks)
        return self._report(began)

    def follow(self, stop: threading.Event) -> ArchiveReport:
        """Archive until ``stop`` is set: a commit each time that enough records wait, or that they wait long enough.

        What waits when it stops stays in the log for the next run.
        """
        began = waiting_since = self._seconds()
        with lake_lock(self._data):
            self._prepare()
            at = self._archived()
        size, seen = 0, at
        while not stop.is_set():
            while size < self._commit_bytes and (block := self._read(seen)) is not None:
                if size == 0:
                    waiting_since = self._seconds()
                size, seen = size + _size(block), block.last_offset
            if size >= self._commit_bytes or (size and self._seconds() - waiting_since >= self._commit_s):
                with lake_lock(self._data):
                    at = self._archived()  # somebody may have archived by hand meanwhile
                    for blocks in self._pieces(at, max(at, seen)):
                        self._commit(blocks)
                    at = max(at, seen)
                size, seen = 0, at
                continue
            stop.wait(POLL_S)
        return self._report(began)

    def _report(self, began: float) -> ArchiveReport:
        with lake_lock(self._data):
            lake = LakeLog(self._path)
        return ArchiveReport(
            records=self._records, commits=self._commits, bytes=self._bytes, first_offset=lake.first_offset,
            last_offset=lake.last_offset, version=lake.version, seconds=self._seconds() - began,
        )  # fmt: skip

    def _archived(self) -> int:
        table = open_table(self._path)
        return int(table.transaction_version(app_id(self._log.log_id)) or 0)

    def _prepare(self) -> None:
        """Make the table, or take it as the last run left it, however that ended."""
        mend(self._path)
        if not any((self._path / "_delta_log").glob("*[0-9].json")) and not any(
            self._path.glob("_delta_log/*.checkpoint*")
        ):
            self._create()
        lake = LakeLog(self._path)
        check_same(self._log, lake)
        named = {file.path for file in lake.files}
        for path in self._path.glob("log-*.parquet*"):
            if path.name not in named:
                path.unlink()
                log.info("archive_removed_unnamed_file", file=path.name)

    def _create(self) -> None:
        from deltalake import DeltaTable

        self._path.mkdir(parents=True, exist_ok=True)
        described = msgspec.json.encode(LakeDescription(self._log.log_id)).decode()
        DeltaTable.create(
            self._path, lake_schema(), name="log", description=described, configuration=_CONFIGURATION,
            raise_if_key_not_exists=False,
        )  # fmt: skip
        self._on_step("created")
        sync_table(self._path)
        sync_directory(self._path.parent)

    def _read(self, after: int, until: int | None = None) -> RecordBlock | None:
        limit = min(ROW_GROUP, self._commit_bytes // HEADER_SIZE + 1)
        try:
            block = self._log.read(after, limit if until is None else min(limit, until - after))
        except TrimmedError as error:
            raise HeadwaterError(
                f"The lake ends at offset {after}, but the log begins with {error.first}: records between them are "
                "lost to both. Restore lake and log from a backup"
            ) from error
        return block

    def _pieces(self, after: int, until: int) -> Iterator[list[RecordBlock]]:
        """Blocks up to ``until``, in lists of about ``commit_bytes``."""
        blocks: list[RecordBlock] = []
        size = 0
        while after < until and (block := self._read(after, until)) is not None:
            blocks.append(block)
            size, after = size + _size(block), block.last_offset
            if size >= self._commit_bytes:
                yield blocks
                blocks, size = [], 0
        if blocks:
            yield blocks

    def _commit(self, blocks: list[RecordBlock]) -> None:
        import pyarrow.parquet as pq
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction

        table = open_table(self._path)
        name = app_id(self._log.log_id)
        first, last = blocks[0].first_offset, blocks[-1].last_offset
        if int(table.transaction_version(name) or 0) != first - 1:
            raise StoreError(f"The lake {self._path} moved on while it was archived to: another process writes it")
        path = self._path / f"log-{first:015d}-{last:015d}.parquet"
        fresh = path.with_suffix(".parquet.part")
        rows = to_table(blocks)
        pq.write_table(rows, fresh, compression="zstd", row_group_size=ROW_GROUP)
        self._on_step("written")
        _sync_file(fresh)
        fresh.rename(path)
        sync_directory(self._path)
        self._on_step("synced")
        stats = {"numRecords": len(rows), "minValues": {}, "maxValues": {}, "nullCount": {}}
        for column in ("offset", "received_ms", "time_ms"):
            values = rows.column(column).to_numpy()
            stats["minValues"][column], stats["maxValues"][column] = int(values.min()), int(values.max())  # type: ignore[index]
            stats["nullCount"][column] = 0  # type: ignore[index]
        info = path.stat()
        table.create_write_transaction(
            [AddAction(path.name, info.st_size, {}, int(info.st_mtime * 1e3), True, json.dumps(stats))],
            "append",
            lake_schema(),
            commit_properties=CommitProperties(
                custom_metadata={"first_offset": str(first), "last_offset": str(last)},
                app_transactions=[Transaction(name, last)],
            ),
        )
        self._on_step("committed")
        sync_table(self._path)
        self._on_step("done")
        self._records, self._commits = self._records + len(rows), self._commits + 1
        self._bytes += info.st_size
        log.info("archived", first_offset=first, last_offset=last, bytes=info.st_size)

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()


def _size(block: RecordBlock) -> int:
    return len(block) * HEADER_SIZE + len(block.heap)


def mend(path: Path) -> None:
    """Take back the newest commit of the table if it was torn: its file does not hold whole lines of JSON."""
    commits = sorted((path / "_delta_log").glob("*[0-9].json"))
    if not commits:
        return
    newest = commits[-1]
    data = newest.read_bytes()
    try:
        lines = [json.loads(line) for line in data.decode().splitlines()]
    except ValueError:
        lines = []
    if not lines:
        newest.rename(newest.with_suffix(".torn"))
        sync_directory(newest.parent)
        log.warning("archive_commit_taken_back", commit=newest.name, hint="its records are archived again")


def sync_table(path: Path) -> None:
    """Bring the newest commits of the table, and a checkpoint that came with them, to disk."""
    folder = path / "_delta_log"
    newest = sorted(folder.glob("*.json"))[-2:]
    for file in {*newest, *folder.glob(f"{newest[-1].stem}*" if newest else "*"), *folder.glob("_last_checkpoint")}:
        _sync_file(file)
    sync_directory(folder)
    sync_directory(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
