"""Erasing: afterwards nothing in the data directory leads to who was erased, and everybody else is as before."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headwater.features.fold import Fold
from headwater.features.paths import state_dir
from headwater.features.plan import compile_plan
from headwater.features.recovery import open_state
from headwater.features.replay import fold_to
from headwater.log.archived import open_log
from headwater.log.batch import events_to_batch
from headwater.log.environment import StoreError
from headwater.log.erasures import FILE as ERASURES_FILE
from headwater.log.erasures import read_erasures
from headwater.log.identity import SECRET_FILE, LmdbIdentity
from headwater.log.lake import LakeLog, lake_dir
from headwater.log.protocol import RefusedError
from headwater.log.record import Kind
from headwater.log.socket import SyncWriterClient
from headwater.offline.archive import Archiver
from headwater.offline.erase import Finder, erase
from headwater.schema.config import Config
from headwater.schema.events import Event
from headwater.schema.stores import Log
from headwater.schema.users import UserProfile
from tests.offline.sites import CONFIG, KEYS, Clock, folded, user, writer_of

SETTINGS = Config(log=Log(map_size_gib=1.0, dedup_window=1_000))
WRITER = Path(__file__).parent.parent / "log" / "writer_process.py"
EVERYBODY = [user(n) for n in range(1_000)]
ERASED = EVERYBODY[::10]


def site(data: Path, *, leak: bool = False) -> None:
    """A thousand people with profiles and events, archived and folded."""
    clock = Clock()
    with writer_of(data, clock) as writer:
        for at in range(0, 1_000, 100):
            some = EVERYBODY[at : at + 100]
            writer.put_profiles([UserProfile(id=name, country="de", attributes={"age": 40}) for name in some])
            events = [
                Event(
                    user=name, item=f"i{k % 20}", type="click", event_id=f"e-{at}-{n}-{k}",
                    attributes={"referrer": name} if leak and name == ERASED[7] else None,
                )
                for n, name in enumerate(some)
                for k in range(3)
            ]  # fmt: skip
            writer.append_events(events_to_batch(events, KEYS))
            clock.now_ms += 60_000
    archiver = Archiver(data)
    archiver.run()
    archiver.close()
    (data / "models").mkdir()
    (data / "models" / "model.txt").write_text("weights")
    log = open_log(data)
    folded(log, state_dir(data, compile_plan(CONFIG).hash))
    log.close()


def keys_of(data: Path, names: list[str]) -> list[bytes]:
    identity = LmdbIdentity(data / "identity", readonly=True)
    found = []
    for name in names:
        key = identity.lookup(name)
        assert key is not None
        stored = identity.key_of(key.user)
        assert stored is not None
        found.append(stored)
    identity.close()
    return found


def bytes_of(data: Path) -> bytes:
    """Everything in the data directory, the lake also as it reads."""
    parts = [path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()]
    lake = LakeLog(lake_dir(data))
    block = lake.read(0, 1_000_000)
    assert block is not None
    return b"".join([*parts, block.heap.tobytes(), block.records.tobytes()])


def test_a_hundred_of_a_thousand_leave_nothing(tmp_path: Path) -> None:
    site(tmp_path)
    plan = compile_plan(CONFIG)
    gone, kept = keys_of(tmp_path, ERASED), keys_of(tmp_path, EVERYBODY[1::10])
    before = bytes_of(tmp_path)
    assert all(key in before for key in gone)
    done = erase(tmp_path, SETTINGS, [*ERASED, "nobody-of-that-name"], at_ms=7)
    assert (done.requested, done.erased, done.unknown, done.at_ms) == (101, 100, 1, 7)
    assert (done.recoverable, done.state_rows, done.too_short) == (0, 0, 0)
    assert {"identity", "lake", "lake, decompressed", "log", "models", "state"} <= {s.part for s in done.searched}
    assert not any(search.hits for search in done.searched)
    after = bytes_of(tmp_path)
    assert [name for name in ERASED if name.encode() in after] == []
    assert [key for key in gone if key in after] == []
    assert keys_of(tmp_path, EVERYBODY[1::10]) == kept
    secret = (tmp_path / "identity" / SECRET_FILE).read_bytes()
    known = [hashlib.blake2b(name.encode(), digest_size=16, key=secret).digest() for name in EVERYBODY[1::10]]
    assert all(hashed in after for hashed in known)  # what stays is found by the same search
    # the list names nobody and is complete
    listed = read_erasures(tmp_path / ERASURES_FILE)
    assert len(listed) == 100
    assert {erasure.offset for erasure in listed} == set(range(done.offset - 99, done.offset + 1))
    # the state goes on, and is what a fold from the start makes of the log
    log = open_log(tmp_path)
    state = open_state(state_dir(tmp_path, plan.hash), plan, log)
    fold = Fold(plan, state)
    assert fold.offset < done.offset
    fold_to(log, fold, log.last_offset)
    fold.commit(epoch=True)
    rows = [row for row in state.dump() if row[0] == "users"]
    state.close()
    assert rows == [row for row in folded(log, tmp_path / "anew") if row[0] == "users"]
    assert not {row[1] for row in rows} & {erasure.user for erasure in listed}
    log.close()
    again = erase(tmp_path, SETTINGS, ERASED, at_ms=8)
    assert (again.erased, again.unknown, again.recoverable) == (0, 100, 0)


def test_through_a_running_writer(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, str(WRITER), str(tmp_path)], stdout=subprocess.DEVNULL) as process:
        try:
            with SyncWriterClient(tmp_path / "run" / "writer.sock", connect_timeout_s=30.0) as client:
                for at in range(0, 1_000, 250):
                    some = EVERYBODY[at : at + 250]
                    client.put_profiles([UserProfile(id=name, country="de") for name in some])
                gone = keys_of(tmp_path, ERASED)
                done = erase(tmp_path, SETTINGS, ERASED, at_ms=7, wait_s=1.0)
                assert (done.erased, done.recoverable) == (100, 0)
                raw = (tmp_path / "identity" / "data.mdb").read_bytes()
                assert [key for key in gone if key in raw] == []
                client.put_profiles([UserProfile(id=name, country="fr") for name in EVERYBODY])  # it goes on
        finally:
            process.terminate()
            process.wait(30)
    log = open_log(tmp_path)
    block = log.read(0, 1_000_000)
    assert block is not None
    assert int((block.records["kind"] == Kind.ERASURE).sum()) == 100
    assert len(set(block.records["user"][block.records["kind"] == Kind.PROFILE].tolist())) == 1_100
    log.close()


def test_an_id_that_was_sent_as_something_else_is_found(tmp_path: Path) -> None:
    """What a caller put into an attribute is in the history for good: the certificate says so."""
    site(tmp_path, leak=True)
    done = erase(tmp_path, SETTINGS, ERASED, at_ms=7)
    assert (done.erased, done.recoverable) == (100, 1)
    assert {search.part for search in done.searched if search.hits} >= {"log", "lake, decompressed"}


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no data in"):
        erase(tmp_path, SETTINGS, ["somebody"], at_ms=7)
    site(tmp_path)
    with pytest.raises(RefusedError, match="must not be empty"):
        erase(tmp_path, SETTINGS, ["", EVERYBODY[0]], at_ms=7)
    short = erase(tmp_path, SETTINGS, ["abc"], at_ms=7)
    assert (short.too_short, short.unknown) == (1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_finder_finds_what_is_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 4, 300_000).astype(np.uint8)  # few values: a candidate nearly everywhere
    patterns: list[tuple[int, bytes]] = []
    for number in range(40):
        size = int(rng.integers(6, 60))
        if number % 2:
            at = int(rng.integers(0, len(data) - size))
            patterns.append((number, data[at : at + size].tobytes()))
        else:
            patterns.append((number, rng.integers(0, 4, size + 60).astype(np.uint8).tobytes()))
    finder = Finder(patterns)
    finder.look(data)
    whole = data.tobytes()
    assert finder.found == {number for number, pattern in patterns if pattern in whole}
    assert len(finder.found) >= 20
