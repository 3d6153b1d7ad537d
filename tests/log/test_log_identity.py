"""The identity store, on disk and in memory."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headwater.log.environment import StoreError
from headwater.log.identity import (
    SECRET_FILE,
    IdentityStore,
    LmdbIdentity,
    MemoryIdentity,
    RecentUsers,
    SealError,
    UserKey,
)
from headwater.log.memory import MemoryLog
from headwater.log.record import Kind
from headwater.log.writer import LogWriter

MAP = 1 << 30

Make = Callable[[Callable[[int], bytes] | None], IdentityStore]


@pytest.fixture(params=["lmdb", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[IdentityStore] = []

    def build(entropy: Callable[[int], bytes] | None) -> IdentityStore:
        store: IdentityStore
        if request.param == "lmdb":
            store = LmdbIdentity(tmp_path, map_size=MAP, entropy=entropy or os.urandom)
        else:
            store = MemoryIdentity(entropy=entropy or os.urandom)
        made.append(store)
        return store

    yield build
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> IdentityStore:
    return make(None)


def test_numbers_are_dense_and_stay(store: IdentityStore) -> None:
    first = store.assign(["a", "b", "a", "c"])
    assert first.user.tolist() == [1, 2, 1, 3]
    assert len(set(first.surrogate.tolist())) == 3
    assert 0 not in first.surrogate
    again = store.assign(["c", "d", "a"])
    assert again.user.tolist() == [3, 4, 1]
    assert again.surrogate[0] == first.surrogate[3]
    assert store.lookup("b") == UserKey(2, int(first.surrogate[1]))
    assert store.lookup("nobody") is None
    assert store.assign([]).user.tolist() == []


def test_surrogates_never_collide(make: Make) -> None:
    """Entropy that repeats itself and says zero: every user still gets a surrogate of their own."""
    draws = itertools.cycle([0, 7, 7, 9, 7, 11, 13, 9, 15])

    def poor(size: int) -> bytes:
        return b"".join(next(draws).to_bytes(8, "big") for _ in range(size // 8)) or b"x" * size

    store = make(poor)
    one, two = store.assign(["a", "b", "c"]), store.assign(["d", "e"])
    surrogates = [*one.surrogate.tolist(), *two.surrogate.tolist()]
    assert len(set(surrogates)) == 5
    assert 0 not in surrogates
    assert [store.lookup(e) for e in "abcde"] == [UserKey(n + 1, s) for n, s in enumerate(surrogates)]


def test_profiles_are_sealed_with_the_users_key(store: IdentityStore) -> None:
    store.assign(["a", "b"])
    sealed = store.encrypt(1, b"born 1990")
    assert b"1990" not in sealed
    assert store.encrypt(1, b"born 1990") != sealed
    assert store.decrypt(1, sealed) == b"born 1990"
    with pytest.raises(SealError):
        store.decrypt(2, sealed)
    with pytest.raises(SealError):
        store.decrypt(1, sealed[:-1])
    with pytest.raises(SealError):
        store.decrypt(1, b"")


def test_erasing_destroys_key_and_mapping(store: IdentityStore) -> None:
    store.assign(["a", "b"])
    sealed = store.encrypt(1, b"secret")
    found = store.begin_erasure(["a", "a", "nobody"])
    assert [key.user for key in found] == [1]
    assert store.lookup("a") == found[0]  # not yet
    store.finish_erasure()
    assert store.erasing() == []
    assert store.lookup("a") is None
    assert store.decrypt(1, sealed) is None
    with pytest.raises(KeyError):
        store.encrypt(1, b"again")
    assert store.assign(["a", "b"]).user.tolist() == [3, 2]


def test_an_interrupted_erasure_is_finished_at_the_next_start(store: IdentityStore) -> None:
    store.assign(["a"])
    store.begin_erasure(["a"])
    log = MemoryLog()
    LogWriter(log, store, clock=lambda: 1, dedup_window=10)
    block = log.read(0)
    assert block is not None
    assert block.records["kind"].tolist() == [Kind.ERASURE]
    assert store.lookup("a") is None


def test_others_read_what_was_assigned(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        LmdbIdentity(tmp_path, readonly=True)
    store = LmdbIdentity(tmp_path, map_size=MAP)
    assigned = store.assign(["a"])
    store.close()
    reader = LmdbIdentity(tmp_path, readonly=True)
    assert reader.lookup("a") == UserKey(1, int(assigned.surrogate[0]))
    with pytest.raises(StoreError, match="opened for reading"):
        reader.assign(["b"])
    reader.close()


def test_no_id_stands_on_disk_and_the_secret_is_private(tmp_path: Path) -> None:
    store = LmdbIdentity(tmp_path, map_size=MAP)
    store.assign(["somebody@example.org"])
    store.close()
    assert b"somebody" not in (tmp_path / "data.mdb").read_bytes()
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600


def test_a_lost_secret_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = LmdbIdentity(tmp_path, map_size=MAP)
    store.assign(["a"])
    store.close()
    (tmp_path / SECRET_FILE).unlink()
    with pytest.raises(StoreError, match="Restore it from a backup"):
        LmdbIdentity(tmp_path, map_size=MAP)


def test_recent_users_are_bounded() -> None:
    recent = RecentUsers(10)
    for number in range(100):
        recent.put(str(number), UserKey(number, number))
        recent.get("0")
    assert recent.get("0") == UserKey(0, 0)  # asked for all the time
    assert sum(recent.get(str(number)) is not None for number in range(100)) <= 10
