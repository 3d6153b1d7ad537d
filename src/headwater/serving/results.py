"""Answers that were given a moment ago, for whoever asks the same again while nothing that they know of has changed.

What an answer depends on stands in its key, or is looked at again before it is given (what may be shown), or may be
``ttl_ms`` old (item columns, the age of everything). The version of a user row is a hash of all of its bytes: whatever
changes the row, an event, a login, a profile, an erasure, makes the answers before it unreachable at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from headwater.features.rows import User
from headwater.schema.requests import Address
from headwater.serving.request import Answer, Query
from headwater.serving.run import Run

Int64 = npt.NDArray[np.int64]

NO_ROWS = np.zeros((0, 0), np.float32)


class Key(NamedTuple):
    """All that an answer depends on but item columns and time. ``items``: what the query excludes, is about, or brings."""

    user: int
    row: bytes
    surface: str
    k: int
    segments: tuple[int, int]
    region: int
    offset_ms: int
    items: bytes
    model: str
    rules: tuple[str, ...]
    arm: str


class Result(NamedTuple):
    """An answer, and when it was made."""

    answer: Answer
    at_ms: int


def row_version(user: User) -> bytes:
    """16 bytes that differ when anything in the row does."""
    digest = xxhash.xxh3_128(user.i8.data)
    digest.update(user.f4.data)
    digest.update(user.u4.data)
    return digest.digest()


def named_items(query: Query) -> bytes:
    """16 bytes for the items that ``query`` names, each in its place."""
    digest = xxhash.xxh3_128(query.exclude.data)
    digest.update(f"|{query.anchor}|{query.before}|{query.candidates is None}|".encode())
    if query.candidates is not None:
        digest.update(query.candidates.data)
    return digest.digest()


class ResultLists:
    """At most ``most`` answers, none older than ``ttl_ms`` of the request clock; the oldest go. Belongs to one worker."""

    def __init__(self, ttl_ms: int, most: int) -> None:
        self.ttl_ms, self.most = ttl_ms, most
        self.hits = self.misses = self.refused = self.evictions = self.age_ms = 0
        self._results: OrderedDict[Key, Result] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def find(self, key: Key, now_ms: int, may_show: Callable[[Int64], bool]) -> Result | None:
        """The answer under ``key``, if it is young enough and ``may_show`` all of its items still; else it is dropped."""
        found = self._results.get(key)
        if found is None or not 0 <= now_ms - found.at_ms < self.ttl_ms:
            self.misses += 1
            return None
        if not may_show(found.answer.items):
            self.refused += 1
            del self._results[key]
            return None
        self.hits += 1
        self.age_ms += now_ms - found.at_ms
        return found

    def keep(self, key: Key, answer: Answer, now_ms: int) -> None:
        """Remember ``answer``, without its feature rows."""
        self._results[key] = Result(replace(answer, features=NO_ROWS, modelled=NO_ROWS), now_ms)
        self._results.move_to_end(key)
        self.drop_old(now_ms)
        while len(self._results) > self.most:
            self._results.popitem(last=False)
            self.evictions += 1

    def drop_old(self, now_ms: int) -> None:
        """Let go of what is too old to be given again."""
        while self._results and not 0 <= now_ms - next(iter(self._results.values())).at_ms < self.ttl_ms:
            self._results.popitem(last=False)

    def forget(self, users: Collection[int] | None) -> None:
        """Let go of the answers of ``users``, whose rows are gone (None: of whoever)."""
        gone = None if users is None else set(users)
        for key in [key for key in self._results if gone is None or key.user in gone]:
            del self._results[key]


def given_again(found: Result, user_offset: int, now_ms: int, run: Run) -> Answer:
    """The answer ``found`` for another request, whose user row stands at ``user_offset`` and is the same to the byte.

    Its address is where replay assembles the same rows: the items and the moment that it was made with, and the user's row
    as it was read now. The rows themselves are in the log with the request that made it.
    """
    made = found.answer
    address = made.address
    return replace(
        made,
        degraded=[*made.degraded, f"from the cache: made {now_ms - found.at_ms} ms ago"],
        address=Address(user_offset, address.item_offset, address.now_ms, address.plan, address.bundle),
        trace=run.trace,
        widths={},
        missed={},
    )
