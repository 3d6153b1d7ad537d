"""Team-draft interleaving: two rankings in one list, and who wins the clicks. The fast first look before an A/B test.

Radlinski, Kurup & Joachims, "How does clickthrough data reflect retrieval quality?" (CIKM 2008); Chapelle, Joachims, Radlinski & Yue,
"Large-scale validation and analysis of interleaved search evaluation" (TOIS 2012). Each user compares the rankings for themselves, so
what differs between users does not blur the comparison: far fewer users are needed, for a preference and not an effect.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.stats import binomtest, ttest_1samp

from headwater.experiments.sequences import FIRST_LOOK, always_valid_p, look_positions, mixture, sequence
from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

FIRST, SECOND = 1, 2  # teams


class Draft(NamedTuple):
    """A list as it is shown: ``items`` int64[≤ k] best first, ``team`` int8 likewise, whose pick each is: clicks on it are theirs."""

    items: Int64
    team: npt.NDArray[np.int8]


def team_draft(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], k: int, seed: int) -> Draft:
    """Interleave two ranked lists: a coin says who picks first in each round, each picks its best item that is not in the list yet.

    Each of the two rankings is as likely as the other to be ahead in every round, so that neither gains by being the first. The same
    ``seed`` (of the request, say) gives the same list. The list is shorter than ``k`` when both rankings are used up.

    Args:
        first, second: ``int[a]``, ``int[b]``: positive dense items, best first, no item twice in one list.
        k: length.

    Raises:
        ValueError: an item that is not positive, or stands twice in one ranking.
    """
    for name, ranking in (("first", first), ("second", second)):
        if len(ranking) and (ranking.min() <= 0 or len(np.unique(ranking)) < len(ranking)):
            raise ValueError(f"the {name} ranking has an item twice, or one that is not positive")
    coins = np.random.default_rng(seed).integers(0, 2, (1, max(k, 1))).astype(np.bool_)
    items, team = team_drafts(_row(first), _row(second), coins, k)
    length = int(np.count_nonzero(items[0]))
    return Draft(items[0, :length], team[0, :length])


def team_drafts(
    first: Int64, second: Int64, coins: npt.NDArray[np.bool_], k: int
) -> tuple[Int64, npt.NDArray[np.int8]]:  # fmt: skip
    """Interleave n pairs of rankings at once: ``items`` int64[n, k] and ``team`` int8[n, k], filled up with 0.

    Args:
        first, second: ``int64[n, a]``, ``int64[n, b]``, filled up with 0.
        coins: ``bool[n, ≥ rounds]``: True has the first ranking pick first in that round.
    """
    items, team = np.zeros((len(first), k), np.int64), np.zeros((len(first), k), np.int8)
    _draft(first, second, coins, items, team)
    return items, team


@kernel
def _draft(first: Int64, second: Int64, coins: npt.NDArray[np.bool_], items: Int64, team: npt.NDArray[np.int8]) -> None:
    rounds = coins.shape[1]
    for n in range(len(items)):
        filled, turn, at_first, at_second = 0, 0, 0, 0
        while filled < items.shape[1]:
            # two picks a round: the coin's choice, then the other
            ahead = coins[n, (turn // 2) % rounds]
            mine = 1 if ahead == (turn % 2 == 0) else 2
            turn += 1
            at_first = _next(first[n], at_first, items[n], filled)
            at_second = _next(second[n], at_second, items[n], filled)
            left_first, left_second = at_first < first.shape[1], at_second < second.shape[1]
            if not left_first and not left_second:
                break
            if mine == 1 and not left_first:  # a ranking that is used up leaves its picks to the other
                mine = 2
            elif mine == 2 and not left_second:
                mine = 1
            items[n, filled] = first[n, at_first] if mine == 1 else second[n, at_second]
            team[n, filled] = mine
            filled += 1


@kernel
def _next(ranking: Int64, at: int, items: Int64, filled: int) -> int:
    """Where the first item stands that is not in the list yet; the length of the ranking when there is none."""
    while at < len(ranking):
        item = ranking[at]
        if item == 0:
            return len(ranking)
        known = False
        for i in range(filled):
            known = known or items[i] == item
        if not known:
            return at
        at += 1
    return at


def credit(draft: Draft, clicked: npt.ArrayLike) -> tuple[int, int]:
    """Clicks on the picks of each team: (first, second). An item counts once, however often it was clicked."""
    mine = draft.team[np.isin(draft.items, np.asarray(clicked))]
    return int(np.count_nonzero(mine == FIRST)), int(np.count_nonzero(mine == SECOND))


class Preference(Struct, frozen=True, kw_only=True):
    """Which ranking users prefer. ``lists`` with their ``wins`` of the second ranking, ``losses`` and ``ties``; ``users`` who took part.

    ``score``: mean over users of their mean result a list (1: the second won, −1: the first did, 0: a tie); half of it is Δ of
    Chapelle et al. with ties as halves. ``interval`` and ``t_p``: Student's t over users, for one look. ``sign_p``: exact sign test over
    users who prefer one. ``sequence`` and ``p_value``: valid at every look; None and 1 below 100 users.
    """

    lists: int
    users: int
    wins: int
    losses: int
    ties: int
    score: float
    interval: tuple[float, float]
    t_p: float
    sign_p: float
    sequence: tuple[float | None, float | None]
    p_value: float


def preference(
    user: npt.NDArray[np.integer], first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], *,
    alpha: float = 0.05, planned_users: int = 2_000, looks: int = 50,
) -> Preference:  # fmt: skip
    """Analyse interleaved lists in the order in which they were shown.

    A list is won by the ranking with more credited clicks. Lists of a user hang together, so users are the unit; they come in, for
    the confidence sequence, in the order of their first list.

    Args:
        user: ``int[n]`` who saw each list.
        first, second: ``int[n]`` clicks credited to each ranking (:func:`credit`).

    Raises:
        ValueError: fewer than two users.
    """
    outcome = np.sign(second.astype(np.int64) - first.astype(np.int64))
    _, first_at, position = np.unique(user, return_index=True, return_inverse=True)
    counts = np.bincount(position)
    if len(counts) < 2:
        raise ValueError(f"Expected lists of at least two users, got {len(counts)}")
    scores = (np.bincount(position, outcome) / counts)[np.argsort(first_at)]
    test = ttest_1samp(scores, 0.0) if scores.std() > 0.0 else None
    mean = float(scores.mean())
    low, high = (mean, mean) if test is None else test.confidence_interval(1.0 - alpha)
    sided = np.count_nonzero(scores)
    sign = binomtest(int(np.count_nonzero(scores > 0.0)), int(sided)).pvalue if sided else 1.0
    bounds, p_value = _anytime(scores, alpha, planned_users, looks)
    return Preference(
        lists=len(outcome), users=len(scores), wins=int((outcome > 0).sum()), losses=int((outcome < 0).sum()),
        ties=int((outcome == 0).sum()), score=mean, interval=(float(low), float(high)),
        t_p=1.0 if test is None else float(test.pvalue), sign_p=float(sign), sequence=bounds, p_value=p_value,
    )  # fmt: skip


def _anytime(
    scores: Float64, alpha: float, planned: int, looks: int
) -> tuple[tuple[float | None, float | None], float]:  # fmt: skip
    ends = look_positions(len(scores), looks)
    ends = ends[ends >= FIRST_LOOK]
    if not len(ends):
        return (None, None), 1.0
    users = ends.astype(np.float64)
    mean = np.cumsum(scores)[ends - 1] / users
    spread = np.maximum(np.cumsum(scores**2)[ends - 1] / users - mean**2, 0.0) * users / (users - 1.0)
    error = np.sqrt(spread / users)
    rho2 = mixture(alpha, planned)
    low, high = sequence(mean, error, users, rho2, alpha)
    statistic = np.where(error > 0.0, mean / np.where(error > 0.0, error, 1.0), np.nan)
    p_value = float(always_valid_p(statistic, users, rho2)[-1])
    return (_end(low[-1]), _end(high[-1])), p_value


def _end(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _row(ranking: npt.NDArray[np.integer]) -> Int64:
    return np.ascontiguousarray(ranking, np.int64)[None, :]
