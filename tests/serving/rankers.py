"""Rankers that do what a test says, and clocks that stand or run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass
class Stalling:
    """Scores rows by their first column, once ``go`` is set; real threads wait in it. Knows how often it was called.

    ``interruptible``: the next call that ends, ends with an error, as one that was told to stop does.
    """

    columns: tuple[str, ...]
    interruptible: bool = False
    go: threading.Event = field(default_factory=threading.Event)
    calls: int = 0
    ended: int = 0
    given: Features | None = None

    def __post_init__(self) -> None:
        self.go.set()

    @property
    def attends(self) -> bool:
        return False

    def score(self, features: Features, attention: Attention | None = None) -> Scores:  # noqa: ARG002
        self.calls += 1
        self.given = features
        self.go.wait()
        try:
            if self.interruptible:
                self.interruptible = False
                raise RankerError("told to stop")
            return features[:, 0].copy()
        finally:
            self.ended += 1

    def close(self) -> None:
        """There is nothing to let go of."""
