"""The identity store: who a dense user number is. The one place that ties history to a person.

A user has a dense number from 1, a random surrogate (u64, never 0, unique) and a random key of 32 bytes.
External ids are never stored: the lookup key is BLAKE2b-128 of the id, keyed with a secret that stands
in a file of its own (mode 0600). Erasing removes mapping, surrogate and key; history that was encrypted
with the key is then noise. LMDB frees pages without wiping them, so the store does that itself (:mod:`scrub`);
what may stay is a keyed hash alone, as a signpost in the tree of the ids, which leads to nobody.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import lmdb
import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headwater.log.environment import DEFAULT_MAP_GIB, GIB, StoreError, open_environment
from headwater.log.scrub import scrub, standing_readers
from headwater.schema.errors import HeadwaterError

KEY_SIZE = 32
CACHE_SIZE = 262_144
AGREED_SIZE = 65_536
SECRET_FILE = "secret.key"  # noqa: S105 (a file's name)

_NONCE = 12
_MAX_USER = 2**32 - 1
_NEXT = b"next"
_UNWIPED = b"unwiped"  # of the meta table: the transaction whose deletions are still in the file


class UserKey(NamedTuple):
    """How history knows a user."""

    user: int
    surrogate: int


class Assigned(NamedTuple):
    """Dense numbers and surrogates, row by row."""

    user: npt.NDArray[np.uint32]
    surrogate: npt.NDArray[np.uint64]


class IdentityStore(Protocol):
    """Maps external ids to dense numbers and surrogates, and holds the users' keys."""

    def lookup(self, external: str) -> UserKey | None:
        """The user behind an external id, None when unknown or erased."""
        ...

    def assign(self, externals: Sequence[str]) -> Assigned:
        """Look up all ids, making new users where needed; new ones are durable on return."""
        ...

    def encrypt(self, user: int, plain: bytes) -> bytes:
        """AES-256-GCM under the user's key: nonce (12) + ciphertext + tag (16). Raises ``KeyError`` if erased."""
        ...

    def decrypt(self, user: int, sealed: bytes) -> bytes | None:
        """The plain bytes, None when the key is destroyed. Raises :class:`SealError` on damaged bytes."""
        ...

    def begin_erasure(self, externals: Sequence[str]) -> list[UserKey]:
        """Note durably that these users are to be erased; returns those that exist."""
        ...

    def erasing(self) -> list[UserKey]:
        """Users whose erasure was begun and not finished."""
        ...

    def finish_erasure(self) -> None:
        """Destroy mapping, surrogate and key of all users in :meth:`erasing`."""
        ...

    def wipe(self) -> bool:
        """Overwrite what destroyed keys left in the store's file; whether nothing of them is left.

        False: a process still reads what was there before; call again later.
        """
        ...

    def close(self) -> None:
        """Release what the store holds open."""
        ...


class SealError(HeadwaterError):
    """Encrypted bytes are damaged or belong to another user."""


class RecentUsers:
    """Positive lookups, bounded to about ``size``: two generations, the older is dropped when the younger is full."""

    def __init__(self, size: int) -> None:
        self._half = max(1, size // 2)
        self._young: dict[str, UserKey] = {}
        self._old: dict[str, UserKey] = {}

    def get(self, external: str) -> UserKey | None:
        found = self._young.get(external)
        if found is None:
            found = self._old.get(external)
            if found is not None:
                self.put(external, found)
        return found

    def put(self, external: str, key: UserKey) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[external] = key

    def clear(self) -> None:
        self._young, self._old = {}, {}


@dataclass(frozen=True, slots=True)
class _Tables:
    users: lmdb._Database  # keyed hash of the external id (16) → user u32 BE, surrogate u64 BE
    keys: lmdb._Database  # user u32 BE → key (32), keyed hash (16)
    surrogates: lmdb._Database  # surrogate u64 BE → user u32 BE
    erasing: lmdb._Database  # user u32 BE → surrogate u64 BE
    meta: lmdb._Database


class LmdbIdentity:
    """An :class:`IdentityStore` in its own LMDB environment in folder ``path``; other processes open it read-only."""

    def __init__(
        self,
        path: Path,
        *,
        readonly: bool = False,
        map_size: int = DEFAULT_MAP_GIB * GIB,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._path, self._map_size = path, map_size
        self._readonly = readonly
        self._entropy = entropy
        self._recent = RecentUsers(CACHE_SIZE)
        self._agreed: set[int] = set()  # hashes of entries that were checked: they lead to nobody who was erased
        self._open()
        try:
            with self._env.begin(db=self._tables.meta) as txn:
                empty = txn.get(_NEXT) is None
            # a new secret beside old users would lose them all without a word
            self._hasher = hashlib.blake2b(digest_size=16, key=_secret(path, entropy, create=not readonly and empty))
        except StoreError:
            self._shared.close()
            raise

    def _open(self) -> None:
        self._shared = open_environment(self._path, readonly=self._readonly, map_size=self._map_size)
        self._env = self._shared.lmdb
        create = not self._shared.readonly
        try:
            self._tables = _Tables(
                *(self._env.open_db(n, create=create) for n in (b"users", b"keys", b"surrogates", b"erasing", b"meta"))
            )
        except lmdb.Error as error:
            self._shared.close()
            raise StoreError(f"{self._path} holds no identity store: {error}") from error

    def _hash(self, external: str) -> bytes:
        hasher = self._hasher.copy()
        hasher.update(external.encode())
        return hasher.digest()

    def lookup(self, external: str) -> UserKey | None:
        hashed = self._hash(external)
        with self._env.begin(db=self._tables.users) as txn:
            stored = txn.get(hashed)
            if stored is None:
                return None
            if (entry := hash(hashed + stored)) in self._agreed:
                return _user_key(stored)
            key = self._checked(txn, hashed, stored)
        if len(self._agreed) >= AGREED_SIZE:
            self._agreed.clear()
        self._agreed.add(entry)
        return key

    def with_surrogate(self, surrogate: int) -> UserKey | None:
        """The user that history calls ``surrogate``, None when unknown or erased."""
        with self._env.begin(db=self._tables.surrogates) as txn:
            found = txn.get(surrogate.to_bytes(8, "big"))
        return None if found is None else UserKey(int.from_bytes(found, "big"), surrogate)

    def _checked(self, txn: lmdb.Transaction[bytes], hashed: bytes, stored: bytes) -> UserKey:
        """The numbers in an entry, which carries no checksum: what leads from them back must lead to the same hash.

        Raises:
            StoreError: it does not.
        """
        key = _user_key(stored)
        back = txn.get(stored[:4], db=self._tables.keys)
        if back is None or back[KEY_SIZE:] != hashed or txn.get(stored[4:], db=self._tables.surrogates) != stored[:4]:
            raise StoreError(
                f"{self._path} is damaged: the entries of user {key.user} do not agree. Restore it from a backup"
            )
        return key

    def assign(self, externals: Sequence[str]) -> Assigned:
        found = [self._recent.get(external) for external in externals]
        missing = dict.fromkeys(external for external, key in zip(externals, found, strict=True) if key is None)
        if missing:
            resolved = self._resolve(list(missing))
            for external, key in resolved.items():
                self._recent.put(external, key)
            found = [key or resolved[external] for external, key in zip(externals, found, strict=True)]
        return _columns([key for key in found if key is not None])

    def _resolve(self, externals: list[str]) -> dict[str, UserKey]:
        hashes = {external: self._hash(external) for external in externals}
        with self._env.begin(db=self._tables.users) as txn, txn.cursor() as cursor:
            stored = dict(cursor.getmulti(sorted(hashes.values())))
            resolved = {e: self._checked(txn, h, stored[h]) for e, h in hashes.items() if h in stored}
        new = [external for external in externals if external not in resolved]
        if new:
            resolved.update(zip(new, self._create([hashes[external] for external in new]), strict=True))
        return resolved

    def _create(self, hashes: list[bytes]) -> list[UserKey]:
        if self._readonly:
            raise StoreError(f"{self._shared.path} was opened for reading")
        n, tables = len(hashes), self._tables
        secrets = self._entropy(KEY_SIZE * n)
        with self._env.begin(write=True) as txn:
            first = int.from_bytes(txn.get(_NEXT, b"\0\0\0\1", db=tables.meta), "big")
            if first + n > _MAX_USER:
                raise StoreError(f"There is room for {_MAX_USER} users")
            users = [number.to_bytes(4, "big") for number in range(first, first + n)]
            surrogates = self._fresh_surrogates(txn, users)
            with txn.cursor(db=tables.users) as cursor:
                cursor.putmulti(sorted(zip(hashes, map(bytes.__add__, users, surrogates), strict=True)))
            with txn.cursor(db=tables.keys) as cursor:
                slices = (secrets[at : at + KEY_SIZE] for at in range(0, KEY_SIZE * n, KEY_SIZE))
                cursor.putmulti([(u, k + h) for u, k, h in zip(users, slices, hashes, strict=True)], append=True)
            txn.put(_NEXT, (first + n).to_bytes(4, "big"), db=tables.meta)
        return [UserKey(first + i, int.from_bytes(s, "big")) for i, s in enumerate(surrogates)]

    def _fresh_surrogates(self, txn: lmdb.Transaction[bytes], users: list[bytes]) -> list[bytes]:
        """A random surrogate per user that no other has, stored."""
        raw = self._entropy(8 * len(users))
        drawn = [raw[at : at + 8] for at in range(0, len(raw), 8)]
        none = bytes(8)
        with txn.cursor(db=self._tables.surrogates) as cursor:
            if len(set(drawn)) == len(drawn) and none not in drawn:
                pairs = sorted(zip(drawn, users, strict=True))
                if cursor.putmulti(pairs, overwrite=False)[1] == len(users):
                    return drawn
            # a collision (one chance in 2^64 per pair of users): settle it user by user
            settled: list[bytes] = []
            for user, first in zip(users, drawn, strict=True):
                surrogate = first
                while surrogate == none or not (
                    cursor.put(surrogate, user, overwrite=False) or cursor.get(surrogate) == user
                ):
                    surrogate = self._entropy(8)
                settled.append(surrogate)
        return settled

    def key_of(self, user: int) -> bytes | None:
        """The key of a user, None when it is destroyed. Of use to who must see that it is gone."""
        return self._key(user)

    def _key(self, user: int) -> bytes | None:
        with self._env.begin(db=self._tables.keys) as txn:
            stored = txn.get(user.to_bytes(4, "big"))
        return None if stored is None else stored[:KEY_SIZE]

    def encrypt(self, user: int, plain: bytes) -> bytes:
        key = self._key(user)
        if key is None:
            raise KeyError(user)
        return _seal(key, user, plain, self._entropy(_NONCE))

    def decrypt(self, user: int, sealed: bytes) -> bytes | None:
        key = self._key(user)
        return None if key is None else _unseal(key, user, sealed)

    def begin_erasure(self, externals: Sequence[str]) -> list[UserKey]:
        found = [key for key in map(self.lookup, dict.fromkeys(externals)) if key is not None]
        self.mark_erasing(found)
        return found

    def mark_erasing(self, keys: Sequence[UserKey]) -> None:
        """Note durably that these users are to be erased, by the numbers that history knows them by."""
        if keys:
            with self._env.begin(db=self._tables.erasing, write=True) as txn:
                for key in keys:
                    txn.put(key.user.to_bytes(4, "big"), key.surrogate.to_bytes(8, "big"))

    def erasing(self) -> list[UserKey]:
        with self._env.begin(db=self._tables.erasing) as txn, txn.cursor() as cursor:
            return [UserKey(int.from_bytes(u, "big"), int.from_bytes(s, "big")) for u, s in cursor.iternext()]

    def finish_erasure(self) -> None:
        tables = self._tables
        with self._env.begin(write=True) as txn:
            with txn.cursor(db=tables.erasing) as cursor:
                marked = list(cursor.iternext())
            for user, surrogate in marked:
                stored = txn.pop(user, db=tables.keys)
                if stored is not None:
                    txn.delete(stored[KEY_SIZE:], db=tables.users)
                txn.delete(surrogate, db=tables.surrogates)
                txn.delete(user, db=tables.erasing)
            txn.put(_UNWIPED, txn.id().to_bytes(8, "big"), db=tables.meta)
        self._recent.clear()

    def wipe(self) -> bool:
        with self._env.begin(db=self._tables.meta) as txn:
            stored = txn.get(_UNWIPED)
        if stored is None:
            return True
        since, here = int.from_bytes(stored, "big"), os.getpid()
        readers = standing_readers(self._env)
        if self._shared.holders > 1 or any(pid == here for pid, _ in readers):
            return False  # somebody in this process would lose the environment
        if any(snapshot < since for _, snapshot in readers):
            return False
        # the pages that LMDB keeps in memory for the next commits hold deleted entries too: they go with it
        self._shared.close()
        self._open()
        with self._env.begin(db=self._tables.meta, write=True) as txn:
            txn.put(_UNWIPED, stored)  # a commit: now both meta pages have left behind what is to be wiped
        done = scrub(self._env, self._shared.path, since)
        if done.reader:
            return False
        with self._env.begin(db=self._tables.meta, write=True) as txn:
            txn.delete(_UNWIPED)
        return True

    def close(self) -> None:
        self._shared.close()


class MemoryIdentity:
    """An :class:`IdentityStore` for tests, evaluation and the simulator; it keeps the ids in clear."""

    def __init__(self, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy
        self._users: dict[str, UserKey] = {}
        self._keys: dict[int, bytes] = {}
        self._surrogates: set[int] = {0}
        self._erasing: dict[int, UserKey] = {}
        self._next = 1

    def lookup(self, external: str) -> UserKey | None:
        return self._users.get(external)

    def assign(self, externals: Sequence[str]) -> Assigned:
        keys = [self._users.get(external) or self._create(external) for external in externals]
        return _columns(keys)

    def _create(self, external: str) -> UserKey:
        surrogate = 0
        while surrogate in self._surrogates:
            surrogate = int.from_bytes(self._entropy(8), "big")
        self._surrogates.add(surrogate)
        key = self._users[external] = UserKey(self._next, surrogate)
        self._keys[key.user] = self._entropy(KEY_SIZE)
        self._next += 1
        return key

    def encrypt(self, user: int, plain: bytes) -> bytes:
        return _seal(self._keys[user], user, plain, self._entropy(_NONCE))

    def decrypt(self, user: int, sealed: bytes) -> bytes | None:
        key = self._keys.get(user)
        return None if key is None else _unseal(key, user, sealed)

    def begin_erasure(self, externals: Sequence[str]) -> list[UserKey]:
        found = [self._users[e] for e in dict.fromkeys(externals) if e in self._users]
        self._erasing.update((key.user, key) for key in found)
        return found

    def erasing(self) -> list[UserKey]:
        return list(self._erasing.values())

    def finish_erasure(self) -> None:
        self._users = {e: key for e, key in self._users.items() if key.user not in self._erasing}
        for key in self._erasing.values():
            self._keys.pop(key.user, None)
            self._surrogates.discard(key.surrogate)
        self._erasing.clear()

    def wipe(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held open."""


def _columns(keys: Sequence[UserKey]) -> Assigned:
    pairs = np.fromiter(chain.from_iterable(keys), np.uint64, 2 * len(keys)).reshape(-1, 2)
    return Assigned(pairs[:, 0].astype(np.uint32), np.ascontiguousarray(pairs[:, 1]))


def _user_key(stored: bytes) -> UserKey:
    return UserKey(int.from_bytes(stored[:4], "big"), int.from_bytes(stored[4:], "big"))


def _seal(key: bytes, user: int, plain: bytes, nonce: bytes) -> bytes:
    return nonce + AESGCM(key).encrypt(nonce, plain, user.to_bytes(4, "big"))


def _unseal(key: bytes, user: int, sealed: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], user.to_bytes(4, "big"))
    except (InvalidTag, ValueError) as error:
        raise SealError(f"A payload of user {user} cannot be decrypted: its bytes are damaged") from error


def _secret(path: Path, entropy: Callable[[int], bytes], *, create: bool) -> bytes:
    """The lookup secret beside the store; made once, readable by its owner alone."""
    file = path / SECRET_FILE
    if not file.exists():
        if not create:
            raise StoreError(f"{file} is missing: without it nobody can be looked up. Restore it from a backup.")
        staged = path / (SECRET_FILE + ".new")
        staged.unlink(missing_ok=True)
        handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, entropy(KEY_SIZE))
            os.fsync(handle)
        finally:
            os.close(handle)
        staged.rename(file)
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    secret = file.read_bytes()
    if len(secret) != KEY_SIZE:
        raise StoreError(f"{file} is damaged: expected {KEY_SIZE} bytes, found {len(secret)}")
    return secret
