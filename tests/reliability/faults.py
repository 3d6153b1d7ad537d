"""What a process wrote to its disk, in order, and what of it would be there after a power cut.

``faults.c`` stands between the process and the C library: it writes down each write, sync and rename below a folder, can
let syncs fail with EIO, and can shift the wall clock. It is compiled here, by ``cc``, when it is needed first.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from headwater.schema.errors import HeadwaterError

SOURCE = Path(__file__).with_name("faults.c")
SECTOR = 512  # what a disk writes whole
_HEAD = struct.Struct("<IIQQ")


class NoCompilerError(HeadwaterError):
    """There is no C compiler: the faults cannot be made on this machine."""


@functools.cache
def library() -> Path:
    """The compiled ``faults.c``. Raises :class:`NoCompilerError`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("There is no C compiler (cc): install one (Debian: apt-get install gcc libc6-dev)")
    made = Path(tempfile.mkdtemp(prefix="headwater-faults-")) / "faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl", "-lpthread"], check=True)
    return made


def environment(
    *, trace: Path | None = None, root: Path | None = None, fail: int = 0, shift: Path | None = None
) -> dict[str, str]:
    """The environment of a process to be watched: ``trace`` is written, of what it does below ``root``.

    ``fail``: from the so-manyth sync on all return EIO. ``shift``: a file with the ms (i64) to add to its wall clock.
    """
    chosen = {"TRACE": trace, "ROOT": root, "FAIL": fail or None, "SHIFT": shift}
    given = {f"HEADWATER_FAULT_{name}": str(value) for name, value in chosen.items() if value is not None}
    return {**os.environ, **given, "LD_PRELOAD": str(library())}


def mark(value: int) -> None:
    """Called by the watched process: ``value`` goes into its trace."""
    ctypes.CDLL(None).headwater_fault_mark(ctypes.c_uint64(value))


class Op(IntEnum):
    """What happened."""

    NAME = 1  # of file `file`: `data`
    WRITE = 2  # of `data` at `at` began
    DURABLE = 3  # `size` bytes at `at` were written past the cache
    SYNC = 4  # all of `file` is on disk
    FAILED = 5  # the sync of `file` failed, at `at` ns of the monotonic clock
    TRUNCATE = 6
    RENAME = 7  # to file `at`
    UNLINK = 8
    MARK = 9  # `at` is what the process said


class Entry(NamedTuple):
    """One thing that happened."""

    op: Op
    file: int
    at: int
    size: int
    data: bytes


def read_trace(path: Path) -> list[Entry]:
    """Everything that happened."""
    return list(_entries(path.read_bytes()))


def _entries(stored: bytes) -> Iterator[Entry]:
    at = 0
    while at + _HEAD.size <= len(stored):
        op, file, where, size = _HEAD.unpack_from(stored, at)
        at += _HEAD.size
        data = b""
        if op in (Op.NAME, Op.WRITE):
            data = stored[at : at + size]
            at += size
        yield Entry(Op(op), file, where, size, data)


class _File:
    """``durable`` is what is on disk for certain; ``pending`` the writes since: (at, data, whether it is certain)."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None, bool]] = []
        self.name_durable = False

    def settle(self) -> None:
        """All that is pending is on disk."""
        for at, data, _ in self.pending:
            _apply(self.durable, at, data)
        self.pending.clear()


class Disk:
    """Follows a trace; at any moment it can say what a disk might hold if the power went then.

    ``before``: files that were there when the trace began, by name. ``syncs`` False takes every sync for nothing: with it
    a check can be seen to fail.
    """

    def __init__(self, *, before: Mapping[str, bytes] | None = None, syncs: bool = True) -> None:
        self.names: dict[int, str] = {}
        self._files: dict[int, _File] = {}
        self._before = dict(before or {})
        self._syncs = syncs

    def apply(self, entry: Entry) -> None:
        """The next thing that happened."""
        file = self._files.setdefault(entry.file, _File())
        match entry.op:
            case Op.NAME:
                name = self.names[entry.file] = entry.data.decode()
                if (content := self._before.pop(name, None)) is not None:
                    file.durable[:], file.name_durable = content, True
            case Op.WRITE:
                file.pending.append((entry.at, entry.data, False))
            case Op.TRUNCATE:
                file.pending.append((entry.at, None, False))
            case Op.DURABLE if self._syncs:
                self._past_the_cache(file, entry)
            case Op.SYNC if self._syncs:
                file.settle()
                folder = self.names[entry.file]
                for number, name in self.names.items():
                    if str(Path(name).parent) == folder:
                        self._files.setdefault(number, _File()).name_durable = True
            case Op.RENAME:
                if entry.at in self._files and self._files[entry.at].durable:
                    raise ValueError("A rename over a file that is there is not modelled")
                self._files[entry.at] = file
                self._files[entry.file] = _File()
                file.name_durable = False
            case Op.UNLINK:
                self._files[entry.file] = _File()
            case _:
                pass

    def _past_the_cache(self, file: _File, entry: Entry) -> None:
        for index in range(len(file.pending) - 1, -1, -1):
            at, data, _ = file.pending[index]
            if data is not None and at == entry.at and len(data) == entry.size:
                file.pending[index] = (at, data, True)
                return
        raise ValueError(f"{self.names[entry.file]}: {entry.size} bytes at {entry.at} were never written")

    def unsynced(self) -> int:
        """Bytes that a power cut might take."""
        return sum(len(data or b"") for file in self._files.values() for _, data, sure in file.pending if not sure)

    def after_power_cut(
        self, draw: random.Random, leave: Iterable[str], chance: float | None = None
    ) -> dict[str, bytes]:
        """Files by name as a disk might hold them: of what was not synced each sector is there or not, by ``chance``.

        None draws the chance first, with "all" and "nothing" among the choices. ``leave``: names that are left out.
        """
        if chance is None:
            chance = draw.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        left_out = frozenset(leave)
        found = {name: content for name, content in self._before.items() if name not in left_out}
        for number, file in self._files.items():
            name = self.names.get(number, "")
            if name in left_out or not (file.durable or file.pending):
                continue
            if not (file.name_durable or draw.random() < chance):
                continue
            image = bytearray(file.durable)
            for at, data, sure in file.pending:
                if sure:
                    _apply(image, at, data)
                elif data is None:
                    if draw.random() < chance:
                        _apply(image, at, None)
                else:
                    _apply_torn(image, at, data, draw, chance)
            found[name] = bytes(image)
        return found


def _apply(image: bytearray, at: int, data: bytes | None) -> None:
    """Write ``data`` (None: end the file) at ``at``."""
    if len(image) < at:
        image.extend(bytes(at - len(image)))
    if data is None:
        del image[at:]
    else:
        image[at : at + len(data)] = data


def _apply_torn(image: bytearray, at: int, data: bytes, draw: random.Random, chance: float) -> None:
    start = 0
    while start < len(data):
        stop = min(len(data), ((at + start) // SECTOR + 1) * SECTOR - at)
        if draw.random() < chance:
            _apply(image, at + start, data[start:stop])
        start = stop
