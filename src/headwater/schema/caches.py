"""``[cache]``: what a worker keeps in memory, how much of it, and for how long."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.durations import Delay, Duration

_Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Cache(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caches of each API process, which keeps its own; ages are by the clock of requests.

    ``result_ttl``: how long an answer may be given again to the same question ("0s": never). ``popular_ttl``: how long a
    list of what is popular, trending or new is taken as it is; for ``popular_stale`` longer it is served while the next one is
    made. ``user_rows`` are those kept of a store that is reached over a network (0: none).
    """

    result_ttl: Delay = "0s"
    result_lists: _Count = 4_096
    popular_ttl: Duration = "500ms"
    popular_stale: Delay = "500ms"
    popular_lists: _Count = 1_024
    user_rows: Annotated[int, Meta(ge=0, le=10_000_000)] = 16_384
