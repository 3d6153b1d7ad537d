"""How often the intervals for lists hold the true value: lists of three from seven items, so few that every list there is can be summed over.

Both policies are Plackett–Luce over noisy scores. In the world ``independent`` a click depends on the item and its place; in ``cascade`` also on what stands above: an
item is clicked less under one of its own category, which IIPS does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt

from headwater.evaluation.off_policy.coverage import Coverage, Tally
from headwater.evaluation.off_policy.intervals import Clusters, intervals
from headwater.evaluation.off_policy.lists import ListFeedback, list_estimators

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

KINDS, ITEMS, PLACES, CATEGORIES = 24, 7, 3, 3
WORLD_SEED = 5

ListWorldName = Literal["independent", "cascade"]


@dataclass(frozen=True, slots=True)
class ListWorld:
    """Every list (n, PLACES) there is, and for each kind of context: ``chances`` (KINDS, n) under the logging and the evaluated policy, ``logs``
    (KINDS, n, PLACES) their logarithms place by place, ``marginal`` (KINDS, n, PLACES) the ratio of the probabilities of each item at its
    place, ``clicks`` (KINDS, n, PLACES). ``features`` and ``expected`` (KINDS, n, PLACES, 2 PLACES) are what a reward model sees: the place, and there the
    score of the item under the evaluated policy.
    """

    lists: Int64
    chances: tuple[Float64, Float64]
    logs: tuple[Float64, Float64]
    marginal: Float64
    clicks: Float64
    features: Float64
    expected: Float64

    def value(self, policy: int) -> float:
        """The true value of the logging (0) or the evaluated (1) policy."""
        return float(np.mean(np.sum(self.chances[policy] * self.clicks.sum(axis=2), axis=1)))


def list_world(name: ListWorldName) -> ListWorld:
    """The same world whenever it is asked for."""
    rng = np.random.default_rng(WORLD_SEED)
    lists = np.array(list(permutations(range(ITEMS), PLACES)), np.int64)
    liking = rng.normal(size=(KINDS, ITEMS))
    scores = [liking + 0.5 * rng.normal(size=liking.shape) for _ in range(2)]
    logged, evaluated = (conditional_logs(each, lists) for each in scores)
    chances = (np.exp(logged.sum(axis=2)), np.exp(evaluated.sum(axis=2)))
    at_place = []
    for each in chances:
        share = np.zeros((KINDS, PLACES, ITEMS))
        for place in range(PLACES):
            for item in range(ITEMS):
                share[:, place, item] = each[:, lists[:, place] == item].sum(axis=1)
        at_place.append(share[:, np.arange(PLACES), lists])
    clicks = (0.25 / (1.0 + np.exp(-1.5 * liking)))[:, lists] / np.sqrt(1.0 + np.arange(PLACES))
    if name == "cascade":
        category = lists % CATEGORIES
        above = [np.zeros(len(lists), np.bool_)]
        above += [(category[:, :place] == category[:, place : place + 1]).any(axis=1) for place in range(1, PLACES)]
        clicks = clicks * np.where(np.stack(above, axis=1), 0.2, 1.0)
    return ListWorld(
        lists, chances, (logged, evaluated), at_place[1] / at_place[0], clicks, *_features(scores[1], lists)
    )


def _features(scores: Float64, lists: Int64) -> tuple[Float64, Float64]:
    """The place and the score of each item of each list, and what Plackett–Luce makes of the score in the mean, given those above."""
    weights = np.exp(scores)
    shown = scores[:, lists]
    left = np.ones((len(lists), PLACES, ITEMS))
    for place in range(1, PLACES):
        left[np.arange(len(lists))[:, None], place, lists[:, :place]] = 0.0
    mean = np.einsum("npi,ki->knp", left, weights * scores) / np.einsum("npi,ki->knp", left, weights)
    return _by_place(shown), _by_place(mean)


def _by_place(values: Float64) -> Float64:
    """One and the value, in columns of each place's own: (…, PLACES) becomes (…, PLACES, 2 PLACES)."""
    pairs = np.stack([np.ones_like(values), values], axis=-1)
    return np.asarray((np.eye(PLACES)[:, :, None] * pairs[..., None, :]).reshape(*values.shape, 2 * PLACES))


def conditional_logs(scores: Float64, lists: Int64) -> Float64:
    """Plackett–Luce: log-probabilities (KINDS, n, k) of each item of ``lists`` (n, k) given those above it, by ``scores`` (KINDS, items)."""
    weights = np.exp(scores)
    shown = weights[:, lists]
    left = weights.sum(axis=1)[:, None, None] - np.cumsum(shown, axis=2) + shown
    return np.asarray(np.log(shown / left))


def measure_list_coverage(name: ListWorldName, *, logs: int, users: int, draws: int, seed: int) -> Coverage:
    """Simulate ``logs`` logs of ``users`` users, one to three lists each, and count how often each interval holds the truth."""
    place = list_world(name)
    cumulative = place.chances[0].cumsum(axis=1)
    rng = np.random.default_rng(seed)
    tally = Tally(place.value(1))
    for log in range(logs):
        user = np.repeat(np.arange(users), rng.integers(1, 4, users))
        kind = rng.integers(0, KINDS, users)[user]
        drawn = (rng.random(len(user))[:, None] > cumulative[kind]).sum(axis=1).clip(max=len(place.lists) - 1)
        eager = rng.uniform(0.5, 1.5, users)[user]
        clicked = rng.random((len(user), PLACES)) < place.clicks[kind, drawn] * eager[:, None]
        feedback = ListFeedback(
            clicked.astype(np.float64), place.logs[0][kind, drawn], place.logs[1][kind, drawn], user,
            marginal=place.marginal[kind, drawn], features=place.features[kind, drawn], expected=place.expected[kind, drawn],
        )  # fmt: skip
        clusters = Clusters(user, users)
        terms, _ = list_estimators(feedback, clusters, seed=log)
        found = intervals(list(terms.values()), clusters, draws=draws, seed=int(rng.integers(2**31)))
        tally.add(list(terms), found, len(user))
    ratios = np.exp(place.logs[1].sum(axis=2) - place.logs[0].sum(axis=2))
    return tally.coverage(
        world=name, logging=place.value(0), users=users, draws=draws, seed=seed, max_weight=float(ratios.max()),
        squares=float(np.mean(np.sum(place.chances[0] * ratios**2, axis=1))),
    )  # fmt: skip
