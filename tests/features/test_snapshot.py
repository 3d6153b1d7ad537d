"""Snapshots: the same state on the other side of a file, and nothing at all of a file that is not whole."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Self

import numpy as np
import pytest

from headwater.features import snapshot
from headwater.features.fold import Fold
from headwater.features.rows import CorruptStateError
from headwater.features.snapshot import (
    Snapshot,
    SnapshotError,
    open_snapshot,
    read_snapshot,
    verify_snapshot,
    write_snapshot,
)
from headwater.features.state import LmdbState
from headwater.features.state_memory import MemoryPlace, MemoryState
from headwater.features.state_redis import RedisState, Wire, drop_redis_state
from headwater.features.store import (
    TABLES,
    Frozen,
    LogChangedError,
    PlanChangedError,
    Row,
    State,
    StateConflictError,
)
from headwater.schema.errors import UnavailableError
from headwater.testing.events import Written, script, written
from headwater.testing.state_folds import CONFIGS, PLANS, TIGHT, fold_all, next_block, reference
from tests.features.redis_server import shared_server
from tests.features.states import flipped

Make = Callable[[str], State]


def in_redis(name: str) -> RedisState:
    return RedisState(Wire(shared_server().url), TIGHT, writable=True, partitions=3, place=f"snapshot-{name}")


@pytest.fixture(params=["memory", "lmdb", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes an empty store of a kind."""
    made: list[State] = []

    def one(name: str) -> State:
        if request.param == "redis":
            made.append(in_redis(name))
        else:
            made.append(
                MemoryState(TIGHT) if request.param == "memory" else LmdbState(tmp_path / name, TIGHT, writable=True)
            )
        return made[-1]

    yield one
    for state in made:
        state.close()
    if request.param == "redis":
        with closing(Wire(shared_server().url)) as wire:
            for name in ("from", "to"):
                drop_redis_state(wire, f"snapshot-{name}")


def some_log() -> Written:
    return written(script(31, 200, users=40), CONFIGS["tight"])


@pytest.fixture
def log() -> Written:
    return some_log()


@pytest.fixture
def whole(log: Written, tmp_path: Path) -> Path:
    """The snapshot of a state, of many frames."""
    state = MemoryState(TIGHT, log_id="mine")
    fold_all(log, state)
    path = tmp_path / "whole.snapshot"
    write_snapshot(state, path)
    return path


@pytest.fixture(autouse=True)
def short_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "FRAME_BYTES", 2_000)


def test_a_state_comes_back_in_every_store(make: Make, log: Written, tmp_path: Path) -> None:
    source, path = make("from"), tmp_path / "kept" / "state.snapshot"
    fold_all(log, source)
    header = write_snapshot(source, path)
    assert header == verify_snapshot(path)
    assert (header.offset, header.meta) == (log.log.last_offset, source.meta())
    expected = reference(log, TIGHT)
    target = make("to")
    assert read_snapshot(path, target) == header
    assert list(target.dump()) == expected
    assert target.meta() == source.meta()
    assert list(open_snapshot(path, TIGHT).dump()) == expected
    assert list(Snapshot(path, TIGHT).rows()) == expected
    again = path.with_name("again")
    write_snapshot(target, again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["again", "state.snapshot"]
    with pytest.raises(StateConflictError, match="not empty"):
        read_snapshot(path, target)


def test_the_fold_goes_on_from_a_snapshot(make: Make, log: Written, tmp_path: Path) -> None:
    half, path = MemoryState(TIGHT), tmp_path / "half"
    fold = Fold(TIGHT, half)
    for block in log.blocks(until=log.log.last_offset // 2):
        fold.apply(block)
    fold.commit(epoch=True)
    write_snapshot(half, path)
    state = make("to")
    read_snapshot(path, state)
    fold_all(log, state)
    assert list(state.dump()) == reference(log, TIGHT)


def test_an_empty_state(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    assert write_snapshot(make("from"), path).counts == {"users": 0, "items": 0, "catalogue": 0}
    state = make("to")
    read_snapshot(path, state)
    assert list(state.dump()) == []
    assert state.offset == 0


# -- files that are not whole ----------------------------------------------------------------------------


def refused(path: Path) -> bool:
    """Whether a file is refused everywhere, without a row of it in a store."""
    place = MemoryPlace()
    try:
        read_snapshot(path, MemoryState(TIGHT, place))
    except SnapshotError:
        assert not any(place.tables.values())
        assert place.meta is None
        return True
    return False


def test_a_thousand_damaged_files_are_all_found(whole: Path, tmp_path: Path) -> None:
    good, path = whole.read_bytes(), tmp_path / "damaged"
    assert not refused(whole)
    missed = []
    for seed in range(1_000):
        rng = np.random.default_rng(seed)
        data = bytearray(good)
        kind, at = seed % 5, int(rng.integers(len(good)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:  # a page that was never written
            stop = min(at + 512, len(data))
            data[at:stop] = bytes(stop - at)
        elif kind == 3:
            data += rng.bytes(1 + at % 64)
        else:  # one part of the file over another
            other = int(rng.integers(len(good)))
            data[at : at + 64] = good[other : other + 64]
        if bytes(data) == good:
            continue
        path.write_bytes(data)
        if not refused(path):
            missed.append((seed, kind, at))
    assert missed == []


def test_every_byte_of_the_frame_of_a_file_counts(whole: Path, tmp_path: Path) -> None:
    """Header, heads of frames, end: each bit; and each length that a torn file can have near them."""
    good, path = whole.read_bytes(), tmp_path / "damaged"
    places = [*range(200), *range(len(good) - 60, len(good))]
    for at in places:
        for bit in range(8):
            path.write_bytes(flipped_bit(good, at, bit))
            assert refused(path), (at, bit)
        path.write_bytes(good[:at])
        assert refused(path), at


def flipped_bit(good: bytes, at: int, bit: int) -> bytes:
    data = bytearray(good)
    data[at] ^= 1 << bit
    return bytes(data)


def test_rows_that_are_not_in_their_order_are_found(log: Written, tmp_path: Path) -> None:
    """In a file whose checksums are all right: written by somebody else's program."""
    state, path = MemoryState(TIGHT), tmp_path / "wrong"
    fold_all(log, state)
    rows = list(state.dump())
    for wrong in (rows[:1] + rows[:-1], rows[::-1], rows[5:] + rows[:5]):
        counts = {name: sum(table == name for table, _, _ in wrong) for name in TABLES}
        with path.open("wb") as file:
            snapshot._write(Frozen(state.meta(), counts, iter(wrong)), file)
        assert refused(path)
    with path.open("wb") as file, pytest.raises(CorruptStateError, match="rows and says"), state.frozen() as frozen:
        snapshot._write(frozen._replace(rows=iter(rows[1:])), file)


def test_another_plan_or_log_is_refused_with_both_named(whole: Path) -> None:
    other = PLANS["plain"]
    with pytest.raises(PlanChangedError, match=f"{TIGHT.hash}.*{other.hash}"):
        read_snapshot(whole, MemoryState(other))
    with pytest.raises(LogChangedError, match=r"mine.*other"):
        open_snapshot(whole, TIGHT, log_id="other")
    assert open_snapshot(whole, TIGHT, log_id="mine").meta().log == "mine"


def test_no_file_and_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="nowhere"):
        verify_snapshot(tmp_path / "nowhere")
    for content in (b"", b"HW", b"something else altogether", snapshot.MAGIC[:-1] + b"\x07" + bytes(64)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(SnapshotError, match="no whole snapshot"):
            verify_snapshot(tmp_path / "other")


@pytest.mark.parametrize("table", ["users", "items", "catalogue"])
def test_a_damaged_row_does_not_get_into_a_snapshot(table: str, log: Written, tmp_path: Path) -> None:
    place = MemoryPlace()
    state = MemoryState(TIGHT, place)
    fold_all(log, state)
    key = max(place.tables[table])
    place.tables[table][key] = flipped(place.tables[table][key], 7)
    with pytest.raises(CorruptStateError, match=table):
        write_snapshot(state, tmp_path / "bad")
    assert list(tmp_path.iterdir()) == []


# -- crashes ---------------------------------------------------------------------------------------------


class Watched:
    """A file that reports each write, which reaches it at once."""

    def __init__(self, file: IO[bytes], report: Callable[[str], None]) -> None:
        self.file, self.report = file, report

    def write(self, data: bytes) -> None:
        self.report("write")
        self.file.write(data)
        self.file.flush()

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def watch(patched: pytest.MonkeyPatch, report: Callable[[str], None]) -> None:
    """Have ``report`` called before everything that writing a snapshot does to the disk."""
    fsync, replace, locked = os.fsync, os.replace, snapshot._locked

    def sync(descriptor: int) -> None:
        report("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        report("rename")
        replace(source, target)

    patched.setattr(os, "fsync", sync)
    patched.setattr(os, "replace", rename)
    patched.setattr(snapshot, "_locked", lambda partial: Watched(locked(partial), report))


def test_it_has_its_name_only_once_it_is_on_the_disk(
    log: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, steps = MemoryState(TIGHT), list[str]()
    fold_all(log, state)
    watch(monkeypatch, steps.append)
    write_snapshot(state, tmp_path / "one")
    assert steps[:2] == ["write", "write"]
    assert [step for step in steps if step != "write"] == ["sync file", "rename", "sync folder"]
    assert steps[-4:] == ["write", "sync file", "rename", "sync folder"]


def die_at_every_step(folder: Path) -> None:
    """Write the second of two snapshots over the first and be killed, at each step in turn; whole is what is there."""
    log, path = some_log(), folder / "one"
    old, new = MemoryState(TIGHT), MemoryState(TIGHT)
    fold_all(written(script(32, 50), CONFIGS["tight"]), old)
    fold_all(log, new)
    patched = pytest.MonkeyPatch()
    patched.setattr(snapshot, "FRAME_BYTES", 2_000)
    found: list[str] = []
    step = 0
    while not found or found[-1] != "done":
        write_snapshot(old, path)
        child = os.fork()
        if child == 0:
            left = step

            def count(_: str) -> None:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

            watch(patched, count)
            write_snapshot(new, path)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        offset = verify_snapshot(path).offset
        found.append(
            "done" if ended == 0 else "old" if offset == old.offset else "new" if offset == new.offset else "?"
        )
        step += 1
    write_snapshot(new, path)
    assert [entry.name for entry in folder.iterdir()] == ["one"]
    sys.stdout.write(",".join(found))


def test_a_process_that_is_killed_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from tests.features import test_snapshot; test_snapshot.die_at_every_step(Path({str(tmp_path)!r}))"
    ended = subprocess.run([sys.executable, "-c", code], timeout=300, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    found = ended.stdout.decode().splitlines()[-1].split(",")
    assert len(found) > 20
    assert found == ["old"] * (len(found) - 2) + ["new", "done"]


def test_a_disk_that_is_full_leaves_the_old_one(log: Written, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, left = whole.read_bytes(), 9

    def fail(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = MemoryState(TIGHT)
    fold_all(log, state)
    watch(monkeypatch, fail)
    with pytest.raises(OSError, match="No space"):
        write_snapshot(state, whole)
    assert whole.read_bytes() == before
    assert [entry.name for entry in whole.parent.iterdir()] == [whole.name]


def test_two_that_write_the_same_snapshot(log: Written, tmp_path: Path) -> None:
    state, path = MemoryState(TIGHT), tmp_path / "one"
    fold_all(log, state)
    with snapshot._locked(tmp_path / ".one.partial"), pytest.raises(SnapshotError, match="another process"):
        write_snapshot(state, path)
    write_snapshot(state, path)
    assert verify_snapshot(path).offset == state.offset


def test_a_snapshot_of_redis_is_of_one_moment_while_the_fold_goes_on(log: Written, tmp_path: Path) -> None:
    with closing(in_redis("from")) as state, closing(in_redis("from")) as reader:
        fold = Fold(TIGHT, state)
        fold.apply(next_block(log, fold, 50))
        fold.commit(epoch=True)
        begun = fold.offset

        class Moving:
            """The fold commits while all rows are read."""

            @contextmanager
            def frozen(self) -> Iterator[Frozen]:
                with reader.frozen() as frozen:

                    def rows() -> Iterator[Row]:
                        for k, row in enumerate(frozen.rows):
                            if k % 10 == 3:
                                fold.apply(next_block(log, fold, 5))
                                fold.commit(epoch=False)
                            yield row

                    yield frozen._replace(rows=rows())

        assert write_snapshot(Moving(), tmp_path / "one").offset == begun < fold.offset
    assert list(open_snapshot(tmp_path / "one", TIGHT).dump()) == reference(log, TIGHT, until=begun)
    with closing(Wire(shared_server().url)) as wire:
        drop_redis_state(wire, "snapshot-from")
