"""``[log]``, ``[state]`` and ``[retention]``: where records and state are kept, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from headwater.schema.models import Limit
from headwater.schema.urls import STATE_SCHEMES, check_url


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The event log: event ids remembered, largest size, rows of an import committed together, disk kept free."""

    dedup_window: Annotated[int, Meta(ge=1_000, le=1_000_000_000)] = 4_000_000
    map_size_gib: Annotated[float, Meta(ge=0.0625, le=65_536.0)] = 64.0
    max_batch: Annotated[int, Meta(ge=1, le=1_000_000)] = 262_144
    min_free_mb: Annotated[float, Meta(ge=0.0, le=1e9)] = 64.0


class State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where state is kept: in files below the data directory, or in Redis, spread over ``partitions``.

    ``timeout_ms`` is how long a server waits for Redis before it answers without the user's row.
    """

    store: Literal["lmdb", "redis"] = "lmdb"
    url: Annotated[str, Meta(max_length=4_096)] = "redis://127.0.0.1:6379/0"
    partitions: Annotated[int, Meta(ge=1, le=4_096)] = 8
    timeout_ms: Annotated[float, Meta(ge=1.0, le=10_000.0)] = 50.0

    def __post_init__(self) -> None:
        check_url("state.url", self.url, STATE_SCHEMES)


class Retention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long records stay in the log and in the lake; `headwater retain` applies it."""

    log: Limit = "never"
    lake: Limit = "never"
