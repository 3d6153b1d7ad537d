"""Rankers that do what a test says, and clocks that stand or run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headwater.features.plan import Plan
from headwater.ranking.ranker import Attention, Features, RankerError, Scores
from headwater.serving.model import Model


@dataclass
class ByRule:
    """Scores rows with ``rule``; remembers what it was given."""

    columns: tuple[str, ...]
    rule: Callable[[Features], Scores]
    given: Features | None = None

    @property
    def attends(self) -> bool:
        return False

    def score(self, features: Features, attention: Attention | None = None) -> Scores:  # noqa: ARG002
        self.given = features.copy()
        return self.rule(features)

    def close(self) -> None:
        """There is nothing to let go of."""


def by_column(plan: Plan, column: str, *, ascending: bool = False) -> Model:
    """A model that orders by one column."""
    at, sign = plan.columns.index(column), -1.0 if ascending else 1.0
    return Model("by-column", ByRule(plan.columns, lambda rows: np.float32(sign) * rows[:, at]))


def failing(plan: Plan) -> Model:
    def fail(_: Features) -> Scores:
        raise RankerError("out of trees")

    return Model("failing", ByRule(plan.columns, fail))


def giving(plan: Plan, value: float) -> Model:
    """A model that gives every row the same score."""
    return Model("giving", ByRule(plan.columns, lambda rows: np.full(len(rows), value, np.float32)))


class SteppingTimer:
    """Every look at the clock finds it ``step_ms`` later."""

    def __init__(self, step_ms: float) -> None:
        self.seconds, self.step_ms = 0.0, step_ms

    def __call__(self) -> float:
        self.seconds += self.step_ms / 1e3
        return self.seconds
