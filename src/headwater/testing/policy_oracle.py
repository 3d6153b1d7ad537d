"""Rules, slowly: an expression asked about one item at a time, and a list filled place by place out of plain lists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headwater.policy.expression import Against, Among, Both, Compare, Either, Has, Node, Not, Truth, Value
from headwater.policy.fields import Field

Facts = Mapping[str, Value | tuple[str, ...] | None]


def holds_slowly(node: Node, facts: Facts) -> bool:
    """Whether ``node`` holds where fields are ``facts`` by name: a value, several texts, or None for missing."""
    match node:
        case Truth(value):
            return value
        case Both(parts):
            return all(holds_slowly(part, facts) for part in parts)
        case Either(parts):
            return any(holds_slowly(part, facts) for part in parts)
        case Not(part):
            return not holds_slowly(part, facts)
        case Has(field):
            return bool(_all(field, facts))
        case Among(field, values):
            return any(value in values for value in _all(field, facts))
        case Compare(field, order, limit):
            return any(_ordered(value, order, limit) for value in _all(field, facts))
        case Against(left, order, right):
            return any(_ordered(a, order, b) for a in _all(left, facts) for b in _all(right, facts))


def _all(field: Field, facts: Facts) -> tuple[Value, ...]:
    said = facts.get(field.name)
    if said is None:
        return ()
    return said if isinstance(said, tuple) else (said,)


def _ordered(a: Value, order: str, b: Value) -> bool:
    if order == "==":
        return a == b
    if isinstance(a, str) or isinstance(b, str):
        raise TypeError("texts have no order")
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[order]


@dataclass(frozen=True)
class SlowPolicy:
    """Rules over candidates 0 … n - 1: sets of candidates, and the values of each candidate under each cap."""

    weighed: Sequence[tuple[set[int], float]] = ()
    pinned: Sequence[tuple[set[int], int]] = ()
    capped: Sequence[tuple[Sequence[set[int]], int]] = ()
    required: Sequence[tuple[set[int], int, int]] = ()
    promised: Sequence[int] = ()  # places, from 0
    chances: Mapping[int, float] = field(default_factory=dict)  # by candidate


def order_slowly(scores: Sequence[float], ties: Sequence[int], k: int, policy: SlowPolicy) -> list[int]:
    """The list that ``policy.order.apply_policy`` describes."""
    ranked, _ = _ranked(scores, ties, policy)
    places = _pinned(ranked, k, policy)
    for place in range(len(places)):
        if places[place] is None:
            choices = _choices(ranked, places, place, policy)
            if not choices:
                break
            places[place] = choices[0]
    return [c for c in places if c is not None]


def lists_slowly(
    scores: Sequence[float], ties: Sequence[int], k: int, policy: SlowPolicy, candidates: int, temperature: float
) -> dict[tuple[int, ...], list[float]]:  # fmt: skip
    """Every list that may be drawn from the best ``candidates`` (0: the best stands, unless a place is promised), and for each place the
    probability of what stands there.
    """
    ranked, counted = _ranked(scores, ties, policy)
    drawn_from = ranked[:candidates]
    found: dict[tuple[int, ...], list[float]] = {}
    if not ranked:
        return {(): []}
    best, last = (counted[drawn_from[0]], counted[drawn_from[-1]]) if drawn_from else (0.0, 0.0)
    weights = {c: math.exp((counted[c] - last) / (best - last or 1.0) / temperature) for c in drawn_from}

    def fill(places: list[int | None], chances: list[float]) -> None:
        place = places.index(None) if None in places else len(places)
        choices = _choices(ranked, places, place, policy) if place < len(places) else []
        if not choices:
            held = [(c, chance) for c, chance in zip(places, chances, strict=True) if c is not None]
            found[tuple(c for c, _ in held)] = [chance for _, chance in held]
            return
        likely = [c for c in choices if c in weights]
        total = sum(weights[c] for c in likely)
        drawn = {c: weights[c] / total for c in likely} or {choices[0]: 1.0}
        kept = {c: policy.chances.get(c, 0.0) for c in choices} if place in policy.promised else {}
        for choice in choices:
            chance = kept.get(choice, 0.0) + (1.0 - sum(kept.values())) * drawn.get(choice, 0.0)
            if chance > 0.0:
                fill([*places[:place], choice, *places[place + 1 :]], [*chances[:place], chance, *chances[place + 1 :]])

    pinned = _pinned(ranked, k, policy)
    fill(pinned, [1.0] * len(pinned))
    return found


def _ranked(scores: Sequence[float], ties: Sequence[int], policy: SlowPolicy) -> tuple[list[int], list[float]]:
    """Candidates best first, and how the score of each counts."""
    counted = []
    for candidate, given in enumerate(scores):
        score = value = float(np.float32(given))
        for chosen, factor in policy.weighed:
            if candidate in chosen:
                value = value * factor if score >= 0.0 else value / factor
        counted.append(value)
    return sorted(range(len(scores)), key=lambda c: (-counted[c], ties[c])), counted


def _pinned(ranked: list[int], k: int, policy: SlowPolicy) -> list[int | None]:
    """The places of a list, pins on them."""
    k = min(k, len(ranked))
    places: list[int | None] = [None] * k
    for chosen, position in policy.pinned:
        best = next((c for c in ranked if c in chosen and c not in places), None)
        free = next((place for place in range(position - 1, k) if places[place] is None), None)
        if best is not None and free is not None:
            places[free] = best
    return places


def _choices(ranked: list[int], places: list[int | None], place: int, policy: SlowPolicy) -> list[int]:
    """What may stand at ``place``, best first."""

    def is_full(candidate: int) -> bool:
        for values_of, at_most in policy.capped:
            shown = Counter(value for c in places if c is not None for value in values_of[c])
            if any(shown[value] >= at_most for value in values_of[candidate]):
                return True
        return False

    def is_pressing(at_least: int, within: int, chosen: set[int]) -> bool:
        reach = places[:within]
        lacks = at_least - sum(c in chosen for c in reach if c is not None)
        return place < within and lacks > 0 and lacks >= reach.count(None)

    left = [c for c in ranked if c not in places and not is_full(c)]
    pressing = [chosen for chosen, at_least, within in policy.required if is_pressing(at_least, within, chosen)]
    wanted = {c: sum(c in chosen for chosen in pressing) for c in left}
    return [c for c in left if wanted[c] == max(wanted.values())]


def diversify_slowly(
    order: list[int], scores: list[float], similarity: list[list[float]], k: int, weight: float
) -> list[int]:  # fmt: skip
    """The order that ``policy.diversity.diversified`` describes; scores and similarities stand in ``order``, all are looked at."""
    best, last = (scores[0], scores[-1]) if scores else (0.0, 0.0)
    left, chosen = list(range(len(order))), list[int]()

    def worth(place: int) -> float:
        relevance = (scores[place] - last) / (best - last) if best > last else 0.0
        return (1.0 - weight) * relevance - weight * max([0.0, *(similarity[other][place] for other in chosen)])

    while left and len(chosen) < k:
        taken = max(left, key=lambda place: (worth(place), -place))
        chosen.append(taken)
        left.remove(taken)
    return [order[place] for place in [*chosen, *left]]


def spread_slowly(
    relevance: Sequence[float], similarity: npt.NDArray[np.float64], chosen: Sequence[int], weight: float
) -> float:  # fmt: skip
    """What the point process of ``policy.diversity.diversified`` makes large: ``(1 - weight) Σ relevance + weight log det``."""
    sign, log_det = np.linalg.slogdet(similarity[np.ix_(chosen, chosen)])
    if sign <= 0:
        raise ValueError("the similarities of these are no kernel")
    return (1.0 - weight) * sum(relevance[c] for c in chosen) + weight * float(log_det)
