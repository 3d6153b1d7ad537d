"""The API keys of a server, managed from the console: as ``headwater keys`` does, and in force in this worker at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from headwater.online.access import Access
from headwater.online.keys import add_key, read_keys, revoke_key
from headwater.schema.keys import ApiKey, Scope


class ConsoleKeyRing:
    """The keys of ``data``, which ``access`` follows. ``wall`` is the wall's time in Unix ms, by which keys expire."""

    def __init__(self, data: Path, access: Access, wall: Callable[[], int]) -> None:
        self._data, self._access, self._wall = data, access, wall

    def keys(self) -> Sequence[ApiKey]:
        """All that were ever made, revoked ones too. Raises :class:`ConfigurationError`: they cannot be read."""
        return read_keys(self._data) or ()

    def add(self, name: str, scopes: Sequence[Scope], *, expires_ms: int | None, public: bool) -> tuple[str, ApiKey]:
        """Make one; returns its text, which is kept nowhere. Raises :class:`ConfigurationError`."""
        made = add_key(self._data, name, scopes, now_ms=self._wall(), expires_ms=expires_ms, public=public)
        self._access.refresh()
        return made

    def revoke(self, number: str) -> ApiKey:
        """End the key of that id. Raises :class:`ConfigurationError`: there is none in use."""
        gone = revoke_key(self._data, number, now_ms=self._wall())
        self._access.refresh()
        return gone
