"""API keys as they are kept, and what they may open."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Millis, Name

KEYS_FILE = "keys.json"  # in the data directory


class Scope(StrEnum):
    """What a key may do. None of them contains another: an admin key reads nothing unless it has ``read`` too."""

    INGEST = "ingest"
    RECOMMEND = "recommend"
    READ = "read"
    ADMIN = "admin"


PUBLIC_SCOPES = frozenset({Scope.INGEST, Scope.RECOMMEND})


class ApiKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key: who has it, what it opens and until when; ``sha256`` is the hash of its text, which is kept nowhere.

    A ``public`` one may stand in a page, where everybody reads it: of what its scopes open it opens
    what one visitor needs for themself (``PUBLIC`` in :mod:`headwater.online.access`).
    """

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    name: Name
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=len(Scope))]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    created_ms: Millis
    expires_ms: Millis | None = None
    revoked_ms: Millis | None = None
    public: bool = False

    def __post_init__(self) -> None:
        if self.public and (more := set(self.scopes) - PUBLIC_SCOPES):
            raise ConfigurationError(
                f"A public key has the scopes {' and '.join(sorted(PUBLIC_SCOPES))} at most, not {', '.join(sorted(more))}"
            )

    def why_invalid(self, now_ms: int) -> str:
        """ "was revoked", "has expired", or the empty text for a key that is good at ``now_ms``."""
        if self.revoked_ms is not None:
            return "was revoked"
        return "has expired" if self.expires_ms is not None and self.expires_ms <= now_ms else ""


class KeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of all keys. Revoked ones stay in it: a server with a key file is never open, whatever became of its keys."""

    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()

    def __post_init__(self) -> None:
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ConfigurationError("two keys have the same id")
