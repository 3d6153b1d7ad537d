"""Who is at the console: a session in a signed cookie, and the token that every change must carry.

Sessions are kept nowhere, so any worker reads them: the cookie says whose key it was, until when, and a number of its own, and
a secret of the data directory signs that. The key is looked up at each request: one that is revoked opens nothing any more.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import ApiKey, Scope

SIGNING_FILE = "console.secret"
SESSION_MS = 12 * 3_600_000
_SECRET_BYTES = 32
_NO_KEY = "-"
_NONCE = 12


class Keys(Protocol):
    """The API keys of the server."""

    def needed(self) -> bool:
        """Whether there are keys; without them everybody on this machine may do everything."""
        ...

    def by_text(self, text: str) -> ApiKey | None:
        """The good key with that text; None: there is none."""
        ...

    def by_id(self, number: str) -> ApiKey | None:
        """The key of that id if it is still good; None: there is none."""
        ...


class Visitor(Struct, frozen=True):
    """Who asks. ``by`` is how the audit log names them, ``csrf`` the token of their session."""

    by: str
    name: str
    scopes: frozenset[Scope]
    csrf: str

    @property
    def may_read(self) -> bool:
        """Whether they may look."""
        return Scope.READ in self.scopes

    @property
    def may_change(self) -> bool:
        """Whether they may change something."""
        return Scope.ADMIN in self.scopes


class Sessions:
    """Makes and reads the cookie. ``clock`` is the wall's time in Unix ms."""

    def __init__(self, secret: bytes, keys: Keys, clock: Callable[[], int]) -> None:
        self._secret, self._keys, self._clock = secret, keys, clock
        self._cipher = AESGCM(hmac.digest(secret, b"seal", hashlib.sha256))

    def open(self, key: ApiKey | None) -> str:
        """The cookie of a new session with ``key`` (None: of one without keys)."""
        said = f"{_NO_KEY if key is None else key.id}.{self._clock() + SESSION_MS}.{secrets.token_hex(16)}"
        return f"{said}.{self._sign('session', said)}"

    def read(self, cookie: str) -> Visitor | None:
        """Whose cookie it is; None: it is none, is too old, or its key is not good any more."""
        said, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", said).encode()):
            return None
        number, until, _ = said.split(".")
        if int(until) <= self._clock():
            return None
        csrf = self._sign("csrf", said)
        if not self._keys.needed():
            return Visitor("console", "everyone on this machine", frozenset(Scope), csrf)
        key = self._keys.by_id(number)
        return None if key is None else Visitor(f"key:{key.id}", key.name, frozenset(key.scopes), csrf)

    def seal(self, visitor: Visitor, said: str) -> str:
        """``said`` as part of an address: nobody reads it there, and it opens in the session of ``visitor`` alone."""
        nonce = os.urandom(_NONCE)
        sealed = self._cipher.encrypt(nonce, said.encode(), visitor.csrf.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def unseal(self, visitor: Visitor, handle: str) -> str | None:
        """What was sealed in this session; None: it was not, or in another."""
        try:
            said = base64.urlsafe_b64decode(handle + "=" * (-len(handle) % 4))
            return self._cipher.decrypt(said[:_NONCE], said[_NONCE:], visitor.csrf.encode()).decode()
        except (ValueError, InvalidTag):
            return None

    def _sign(self, purpose: str, said: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{said}".encode(), hashlib.sha256).hexdigest()


def console_secret(data: Path) -> bytes:
    """The secret that signs the sessions of ``data``; the first process that asks makes it.

    Raises:
        ConfigurationError: the file is there and is not one.
    """
    path = data / SIGNING_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = path.with_name(f"{SIGNING_FILE}.{secrets.token_hex(8)}")
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secrets.token_bytes(_SECRET_BYTES))
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(made, path)  # fails where another process was first
        except FileExistsError:
            pass
        finally:
            made.unlink()
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise ConfigurationError(
            f"{path}: Expected {_SECRET_BYTES} bytes; delete it, and all sessions of the console end"
        )
    return secret
