"""The writer core: the one place that assigns offsets and dense numbers and makes things durable.

It is synchronous and knows no sockets. Commands come in groups; a group is one transaction and one
fsync. A failed commit is never retried: the writer refuses everything from then on, and the process
is to stop and recover from what is on disk.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, assert_never

import msgspec
import numpy as np
import structlog

from headwater.log.batch import ItemRecord, events_to_batch
from headwater.log.commands import (
    Appended,
    AppendEvents,
    AppendExposures,
    AppendServed,
    AppendShadows,
    Command,
    Commands,
    DeleteItems,
    EraseUsers,
    ExposureEntry,
    Login,
    Ping,
    PutItems,
    PutProfiles,
    PutTable,
    ServedEntry,
    TrimLog,
)
from headwater.log.dedup import DEFAULT_WINDOW, LOOKED_AT, DedupWindow
from headwater.log.environment import DEFAULT_MAP_GIB, GIB
from headwater.log.erasures import FILE as ERASURES_FILE
from headwater.log.erasures import Erasure, append_erasures
from headwater.log.identity import IdentityStore, LmdbIdentity, MemoryIdentity, UserKey
from headwater.log.lmdb import LmdbLog
from headwater.log.memory import MemoryLog
from headwater.log.protocol import EventLog, ImportRange, RefusedError
from headwater.log.record import FLAG_TRIAL, RECORD, SEGMENT_KEYS, Kind, Namespace
from headwater.log.scrub import ScrubError
from headwater.log.space import FullError, room_check, unlimited
from headwater.log.staging import NewTerms, Records, Stage, check_text
from headwater.log.tables import check_table, table_payloads
from headwater.schema.errors import HeadwaterError
from headwater.schema.events import Event
from headwater.schema.segments import segment_of

log = structlog.get_logger()

_ENCODER = msgspec.msgpack.Encoder()

Outcome = Appended | RefusedError | FullError

PID_BYTES = 32


class WriterRunningError(HeadwaterError):
    """Another process writes this log."""


class WriterFailedError(HeadwaterError):
    """A commit failed earlier; this process must not write any more."""


class LogWriter(Commands):
    """Appends to ``log``; the only one that does.

    ``clock`` returns Unix milliseconds and sets ``received_ms`` (which never decreases, whatever the
    clock does). ``segment_keys``: the profile fields or attributes that make a user's segments, at
    most two. ``dedup_window``: how many event ids are remembered. ``erasures``: the file that lists whom it erased.
    ``room`` is asked before each group is recorded.
    """

    def __init__(
        self,
        log: EventLog,
        identity: IdentityStore,
        *,
        clock: Callable[[], int],
        segment_keys: Sequence[str] = (),
        dedup_window: int = DEFAULT_WINDOW,
        erasures: Path | None = None,
        room: Callable[[], FullError | None] = unlimited,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        if len(segment_keys) > SEGMENT_KEYS:
            raise ValueError(f"Expected at most {SEGMENT_KEYS} segment keys, got {len(segment_keys)}")
        self._log = log
        self._identity = identity
        self._clock = clock
        self._segment_keys = tuple(segment_keys)
        self._erasures = erasures
        self._room = room
        self._failed = False
        self._on_close = on_close
        self._vocabulary = log.vocabulary()
        for namespace in Namespace:
            self._vocabulary.refresh(namespace)
        self._dedup = DedupWindow(dedup_window)
        self._dedup.rebuild(log)
        self._unwiped = True  # the process before may have ended in between
        self._finish_erasures()
        self._wipe()

    def warm(self) -> None:
        """Load (or compile) the kernels that a commit needs, so that the first one does not wait for them."""
        scratch = MemoryLog()
        stage = Stage(scratch.vocabulary(), DedupWindow(2), 0, 0, 0)
        event = Event(user="warm", item="warm", type="warm", event_id="warm")
        stage.events(events_to_batch([event, event], ()), None)
        commit = stage.finish(MemoryIdentity())
        if commit is not None:
            scratch.append(commit)
        scratch.read(0)

    @property
    def last_offset(self) -> int:
        """Where the durable log ends."""
        return self._log.last_offset

    @property
    def last_received_ms(self) -> int:
        """``received_ms`` of the newest durable record."""
        return self._log.last_received_ms

    def commit(self, command: Command) -> Appended:
        """A group of one. Raises :class:`RefusedError` when the command was not accepted, :class:`FullError` without room."""
        outcome = self.commit_group([command])[0]
        if not isinstance(outcome, Appended):
            raise outcome
        return outcome

    def commit_group(self, commands: Sequence[Command]) -> list[Outcome]:
        """Do all commands in order, durably, in one transaction; the outcome of each.

        A refused command changes nothing and does not disturb the others. Without room on the disk nothing is recorded;
        users can still be erased and the log trimmed. Any exception that comes
        out of here is fatal: the writer has failed and must be replaced by a new process.
        """
        if self._failed:
            raise WriterFailedError("An earlier commit failed; restart the writer")
        outcomes: list[Outcome] = []
        full = self._room()
        try:
            stage = self._stage()
            for command in commands:
                if full is not None and not isinstance(command, EraseUsers | TrimLog | Ping):
                    outcomes.append(full)
                    continue
                if isinstance(command, EraseUsers):
                    # what came before must find the users, what comes after must not
                    self._finish(stage)
                    outcomes.append(self._erase(command))
                    stage = self._stage()
                    continue
                if isinstance(command, TrimLog):
                    self._finish(stage)
                    outcomes.append(self._trim(command))
                    stage = self._stage()
                    continue
                try:
                    outcomes.append(self._take(stage, command))
                except RefusedError as error:
                    outcomes.append(error)
            self._finish(stage)
            self._wipe()
        except BaseException:
            self._failed = True
            raise
        return outcomes

    def _stage(self) -> Stage:
        return Stage(
            self._vocabulary, self._dedup, self._log.last_offset, self._log.last_received_ms, int(self._clock())
        )

    def _finish(self, stage: Stage) -> None:
        commit = stage.finish(self._identity)
        if commit is not None:
            self._log.append(commit)

    def _take(self, stage: Stage, command: Command) -> Appended:
        duplicates = 0
        match command:
            case AppendEvents(batch, source):
                if self._is_recorded(stage, source):
                    return Appended(0, 0, stage.last_offset, already=True)
                accepted, duplicates = stage.events(batch, _with_payload(source))
            case PutItems(_, _, source) | PutProfiles(_, _, source):
                if self._is_recorded(stage, source):
                    return Appended(0, 0, stage.last_offset, already=True)
                accepted = (
                    self._items(stage, command) if isinstance(command, PutItems) else self._profiles(stage, command)
                )
            case PutTable(source=source):
                if self._is_recorded(stage, source):
                    return Appended(0, 0, stage.last_offset, already=True)
                accepted = self._table(stage, command)
            case DeleteItems():
                accepted = self._delete(stage, command)
            case AppendServed():
                accepted = self._lists(stage, Kind.SERVED, command.entries)
            case AppendShadows():
                accepted = self._lists(stage, Kind.SHADOW, command.entries)
            case AppendExposures():
                accepted = self._exposures(stage, command)
            case Login():
                accepted = self._login(stage, command)
            case Ping():
                accepted = 0
            case EraseUsers() | TrimLog():
                raise ValueError("An erasure or a trim is never staged with other commands")
            case _:
                assert_never(command)
        return Appended(accepted, duplicates, stage.last_offset)

    def _is_recorded(self, stage: Stage, source: ImportRange | None) -> bool:
        """Whether all rows of ``source`` were imported before; refuses a range that was in part."""
        if source is None:
            return False
        if source.start_row < 0 or source.end_row < source.start_row:
            raise RefusedError(f"Rows {source.start_row} to {source.end_row} are no range")
        ranges = self._log.imported(source.file_sha256, source.mapping)
        ranges += [
            (r.start_row, r.end_row)
            for r in stage.imports
            if (r.file_sha256, r.mapping) == (source.file_sha256, source.mapping)
        ]
        reached = source.start_row
        overlap = False
        for start, end in sorted(ranges):
            overlap |= start < source.end_row and end > source.start_row
            if start <= reached < end:
                reached = end
        if overlap and reached >= source.end_row:
            return True
        if (source.start_row, source.end_row) in ranges:  # an empty range
            return True
        if overlap:
            raise RefusedError(
                f"Some of the rows {source.start_row} to {source.end_row} of this file are imported already: "
                f"{sorted(ranges)}; import only the others"
            )
        return False

    def _items(self, stage: Stage, command: PutItems) -> int:
        new = NewTerms(self._vocabulary)
        records = _records(len(command.items), Kind.ITEM)
        payloads: list[bytes] = []
        for row, item in enumerate(command.items):
            records["item"][row] = new.index(Namespace.ITEM, item.id)
            categories = [new.index(Namespace.CATEGORY, text) for text in item.categories]
            regions = [new.index(Namespace.REGION, text) for text in item.regions]
            payloads.append(_encode(ItemRecord(item, categories, regions)))
        stage.others(new, records, payloads, at_ms=command.at_ms, source=_with_payload(command.source))
        return len(records)

    def _delete(self, stage: Stage, command: DeleteItems) -> int:
        known = self._vocabulary.known(Namespace.ITEM)
        indexes = [known[text] for text in command.ids if text in known]
        records = _records(len(indexes), Kind.ITEM_DELETED)
        records["item"] = indexes
        if indexes:
            stage.others(None, records, ())
        return len(indexes)

    def _profiles(self, stage: Stage, command: PutProfiles) -> int:
        new = NewTerms(self._vocabulary)
        records = _records(len(command.profiles), Kind.PROFILE)
        plain: list[bytes] = []
        for row, profile in enumerate(command.profiles):
            check_text(profile.id)
            for column, key in enumerate(self._segment_keys):
                chosen = segment_of(key, profile.field_of)
                if chosen is not None:
                    records["segments"][row, column] = new.index(Namespace.SEGMENT, chosen)
            if profile.timezone is not None:
                records["zone"][row] = new.index(Namespace.SEGMENT, f"timezone={profile.timezone}")
            plain.append(_encode(profile))
        assigned = self._identity.assign([profile.id for profile in command.profiles])
        records["user"], records["surrogate"] = assigned
        payloads = [self._identity.encrypt(int(u), p) for u, p in zip(assigned.user, plain, strict=True)]
        stage.others(new, records, payloads, at_ms=command.at_ms, source=_with_payload(command.source))
        return len(records)

    def _table(self, stage: Stage, command: PutTable) -> int:
        check_table(command, stage.received(command.at_ms))
        rows = list(range(len(command.ids)))
        if command.entity == "item":
            known = self._vocabulary.known(Namespace.ITEM)
            rows = [row for row in rows if command.ids[row] in known]
        records = _records(len(rows), Kind.TABLE)
        if command.entity == "item":
            records["item"] = [known[command.ids[row]] for row in rows]
        elif rows:
            records["user"], records["surrogate"] = self._identity.assign(command.ids)
        if rows or command.source is not None:
            valid = np.array([command.valid_from_ms[row] for row in rows], np.int64)
            stage.others(
                None, records, table_payloads(command, rows), at_ms=command.at_ms, time_ms=valid,
                source=_with_payload(command.source),
            )  # fmt: skip
        return len(rows)

    def _lists(self, stage: Stage, kind: Kind, entries: Sequence[ServedEntry]) -> int:
        records = _of_users(kind, entries)
        records["flags"] = [FLAG_TRIAL if entry.trial else 0 for entry in entries]
        if entries:
            stage.others(None, records, [entry.payload for entry in entries])
        return len(records)

    def _exposures(self, stage: Stage, command: AppendExposures) -> int:
        records = _of_users(Kind.EXPOSURE, command.entries)
        unknown = [entry.external for entry in command.entries if not entry.user]
        for external in unknown:
            check_text(external)
        if unknown:
            new = records["user"] == 0
            records["user"][new], records["surrogate"][new] = self._identity.assign(unknown)
        if command.entries:
            stage.others(None, records, [entry.payload for entry in command.entries])
        return len(records)

    def _login(self, stage: Stage, command: Login) -> int:
        check_text(command.anonymous)
        check_text(command.user)
        if command.anonymous == command.user:
            raise RefusedError("A login joins two different ids")
        assigned = self._identity.assign([command.user, command.anonymous])
        records = _records(1, Kind.LOGIN)
        records["user"], records["surrogate"] = assigned.user[0], assigned.surrogate[0]
        stage.others(None, records, [int(assigned.user[1]).to_bytes(4, "little")])
        return 1

    def _erase(self, command: EraseUsers) -> Outcome:
        """Note, record, destroy: in this order, so that a crash at any point is made good at the next start."""
        try:
            for text in command.ids:
                check_text(text)
        except RefusedError as error:
            return error
        found = self._identity.begin_erasure(command.ids)
        self._finish_erasures()
        return Appended(len(found), 0, self._log.last_offset)

    def _finish_erasures(self) -> None:
        erasing: list[UserKey] = self._identity.erasing()
        if not erasing:
            return
        stage = self._stage()
        records = _records(len(erasing), Kind.ERASURE)
        records["user"] = np.array([key.user for key in erasing], np.uint32)
        records["surrogate"] = np.array([key.surrogate for key in erasing], np.uint64)
        stage.others(None, records, ())
        first = stage.last_offset - len(erasing) + 1
        self._finish(stage)
        if self._erasures is not None:
            listed = [Erasure(self._log.log_id, first + k, *key) for k, key in enumerate(erasing)]
            append_erasures(self._erasures, listed)
        self._identity.finish_erasure()
        self._unwiped = True
        log.info("users_erased", users=len(erasing), offset=self._log.last_offset)

    def _wipe(self) -> None:
        """Overwrite what erasures left in the identity store's file, once a group of commands."""
        if not self._unwiped:
            return
        try:
            self._unwiped = not self._identity.wipe()
        except ScrubError as error:  # keys and mappings are gone, their old bytes are not: nothing to stop for
            self._unwiped = False
            log.error("erased_bytes_remain", reason=str(error), hint="`headwater erase` scans for them and says so")

    def _trim(self, command: TrimLog) -> Appended:
        kept = self._log.last_offset - LOOKED_AT * self._dedup.size
        removed = self._log.trim(min(command.upto, kept)) if kept > 0 else 0
        if removed:
            log.info("log_trimmed", records=removed, first_offset=self._log.first_offset)
        return Appended(removed, 0, self._log.last_offset)

    def close(self) -> None:
        """Close log and identity, and let another writer in."""
        self._failed = True
        self._log.close()
        self._identity.close()
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _records(count: int, kind: Kind) -> Records:
    records = np.zeros(count, RECORD)
    records["kind"] = kind
    return records


def _of_users(kind: Kind, entries: Sequence[ServedEntry] | Sequence[ExposureEntry]) -> Records:
    records = _records(len(entries), kind)
    try:
        records["user"] = np.array([entry.user for entry in entries], np.uint32)
        records["surrogate"] = np.array([entry.surrogate for entry in entries], np.uint64)
    except OverflowError as error:
        raise RefusedError(f"{kind.name.capitalize()}: an entry names no user that could exist") from error
    return records


def _encode(value: object) -> bytes:
    try:
        return _ENCODER.encode(value)
    except (UnicodeEncodeError, OverflowError) as error:
        raise RefusedError(f"A value cannot be stored: {error}") from error


def _with_payload(source: ImportRange | None) -> tuple[ImportRange, bytes] | None:
    return None if source is None else (source, _ENCODER.encode(source))


class WriterLock:
    """An exclusive lock on ``path`` (``DATA/writer.lock``), held until released or the process ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._handle, PID_BYTES, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise WriterRunningError(
                f"Process {holder} writes the log in {path.parent} already; stop it or send your data to it"
            ) from error
        os.pwrite(
            self._handle, f"{os.getpid()}\n".ljust(PID_BYTES).encode(), 0
        )  # in place: a full disk has room for that

    def release(self) -> None:
        """Let another writer in."""
        os.close(self._handle)


def open_writer(
    data_dir: Path,
    *,
    clock: Callable[[], int] | None = None,
    segment_keys: Sequence[str] = (),
    dedup_window: int = DEFAULT_WINDOW,
    map_size: int = DEFAULT_MAP_GIB * GIB,
    min_free: int = 0,
) -> LogWriter:
    """Become the writer of ``data_dir``: lock, open log and identity, rebuild the dedup window, recover.

    ``clock`` None is the log's own clock: time stands where the newest record stands. ``min_free``: bytes of the disk that
    are kept free, see :mod:`headwater.log.space`.

    Raises
    ------
    WriterRunningError
        Another process is the writer; the message names its pid.
    """
    lock = WriterLock(data_dir / "writer.lock")
    opened: list[Callable[[], None]] = [lock.release]
    try:
        event_log = LmdbLog(data_dir / "log", map_size=map_size)
        opened.append(event_log.close)
        identity = LmdbIdentity(data_dir / "identity", map_size=map_size)
        opened.append(identity.close)
        return LogWriter(
            event_log,
            identity,
            clock=clock or (lambda: event_log.last_received_ms),
            segment_keys=segment_keys,
            dedup_window=dedup_window,
            erasures=data_dir / ERASURES_FILE,
            room=room_check(data_dir, min_free),
            on_close=lock.release,
        )
    except BaseException:
        for close in reversed(opened):
            close()
        raise
