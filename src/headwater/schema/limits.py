"""How much one caller may ask and one user may say."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.events import Name


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of each API process, which counts on its own.

    ``requests_per_s`` (0: no limit) is what a key may ask in the long run, ``burst`` what it may ask at once.
    ``user_events_per_hour``: the most events of a type that count of one user in an hour; a type that is not named has no cap.
    """

    requests_per_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    user_events_per_hour: dict[Name, Annotated[int, Meta(ge=1, le=1_000_000_000)]] = {}
