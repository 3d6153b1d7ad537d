"""What became of served lists: which places were clicked, how long that took, and when a list can be judged.

A positive event belongs to the list whose request it names, else to the user's latest list with the item. A list is judged once it is so old
that hardly any outcome is still to come: after the 99th percentile of the delays that were seen, at most ``outcome_window``. Lists that are
waiting are bounded: with more traffic than fits, an even sample of requests is followed. Lists are recorded some time after they were answered, so an
event may stand in the log before the list whose request it names: it is kept until that comes, if it comes soon.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.log.record import FLAG_RETRACT, Kind, RecordBlock, of_people
from headwater.monitoring.reservoir import GROUPS
from headwater.schema.requests import ServedList

MOST_WAITING = 20_000
MOST_DELAYS = 4_096
LEAST_DELAYS = 200
SHORTEST_MS = 60_000
MATURE = 0.99  # of the outcomes are in
_SLICES = 1 << 16
_LISTS_OF_A_USER = 4
MOST_EARLY = 4_096  # requests that are named by events and not recorded yet


class _Detail(Struct, array_like=True):
    """The front of an event's payload: :class:`~headwater.schema.events.EventDetail` as far as it is needed."""

    event_id: str | None = None
    request_id: str | None = None


_decode_detail = msgspec.msgpack.Decoder(_Detail).decode


@dataclass(slots=True)
class Waiting:
    """A list that waits for outcomes: what was served when, by which bundle, to a user of which group; ``clicked`` places by event type."""

    time_ms: int
    user: int
    group: int
    surface: str
    bundle: str
    tier: int
    walked: int
    uniform: bool
    items: list[int]
    scores: list[float]
    clicked: dict[int, set[int]] = field(default_factory=dict)
    asked: int = 0  # items, 0: not known

    def places(self) -> npt.NDArray[np.bool_]:
        """Which places had any positive event, bool[n]."""
        made = np.zeros(len(self.items), np.bool_)
        for places in self.clicked.values():
            made[list(places)] = True
        return made


class Delay(NamedTuple):
    """How long outcomes take, in ms: the median and the 95th percentile of those seen, and after how long lists are judged."""

    median: float
    p95: float
    matured: float


def group_of(user: int, request_id: str) -> int:
    """The random group of a user (of a request, where there is none), below ``GROUPS``."""
    key = user.to_bytes(8, "little") if user else request_id.encode()
    return zlib.crc32(key) % GROUPS


class Outcomes:
    """Lists on their way from served to judged."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._unjudged: deque[str] = deque()
        self._of_user: dict[int, deque[str]] = {}
        self._early: OrderedDict[str, list[tuple[int, int, int]]] = OrderedDict()  # by request: type, item, received_ms
        self._delays: deque[float] = deque(maxlen=MOST_DELAYS)
        self._share = 1.0

    def __len__(self) -> int:
        """Lists that are followed now."""
        return len(self._waiting)

    @property
    def share(self) -> float:
        """The share of lists that is followed."""
        return self._share

    def serve(self, served: ServedList, user: int, time_ms: int) -> None:
        """Follow a list, if its request is of the sample; one that is recorded twice counts once."""
        request = served.request_id
        if zlib.crc32(request.encode()) % _SLICES >= self._share * _SLICES or request in self._waiting:
            return
        uniform = served.explored is not None and served.explored.uniform
        self._waiting[request] = Waiting(
            time_ms, user, group_of(user, request), served.surface, served.address.bundle, served.tier, served.walked, uniform,
            served.items, served.scores, asked=0 if served.query is None else served.query.k,
        )  # fmt: skip
        self._unjudged.append(request)
        if user:
            self._of_user.setdefault(user, deque(maxlen=_LISTS_OF_A_USER)).append(request)
        for type_, item, at_ms in self._early.pop(request, ()):
            if item in self._waiting[request].items:
                self._taken(self._waiting[request], type_, item, max(at_ms - time_ms, 0))
        if len(self._waiting) > MOST_WAITING:
            self._thin()

    def events(self, block: RecordBlock, positive: npt.NDArray[np.int64]) -> None:
        """Take in the positive events of a block, whose dense types are ``positive``."""
        records = block.records
        chosen = of_people(records, Kind.EVENT) & np.isin(records["type"], positive)
        chosen &= (records["flags"] & FLAG_RETRACT) == 0
        for row in np.flatnonzero(chosen).tolist():
            record = records[row]
            item, user, time_ms = int(record["item"]), int(record["user"]), int(record["received_ms"])
            request, type_ = _request_of(block, row), int(record["type"])
            named = request is not None and request in self._waiting
            waiting = self._list_of(request, user, item)
            if waiting is None and request is not None and not named:
                self._early.setdefault(request, []).append((type_, item, time_ms))
                if len(self._early) > MOST_EARLY:
                    self._early.popitem(last=False)
            if waiting is None:
                continue
            delay_ms = time_ms - waiting.time_ms
            if delay_ms <= self._window_ms and (named or delay_ms >= 0):
                self._taken(waiting, type_, item, max(delay_ms, 0))

    def matured(self, now_ms: int) -> Iterator[Waiting]:
        """The lists that can be judged by now, each once, oldest first; those as old as the window are let go of."""
        after = self.delay().matured
        while self._unjudged:
            waiting = self._waiting.get(self._unjudged[0])  # None: it is no longer of the sample
            if waiting is not None and now_ms - waiting.time_ms < after:
                break
            self._unjudged.popleft()
            if waiting is not None:
                yield waiting
        while self._waiting:
            request, waiting = next(iter(self._waiting.items()))
            if now_ms - waiting.time_ms < self._window_ms:
                break
            self._drop(request)

    def delay(self) -> Delay:
        """How long outcomes take, by those that came; until enough came, lists wait for the whole window."""
        if not self._delays:
            return Delay(0.0, 0.0, float(self._window_ms))
        median, late, last = np.quantile(np.array(self._delays), [0.5, 0.95, MATURE]).tolist()
        enough = len(self._delays) >= LEAST_DELAYS
        return Delay(median, late, min(max(last, SHORTEST_MS), self._window_ms) if enough else float(self._window_ms))

    def _list_of(self, request: str | None, user: int, item: int) -> Waiting | None:
        named = self._waiting.get(request) if request is not None else None
        if named is not None:
            return named if item in named.items else None
        for each in reversed(self._of_user.get(user, ())):
            waiting = self._waiting.get(each)
            if waiting is not None and item in waiting.items:
                return waiting
        return None

    def _taken(self, waiting: Waiting, type_: int, item: int, delay_ms: int) -> None:
        waiting.clicked.setdefault(type_, set()).add(waiting.items.index(item))
        self._delays.append(float(delay_ms))

    def _thin(self) -> None:
        """Follow half as many from now on; those that are no longer of the sample go."""
        self._share /= 2.0
        for request in [r for r in self._waiting if zlib.crc32(r.encode()) % _SLICES >= self._share * _SLICES]:
            self._drop(request)

    def _drop(self, request: str) -> None:
        waiting = self._waiting.pop(request)
        of_user = self._of_user.get(waiting.user)
        if of_user is not None:
            if request in of_user:
                of_user.remove(request)
            if not of_user:
                del self._of_user[waiting.user]


def _request_of(block: RecordBlock, row: int) -> str | None:
    """The request that an event names; its payload is empty when it says nothing."""
    payload = block.payload(row)
    return _decode_detail(payload).request_id if payload else None
