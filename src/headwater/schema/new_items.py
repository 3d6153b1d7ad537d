"""``[new_items]``: what every new item is promised, so that it can show what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from headwater.schema.durations import Duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name
from headwater.schema.strict import nearest


class NewItems(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each item is promised ``impressions`` (0: none) ``within`` so long of being published or first seen, on lists of ``surfaces``, of
    whose places at most a ``share`` is given away. Users whose recent items are like it come first, the more so the larger ``fit``; one to
    whose recent items it has a likeness below ``least_fit`` is shown it only when it is behind its schedule. An item whose rate is above ``bar`` times that of the
    catalogue with a probability below ``doubt`` is given no more.

    Impressions are events of ``types``, or, ``counted_by`` "served", places of lists that were served.
    """

    impressions: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    within: Duration = "1d"
    surfaces: Annotated[tuple[Name, ...], Meta(min_length=1)] = ("home",)
    share: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.1
    fit: Annotated[float, Meta(ge=0.0, le=20.0)] = 3.0
    least_fit: Annotated[float, Meta(ge=-1.0, le=1.0)] = 0.0
    bar: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    doubt: Annotated[float, Meta(ge=0.0, le=0.3)] = 0.05
    counted_by: Literal["events", "served"] = "events"
    types: Annotated[tuple[Name, ...], Meta(min_length=1)] = ("impression",)


def check_new_items(
    said: NewItems, surfaces: Sequence[str], types: Sequence[str], *, drawn: bool, log_served: bool
) -> None:  # fmt: skip
    """Whether ``[new_items]`` fits the surfaces and the event types. ``drawn``: the source of new items draws by what it counts.

    Raises:
        ConfigurationError: it does not.
    """
    if not said.impressions and not drawn:
        return
    if said.counted_by == "events":
        _known("new_items.types", "event type", said.types, types)
    if said.impressions:
        _known("new_items.surfaces", "surface", said.surfaces, surfaces)
    if not log_served and (said.impressions or said.counted_by == "served"):
        raise ConfigurationError(
            "serving.log_served: Expected true where new items are promised impressions, or these are counted by what was served: places are "
            "given by lot, and propensities that are not logged are lost"
        )


def _known(key: str, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigurationError(f'{key}: There is no {what} "{name}"{nearest(name, known)}')
