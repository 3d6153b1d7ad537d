"""``[[surfaces]]``: the places that show a list, and how a list of theirs is put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from headwater.schema.durations import Duration
from headwater.schema.errors import ConfigurationError
from headwater.schema.events import Name
from headwater.schema.strict import nearest

MOST_IMPRESSIONS = 255

_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Impressions = Annotated[int, Meta(ge=0, le=MOST_IMPRESSIONS)]


class Exploration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lists are drawn by lot: of a ``share`` of the requests, from the best ``candidates``, the more evenly the higher
    the ``temperature``; of ``uniform`` further ones from all candidates, each as likely as the other. See ``policy.exploration``.
    """

    share: _Share = 0.0
    uniform: _Share = 0.0
    temperature: Annotated[float, Meta(ge=0.01, le=100.0)] = 0.2
    candidates: Annotated[int, Meta(ge=2, le=1_000)] = 50

    def rates(self, factor: float) -> tuple[float, float]:
        """``share`` and ``uniform`` times ``factor``, or as much of it as there are requests."""
        both = self.share + self.uniform
        if factor == 1.0 or both == 0.0:
            return self.share, self.uniform
        factor = min(factor, 1.0 / both)
        return self.share * factor, self.uniform * factor


class Fatigue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of an item that a user was shown ``impressions`` times (0: nothing) and did not touch, until it was not shown for
    a ``window``. ``types`` are the events that say that an item was shown; one of positive weight is a touch. ``size`` items are
    remembered of a user.
    """

    impressions: _Impressions = 0
    window: Duration = "7d"
    action: Literal["bury", "drop"] = "bury"
    factor: Annotated[float, Meta(ge=0.001, lt=1.0)] = 0.1
    types: Annotated[tuple[Name, ...], Meta(min_length=1)] = ("impression",)
    size: Annotated[int, Meta(ge=1, le=1_024)] = 32

    def on(self, surface: Surface) -> tuple[int, Literal["bury", "drop", "none"]]:
        """(impressions, action) on ``surface``."""
        own = surface.fatigue
        if not self.impressions:
            return 0, "none"
        return own.impressions or self.impressions, self.action if own.action == "default" else own.action


class SurfaceFatigue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a surface does otherwise; 0 and "default": as ``[fatigue]`` says."""

    impressions: _Impressions = 0
    action: Literal["default", "bury", "drop", "none"] = "default"


class Shaping(Struct, frozen=True, kw_only=True):
    """The part of a surface that shapes a ranked list; servers take it up with the rules."""

    diversity: float = 0.0
    diversity_by: Literal["mmr", "dpp"] = "mmr"
    exploration: Exploration = Exploration()
    fatigue: SurfaceFatigue = SurfaceFatigue()


class Surface(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place that shows a list. ``sources`` absent: all that are enabled. ``diversity``: what difference counts beside rank,
    by maximal marginal relevance or a determinantal point process. ``objective``: what each head of the ranker counts,
    in place of the bundle's own weights.

    ``about = "latest"``: the list is about the item that the user turned to last ("because you…"), unless the request
    names items.
    """

    name: Name
    about: Literal["nothing", "latest"] = "nothing"
    k: Annotated[int, Meta(ge=1, le=200)] = 20
    sources: tuple[str, ...] | None = None
    diversity: _Share = 0.0
    diversity_by: Literal["mmr", "dpp"] = "mmr"
    exploration: Exploration = Exploration()
    fatigue: SurfaceFatigue = SurfaceFatigue()
    objective: dict[Name, Annotated[float, Meta(ge=-1e6, le=1e6)]] = {}

    @property
    def shaping(self) -> Shaping:
        """How it shapes a ranked list."""
        return Shaping(
            diversity=self.diversity, diversity_by=self.diversity_by, exploration=self.exploration, fatigue=self.fatigue
        )

    def shaped(self, shaping: Shaping) -> Surface:
        """The same place with another ``shaping``."""
        return replace(
            self, diversity=shaping.diversity, diversity_by=shaping.diversity_by, exploration=shaping.exploration,
            fatigue=shaping.fatigue,
        )  # fmt: skip

    def __post_init__(self) -> None:
        if self.exploration.share and self.diversity and self.diversity_by == "dpp":
            raise ConfigurationError(
                f'surfaces: surface "{self.name}" cannot have both diversity_by = "dpp" and exploration: the point process chooses '
                'items together, so that a list drawn one by one is none of its lists. Take diversity_by = "mmr", or share = 0'
            )
        if self.exploration.share + self.exploration.uniform > 1.0:
            raise ConfigurationError(
                f'surfaces: exploration of surface "{self.name}": share and uniform are parts of its requests, and '
                f"{self.exploration.share:g} + {self.exploration.uniform:g} is more than all of them"
            )
        if self.objective and not any(self.objective.values()):
            raise ConfigurationError(
                f'surfaces: the objective of surface "{self.name}" is 0 for every head, so that nothing is better than anything'
            )


def check_fatigue(fatigue: Fatigue, surfaces: Sequence[Surface], types: Sequence[str]) -> None:
    """Whether ``[fatigue]`` fits the surfaces and the event types.

    Raises:
        ConfigurationError: it does not.
    """
    if not fatigue.impressions:
        if any(surface.fatigue != SurfaceFatigue() for surface in surfaces):
            raise ConfigurationError(
                "fatigue.impressions: Expected at least 1 where a surface has a fatigue of its own"
            )
        return
    for name in fatigue.types:
        if name not in types:
            raise ConfigurationError(f'fatigue.types: There is no event type "{name}"{nearest(name, types)}')
