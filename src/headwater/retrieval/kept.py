"""Lists that are kept for a moment, because many requests would make the same one: single flight, stale while renewed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sized
from typing import Generic, TypeVar

MAX_LISTS = 1_024
Key = tuple[str | int, ...]
V = TypeVar("V", bound=Sized)


class KeptLists(Generic[V]):
    """At most ``most`` lists by key, the least lately used go first. Not thread-safe: it belongs to one worker.

    A list is fresh for ``ttl_ms`` of the request clock. For ``stale_ms`` longer it is given as it is, if somebody has
    promised to call :meth:`renew` between two requests (``on_stale``, called once when the first list is due). An
    older one, or one that is not there, is made while its request waits: once, for requests come one after the other.
    """

    def __init__(self, ttl_ms: int, stale_ms: int = 0, most: int = MAX_LISTS) -> None:
        self.ttl_ms, self.stale_ms, self.most = ttl_ms, stale_ms, most
        self.on_stale: Callable[[], object] | None = None
        self.hits = self.stale = self.misses = self.evictions = self.age_ms = 0
        self._lists: OrderedDict[Key, tuple[int, V]] = OrderedDict()
        self._due: dict[Key, Callable[[int], V]] = {}
        self._renewing = False

    def __len__(self) -> int:
        return len(self._lists)

    def get(self, key: Key, now_ms: int, make: Callable[[int], V]) -> V:
        """The list under ``key``; ``make(now_ms)`` makes it when there is none that may be given."""
        found = self._lists.get(key)
        if found is not None and (age_ms := now_ms - found[0]) >= 0:
            if age_ms < self.ttl_ms:
                self.hits += 1
                self.age_ms += age_ms
                self._lists.move_to_end(key)
                return found[1]
            # while one is renewed, the lists that it is made of must be fresh as well
            if age_ms < self.ttl_ms + self.stale_ms and self.on_stale is not None and not self._renewing:
                self.stale += 1
                self.age_ms += age_ms
                self._lists.move_to_end(key)
                if not self._due:
                    self.on_stale()
                self._due.setdefault(key, make)
                return found[1]
        self.misses += 1
        return self._make(key, now_ms, make)

    def renew(self, now_ms: int) -> bool:
        """Make one of the lists that are due; whether there are more."""
        for key, make in self._due.items():
            self._renewing = True
            try:
                self._make(key, now_ms, make)
            finally:
                self._renewing = False
            break
        return bool(self._due)

    def _make(self, key: Key, now_ms: int, make: Callable[[int], V]) -> V:
        self._due.pop(key, None)
        made = make(now_ms)
        if len(made):
            self._lists[key] = now_ms, made
            self._lists.move_to_end(key)
            while len(self._lists) > self.most:
                self._lists.popitem(last=False)
                self.evictions += 1
        else:  # it is quick to make, and the first items must not wait for it to age
            self._lists.pop(key, None)
        return made
