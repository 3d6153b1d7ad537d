"""Erased keys leave no byte in the identity store's file, and the store goes on."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest

from headwater.log.identity import KEY_SIZE, SECRET_FILE, LmdbIdentity, UserKey
from headwater.log.scrub import ScrubError, last_transaction, scrub

MAP = 1 << 28


def secrets_of(store: LmdbIdentity, folder: Path, externals: list[str]) -> list[bytes]:
    """What must be gone: key, and what leads from the keyed hash to number and surrogate, of each user."""
    secret = (folder / SECRET_FILE).read_bytes()
    found = []
    for external in externals:
        key = store.lookup(external)
        assert key is not None
        stored = store._key(key.user)
        assert stored is not None
        hashed = hashlib.blake2b(external.encode(), digest_size=16, key=secret).digest()
        known_as = key.user.to_bytes(4, "big") + key.surrogate.to_bytes(8, "big")
        found += [stored[:KEY_SIZE], stored, hashed + known_as, known_as]
    return found


def known(store: LmdbIdentity, externals: list[str]) -> list[tuple[UserKey, bytes | None]]:
    """Numbers and keys of users that exist."""
    found = [(store.lookup(external), store) for external in externals]
    return [(key, store._key(key.user)) for key, _ in found if key is not None]


def hits(folder: Path, patterns: list[bytes]) -> int:
    return sum((folder / "data.mdb").read_bytes().count(pattern) for pattern in patterns)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_of_the_erased_is_left_and_the_others_are_as_they_were(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = LmdbIdentity(tmp_path, map_size=MAP, entropy=rng.bytes)
    alive: list[str] = []
    for round_number in range(6):
        new = [f"{seed}-{round_number}-{n}" for n in range(int(rng.integers(1, 900)))]
        store.assign(new)
        alive += new
        chosen = rng.choice(len(alive), min(len(alive), int(rng.integers(1, 120))), replace=False)
        erased = [alive[k] for k in chosen]
        gone, alive = secrets_of(store, tmp_path, erased), sorted(set(alive) - set(erased))
        kept = known(store, alive)
        store.begin_erasure(erased)
        store.finish_erasure()
        assert hits(tmp_path, gone) > 0  # deleting alone does not do it
        assert store.wipe()
        assert hits(tmp_path, gone) == 0
        assert store.wipe()  # nothing left to do
        assert kept == known(store, alive)
        assert [store.lookup(external) for external in erased] == [None] * len(erased)
    store.close()
    again = LmdbIdentity(tmp_path, map_size=MAP)
    assert all(again.lookup(external) for external in alive)
    again.close()


def test_a_reader_at_an_older_moment_is_waited_for(tmp_path: Path) -> None:
    store = LmdbIdentity(tmp_path, map_size=MAP)
    store.assign([f"u{n}" for n in range(300)])
    gone = secrets_of(store, tmp_path, ["u7"])
    reading, go_on = threading.Event(), threading.Event()
    seen: list[bytes | None] = []

    def read() -> None:
        with store._env.begin(db=store._tables.keys) as txn:
            reading.set()
            go_on.wait(10.0)
            seen.append(txn.get((8).to_bytes(4, "big")))

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(10.0)
    store.begin_erasure(["u7"])
    store.finish_erasure()
    assert not store.wipe()
    with store._env.begin(write=True, db=store._tables.meta) as txn:
        txn.put(b"tick", b"")
    done = scrub(store._env, tmp_path, last_transaction(store._env) - 1)
    assert done.reader == os.getpid()
    go_on.set()
    thread.join()
    assert seen[0] is not None  # its moment stayed whole
    assert seen[0][:KEY_SIZE] == gone[0]
    assert store.wipe()
    assert hits(tmp_path, gone) == 0
    store.close()


def test_wiping_is_made_good_after_a_restart(tmp_path: Path) -> None:
    store = LmdbIdentity(tmp_path, map_size=MAP)
    store.assign(["a", "b"])
    gone = secrets_of(store, tmp_path, ["a"])
    store.begin_erasure(["a"])
    store.finish_erasure()
    store.close()
    store = LmdbIdentity(tmp_path, map_size=MAP)
    assert store.wipe()
    assert hits(tmp_path, gone) == 0
    assert store.lookup("b") is not None
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_any_environment_stays_what_it_was(tmp_path: Path, seed: int) -> None:
    """Long values, deletes, many tables: the same entries before and after, and the file takes more of them."""
    rng = np.random.default_rng(seed)
    with lmdb.open(str(tmp_path), map_size=MAP, max_dbs=8) as env:
        tables = [env.open_db(name) for name in (b"one", b"two", b"three")]
        expected: list[dict[bytes, bytes]] = [{} for _ in tables]
        for _ in range(12):
            with env.begin(write=True) as txn:
                for table, held in zip(tables, expected, strict=True):
                    for _ in range(int(rng.integers(0, 60))):
                        key = rng.bytes(int(rng.integers(1, 60)))
                        held[key] = rng.bytes(int(rng.choice([3, 300, 2_500, 9_000])))
                        txn.put(key, held[key], db=table)
                    for key in [key for key in held if rng.random() < 0.3]:
                        txn.delete(key, db=table)
                        del held[key]
            with env.begin(write=True) as txn:
                expected[0][b"tick"] = rng.bytes(8)
                txn.put(b"tick", expected[0][b"tick"], db=tables[0])
            assert scrub(env, tmp_path, last_transaction(env) - 1).reader == 0
            for table, held in zip(tables, expected, strict=True):
                with env.begin(db=table) as txn:
                    assert dict(txn.cursor()) == held


def test_a_file_of_another_layout_is_left_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with lmdb.open(str(tmp_path), map_size=MAP, max_dbs=4) as env:
        twice = env.open_db(b"twice", dupsort=True)
        for _ in range(3):
            with env.begin(write=True) as txn:
                for _ in range(500):
                    txn.put(b"key", rng.bytes(20), db=twice)
        before = (tmp_path / "data.mdb").read_bytes()
        with pytest.raises(ScrubError):
            scrub(env, tmp_path, last_transaction(env) - 1)
        assert (tmp_path / "data.mdb").read_bytes() == before
