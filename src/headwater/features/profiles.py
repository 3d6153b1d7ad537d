"""Profiles, opened for the fold with the keys of the identity store."""

from __future__ import annotations

import threading
from pathlib import Path

from headwater.log.identity import LmdbIdentity


class Profiles:
    """Opens sealed profiles with the identity store of a data directory, which is opened when the first one comes.

    ``None`` for a user who was erased: the key is gone. Safe to call from several threads.
    """

    def __init__(self, data: Path) -> None:
        self._path = data / "identity"
        self._store: LmdbIdentity | None = None
        self._lock = threading.Lock()

    def __call__(self, user: int, sealed: bytes) -> bytes | None:
        with self._lock:
            if self._store is None:
                self._store = LmdbIdentity(self._path, readonly=True)
        return self._store.decrypt(user, sealed)

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()
            self._store = None
