"""The list of erasures: whom history knew by which numbers, so that a restored backup can be made to forget them too.

One JSON line an erasure, written by the writer before a key is destroyed. It names nobody: numbers and surrogates lead
nowhere once the identity store has forgotten them. It is small, and worth copying off the machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from headwater.log.identity import UserKey
from headwater.schema.errors import HeadwaterError

FILE = "erasures.jsonl"


class Erasure(Struct, frozen=True):
    """The record at ``offset`` of log ``log`` erased ``user``, who had this ``surrogate``."""

    log: str
    offset: int
    user: int
    surrogate: int


_decode = msgspec.json.Decoder(Erasure).decode


def append_erasures(path: Path, erasures: Sequence[Erasure]) -> None:
    """Add lines, on disk when this returns. What a crash left of a line is ended first."""
    is_new = not path.exists()
    data = b"".join(msgspec.json.encode(erasure) + b"\n" for erasure in erasures)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_erasures(path: Path) -> list[Erasure]:
    """The erasures in ``path``; none when there is no such file. A last line that a crash cut off is passed over:
    the writer repeats an erasure that it did not finish.

    Raises:
        HeadwaterError: another line is no erasure.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            found.append(_decode(line))
        except msgspec.DecodeError as error:
            if number < len(lines) and line[-1:] == b"}":
                raise HeadwaterError(f"{path}, line {number}: no erasure: {error}") from error
    return found


def erasures_after(erasures: Sequence[Erasure], log_id: str, offset: int) -> list[UserKey]:
    """Those that ``log_id`` recorded behind ``offset``, each user once."""
    found = {(e.user, e.surrogate): None for e in erasures if e.log == log_id and e.offset > offset}
    return [UserKey(user, surrogate) for user, surrogate in found]
