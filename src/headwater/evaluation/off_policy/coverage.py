"""How often the 95% intervals hold the true value, in worlds whose truth is known to the last digit.

A world has 48 kinds of context and 10 actions; a user has one kind, comes back one to three times, and clicks more or less than others do by up to a half.
The logging policy is a softmax of noisy scores, three tenths of it uniform; the evaluated one a sharper softmax of other noise. In the world
``linear`` a click depends on the item, on the user, and on whether the user's segment goes with the item's category; in ``curved`` also on how near the item is to the
user's tastes, a product of both. ``unseen`` is ``curved`` with a reward model that is not told the tastes: it is wrong, and its figures are a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.evaluation.off_policy.estimators import bias_of_model, estimators
from headwater.evaluation.off_policy.intervals import Clusters, Interval95, intervals
from headwater.evaluation.off_policy.reward_model import cross_fit, reward_columns

Float64 = npt.NDArray[np.float64]

KINDS, ACTIONS, SIZE = 48, 10, 5
SEGMENTS, CATEGORIES = 2, 3
WORLD_SEED = 3

WorldName = Literal["linear", "curved", "unseen"]


class Covered(Struct, frozen=True, kw_only=True):
    """How often each interval held the truth (shares of the logs), mean error and spread of the estimates, mean width of the asymptotic interval."""

    asymptotic: float
    bootstrap: float
    bias: float
    spread: float
    width: float


class Coverage(Struct, frozen=True, kw_only=True):
    """``logs`` simulated logs of ``users`` users each, with ``rows`` rows in the mean. ``found_out``: in this share of them ``model_bias`` said that the reward model
    is wrong, so that ``trusted`` left DM out (None: lists, which have no DM).
    """

    world: str
    truth: float
    logging: float
    logs: int
    users: int
    rows: float
    ess: float
    max_weight: float
    draws: int
    seed: int
    estimators: dict[str, Covered]
    found_out: float | None = None


@dataclass(frozen=True, slots=True)
class World:
    """``logging`` and ``evaluated`` (KINDS, ACTIONS) are the policies, ``clicks`` (KINDS, ACTIONS) the click probabilities, ``contexts``
    (KINDS, p) what a reward model sees of a user, beside the item. Every kind is as frequent.
    """

    logging: Float64
    evaluated: Float64
    clicks: Float64
    contexts: Float64

    def value(self, policy: Float64) -> float:
        """The true value of ``policy`` (KINDS, ACTIONS): a sum over all that can happen."""
        return float(np.mean(np.sum(policy * self.clicks, axis=1)))


def world(name: WorldName) -> World:
    """The same world whenever it is asked for."""
    rng = np.random.default_rng(WORLD_SEED)
    taste, item = rng.normal(size=(KINDS, SIZE)), rng.normal(size=(ACTIONS, SIZE))
    liking = taste @ item.T / np.sqrt(SIZE)
    logging = 0.7 * _softmax(liking + 0.7 * rng.normal(size=liking.shape), 1.0) + 0.3 / ACTIONS
    evaluated = _softmax(liking + 0.7 * rng.normal(size=liking.shape), 0.7)
    segment, category = (taste[:, 0] > 0).astype(np.int64), np.arange(ACTIONS) % CATEGORIES
    features = np.zeros((KINDS, ACTIONS, ACTIONS + SIZE + SEGMENTS * CATEGORIES))
    features[:, np.arange(ACTIONS), np.arange(ACTIONS)] = 1.0
    features[:, :, ACTIONS : ACTIONS + SIZE] = taste[:, None, :]
    cell = ACTIONS + SIZE + segment[:, None] * CATEGORIES + category[None, :]
    np.put_along_axis(features, cell[:, :, None], 1.0, axis=2)
    beta = np.concatenate(
        [
            rng.uniform(0.05, 0.2, ACTIONS), 0.02 * rng.normal(size=SIZE), rng.uniform(0.0, 0.15, SEGMENTS * CATEGORIES),
        ]
    )  # fmt: skip
    clicks = features @ beta + (0.0 if name == "linear" else 0.08 * liking)
    known = segment[:, None].astype(np.float64)
    contexts = known if name == "unseen" else np.concatenate([taste, known], axis=1)
    return World(logging, evaluated, np.clip(clicks, 0.02, 0.66), contexts)


def measure_coverage(name: WorldName, *, logs: int, users: int, draws: int, seed: int) -> Coverage:
    """Simulate ``logs`` logs of ``users`` users and count how often each interval holds the truth."""
    place = world(name)
    truth = place.value(place.evaluated)
    cumulative = place.logging.cumsum(axis=1)
    ratios = place.evaluated / place.logging
    rng = np.random.default_rng(seed)
    tally, found_out = Tally(truth), 0
    for log in range(logs):
        user = np.repeat(np.arange(users), rng.integers(1, 4, users))
        kind = rng.integers(0, KINDS, users)[user]
        action = (rng.random(len(user))[:, None] > cumulative[kind]).sum(axis=1).clip(max=ACTIONS - 1)
        eager = rng.uniform(0.5, 1.5, users)[user]
        rewards = (rng.random(len(user)) < place.clicks[kind, action] * eager).astype(np.float64)
        clusters, weights = Clusters(user, users), ratios[kind, action]
        columns = reward_columns(place.contexts[kind], np.eye(ACTIONS), action, place.evaluated[kind])
        model = cross_fit(columns.logged, columns.expected, rewards, clusters, seed=log)
        terms, _, _ = estimators(rewards, weights, model, clusters)
        asked = [*terms.values(), bias_of_model(rewards, weights, model)]
        *found, bias = intervals(asked, clusters, draws=draws, seed=int(rng.integers(2**31)))
        tally.add(list(terms), found, len(user))
        found_out += not bias.asymptotic[0] <= 0.0 <= bias.asymptotic[1]
    return tally.coverage(
        world=name, logging=place.value(place.logging), users=users, draws=draws, seed=seed, max_weight=float(ratios.max()),
        squares=float(np.mean(np.sum(place.logging * ratios**2, axis=1))), found_out=found_out / logs,
    )  # fmt: skip


class Tally:
    """What the estimators of many logs said, and whether their intervals held ``truth``."""

    def __init__(self, truth: float) -> None:
        self.truth = truth
        self._names: list[str] = []
        self._values: list[list[float]] = []
        self._widths: list[list[float]] = []
        self._held: list[list[tuple[bool, bool]]] = []
        self._rows = 0

    def add(self, names: list[str], found: list[Interval95], rows: int) -> None:
        """One log of ``rows`` rows."""
        self._names = names
        self._rows += rows
        self._values.append([one.value for one in found])
        self._widths.append([one.asymptotic[1] - one.asymptotic[0] for one in found])
        self._held.append([(self._holds(one.asymptotic), self._holds(one.bootstrap)) for one in found])

    def coverage(
        self, *, world: str, logging: float, users: int, draws: int, seed: int, max_weight: float, squares: float,
        found_out: float | None = None,
    ) -> Coverage:  # fmt: skip
        """The account; ``squares`` is the true mean of squared weights."""
        value, width, held = np.array(self._values), np.array(self._widths), np.array(self._held, np.float64)
        logs = len(value)
        return Coverage(
            world=world, truth=self.truth, logging=logging, logs=logs, users=users, rows=self._rows / logs,
            ess=self._rows / logs / squares, max_weight=max_weight, draws=draws, seed=seed,
            estimators={
                name: Covered(
                    asymptotic=float(held[:, e, 0].mean()), bootstrap=float(held[:, e, 1].mean()),
                    bias=float(value[:, e].mean() - self.truth), spread=float(value[:, e].std()),
                    width=float(width[:, e].mean()),
                )
                for e, name in enumerate(self._names)
            },
            found_out=found_out,
        )  # fmt: skip

    def _holds(self, interval: tuple[float, float] | None) -> bool:
        return interval is not None and interval[0] <= self.truth <= interval[1]


def _softmax(scores: Float64, temperature: float) -> Float64:
    weight = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))
