"""Where state lies in a data directory: a folder a plan, and the files that say which plan is in service.

``state/<plan hash>/`` is the state of a plan, ``state/<plan hash>.building/`` one that a backfill has not finished (in Redis:
says that it has not), ``state/<plan hash>.snapshot`` one that a restore has put there; ``state/CURRENT`` names the plan that serves or is about to, ``run/flip.json`` tells what became of the last
request to change it. Both files are replaced in one step. All of it is derived from log and configuration.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from headwater.schema.errors import ConfigurationError, HeadwaterError

BUILDING = ".building"
SNAPSHOT = ".snapshot"
_OLD_FILES = ("data.mdb", "lock.mdb", "boot")  # state lay directly in `state/` when there was one plan

_T = TypeVar("_T", bound=Struct)


class Current(Struct, frozen=True, kw_only=True):
    """The plan in service, or to be put into service.

    ``before`` is the plan that served before it, whose state is kept. ``config`` is the configuration file (``None``:
    the defaults) and ``digest`` what it came to (see :mod:`headwater.features.pinned`). ``request`` tells one
    request to change plans from another.
    """

    plan: str
    before: str | None = None
    config: str | None = None
    digest: str = ""
    request: str = ""


class Flip(Struct, frozen=True, kw_only=True):
    """What became of ``request``: under way, done (``plan`` serves), or refused with a reason (the old plan serves)."""

    request: str
    plan: str
    stage: Literal["switching", "serving", "refused"]
    reason: str = ""


def state_dir(data: Path, plan: str) -> Path:
    """The folder of the state of the plan with that hash."""
    return data / "state" / plan


def building_dir(data: Path, plan: str) -> Path:
    """The folder in which a backfill builds that state; renamed when it is done."""
    return data / "state" / f"{plan}{BUILDING}"


SOCKET_BYTES = 107
"""The longest path of a Unix socket on Linux."""


def check_sockets_fit(data: Path) -> None:
    """Raises :class:`ConfigurationError` when the path of ``data`` is too long for the sockets in it."""
    over = len(os.fsencode(feed_socket(data, 16 * "0"))) - SOCKET_BYTES
    if over > 0:
        raise ConfigurationError(
            f"data: The path {data} is {over} bytes too long: the sockets in it may have {SOCKET_BYTES}. Choose a shorter one, or reach it by a "
            "symbolic link or from a folder nearer to it (--data)"
        )


def feed_socket(data: Path, plan: str) -> Path:
    """The Unix socket on which the fold of that plan says how far it is."""
    return data / "run" / f"fold-{plan}.sock"


def snapshot_file(data: Path, plan: str) -> Path:
    """A snapshot that the fold of that plan begins with when it has no state: a restore puts it there."""
    return data / "state" / f"{plan}{SNAPSHOT}"


def state_dirs(data: Path) -> list[Path]:
    """Every finished state, by name."""
    return sorted(path.parent for path in (data / "state").glob("*/data.mdb") if path.parent.suffix != BUILDING)


def drop_old_layout(data: Path) -> bool:
    """Remove a state that lies where there was room for one plan only; whether there was one."""
    found = [path for name in _OLD_FILES if (path := data / "state" / name).is_file()]
    for path in (*found, data / "run" / "fold.sock"):
        path.unlink(missing_ok=True)
    return bool(found)


def drop_other_states(data: Path, keep: Collection[str]) -> list[str]:
    """Remove the finished states of all plans but ``keep``; returns their hashes. What is being built stays."""
    for path in (data / "state").glob(f"*{SNAPSHOT}"):
        if path.stem not in keep:
            path.unlink()
    dropped = [path for path in state_dirs(data) if path.name not in keep]
    for path in dropped:
        shutil.rmtree(path)
    return [path.name for path in dropped]


def read_current(data: Path) -> Current | None:
    """Which plan is in service; None when nothing says so yet. Raises HeadwaterError for an unreadable file."""
    return _read(data / "state" / "CURRENT", Current)


def write_current(data: Path, current: Current) -> None:
    """Replace it in one step."""
    _write(data / "state" / "CURRENT", current)


def read_flip(data: Path) -> Flip | None:
    """What became of the last request; None when there was none since the server started."""
    return _read(data / "run" / "flip.json", Flip)


def write_flip(data: Path, flip: Flip | None) -> None:
    """Replace it in one step; None removes it."""
    if flip is None:
        (data / "run" / "flip.json").unlink(missing_ok=True)
    else:
        _write(data / "run" / "flip.json", flip)


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise HeadwaterError(
            f"{path} cannot be read: {error}. Remove it; the server writes it when it starts"
        ) from error


def _write(path: Path, value: Struct) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(value) + b"\n")
    os.replace(fresh, path)  # noqa: PTH105  (one system call, named as what it is)
