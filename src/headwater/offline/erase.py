"""Erasing people, and proving it: key, mapping and state row are destroyed, then every store is searched for them.

History stays, under numbers that lead to nobody: profiles in it are encrypted with the destroyed keys. What is
searched for is the ids themselves, the keys, and the entries that led from an id to its numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.features.paths import BUILDING
from headwater.features.redis_states import forget_in_redis, redis_of
from headwater.jit import kernel
from headwater.log.archived import open_log
from headwater.log.client import SyncWriterClient
from headwater.log.environment import open_environment
from headwater.log.identity import SECRET_FILE, LmdbIdentity, UserKey
from headwater.log.lake import ROW_GROUP, LakeLog, lake_dir
from headwater.offline.archive import lake_lock
from headwater.offline.importing.run import connect
from headwater.offline.states import all_states, state_offset
from headwater.schema.config import Config
from headwater.schema.errors import HeadwaterError

SHORTEST_ID = 6  # bytes; a shorter text stands everywhere by chance
WAIT_S = 15.0
BATCH = 5_000

_CHUNK = 32 * 1024 * 1024
_BITS = 20
_FOUND_AT_ONCE = 65_536
_POLL_S = 0.05
_SPREAD = np.uint32(0x9E3779B1)


class Search(Struct, frozen=True):
    """One part of the data directory that was searched. ``hits`` counts users, not places."""

    part: str
    files: int
    bytes: int
    hits: int


class Certificate(Struct, frozen=True, kw_only=True):
    """What was erased and where nothing of it was found. It names nobody.

    ``unknown`` ids had no user (never seen, or erased before). ``offset`` is the log's end with the erasure records.
    ``state_rows`` are rows of the erased that a state still holds, ``too_short`` ids that cannot be searched for,
    ``recoverable`` users of whom something was found.
    """

    requested: int
    erased: int
    unknown: int
    offset: int
    at_ms: int
    destroyed: tuple[str, ...] = ("key", "mapping", "state row")
    states: dict[str, int]
    state_rows: int
    searched: list[Search]
    too_short: int
    recoverable: int
    seconds: float


class _Target:
    """A user to be erased: what history calls them, and the bytes that must not be found afterwards."""

    def __init__(self, external: str, key: UserKey | None, patterns: list[bytes]) -> None:
        self.external, self.key, self.patterns = external, key, patterns


def erase(
    data: Path,
    config: Config,
    users: Sequence[str],
    *,
    at_ms: int,
    search: bool = True,
    wait_s: float = WAIT_S,
    seconds: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> Certificate:
    """Erase ``users`` (external ids) in ``data``, through the running writer or as the writer, and search for them.

    Waits up to ``wait_s`` seconds until the folds that run have removed the state rows; it removes them itself from
    a state that nobody folds.

    Raises:
        UnavailableError: the Redis that holds states cannot be reached; nobody was erased.
        WriterRunningError: the writer runs and does not answer. RefusedError: an id is empty or no text.
        StoreError: there is no data.
    """
    began = seconds()
    wanted = list(dict.fromkeys(users))
    targets = _targets(data / "identity", wanted)
    with contextlib.ExitStack() as opened:
        wire = opened.enter_context(redis_of(config))
        writer = opened.enter_context(contextlib.closing(connect(data, config)))
        replies = [writer.erase_users(wanted[at : at + BATCH]) for at in range(0, len(wanted), BATCH)]
        is_running = isinstance(writer, SyncWriterClient)
        offset = (replies[-1] if replies else writer.ping()).offset
        known = [target.key for target in targets if target.key is not None]
        may_wait = (lambda: seconds() - began < wait_s) if is_running else None
        states = _forget(data, known, offset, may_wait, pause)
        state_rows = sum(_rows_left(path, known) for path in all_states(data))
        if wire is not None:
            with contextlib.closing(open_log(data)) as log:
                log_id = log.log_id
            offsets, left = forget_in_redis(wire, log_id, [key.user for key in known], offset, may_wait, pause)
            states |= {f"{plan} in Redis": at for plan, at in offsets.items()}
            state_rows += left
        if is_running:  # the old bytes are wiped behind the answer, and again later if a reader was in the way
            writer.ping()
    with lake_lock(data):
        searched, found = _search(data, targets) if search else ([], set())
    return Certificate(
        requested=len(wanted), erased=sum(reply.accepted for reply in replies),
        unknown=len(wanted) - sum(reply.accepted for reply in replies), offset=offset, at_ms=at_ms, states=states,
        state_rows=state_rows, searched=searched,
        too_short=sum(len(target.external.encode()) < SHORTEST_ID for target in targets), recoverable=len(found),
        seconds=seconds() - began,
    )  # fmt: skip


def _targets(path: Path, users: Iterable[str]) -> list[_Target]:
    """Looked up before they are gone."""
    targets = []
    with contextlib.closing(LmdbIdentity(path, readonly=True)) as identity:
        secret = (path / SECRET_FILE).read_bytes()
        for external in users:
            try:
                text = external.encode()
            except UnicodeEncodeError as error:
                raise HeadwaterError(f"An id is no valid text: {error.reason}") from error
            patterns = [text] if len(text) >= SHORTEST_ID else []
            key = identity.lookup(external)
            if key is not None:
                numbers = key.user.to_bytes(4, "big") + key.surrogate.to_bytes(8, "big")
                hashed = hashlib.blake2b(text, digest_size=16, key=secret).digest()
                patterns += [hashed + numbers, numbers]
                if (sealing := identity.key_of(key.user)) is not None:
                    patterns.append(sealing)
            targets.append(_Target(external, key, patterns))
    return targets


def _forget(
    data: Path,
    users: Sequence[UserKey],
    offset: int,
    may_wait: Callable[[], bool] | None,
    pause: Callable[[float], object],
) -> dict[str, int]:
    """Wait until the states have passed ``offset``; take the rows out of those that have not."""
    while may_wait is not None and may_wait() and any(state_offset(path) < offset for path in all_states(data)):
        pause(_POLL_S)
    states = {}
    for path in all_states(data):
        states[path.name] = state_offset(path)
        if states[path.name] < offset and users and path.suffix != BUILDING:
            # nobody folds it now. When somebody does, the records of the erased make rows that their erasure ends
            with contextlib.closing(open_environment(path, readonly=False, sync=False)) as shared:
                table = shared.lmdb.open_db(b"users", create=False)
                with shared.lmdb.begin(write=True, db=table) as txn:
                    for key in users:
                        txn.delete(key.user.to_bytes(4, "big"))
    return states


def _rows_left(path: Path, users: Sequence[UserKey]) -> int:
    with contextlib.closing(open_environment(path, readonly=True)) as shared:
        table = shared.lmdb.open_db(b"users", create=False)
        with shared.lmdb.begin(db=table) as txn:
            return sum(txn.get(key.user.to_bytes(4, "big")) is not None for key in users)


class Finder:
    """Looks for many byte patterns (4 bytes or longer) at once; ``found`` holds the numbers of those that were there."""

    def __init__(self, patterns: Sequence[tuple[int, bytes]]) -> None:
        self.found: set[int] = set()
        self._table = np.zeros(1 << _BITS, np.uint8)
        self._by_start: dict[bytes, list[tuple[int, bytes]]] = {}
        self._places = np.zeros(_FOUND_AT_ONCE, np.int64)
        self.longest = max((len(pattern) for _, pattern in patterns), default=1)
        for number, pattern in patterns:
            self._by_start.setdefault(pattern[:4], []).append((number, pattern))
            word = int.from_bytes(pattern[:4], "little")
            self._table[(word * int(_SPREAD) & 0xFFFFFFFF) >> (32 - _BITS)] = 1

    def look(self, data: npt.NDArray[np.uint8]) -> None:
        """Look through ``data``."""
        at = 0
        while at < len(data) and self._by_start:
            count = int(_candidates(data, at, self._table, self._places))
            for place in self._places[:count].tolist():
                start = data[place : place + 4].tobytes()
                for number, pattern in self._by_start.get(start, ()):
                    if number not in self.found and data[place : place + len(pattern)].tobytes() == pattern:
                        self.found.add(number)
            if count < len(self._places):
                return
            at = int(self._places[-1]) + 1


@kernel
def _candidates(
    data: npt.NDArray[np.uint8], start: int, table: npt.NDArray[np.uint8], out: npt.NDArray[np.int64]
) -> int:
    """Places from ``start`` on where a pattern may begin, as many as ``out`` takes."""
    found = 0
    for at in range(start, len(data) - 3):
        word = (
            np.uint32(data[at])
            | np.uint32(data[at + 1]) << np.uint32(8)
            | np.uint32(data[at + 2]) << np.uint32(16)
            | np.uint32(data[at + 3]) << np.uint32(24)
        )
        if table[np.uint32(word * _SPREAD) >> np.uint32(32 - _BITS)]:
            out[found] = at
            found += 1
            if found == len(out):
                break
    return found


def _search(data: Path, targets: Sequence[_Target]) -> tuple[list[Search], set[int]]:
    """Every file of the data directory as it lies on disk, and the lake's records as they read."""
    patterns = [(number, pattern) for number, target in enumerate(targets) for pattern in target.patterns]
    searched: list[Search] = []
    found: set[int] = set()
    parts: dict[str, list[Path]] = {}
    for path in sorted(data.rglob("*")):
        if path.is_file() and not path.is_symlink():
            parts.setdefault(path.relative_to(data).parts[0], []).append(path)
    for part, paths in parts.items():
        finder, size = Finder(patterns), 0
        for path in paths:
            for chunk in _chunks(path, finder.longest):
                finder.look(chunk)
            size += path.stat().st_size
        searched.append(Search(part, len(paths), size, len(finder.found)))
        found |= finder.found
    if (lake_dir(data) / "_delta_log").is_dir():
        finder, size = Finder(patterns), 0
        lake = LakeLog(lake_dir(data))
        after = lake.first_offset - 1
        while (block := lake.read(after, ROW_GROUP)) is not None:
            finder.look(block.heap)
            finder.look(np.ascontiguousarray(block.records).view(np.uint8).reshape(-1))
            size, after = size + block.records.nbytes + len(block.heap), block.last_offset
        searched.append(Search("lake, decompressed", len(lake.files), size, len(finder.found)))
        found |= finder.found
    return searched, found


def _chunks(path: Path, overlap: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a file in pieces that overlap, so that nothing is missed between two."""
    with path.open("rb") as file:
        rest = b""
        while data := file.read(_CHUNK):
            piece = rest + data
            yield np.frombuffer(piece, np.uint8)
            rest = piece[-(overlap - 1) :] if overlap > 1 else b""
