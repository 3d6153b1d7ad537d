"""What is compared: the same product, with parts of it left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from headwater.schema.config import Config, FreshConfig, Ranker, SourceConfig, Sources, Training
from headwater.schema.durations import parse_delay
from headwater.schema.surfaces import Exploration, Fatigue, Surface

MINUTE_MS = 60_000
EXPLORATION = Exploration(share=0.2, temperature=0.1, candidates=30)


@dataclass(frozen=True)
class Policy:
    """``learns`` says what trains the ranker every day, as ``ranker.learn_from`` does; "": nothing, popular items are shown. ``explores``: a share of
    the lists is drawn by lot, and new items are a source of their own. ``delay_ms``: how late events reach the log; ``daily``: once
    a day, at midnight.
    """

    name: str
    says: str
    learns: Literal["", "auto", "lists", "questions"] = "auto"
    explores: bool = False
    delay_ms: int = 0
    daily: bool = False

    def config(self) -> Config:
        """The configuration that the product runs under; state and features are the same for all."""
        width = SourceConfig(width=100)
        return Config(
            surfaces=(Surface(name="home", exploration=EXPLORATION if self.explores else Exploration()),),
            sources=Sources(
                popular=width, trending=width, covisit=width, content=width,
                fresh=FreshConfig(width=100, enabled=self.explores),
            ),
            ranker=Ranker(
                candidates=120, trees=60, leaves=15, negatives=20, max_rows=60_000, learn_from=self.learns or "auto"
            ),
            training=Training(watermark="1d" if self.daily else f"{5 + self.delay_ms // MINUTE_MS}m"),
            fatigue=Fatigue(impressions=3, window="3d"),
        )  # fmt: skip


POPULAR, BATCH, NO_EXPLORATION, HEADWATER = "popular", "batch", "no-exploration", "headwater"
QUESTIONS = "on-questions"

POLICIES = {
    policy.name: policy
    for policy in (
        Policy(POPULAR, "what is popular, in the visitor's country and on their device, updated at once", learns=""),
        Policy(BATCH, "events arrive once a day, at midnight, and the ranker is trained then", daily=True),
        Policy(NO_EXPLORATION, "events arrive at once; nothing is drawn by lot, new items have no source of their own"),
        Policy(
            HEADWATER,
            "events arrive at once; a fifth of the lists is drawn by lot, new items are a source",
            explores=True,
        ),
        Policy(
            QUESTIONS, "as headwater, the ranker learns clicks against other candidates", "questions", explores=True
        ),
    )
}


def delayed(delay: str) -> Policy:
    """The full system with events that reach the log ``delay`` late ("0s", "10m", "1d").

    Raises:
        ConfigurationError: that is no duration.
    """
    full = POLICIES[HEADWATER]
    return replace(full, name=f"{delay} late", says=f"as headwater, events {delay} late", delay_ms=parse_delay(delay))
