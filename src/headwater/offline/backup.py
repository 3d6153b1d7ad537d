"""Backup and restore of a data directory, while everything runs.

The parts are copied in an order that makes any instant between them safe: the lake and state first, which may lag
the log; then the log; then the identity store, which must know every user of the log; the list of erasures last, for
it has every erasure that the identity store shows. A manifest with the hash of every file is written at the end, and
only then does the backup get its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater import __version__
from headwater.features.paths import SNAPSHOT, state_dirs
from headwater.features.recovery import BOOT_MARK
from headwater.features.redis_states import restored_mark, write_snapshots_of_redis
from headwater.features.snapshot import snapshot_header
from headwater.log.archived import check_same, open_log
from headwater.log.environment import DEFAULT_MAP_GIB, GIB, open_environment
from headwater.log.erasures import FILE as ERASURES_FILE
from headwater.log.erasures import Erasure, erasures_after, read_erasures
from headwater.log.identity import SECRET_FILE, LmdbIdentity
from headwater.log.lake import LakeLog, lake_dir
from headwater.log.lmdb import LmdbLog
from headwater.log.writer import open_writer
from headwater.offline.archive import lake_lock
from headwater.offline.states import state_offset
from headwater.registry.files import sync_directory, write_synced, writers_lock
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError
from headwater.schema.experiments import FOLDER as EXPERIMENTS
from headwater.schema.keys import KEYS_FILE

FORMAT = 1
MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"

_CHUNK = 4 * 1024 * 1024
_KNOWN = {"log", "identity", "lake", "models", "state", EXPERIMENTS, ERASURES_FILE, KEYS_FILE}  # what a backup takes
_LIVE = {"run", "writer.lock", "metrics", "rejects"}  # what belongs to the processes or can be had again
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Progress = Callable[[str, int, int], None]


class BackupError(HeadwaterError):
    """A backup cannot be made there, or is not whole."""


class FileEntry(Struct, frozen=True):
    """A file of the backup."""

    size: int
    sha256: str


class LogEntry(Struct, frozen=True):
    """What the log in the backup holds."""

    id: str
    first_offset: int
    last_offset: int
    last_received_ms: int


class LakeEntry(Struct, frozen=True):
    """What the lake in the backup holds."""

    version: int
    first_offset: int
    last_offset: int


class Manifest(Struct, frozen=True, kw_only=True):
    """``manifest.json``: what is in a backup. ``states``: the offset of each state in it, by plan."""

    created_ms: int
    log: LogEntry
    lake: LakeEntry | None
    states: dict[str, int]
    files: dict[str, FileEntry]
    headwater: str = __version__
    format: int = FORMAT


class BackupReport(Struct, frozen=True, kw_only=True):
    """A backup that was made. ``left_out``: what else the data directory holds and no backup takes."""

    path: str
    first_offset: int
    last_offset: int
    lake_offset: int
    states: dict[str, int]
    files: int
    bytes: int
    left_out: list[str]


class RestoreReport(Struct, frozen=True, kw_only=True):
    """What was restored: the log stands at ``last_offset``; ``erased`` users were erased (again) after it."""

    data: str
    created_ms: int
    first_offset: int
    last_offset: int
    received_ms: int
    states: dict[str, int]
    erased: int
    files: int
    bytes: int


def backup(
    data: Path, dest: Path, *, created_ms: int, config: Config | None = None, with_state: bool = False,
    progress: Progress | None = None,
) -> BackupReport:  # fmt: skip
    """Copy ``data`` to the new folder ``dest``. State goes along on request, and when it cannot be folded anew.

    ``config`` says whether states lie in Redis (None: they do not); of those there will be snapshots.

    Raises:
        BackupError: ``dest`` is there already, or lies in ``data``.
        StoreError: there is no log.
        UnavailableError: Redis cannot be reached, or a state in it cannot be held at one moment.
    """
    partial = dest.with_name(dest.name + INCOMPLETE)
    if dest.exists() or partial.exists():
        there = dest if dest.exists() else partial
        hint = "what a backup left that did not finish: remove it" if there == partial else "name a new folder"
        raise BackupError(f"{there} is there already: {hint}")
    if data.resolve() in (dest.resolve(), *dest.resolve().parents):
        raise BackupError(f"{dest} lies in the data directory: name a folder outside, best on another machine or disk")
    partial.mkdir(parents=True, mode=0o700)
    with lake_lock(data):  # nothing is archived, trimmed or vacuumed meanwhile
        lake = _copy_lake(data, partial, progress)
        with contextlib.closing(open_log(data)) as log:
            with_state, log_id = with_state or log.first_offset > 1, log.log_id
        if with_state:
            for folder in state_dirs(data):
                _copy_environment(folder, partial / "state" / folder.name)
            if config is not None:
                write_snapshots_of_redis(config, data, log_id, partial / "state")
        _copy_environment(data / "log", partial / "log")
    _copy_environment(data / "identity", partial / "identity")
    shutil.copyfile(data / "identity" / SECRET_FILE, partial / "identity" / SECRET_FILE)
    (partial / "identity" / SECRET_FILE).chmod(0o600)
    _copy_models(data, partial)
    if (data / EXPERIMENTS).is_dir():  # each file is there whole, whoever changes it meanwhile
        shutil.copytree(data / EXPERIMENTS, partial / EXPERIMENTS, ignore=shutil.ignore_patterns(".*"))
    if (data / ERASURES_FILE).exists():
        shutil.copyfile(data / ERASURES_FILE, partial / ERASURES_FILE)
    if (data / KEYS_FILE).exists():  # without it what is restored would be open to everybody
        shutil.copyfile(data / KEYS_FILE, partial / KEYS_FILE)
        (partial / KEYS_FILE).chmod(0o600)
    with contextlib.closing(LmdbLog(partial / "log", readonly=True)) as copied:
        entry = LogEntry(copied.log_id, copied.first_offset, copied.last_offset, copied.last_received_ms)
        if lake is not None:
            check_same(copied, LakeLog(lake_dir(partial)))
    states = {path.parent.name: state_offset(path.parent) for path in sorted(partial.glob("state/*/data.mdb"))}
    states |= {path.stem: snapshot_header(path).offset for path in sorted(partial.glob(f"state/*{SNAPSHOT}"))}
    _drop_locks(partial)
    manifest = Manifest(
        created_ms=created_ms,
        log=entry,
        lake=lake,
        states=states,
        files=_hashed(partial, progress),
    )
    write_synced(partial / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    for folder in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
        sync_directory(folder)
    partial.rename(dest)
    sync_directory(dest.parent)
    return BackupReport(
        path=str(dest), first_offset=entry.first_offset, last_offset=entry.last_offset,
        lake_offset=lake.last_offset if lake is not None else 0, states=manifest.states, files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files.values()),
        left_out=sorted(path.name for path in data.iterdir() if path.name not in _KNOWN | _LIVE),
    )  # fmt: skip


def read_manifest(source: Path) -> Manifest:
    """The manifest of a backup.

    Raises:
        BackupError: there is none, or it is of another format.
    """
    path = source / MANIFEST
    if not path.is_file():
        unfinished = source.name.endswith(INCOMPLETE) or source.with_name(source.name + INCOMPLETE).exists()
        why = "the backup did not finish" if unfinished else "this is no backup"
        raise BackupError(f"{source} holds no {MANIFEST}: {why}; choose another one")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"{path} is damaged: {error}; choose another backup") from error
    if manifest.format != FORMAT:
        raise BackupError(f"{source} has format {manifest.format}; this release restores format {FORMAT}")
    return manifest


def verify_backup(source: Path, progress: Progress | None = None) -> Manifest:
    """Compare every file of a backup with its manifest.

    Raises:
        BackupError: a file is missing, damaged or not in the manifest; all such files are named.
    """
    manifest = read_manifest(source)
    names = {_name(source, path) for path in source.rglob("*") if not path.is_dir()} - {MANIFEST}
    wrong = [f"{name} is missing" for name in sorted(manifest.files.keys() - names)]
    wrong += [f"{name} is not in the manifest" for name in sorted(names - manifest.files.keys())]
    total = sum(file.size for file in manifest.files.values())
    done = 0
    for name, file in manifest.files.items():
        if name in names and _hash(source / name) != file:
            wrong.append(f"{name} is not what was backed up")
        done += file.size
        if progress is not None:
            progress("verify", done, total)
    if wrong:
        shown = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise BackupError(f"{source} is not whole: {shown}. Nothing was restored; choose another backup")
    return manifest


def restore(
    source: Path,
    data: Path,
    *,
    erasures_from: Sequence[Path] = (),
    map_size: int = DEFAULT_MAP_GIB * GIB,
    progress: Progress | None = None,
) -> RestoreReport:
    """Make ``data``, which must be absent or empty, what it was when the backup in ``source`` was made.

    Whoever was erased later, by the lists in ``erasures_from`` (files, or data directories that hold one) or the
    backup's own, is erased before ``data`` gets its name.

    Raises:
        BackupError: the backup is not whole, ``data`` is not empty, or a list is that of another log.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise BackupError(f"{data} is not empty: move it away, or name another directory with --data")
    lists = [_erasures_in(path) for path in erasures_from]
    manifest = verify_backup(source, progress)
    for path, listed in zip(erasures_from, lists, strict=True):
        if others := {erasure.log for erasure in listed} - {manifest.log.id}:
            raise BackupError(f"{path} lists erasures of log {', '.join(sorted(others))}, not of {manifest.log.id}")
    staged = data.with_name(f".{data.name}.restoring")
    if staged.exists():  # of a restore that did not finish
        shutil.rmtree(staged)
    staged.mkdir(parents=True, mode=0o700)
    _copy_back(source, staged, manifest, progress)
    erasures = [*read_erasures(staged / ERASURES_FILE), *(erasure for listed in lists for erasure in listed)]
    erased = erasures_after(erasures, manifest.log.id, manifest.log.last_offset)
    if erased:
        with contextlib.closing(LmdbIdentity(staged / "identity", map_size=map_size)) as identity:
            identity.mark_erasing(erased)
    with open_writer(staged, dedup_window=1, map_size=map_size) as writer:  # also ends what was half erased
        last, received_ms = writer.last_offset, writer.last_received_ms
    _drop_locks(staged)
    if _BOOT_ID.exists():  # every file was compared and synced: the fold may trust the state in them
        for folder in state_dirs(staged):
            (folder / BOOT_MARK).write_text(_BOOT_ID.read_text().strip())
    restored_mark(staged).parent.mkdir(exist_ok=True, mode=0o700)
    restored_mark(staged).touch()  # a state in Redis may be ahead of what was restored
    if data.exists():
        data.rmdir()
    staged.rename(data)
    sync_directory(data.parent)
    return RestoreReport(
        data=str(data), created_ms=manifest.created_ms, first_offset=manifest.log.first_offset, last_offset=last,
        received_ms=received_ms, states=manifest.states, erased=len(erased), files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files.values()),
    )  # fmt: skip


def _erasures_in(path: Path) -> list[Erasure]:
    file = path / ERASURES_FILE if path.is_dir() else path
    if path.is_dir() and not (path / "log").is_dir():
        raise BackupError(
            f"{path} is no data directory: name the one in which people were erased, or its {ERASURES_FILE}"
        )
    if not path.exists():
        raise BackupError(f"There is no {path}: name the list of erasures, or the data directory that holds it")
    return read_erasures(file)


def _copy_environment(source: Path, dest: Path) -> None:
    """A compact copy of an LMDB environment as of one moment, others writing to it or not."""
    dest.mkdir(parents=True, mode=0o700)
    with contextlib.closing(open_environment(source, readonly=True)) as shared:
        shared.lmdb.copy(str(dest), compact=True)


def _copy_lake(data: Path, dest: Path, progress: Progress | None) -> LakeEntry | None:
    source, target = lake_dir(data), lake_dir(dest)
    if not (source / "_delta_log").is_dir():
        return None
    lake = LakeLog(source)
    (target / "_delta_log").mkdir(parents=True, mode=0o700)
    for path in sorted((source / "_delta_log").iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / "_delta_log" / path.name)
    total, done = sum(file.size for file in lake.files), 0
    for file in lake.files:
        shutil.copyfile(source / file.path, target / file.path)
        done += file.size
        if progress is not None:
            progress("lake", done, total)
    return LakeEntry(lake.version, lake.first_offset, lake.last_offset)


def _copy_models(data: Path, dest: Path) -> None:
    source = data / "models"
    if not source.is_dir():
        return
    with writers_lock(source / "LOCK"):
        shutil.copytree(source, dest / "models", ignore=shutil.ignore_patterns(".*", "LOCK"), symlinks=True)


def _drop_locks(folder: Path) -> None:
    """Lock files are made by whoever opens an environment; none belongs to a backup."""
    for path in (*folder.rglob("lock.mdb"), *folder.glob("writer.lock")):
        path.unlink()


def _hashed(folder: Path, progress: Progress | None) -> dict[str, FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    total, done = sum(path.stat().st_size for path in paths), 0
    entries = {}
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BackupError(f"{path} is no regular file: the data directory holds something that no backup can take")
        entries[_name(folder, path)] = _hash(path, sync=True)
        done += entries[_name(folder, path)].size
        if progress is not None:
            progress("hash", done, total)
    return entries


def _copy_back(source: Path, staged: Path, manifest: Manifest, progress: Progress | None) -> None:
    total, done = sum(file.size for file in manifest.files.values()), 0
    for name, file in manifest.files.items():
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(source / name, target)
        target.chmod(0o600)
        if _hash(target, sync=True) != file:
            raise BackupError(f"{target} did not arrive as it was read: check the disk, then restore again")
        done += file.size
        if progress is not None:
            progress("restore", done, total)
    for folder in (*(path for path in staged.rglob("*") if path.is_dir()), staged):
        sync_directory(folder)


def _hash(path: Path, *, sync: bool = False) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if sync:
            os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
