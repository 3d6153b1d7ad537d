"""Files that are there whole or not at all, whatever instant a process dies at."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_synced(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Create ``path`` (which must not exist) with ``data``, on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring the names in ``path`` to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Swap the contents of ``path`` in one step; callers hold the writers' lock.

    The new file's modification time is always later than the old one's, also within one tick of the
    file system's clock, so that :func:`stamp` never takes the new one for the old.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)  # what a killed writer left
    write_synced(fresh, data, mode=mode)
    if path.exists():
        made, before = fresh.stat(), path.stat().st_mtime_ns
        if made.st_mtime_ns <= before:
            os.utime(fresh, ns=(made.st_atime_ns, before + 1))
    os.replace(fresh, path)  # noqa: PTH105  (one system call, named as what it is)
    sync_directory(path.parent)


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """What changes when ``path`` is replaced (one ``stat``, about 1 µs); ``None`` when it is absent."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes; symbolic links are not followed.

    Raises:
        OSError: missing, a link, not a regular file, or larger than ``limit``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{path.name} is not a regular file")
        if info.st_size > limit:
            raise OSError(f"{path.name} has {info.st_size} bytes, more than the {limit} expected")
        return file.read(limit + 1)


@contextmanager
def writers_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; the kernel frees it when the holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
