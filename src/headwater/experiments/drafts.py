"""Team-draft interleaving: two rankings in one list, each pick credited to the ranking that made it.

Radlinski, Kurup & Joachims, "How does clickthrough data reflect retrieval quality?" (CIKM 2008).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel

Int64 = npt.NDArray[np.int64]

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


def _row(ranking: npt.NDArray[np.integer]) -> Int64:
    return np.ascontiguousarray(ranking, np.int64)[None, :]
