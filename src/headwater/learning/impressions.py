"""Materialised impressions as rows for a ranker: grouped by person and day, with what was known when the day began.

**Why columns of the user are held.** A user's own running rates rise right after a positive and fall right after a negative. Among
the rows of one user who has both, they therefore point at what has just happened instead of what comes: leak-free, and
backwards. Inside a request they order nothing, because all candidates share the user. So the columns that read nothing but the
user stand, for all rows of a group, as they stood at its first impression: what one request at that moment would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from headwater.features.definitions import Side, Term, TermOp
from headwater.features.plan import Plan
from headwater.learning.deep.rows import Histories, RankingRows
from headwater.learning.sequences import Sequences

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Impressions:
    """``n`` impressions, group by group, groups by the time of their first row: as ``RankingRows`` wants them.

    ``features`` float32[n, d], ``labels`` float32[n, h], ``delay_ms`` int64[n, h] until the outcome (-1: none); user, item, now_ms, offset and position int64[n]; ``groups`` int32[g].
    """

    features: Float32
    labels: Float32
    delay_ms: Int64
    user: Int64
    item: Int64
    now_ms: Int64
    offset: Int64
    position: Int64
    groups: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def first(self) -> Int64:
        """``int64[g]``: the first row of each group."""
        return (np.cumsum(self.groups) - self.groups).astype(np.int64)

    def ranking(self, histories: Histories | None = None) -> RankingRows:
        """The same as rows for :func:`headwater.learning.deep.fit_deep`."""
        logged = bool((self.position >= 0).any())
        position = np.clip(self.position, -1, np.iinfo(np.int16).max).astype(np.int16) if logged else None
        return RankingRows(self.features, self.labels, self.groups, position=position, histories=histories)


def impressions(
    rows: pl.DataFrame,
    columns: tuple[str, ...],
    heads: tuple[str, ...],
    *,
    day_start_ms: int,
    hold: tuple[str, ...] = (),
) -> Impressions:
    """Group materialised rows by user and day; days begin at ``day_start_ms`` and every 24 hours from there.

    ``hold`` names columns that all rows of a group have as its first row has them.
    """
    day = (rows["now_ms"].to_numpy() - day_start_ms) // DAY_MS
    user, now_ms = rows["user"].to_numpy().astype(np.int64), rows["now_ms"].to_numpy().astype(np.int64)
    order = np.lexsort((rows["record"].to_numpy(), now_ms, user, day))
    starts = np.flatnonzero(np.diff(day[order], prepend=day.min() - 1) | np.diff(user[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    by_time = np.lexsort((starts, now_ms[order[starts]]))
    first, sizes = starts[by_time], sizes[by_time]
    behind = np.cumsum(sizes) - sizes
    at = order[np.arange(len(order)) - np.repeat(behind - first, sizes)]
    features = np.ascontiguousarray(rows.select(columns).to_numpy().astype(np.float32)[at])
    held = [columns.index(name) for name in hold]
    features[:, held] = np.repeat(features[behind][:, held], sizes, axis=0)
    labels = rows.select(f"label_{name}" for name in heads).to_numpy().astype(np.float32)[at]
    delay_ms = rows.select(pl.col(f"label_{name}_delay_ms").fill_null(-1) for name in heads).to_numpy().astype(np.int64)
    position = rows["position"].fill_null(-1).to_numpy().astype(np.int64)[at]
    return Impressions(
        features, labels, delay_ms[at], user[at], rows["item"].to_numpy().astype(np.int64)[at], now_ms[at],
        rows["offset"].to_numpy().astype(np.int64)[at], position, sizes.astype(np.int32),
    )  # fmt: skip


def of_user_alone(plan: Plan) -> tuple[str, ...]:
    """The columns of a plan that read the user's own row and nothing of the candidate or the request."""
    return tuple(c.name for c in plan.declared if c.terms and all(_reads_user(term) for term in c.terms))


_ALWAYS_USER = {TermOp.LENGTH, TermOp.RECENT_ITEM, TermOp.RECENT_TYPE, TermOp.RECENT_AGE}


def _reads_user(term: Term) -> bool:
    return term.op in _ALWAYS_USER or (term.side is Side.USER and term.reads is not None)


def histories(rows: Impressions, sequences: Sequences, vectors: Float32, *, length: int) -> Histories:
    """The last ``length`` events of each group's user before its first row, with ``vectors`` float32[items + 1, e] by dense item.

    Events count by their offset: what the log held when the group began.
    """
    users = rows.user[rows.first]
    offsets = rows.offset[rows.first]
    now_ms = rows.now_ms[rows.first]
    g = len(users)
    recent, types = np.zeros((g, length), np.int64), np.zeros((g, length), np.int64)
    age_s = np.zeros((g, length), np.float32)
    places = np.searchsorted(sequences.users, users)
    for k in range(g):
        place = int(places[k])
        if place == len(sequences.users) or sequences.users[place] != users[k]:
            continue
        span = slice(int(sequences.starts[place]), int(sequences.starts[place + 1]))
        known = np.flatnonzero(sequences.offset[span] <= offsets[k])[-length:] + span.start
        if len(known):
            items = sequences.items[known]
            recent[k, -len(known) :] = np.where(items < len(vectors), items, 0)
            types[k, -len(known) :] = sequences.types[known]
            age_s[k, -len(known) :] = np.maximum(now_ms[k] - sequences.time_ms[known], 0) / 1_000.0
    item = np.where(rows.item < len(vectors), rows.item, 0)
    return Histories(vectors, item, recent, types, age_s)
