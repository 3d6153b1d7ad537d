"""What is served when nothing better can be: lists that were good before, and what is popular; both held in memory.

Whoever serves from here filters again: what was hidden since cannot come back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.layout import I_FLAGS
from headwater.features.plan import Plan
from headwater.retrieval.kept import KeptLists
from headwater.serving.request import Query
from headwater.serving.view import View

Int64 = npt.NDArray[np.int64]

MAX_LISTS = 4_096
MAX_LENGTH = 200  # items of a list that are kept
KEEP_MS = 3_600_000  # how long a list is good enough to be shown again
SNAPSHOT_LENGTH = 2_000
SNAPSHOT_MS = 10_000  # how old the snapshot of what is popular gets


class Origin(NamedTuple):
    """What an item of such a list says about where it comes from."""

    name: str
    reason: str


OWN_LIST = Origin("last", "from the last list for you")
SEGMENT_LIST = Origin("last", "from the last list for new visitors like you")
SNAPSHOT = Origin("popular", "popular now")

_Key = tuple[int, str, int, tuple[int, int], str]


class LastList(NamedTuple):
    """A list as it was ranked: items best first, when, the region of whom it was made for, the offset of their row."""

    items: Int64
    at_ms: int
    region: int
    origin: Origin
    user_offset: int


class LastLists:
    """The last good list of each user, and of strangers in each segment, by surface and anchor; the oldest go.

    A segment's list is one that was made for a stranger there: nobody gets what was chosen for somebody else, or for themselves in
    another arm of an experiment.
    """

    def __init__(self, most: int = MAX_LISTS) -> None:
        self._most = most
        self.hits = self.misses = self.evictions = self.age_ms = 0
        self._lists: OrderedDict[_Key, LastList] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lists)

    def keep(
        self, query: Query, segments: tuple[int, int], items: Int64, region: int, now_ms: int, user_offset: int = 0
    ) -> None:
        """Remember ``items`` (best first, copied) as the last good list for whoever asks like ``query``."""
        key = _user_key(query) if query.user else _segment_key(query, segments)
        origin = OWN_LIST if query.user else SEGMENT_LIST
        self._lists[key] = LastList(items[:MAX_LENGTH].copy(), now_ms, region, origin, user_offset)
        self._lists.move_to_end(key)
        self.drop_old(now_ms)
        while len(self._lists) > self._most:
            self._lists.popitem(last=False)
            self.evictions += 1

    def find(self, query: Query, segments: tuple[int, int], now_ms: int) -> LastList | None:
        """The user's own list, else that of strangers in their segments, else of strangers anywhere; none older than an hour,
        and none of the user's own from before the event that the query is to reflect.
        """
        for key in (_user_key(query), _segment_key(query, segments), _segment_key(query, (0, 0))):
            found = self._lists.get(key)
            if found is None or not 0 <= now_ms - found.at_ms < KEEP_MS:
                continue
            if found.origin is not OWN_LIST or found.user_offset >= query.since:
                self.hits += 1
                self.age_ms += now_ms - found.at_ms
                return found
        self.misses += 1
        return None

    def drop_old(self, now_ms: int) -> None:
        """Let go of what is too old to be shown."""
        while self._lists and now_ms - next(iter(self._lists.values())).at_ms >= KEEP_MS:
            self._lists.popitem(last=False)

    def forget(self, users: Collection[int] | None) -> None:
        """Let go of the lists of ``users``, whose rows are gone (None: of every user); those of strangers stay."""
        gone = None if users is None else set(users)
        for key in [key for key in self._lists if key[0] and (gone is None or key[0] in gone)]:
            del self._lists[key]


def _user_key(query: Query) -> _Key:
    return query.user, query.surface, query.anchor, (0, 0), query.arm


def _segment_key(query: Query, segments: tuple[int, int]) -> _Key:
    return 0, query.surface, query.anchor, segments, ""


class PopularSnapshot:
    """The most popular items, most popular first, then the rest of the catalogue by number.

    It is taken from the item columns that a worker holds, so it needs no store; whoever asks finds one that is at most
    ten seconds old. In the second half of its life it is served while the next one is made, where somebody does that (see
    :class:`~headwater.retrieval.kept.KeptLists`).
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.lists = KeptLists[Int64](SNAPSHOT_MS // 2, SNAPSHOT_MS // 2, most=1)

    def items(self, view: View, now_ms: int) -> Int64:
        """``int64[n]``, up to 2,000 items. Not filtered."""
        # the first items must not wait for it to age: a catalogue that is short of 2,000 has a list for each size
        key = ("snapshot", min(view.table.count, SNAPSHOT_LENGTH))
        return self.lists.get(
            key, now_ms, lambda at_ms: by_popularity(self._plan, view, at_ms)[:SNAPSHOT_LENGTH].copy()
        )


def by_popularity(plan: Plan, view: View, now_ms: int) -> Int64:
    """Every item that is known or was liked, most popular first, then by number."""
    count, cell = view.table.count, plan.popular_cells[-1]
    everything = np.arange(1, count, dtype=np.int64)
    weight = view.index.weights(cell, plan.popular_lives[-1], now_ms)
    liked = view.table.rows.f4[:count, cell] > 0.0
    known = everything[(view.table.rows.u4[1:count, I_FLAGS] != 0) | liked[1:]]
    order: Int64 = known[np.argsort(-weight[known], kind="stable")]
    return order
