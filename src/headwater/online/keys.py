"""The file of API keys: keys are made, listed and revoked here; :mod:`headwater.online.access` asks for them.

A key is ``hw_<id>_<secret>``. The secret is 256 random bits, so one SHA-256 keeps it: nobody can try 2^256 secrets,
and a slow, salted hash, which is for passwords that people choose, would only make every request slow. The id is no
secret. It finds the one hash to compare with, so a request costs one hash however many keys there are.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from headwater.registry.files import read_regular, replace_file, writers_lock
from headwater.schema.errors import ConfigurationError
from headwater.schema.keys import KEYS_FILE, ApiKey, KeyFile, Scope

PREFIX = "hw"
MAX_FILE = 16 * 1024 * 1024

_SECRET_BYTES, _ID_BYTES = 32, 8
_decode = msgspec.json.Decoder(KeyFile).decode


def read_keys(data: Path) -> tuple[ApiKey, ...] | None:
    """All keys that were ever made for ``data``, revoked ones too; None when there never was one.

    Raises:
        ConfigurationError: the file is there and cannot be read.
    """
    path = data / KEYS_FILE
    try:
        return _decode(read_regular(path, MAX_FILE)).keys
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, ConfigurationError) as error:
        raise ConfigurationError(f"{path}: Cannot read the API keys: {error}. Put back a copy of the file") from error


def add_key(
    data: Path,
    name: str,
    scopes: Sequence[Scope],
    *,
    now_ms: int,
    expires_ms: int | None = None,
    public: bool = False,
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[str, ApiKey]:
    """Make a key; returns its text, which is kept nowhere, and what is kept. ``entropy`` gives so many random bytes.

    Raises:
        ConfigurationError: a key of that name is in use, the name is none, or a public one would open too much.
    """
    number = entropy(_ID_BYTES).hex()
    text = f"{PREFIX}_{number}_{base64.urlsafe_b64encode(entropy(_SECRET_BYTES)).rstrip(b'=').decode()}"
    fields = {
        "id": number,
        "name": name,
        "scopes": list(dict.fromkeys(scopes)),
        "sha256": digest_of(text.encode()).hex(),
        "created_ms": now_ms,
        "expires_ms": expires_ms,
        "public": public,
    }
    try:
        key = msgspec.convert(fields, ApiKey)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"keys: {error}") from error
    (data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    with writers_lock(data / "run" / "keys.lock"):
        keys = read_keys(data) or ()
        if any(other.name == name and not other.why_invalid(now_ms) for other in keys):
            raise ConfigurationError(f'keys: "{name}" has a key; choose another name, or revoke that key first')
        _write(data, (*keys, key))
    return text, key


def revoke_key(data: Path, name: str, *, now_ms: int) -> ApiKey:
    """Revoke the key that has ``name`` (or that id) now.

    Raises:
        ConfigurationError: no key in use has that name.
    """
    (data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    with writers_lock(data / "run" / "keys.lock"):
        keys = read_keys(data) or ()
        used = [key for key in keys if key.revoked_ms is None]
        found = [key for key in used if name in (key.name, key.id)]
        if not found:
            close = difflib.get_close_matches(name, [key.name for key in used], n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ": see `headwater keys list`"
            raise ConfigurationError(f'keys: There is no key "{name}" to revoke{hint}')
        gone = msgspec.structs.replace(found[-1], revoked_ms=now_ms)
        _write(data, tuple(gone if key.id == gone.id else key for key in keys))
    return gone


def digest_of(text: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(text).digest()


def id_of_key(text: bytes) -> str:
    """The id in the text of a key; the empty text when it is none."""
    prefix, _, rest = text.partition(b"_")
    number, _, secret = rest.partition(b"_")
    return number.decode("latin-1") if prefix == PREFIX.encode() and secret else ""


def _write(data: Path, keys: tuple[ApiKey, ...]) -> None:
    content = msgspec.json.format(msgspec.json.encode(KeyFile(keys=keys)), indent=2) + b"\n"
    replace_file(data / KEYS_FILE, content, mode=0o600)
