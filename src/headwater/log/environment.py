"""LMDB environments, opened once per process and shared.

LMDB forbids opening one environment twice in a process, and using it after a fork. Here a path is
opened on first use, handed to everyone who asks, and closed when the last of them lets go.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import lmdb

from headwater.schema.errors import HeadwaterError

GIB = 1024**3
DEFAULT_MAP_GIB = 256
MAX_READERS = 512
MAX_DBS = 16


class StoreError(HeadwaterError):
    """An LMDB environment cannot be opened as asked."""


class SharedEnvironment:
    """One open LMDB environment of this process; ``lmdb`` is the handle, ``close`` lets go of it."""

    def __init__(self, path: Path, handle: lmdb.Environment, *, readonly: bool) -> None:
        self.path = path
        self.lmdb = handle
        self.readonly = readonly
        self.pid = os.getpid()
        self.holders = 1

    def close(self) -> None:
        """Let go; the environment closes with its last holder."""
        with _LOCK:
            self.holders -= 1
            if self.holders == 0:
                _OPEN.pop(self.path, None)
                if self.pid == os.getpid():  # a forked child must leave the parent's lock table alone
                    self.lmdb.close()


_OPEN: dict[Path, SharedEnvironment] = {}
_LOCK = threading.Lock()


def open_environment(
    path: Path, *, readonly: bool, map_size: int = DEFAULT_MAP_GIB * GIB, sync: bool = True
) -> SharedEnvironment:
    """Open the environment in folder ``path``, or share it if this process has it open already.

    ``map_size`` is address space, not disk. Writing stays safe against power loss with ``sync``; the
    write map is off, so a stray pointer cannot damage the file. Someone who only reads may share an
    environment that is open for writing, not the other way round.

    Raises
    ------
    StoreError
        ``readonly`` and there is nothing at ``path``; it is open read-only here and is to be written; or
        the system or LMDB refuses (permissions, address space, a file that is no LMDB environment).
    """
    path = path.resolve()
    with _LOCK:
        shared = _OPEN.get(path)
        if shared is not None and shared.pid == os.getpid():
            if shared.readonly and not readonly:
                raise StoreError(f"{path} is open for reading in this process; close it before writing")
            shared.holders += 1
            return shared
        if readonly and not (path / "data.mdb").exists():
            raise StoreError(f"There is no data in {path}: start the writer first")
        try:
            is_new = not (path / "data.mdb").exists()
            if not readonly:
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = lmdb.open(
                str(path),
                map_size=map_size,
                readonly=readonly,
                sync=sync,
                metasync=sync,
                writemap=False,
                readahead=True,
                mode=0o600,
                max_readers=MAX_READERS,
                max_dbs=MAX_DBS,
            )
            if is_new and sync:  # LMDB syncs the file, never the name that leads to it
                for folder in (path, path.parent):
                    _sync_folder(folder)
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        shared = SharedEnvironment(path, handle, readonly=readonly)
        _OPEN[path] = shared
        return shared


def _sync_folder(path: Path) -> None:
    """Bring the names in ``path`` to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
