"""What is changed by hand or by an alert while a server runs, and taken back again: it is no configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.events import Millis

CONTROLS_FILE = "controls.json"  # in the data directory
LOWEST_TIER = 4


class Controls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The controls of a data directory. The defaults are those of a system that is well.

    ``tier_floor``: answers come from this tier of the ladder or a lower one. ``exploration``: a factor on the exploration
    rate of each surface; a rate stays at most 1. ``promotion_frozen``: why no bundle may be promoted ("": it may).
    ``retrain_asked_ms``: the learner starts a round at once when this is newer than its last.
    """

    tier_floor: Annotated[int, Meta(ge=0, le=LOWEST_TIER)] = 0
    exploration: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
    promotion_frozen: Annotated[str, Meta(max_length=500)] = ""
    retrain_asked_ms: Millis = 0
