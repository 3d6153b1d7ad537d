"""The slow, obvious online factors: vectors in dicts, one pair after the other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
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
    """``vectors`` by what they are of: ``("candidate", item)``, ``("recent", item, place)``, ``("segment", key, segment)``, ``("user", user)``; of the hidden
    layer ``("input", number)``, its weight in each unit, and ``("unit", number)``, what the unit adds.

    ``ring`` has an item (0: none yet) a place; ``count`` events went through it, ``highest`` is the highest item among them.
    """

    settings: Factors
    vectors: dict[Hashable, Vector] = field(default_factory=dict)
    ring: dict[int, int] = field(default_factory=dict)
    count: int = 0
    highest: int = 0

    def of(self, what: Hashable) -> Vector:
        size = self.settings.hidden if isinstance(what, tuple) and what[0] == "input" else self.settings.size
        return self.vectors.setdefault(what, Vector([0.0] * size))

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

    def inputs(self, context: list[list[Hashable]], ages: Sequence[int]) -> list[float]:
        """What units look at: 1, the vectors of the context (0 for those that are not there), and how long ago its items were."""
        nothing = [0.0] * self.settings.size
        recent, segments, user = context
        of_key = {name[1]: name for name in segments if isinstance(name, tuple)}
        x = [1.0]
        for place in range(PLACES):
            x += self.of(recent[place]).values if place < len(recent) else nothing
        for key in range(2):
            x += self.of(of_key[key]).values if key in of_key else nothing
        x += self.of(user[0]).values
        return x + [octaves(age) / 12 for age in ages] + [0.0] * (PLACES - len(ages))

    def units(self, x: Sequence[float]) -> list[float]:
        """What arrives at each unit."""
        total = [0.0] * self.settings.hidden
        for number, value in enumerate(x[: self.highest]):
            if value:
                total = [a + value * w for a, w in zip(total, self.of(("input", number)).values, strict=True)]
        return total

    def mixed(self, whole: list[float], arrived: Sequence[float]) -> list[float]:
        """The sum of a context, and what the units add to it."""
        for number, a in enumerate(arrived[: self.highest]):
            given = a * _logistic(a)
            whole = [b + given * o for b, o in zip(whole, self.of(("unit", number)).values, strict=True)]
        return whole

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

    def take(self, user: int, item: int, recent: Mapping[int, int], segments: Sequence[int]) -> None:
        """A positive event on ``item`` of a user whose visit holds ``recent``, latest first, each with its age; nothing is learnt of one that it holds."""
        if item not in recent and self.highest:
            self._learn(user, item, recent, segments)
        self.highest = max(self.highest, item)
        self.ring[self.count % min(self.highest, RING)] = item
        self.count += 1

    def _learn(self, user: int, item: int, visit: Mapping[int, int], segments: Sequence[int]) -> None:
        recent = list(visit)
        names = self.context(user, recent, segments)
        whole = self._sum(self.sums(names))
        x = self.inputs(names, list(visit.values()))
        for number, value in enumerate(x[: self.highest] if self.settings.hidden else []):
            own, most = self.of(("input", number)), math.sqrt(3.0 / len(x))
            if value and own.squares == 0.0:
                own.values = [f32(most * (2.0 * drawn(number, j, 2) - 1.0)) for j in range(self.settings.hidden)]
        arrived = self.units(x)
        whole = self.mixed(whole, arrived)
        own, weight = self.of(("candidate", item)), 1.0 if recent else 0.3
        if own.squares == 0.0:
            own.values = [f32(0.1 * (2.0 * drawn(item, q, 0) - 1.0)) for q in range(self.settings.size)]
        gradient = [0.0] * self.settings.size
        self._pair(item, 1.0, weight, whole, gradient)
        for k in range(self.settings.negatives):
            other = self.ring.get(int(drawn(self.count, k, 1) * min(self.highest, RING)), 0)
            if other not in (0, *recent[:1]):
                self._pair(other, 0.0, weight, whole, gradient)
        passed = self._learn_hidden(x, arrived, gradient)
        pull = weight * self.settings.regularisation
        for part, begin in zip(names, (0, PLACES, PLACES + 2), strict=True):
            for k, name in enumerate(part):
                place = begin + (name[1] if isinstance(name, tuple) and name[0] == "segment" else k)
                own_part = passed[1 + place * self.settings.size :][: self.settings.size]
                self._step(self.of(name), [g + p for g, p in zip(gradient, own_part, strict=True)], 1.0, pull)

    def _learn_hidden(self, x: list[float], arrived: Sequence[float], gradient: list[float]) -> list[float]:
        """Steps of the hidden layer; returns the gradient of each input."""
        slopes = []
        for number, a in enumerate(arrived):
            gate, unit, back = _logistic(a), self.of(("unit", number)), 0.0
            if number >= self.highest:
                slopes.append(0.0)
                continue
            for o, g in zip(unit.values, gradient, strict=True):
                back += o * g
            slopes.append(gate * (1.0 + a * (1.0 - gate)) * back)
            self._step(unit, gradient, a * gate, 0.0, 0.2)
        passed = [0.0] * len(x)
        for number, value in enumerate(x[: self.highest] if self.settings.hidden else []):
            weights = self.of(("input", number))
            for w, slope in zip(weights.values, slopes, strict=True):
                passed[number] += w * slope
            if value:
                self._step(weights, slopes, value, 0.0, 0.2)
        return passed

    def _pair(self, item: int, taken: float, weight: float, whole: list[float], gradient: list[float]) -> None:
        strength = weight * (_logistic(self.lift(whole, item) - math.log(self.settings.negatives)) - taken)
        vector = self.of(("candidate", item))
        for q, value in enumerate(vector.values):
            gradient[q] += strength * value
        self._step(vector, whole, strength, self.settings.regularisation * abs(strength))

    def _step(
        self, vector: Vector, gradient: list[float], strength: float, pull: float, share_of_rate: float = 1.0
    ) -> None:
        moves = [strength * g + pull * value for g, value in zip(gradient, vector.values, strict=True)]
        squares = 0.0
        for move in moves:
            squares += move * move
        vector.squares = f32((1.0 - 2.0**-11) * vector.squares + squares / len(moves))
        rate = share_of_rate * self.settings.learning_rate / math.sqrt(0.01 + vector.squares)
        vector.values = [f32(value - rate * move) for value, move in zip(vector.values, moves, strict=True)]


def octaves(seconds: int) -> float:
    """``log2(1 + seconds)`` at whole powers of two, straight in between."""
    whole = (seconds + 1).bit_length() - 1
    return whole + (seconds + 1) / (1 << whole) - 1.0


def _logistic(a: float) -> float:
    beyond: float = two_to(-min(max(a, -30.0), 30.0) * (1.0 / math.log(2.0)))
    return 1.0 / (1.0 + beyond)


def drawn(a: int, b: int, c: int) -> float:
    """The number in [0, 1) that chance is made of."""
    return (mixed((a * 0x9E3779B97F4A7C15 & _MASK) ^ (b * 0xC2B2AE3D27D4EB4F & _MASK) ^ c) >> 11) / 2**53
