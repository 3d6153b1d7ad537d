"""Ready choices between the quality of a list and what it costs; ``headwater init --preset`` writes one into the file.

What each costs and gains is measured in ``docs/latency.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

Value = str | int | bool


class Preset(StrEnum):
    """Named by what they are for."""

    FASTEST = "fastest"
    BALANCED = "balanced"
    BEST = "best"


# What differs from the defaults, by dotted key.
CHANGES: Mapping[Preset, Mapping[str, Value]] = {
    # no trained ranker: the order of the sources, of few candidates
    Preset.FASTEST: {"ranker.kind": "none", "ranker.candidates": 100},
    # LightGBM over 200 candidates, what the defaults are
    Preset.BALANCED: {},
    # a vector for what the user does next, and the deep ranker over the best of many candidates
    Preset.BEST: {
        "sources.sequence.enabled": True,
        "ranker.kind": "deep",
        "ranker.candidates": 500,
        "ranker.light_keep": 300,
    },
}
