"""The slow, obvious online factors: vectors in dicts, one pair after the other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from headwater.schema.config import Factors
from headwater.testing.oracle_cells import f32, mixed, two_to

_MASK = 2**64 - 1
PLACES = 3  # recent items in a context
RING = 1024


@dataclass(slots=True)
class Vector:
    """Numbers, and the fading sum of the squared gradients that moved them."""

    values: list[float]
    squares: float = 0.0


@dataclass(slots=True)
class SlowFactors:
    """``vectors`` by what they are of: ``("candidate", item)``, ``("recent", item, place)``, ``("segment", key, segment)``, ``("user", user)``.

    ``ring`` has an item (0: none yet) a place; ``count`` events went through it, ``highest`` is the highest item among them.
    """

    settings: Factors
    vectors: dict[Hashable, Vector] = field(default_factory=dict)
    ring: dict[int, int] = field(default_factory=dict)
    count: int = 0
    highest: int = 0

    def of(self, what: Hashable) -> Vector:
        return self.vectors.setdefault(what, Vector([0.0] * self.settings.size))

    def context(self, user: int, recent: Sequence[int], segments: Sequence[int]) -> list[list[Hashable]]:
        """What the recent items, the segments and the user say: the names of the vectors, part by part."""
        return [
            [("recent", item, place) for place, item in enumerate(recent)],
            [("segment", key, segment) for key, segment in enumerate(segments) if 0 < segment <= self.highest],
            [("user", user)],
        ]

    def sums(self, context: list[list[Hashable]]) -> list[list[float]]:
        """The sum of the vectors of each part."""
        return [self._sum([self.of(name).values for name in part]) for part in context]

    def _sum(self, vectors: list[list[float]]) -> list[float]:
        total = [0.0] * self.settings.size
        for vector in vectors:
            total = [a + b for a, b in zip(total, vector, strict=True)]
        return total

    def lift(self, context: list[float], item: int) -> float:
        """How much likelier a context makes an item, as a logarithm."""
        score = 0.0
        for a, b in zip(context, self.of(("candidate", item)).values, strict=True):
            score += a * b
        return score

    def take(self, user: int, item: int, recent: Sequence[int], segments: Sequence[int]) -> None:
        """A positive event on ``item`` of a user whose visit holds ``recent``, latest first; nothing is learnt of one that it holds."""
        if item not in recent and self.highest:
            self._learn(user, item, recent, segments)
        self.highest = max(self.highest, item)
        self.ring[self.count % min(self.highest, RING)] = item
        self.count += 1

    def _learn(self, user: int, item: int, recent: Sequence[int], segments: Sequence[int]) -> None:
        names = self.context(user, recent, segments)
        whole = self._sum(self.sums(names))
        own, weight = self.of(("candidate", item)), 1.0 if recent else 0.3
        if own.squares == 0.0:
            own.values = [f32(0.1 * (2.0 * drawn(item, q, 0) - 1.0)) for q in range(self.settings.size)]
        gradient = [0.0] * self.settings.size
        self._pair(item, 1.0, weight, whole, gradient)
        for k in range(self.settings.negatives):
            other = self.ring.get(int(drawn(self.count, k, 1) * min(self.highest, RING)), 0)
            if other not in (0, *recent[:1]):
                self._pair(other, 0.0, weight, whole, gradient)
        for part in names:
            for name in part:
                self._step(self.of(name), gradient, 1.0, weight * self.settings.regularisation)

    def _pair(self, item: int, taken: float, weight: float, whole: list[float], gradient: list[float]) -> None:
        score = min(max(self.lift(whole, item) - math.log(self.settings.negatives), -30.0), 30.0)
        strength = weight * (1.0 / (1.0 + two_to(-score * (1.0 / math.log(2.0)))) - taken)
        vector = self.of(("candidate", item))
        for q, value in enumerate(vector.values):
            gradient[q] += strength * value
        self._step(vector, whole, strength, self.settings.regularisation * abs(strength))

    def _step(self, vector: Vector, gradient: list[float], strength: float, pull: float) -> None:
        moves = [strength * g + pull * value for g, value in zip(gradient, vector.values, strict=True)]
        squares = 0.0
        for move in moves:
            squares += move * move
        vector.squares = f32((1.0 - 2.0**-11) * vector.squares + squares / self.settings.size)
        rate = self.settings.learning_rate / math.sqrt(0.01 + vector.squares)
        vector.values = [f32(value - rate * move) for value, move in zip(vector.values, moves, strict=True)]


def drawn(a: int, b: int, c: int) -> float:
    """The number in [0, 1) that chance is made of."""
    return (mixed((a * 0x9E3779B97F4A7C15 & _MASK) ^ (b * 0xC2B2AE3D27D4EB4F & _MASK) ^ c) >> 11) / 2**53
