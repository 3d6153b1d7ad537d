"""``[monitoring.online]``: how what people do with lists is measured from the log."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.durations import Duration

_EventName = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_.:\-]*$")]


class OnlineMetrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done with an item within ``attribution`` of a list that showed it counts for that list; lists count for a ``window`` once
    that is over. ``dwell``: the event type whose value is how long something was looked at ("": none is).
    ``new_for``: how long an item is new. ``open_lists``: how many lists may wait for the end of their attribution; with more
    of them fewer users are looked at.
    """

    enabled: bool = True
    window: Duration = "1h"
    attribution: Duration = "10m"
    dwell: _EventName = ""
    new_for: Duration = "3d"
    open_lists: Annotated[int, Meta(ge=100, le=1_000_000)] = 50_000
