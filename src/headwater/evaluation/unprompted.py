"""A ranker that is asked just before a click, without the columns that the click's own impression gives away."""

from __future__ import annotations

from dataclasses import replace

from headwater.features.plan import Plan
from headwater.learning.giveaways import withheld
from headwater.ranking.ranker import Attention, Features, Ranker, Scores
from headwater.schema.config import Config
from headwater.serving.model import Model


class Unprompted:
    """``ranker`` with the :func:`~headwater.learning.giveaways.giveaways` of each row at their defaults.

    Who learnt from questions makes no use of them; who learnt from lists would take what was shown a moment ago for an item that
    was shown before and left.
    """

    def __init__(self, ranker: Ranker, plan: Plan, config: Config) -> None:
        self._ranker, self._plan, self._config = ranker, plan, config

    @property
    def columns(self) -> tuple[str, ...]:
        return self._ranker.columns

    @property
    def attends(self) -> bool:
        return self._ranker.attends

    def score(self, features: Features, attention: Attention | None = None) -> Scores:
        with withheld(features, self._plan, self._config):
            return self._ranked(features, attention)

    def _ranked(self, features: Features, attention: Attention | None) -> Scores:
        return self._ranker.score(features, attention)

    def close(self) -> None:
        self._ranker.close()


def unprompted(model: Model, plan: Plan, config: Config) -> Model:
    """``model`` as it is asked just before a click."""
    return model if model.ranker is None else replace(model, ranker=Unprompted(model.ranker, plan, config))
