"""The order in which ranked candidates are shown once boosts, pins, caps and quotas, promises and the lot have had their say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.jit import inline, kernel
from headwater.policy.diversity import Method, diversified
from headwater.policy.exploration import NOTHING, Lottery, Promise, uniform, weights

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]


NO_PROMISE = Promise(np.zeros(0, np.int64), np.zeros(0, np.int64), NOTHING, 0)


@dataclass(frozen=True, slots=True)
class Weighed:
    """Candidates whose score counts ``factor`` times (a boost or a bury): ``holds`` is ``bool[n]``."""

    holds: Bools
    factor: float


@dataclass(frozen=True, slots=True)
class Pinned:
    """The best ranked of the candidates for which ``holds`` stands at ``position``, from 1."""

    holds: Bools
    position: int


@dataclass(frozen=True, slots=True)
class Capped:
    """At most ``at_most`` items with the same code; ``codes`` is ``(n, m)``, 0 is none."""

    codes: npt.NDArray[np.uint32]
    at_most: int


@dataclass(frozen=True, slots=True)
class Required:
    """At least ``at_least`` of the first ``within`` are candidates for which ``holds``."""

    holds: Bools
    at_least: int
    within: int


@dataclass(frozen=True, slots=True)
class Diverse:
    """Difference counts with ``weight`` beside rank; ``vectors`` of candidates (see ``policy.diversity``)."""

    vectors: Float32
    weight: float
    method: Method = "mmr"


@dataclass(frozen=True, slots=True)
class Policy:
    """What acts on one list. Where rules of one kind disagree, the earlier one goes first. ``lottery`` None: nothing is drawn;
    ``promise`` None: no place is promised.
    """

    weighed: Sequence[Weighed] = ()
    pinned: Sequence[Pinned] = ()
    capped: Sequence[Capped] = ()
    required: Sequence[Required] = ()
    diverse: Callable[[Int64], Diverse] | None = None  # from the order of the candidates
    lottery: Lottery | None = None
    promise: Promise | None = None


@dataclass(frozen=True, slots=True)
class Ordered:
    """``positions`` int64: candidates in the order to show. The others say, rule by rule of each kind, for how many shown
    items it holds (``weighed``), whether it was placed (``pinned``), how many better ranked ones it kept out (``capped``),
    how many it brought in (``required``).

    ``log_propensities`` float64 is for each place the natural logarithm of the probability of its candidate, given those above it and
    all pins: 0 where nothing else could stand there, and without a lottery or a promise. ``drawn_from`` int64: the candidates of the
    lottery, best first, and ``weights`` float64 what each weighs in it. ``chances`` float64 is for each place the probability that it
    went to a promised candidate as such, ``kept`` bool whether it did.
    """

    positions: Int64
    weighed: list[int]
    pinned: list[int]
    capped: list[int]
    required: list[int]
    log_propensities: Float64
    drawn_from: Int64
    weights: Float64
    chances: Float64
    kept: Bools


def weigh(scores: Float32, weighed: Sequence[Weighed]) -> Float64:
    """Scores as they count, ``float64[n]``: times each factor, or over it where a score is below 0, so that a boost always lifts."""
    counted = scores.astype(np.float64)
    for each in weighed:
        counted[each.holds & (scores >= 0.0)] *= each.factor
        counted[each.holds & (scores < 0.0)] /= each.factor
    return counted


def apply_policy(scores: Float32, ties: Int64, k: int, policy: Policy) -> Ordered:
    """The at most ``k`` candidates to show, in their order.

    ``scores`` is ``float32[n]``, ``ties`` (``int64[n]``) decides between equal ones, lower first. Then:

    1. Boosts and buries change what scores count; diversity chooses the first ``k`` anew. That is the order from here on.
    2. Each pin, in turn, takes its best ranked candidate to its position, or to the first free one behind it. Pins count in caps,
       and are not stopped by them.
    3. The free positions are filled from the first one on. A candidate is out once one of its values is as often in the
       list as its cap allows. A quota is pressing when it lacks as many items as there are free positions left
       within its reach. Of those that most pressing quotas want, the best ranked candidate is taken; with a lottery, one that is drawn
       from those among its candidates, if there are any. What is drawn by is the score that belongs to the rank: the first
       of the order weighs as the best score, whether diversity put it there or not. At a promised place that may come to one of the
       promised candidates, with the chance of each, and only else to the one that it would have come to.
    4. Where candidates end before ``k``, pins behind the end close up.
    """
    n = len(scores)
    counted = weigh(scores, policy.weighed)
    order = np.lexsort((ties, -counted))
    weight, drawn_from, seed, follow = NOTHING, order[:0], np.uint64(0), order[:0]
    lottery = policy.lottery
    if lottery is not None:
        weight, seed = weights(counted[order], lottery), np.uint64(lottery.seed)
        follow = follow if lottery.follow is None else lottery.follow[: min(k, n)]
    if policy.diverse is not None:
        diverse = policy.diverse(order)
        order = diversified(order, counted, diverse.vectors, k, diverse.weight, diverse.method)
    if lottery is not None:
        drawn_from = order[: len(weight)]
    elif not (policy.pinned or policy.capped or policy.required or policy.promise):
        shown = order[:k]
        held = [int(each.holds[shown].sum()) for each in policy.weighed]
        certain = np.zeros(len(shown))
        return Ordered(shown, held, [], [], [], certain, drawn_from, weight, certain, certain > 0.0)
    groups, limits, rule_of = _groups(n, policy.capped)
    pins, quotas = policy.pinned, policy.required
    chosen = np.full(min(k, n), -1, np.int64)
    log_propensities, chances, kept = np.zeros(len(chosen)), np.zeros(len(chosen)), np.zeros(len(chosen), np.uint8)
    promise = NO_PROMISE if policy.promise is None else policy.promise
    promised = np.zeros(len(chosen), np.uint8)
    promised[promise.places[promise.places < len(chosen)]] = 1
    pinned, capped, required = (np.zeros(max(len(s), 1), np.int64) for s in (pins, policy.capped, quotas))
    length = _select(
        order,
        _matrix([p.holds for p in pins], n),
        np.array([p.position for p in pins], np.int64),
        groups,
        limits,
        rule_of,
        _matrix([q.holds for q in quotas], n),
        np.array([q.at_least for q in quotas], np.int64),
        np.array([q.within for q in quotas], np.int64),
        weight,
        seed,
        promised,
        promise.candidates,
        promise.chances,
        np.uint64(promise.seed),
        follow,
        chosen,
        log_propensities,
        chances,
        kept,
        np.zeros(n, np.uint8),
        np.zeros(len(limits), np.int64),
        np.zeros(max(len(quotas), 1), np.uint8),
        pinned,
        capped,
        required,
    )
    shown = chosen[:length]
    held = [int(each.holds[shown].sum()) for each in policy.weighed]
    return Ordered(
        shown,
        held,
        pinned[: len(pins)].tolist(),
        capped[: len(policy.capped)].tolist(),
        required[: len(quotas)].tolist(),
        log_propensities[: max(length, len(follow))],
        drawn_from,
        weight,
        chances[:length],
        kept[:length] > 0,
    )


def _matrix(rows: list[Bools], n: int) -> UInt8:
    return np.array(rows, np.uint8).reshape(len(rows), n)


def _groups(n: int, capped: Sequence[Capped]) -> tuple[Int32, Int64, Int64]:
    """The values of all caps in one numbering: ``groups`` int32[n, columns] (0: none), the limit of each group, and
    which cap each column belongs to. A value that an item has twice counts once.
    """
    columns: list[Int32] = []
    limits, rule_of = [np.zeros(1, np.int64)], []
    first = 1
    for rule, cap in enumerate(capped):
        codes = cap.codes[:, cap.codes.any(axis=0)]  # most items fill few of their places
        values, inverse = np.unique(codes, return_inverse=True)
        numbers = (inverse.reshape(codes.shape) + first).astype(np.int32)
        numbers[codes == 0] = 0
        numbers.sort(axis=1)
        numbers[:, 1:][numbers[:, 1:] == numbers[:, :-1]] = 0
        columns.append(numbers)
        limits.append(np.full(len(values), cap.at_most, np.int64))
        rule_of += [rule] * codes.shape[1]
        first += len(values)
    groups = np.concatenate(columns, axis=1) if columns else np.zeros((n, 0), np.int32)
    return np.ascontiguousarray(groups), np.concatenate(limits), np.array(rule_of, np.int64)


@kernel
def _select(
    order: Int64, pins: UInt8, pin_at: Int64, groups: Int32, limits: Int64, rule_of: Int64, quotas: UInt8,
    at_least: Int64, within: Int64, weight: Float64, seed: np.uint64, promised: UInt8, promised_to: Int64, promise: Float64,
    promise_seed: np.uint64, follow: Int64, chosen: Int64, log_propensities: Float64, chances: Float64, kept: UInt8, taken: UInt8,
    counts: Int64, pressing: UInt8, pinned: Int64, capped: Int64, required: Int64,
) -> int:  # fmt: skip
    """Fill ``chosen`` (-1 throughout at first) as :func:`apply_policy` says; returns how many. ``weight``: that of the first ranks,
    empty without a lottery. ``promised``: the promised places, ``promised_to`` whom, ``promise`` the chance of each.
    ``follow``: the list whose probability is asked for, empty where one is to be drawn.
    """
    n, k, columns = len(order), len(chosen), groups.shape[1]
    for p in range(len(pin_at)):
        place = pin_at[p] - 1
        while place < k and chosen[place] >= 0:
            place += 1
        if place >= k:
            continue
        for r in range(n):
            i = order[r]
            if pins[p, i] and not taken[i]:
                chosen[place] = i
                taken[i] = 1
                pinned[p] = 1
                for c in range(columns):
                    counts[groups[i, c]] += 1
                break
    for place in range(k):
        told = place < len(follow)
        if told and (follow[place] < 0 or (chosen[place] >= 0 and chosen[place] != follow[place])):
            _rule_out(place, follow, log_propensities)
            break
        if chosen[place] >= 0:
            continue
        presses = False
        for q in range(len(at_least)):
            pressing[q] = 0
            reach = min(within[q], k)
            if place >= reach:
                continue
            lacks, free = at_least[q], 0
            for other in range(reach):
                if chosen[other] < 0:
                    free += 1
                elif quotas[q, chosen[other]]:
                    lacks -= 1
            if lacks > 0 and lacks >= free:
                pressing[q] = 1
                presses = True
        best, most, least, total = -1, -1, -1, 0.0  # least: what is wanted of the best ranked one
        for r in range(n):
            i = order[r]
            if taken[i] or _full(i, groups, counts, limits):
                continue
            wanted = _wanted(i, quotas, pressing) if presses else 0
            if most < 0:
                least = wanted
            if wanted > most:
                best, most, total = i, wanted, 0.0
            if wanted == most and r < len(weight):
                total += weight[r]
            if not presses and r + 1 >= len(weight):
                break
        if best < 0:
            _rule_out(place, follow, log_propensities)
            break
        chance = 0.0  # that the place goes to a promised candidate as such
        if promised[place]:
            for g in range(len(promised_to)):
                i = promised_to[g]
                if not taken[i] and not _full(i, groups, counts, limits) and _wanted(i, quotas, pressing) >= most:
                    chance += promise[g]
            chances[place] = chance
        first = best  # what stands here without a lottery
        number = uniform(promise_seed, place) if chance > 0.0 else 1.0
        if told:
            best = follow[place]
        elif number < chance:
            below, kept[place] = 0.0, 1
            for g in range(len(promised_to)):
                i = promised_to[g]
                if not taken[i] and not _full(i, groups, counts, limits) and _wanted(i, quotas, pressing) >= most:
                    best = i
                    below += promise[g]
                    if below > number:
                        break
        elif total > 0.0:
            below, limit = 0.0, total * uniform(seed, place)
            for r in range(len(weight)):
                i = order[r]
                if taken[i] or _full(i, groups, counts, limits) or (presses and _wanted(i, quotas, pressing) < most):
                    continue
                best = i
                below += weight[r]
                if below > limit:
                    break
        # how likely what stands here was: in both ways together, whichever it came by
        likely = 1.0 if total <= 0.0 and best == first else 0.0
        if not taken[best] and not _full(best, groups, counts, limits) and _wanted(best, quotas, pressing) >= most:
            for r in range(len(weight)):
                if order[r] == best:
                    likely = weight[r] / total
            if chance > 0.0:
                likely *= max(1.0 - chance, 0.0)
                for g in range(len(promised_to)):
                    if promised_to[g] == best:
                        likely += promise[g]
        if likely <= 0.0:  # of a list that is followed alone
            _rule_out(place, follow, log_propensities)
            break
        log_propensities[place] = np.log(likely)
        chosen[place] = best
        taken[best] = 1
        for c in range(columns):
            counts[groups[best, c]] += 1
        if least < most:
            for q in range(len(at_least)):
                if pressing[q] and quotas[q, best]:
                    required[q] += 1
    length = 0
    for place in range(k):
        if chosen[place] >= 0:
            chosen[length] = chosen[place]
            if not len(follow):
                log_propensities[length] = log_propensities[place]
            chances[length], kept[length] = chances[place], kept[place]
            length += 1
    _count_kept_out(order, groups, limits, rule_of, chosen, length, taken, counts, capped)
    return length


@inline
def _rule_out(place: int, follow: Int64, log_propensities: Float64) -> None:
    """The list that was to be followed cannot have come about from ``place`` on."""
    for other in range(place, len(follow)):
        log_propensities[other] = -np.inf


@inline
def _full(i: int, groups: Int32, counts: Int64, limits: Int64) -> bool:
    """Whether one of the values of candidate ``i`` is in the list as often as its cap allows."""
    full = False
    for c in range(groups.shape[1]):
        full |= groups[i, c] != 0 and counts[groups[i, c]] >= limits[groups[i, c]]
    return full


@inline
def _wanted(i: int, quotas: UInt8, pressing: UInt8) -> int:
    """How many pressing quotas want candidate ``i``."""
    wanted = 0
    for q in range(len(quotas)):
        if pressing[q] and quotas[q, i]:
            wanted += 1
    return wanted


@kernel
def _count_kept_out(
    order: Int64, groups: Int32, limits: Int64, rule_of: Int64, chosen: Int64, length: int, taken: UInt8, counts: Int64,
    capped: Int64,
) -> None:  # fmt: skip
    """For each cap the candidates that the best ``length`` (all, where fewer than there was room for) hold and the list does not,
    because one of their values is full.
    """
    reach = length if length == len(chosen) else len(order)
    for r in range(reach):
        i = order[r]
        if taken[i]:
            continue
        last = -1
        for c in range(groups.shape[1]):
            group = groups[i, c]
            if group != 0 and counts[group] >= limits[group] and rule_of[c] != last:
                last = rule_of[c]
                capped[last] += 1
