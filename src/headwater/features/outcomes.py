"""How often an item was shown, and what came of it: exact counts in item rows, kept where something explores by them."""

from __future__ import annotations

from typing import NamedTuple

from headwater.features.aggregations import SERVED, Counted, Decayed
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration


class Outcomes(NamedTuple):
    """The aggregations: impressions and positive events of an item ever, and the impressions of late (of everybody: the traffic)."""

    shown: Counted
    liked: Counted
    traffic: Decayed


class OutcomeCells(NamedTuple):
    """Where they lie in an item row: ``shown`` and ``liked`` u4 positions, ``traffic`` f4 position, which fades with half-life
    number ``life``. ``served``: impressions are places of served lists.
    """

    shown: int
    liked: int
    traffic: int
    life: int
    served: bool


def kept_outcomes(config: Config) -> Outcomes | None:
    """What the state of ``config`` keeps of outcomes; None: nothing asks for it."""
    promise = config.new_items
    if not promise.impressions and config.sources.fresh.order != "thompson":
        return None
    shown = (SERVED,) if promise.counted_by == "served" else promise.types
    liked = tuple(kind.name for kind in config.events if kind.positive)
    shortest = min(parse_duration(text) for text in config.features.item_half_lives)
    return Outcomes(
        Counted("item", shown), Counted("item", liked), Decayed("item", shown, (1.0,) * len(shown), shortest)
    )
