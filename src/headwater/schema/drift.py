"""When served rows count as drifted."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headwater.schema.durations import Duration


class Drift(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What drift is judged by.

    The first ``reference`` of what a bundle served, at least ``min_rows`` rows of it, is what later windows of at least ``window`` and
    ``min_rows`` are held against. ``alpha`` is the chance of any false alarm in the life of a reference, all columns and windows together;
    ``floor`` the smallest PSI that is worth one. Outcomes count for ``outcome_window`` after a list, or until the log shows that no more come.
    """

    reference: Duration = "1d"
    window: Duration = "1h"
    min_rows: Annotated[int, Meta(ge=100, le=10_000_000)] = 2_000
    alpha: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.01
    floor: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.02
    outcome_window: Duration = "30m"
