"""Whether the loop feeds on itself: the policy's lists held against those that chance drew, day by day.

Two things are judged over each ``PERIOD_MS`` of lists whose outcomes are in, both against what chance allows:

- **lead**: the click rate of places of the policy, less that of the random slice. It is lost when the policy's is lower. The variance is that of
  the difference of two ratios between groups of users, who are in both slices (paired).
- **crowding**: how many different items ``m`` places show, ``sum_i(1 - C(N - n_i, m) / C(N, m))``, which does not depend on how many lists there are (rarefaction;
  S. Hurlbert, "The nonconcept of species diversity", Ecology 52(4), 1971). The logarithm of its ratio between slice and policy is held against that of the first period:
  what changes in both is the catalogue, not the loop. The variance is a jackknife over groups of users (B. Efron, C. Stein, 1981). What is popular comes and goes, for everybody at once,
  which no variance between users knows: hence ``CROWDS``. How often two places agree would be moved most by that (the one item that everybody wants counts by its square).
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.monitoring.calibration import t_quantile
from headwater.monitoring.divergence import level_of_look
from headwater.monitoring.outcomes import Waiting
from headwater.monitoring.reservoir import GROUPS

Float64 = npt.NDArray[np.float64]

PERIOD_MS = 24 * 3_600_000
FACTOR = 1.2  # a ratio of click rates below this is no matter
CROWDS = 1.75  # nor one of different items: what is popular moves it by up to a half
LEAST_CLICKS = 50.0  # that the random slice would have at the rate of all
LEAST_LISTS = 200  # of the random slice
PARTS = 16  # groups of users that items are counted in
MOST_ITEMS = 200_000  # counted a slice, by part
TESTS = 2


class Loop(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A period. ``lead`` is the policy's click rate over that of the random slice, less 1, and ``lead_chance`` by how much chance moves it.
    ``crowding`` is how many times fewer different items the policy shows than in the first period, the slice's own change taken out, less 1 (None: it is the
    first, or of too few places); ``crowding_chance`` the ratio that chance allows, less 1.
    """

    lead: float
    lead_chance: float
    lead_off: bool
    crowding: float | None
    crowding_chance: float | None
    crowding_off: bool


class LoopState(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is remembered: the periods judged, and the logarithm of the first one's ratio of different items in ``sampled`` places, with its variance."""

    looks: int = 0
    crowded: tuple[float, float] | None = None
    sampled: int = 0
    latest: Loop | None = None


class _Slice:
    def __init__(self) -> None:
        self.lists = 0
        self.places, self.clicks = np.zeros(GROUPS), np.zeros(GROUPS)
        self.items: Counter[int] = Counter()  # by item * PARTS + part

    def add(self, waiting: Waiting) -> None:
        self.lists += 1
        self.places[waiting.group] += len(waiting.items)
        self.clicks[waiting.group] += int(waiting.places().sum())
        if len(self.items) < MOST_ITEMS:
            part = waiting.group % PARTS
            self.items.update([item * PARTS + part for item in waiting.items])


class LoopWatch:
    """``add`` lists of the full path in the order of time, ``close`` when the log has reached ``now_ms``."""

    def __init__(self, state: LoopState, alpha: float) -> None:
        self.state, self._alpha = state, alpha
        self._began_ms = 0
        self._slices = (_Slice(), _Slice())  # of the policy, of chance

    def add(self, waiting: Waiting) -> None:
        """Take in a list whose outcomes are in."""
        self._began_ms = self._began_ms or waiting.time_ms
        self._slices[waiting.uniform].add(waiting)

    def close(self, now_ms: int) -> Loop | None:
        """Judge the period when it is over; one in which chance drew too few lists goes on."""
        if not self._began_ms or now_ms < self._began_ms + PERIOD_MS:
            return None
        policy, chance = self._slices
        pooled = (policy.clicks.sum() + chance.clicks.sum()) / (policy.places.sum() + chance.places.sum())
        if chance.lists < LEAST_LISTS or pooled * chance.places.sum() < LEAST_CLICKS or not policy.lists:
            return None
        state = self.state
        state.looks += 1
        state.latest = judged(policy, chance, state, level_of_look(self._alpha, state.looks, TESTS))
        self._began_ms, self._slices = 0, (_Slice(), _Slice())
        return state.latest


def judged(policy: _Slice, chance: _Slice, state: LoopState, level: float) -> Loop:
    """Hold the two against one another; the first ratio of crowding goes into ``state``."""
    ours, theirs = policy.clicks.sum() / policy.places.sum(), chance.clicks.sum() / chance.places.sum()
    residual = (policy.clicks - ours * policy.places) / policy.places.sum()
    residual -= (chance.clicks - theirs * chance.places) / chance.places.sum()
    parts = int(((policy.places > 0) | (chance.places > 0)).sum())
    allowed = t_quantile(level, max(parts - 1, 1)) * math.sqrt(
        parts / max(parts - 1.0, 1.0) * float((residual**2).sum())
    )
    lead_off = ours - theirs < -allowed and ours * FACTOR < theirs
    scale = max(float(theirs), 1.0 / float(chance.places.sum()))  # no click at all: as if there were one
    shown, drawn = _by_part(policy.items), _by_part(chance.items)
    if not state.sampled:  # of an earlier release, which counted something else
        state.sampled, state.crowded = sampled(shown, drawn), None
    crowded = log_ratio(drawn, shown, state.sampled)
    crowding = crowding_chance = None
    crowding_off = False
    if crowded is not None and state.crowded is None:
        state.crowded = crowded
    elif crowded is not None and state.crowded is not None:
        grown = crowded[0] - state.crowded[0]
        most = t_quantile(level, PARTS - 1) * math.sqrt(crowded[1] + state.crowded[1])
        crowding, crowding_chance = math.expm1(min(grown, 50.0)), math.expm1(min(most, 50.0))
        crowding_off = grown > most and grown > math.log(CROWDS)
    return Loop(
        lead=float(ours - theirs) / scale, lead_chance=allowed / scale, lead_off=bool(lead_off), crowding=crowding,
        crowding_chance=crowding_chance, crowding_off=crowding_off,
    )  # fmt: skip


def _by_part(items: Counter[int]) -> Float64:
    """float64[items, PARTS]: how often each was shown to the users of each part."""
    keys = np.fromiter(items.keys(), np.int64, len(items))
    _, row = np.unique(keys // PARTS, return_inverse=True)
    counts = np.zeros((int(row.max()) + 1 if len(row) else 0, PARTS))
    counts[row, keys % PARTS] = np.fromiter(items.values(), np.float64, len(items))
    return counts


def sampled(policy: Float64, chance: Float64) -> int:
    """In how many places different items are counted: as many as chance showed different ones, at most half of the places of either."""
    return int(min(len(chance), policy.sum() / 2.0, chance.sum() / 2.0))


def different_items(counts: Float64, places: int) -> float:
    """How many different items so many of the places show, at the mean, from ``counts`` ``[items, parts]``; 0 where there are not so many places."""
    from scipy.special import gammaln

    shown = counts.sum(1)
    shown = shown[shown > 0]
    rest, total = shown.sum() - shown, float(shown.sum())
    if total < places:
        return 0.0
    enough = rest[rest >= places]  # of the others, to be the places without this item
    never = np.exp(
        gammaln(enough + 1.0) - gammaln(enough - places + 1.0) - gammaln(total + 1.0) + gammaln(total - places + 1.0)
    )
    return len(shown) - float(never.sum())


def log_ratio(above: Float64, below: Float64, places: int) -> tuple[float, float] | None:
    """``ln(different_items(above) / different_items(below))`` and its variance by a jackknife over parts; None when one has too few places."""
    found = []
    for left_out in (None, *range(PARTS)):
        kept = [part for part in range(PARTS) if part != left_out]
        ours, theirs = different_items(above[:, kept], places), different_items(below[:, kept], places)
        if ours <= 0.0 or theirs <= 0.0:
            return None
        found.append(math.log(ours / theirs))
    without = np.array(found[1:])
    return found[0], float((PARTS - 1.0) / PARTS * ((without - without.mean()) ** 2).sum())
