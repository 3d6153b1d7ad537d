"""Looking back in the log: from the newest record on, until there is enough, time is up or the log begins.

Records of one user or item lie anywhere, and a log may hold billions: every page says how far it looked, and goes on from there when asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.log.protocol import EventLog, TrimmedError
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock
from headwater.schema.events import EventDetail
from headwater.schema.experiments import ExposureRecord
from headwater.schema.requests import ServedList

LIMIT_S = 0.8
PAGE = 50
_SMALL, _LARGE = 2_048, 16_384  # records read at once: at first few, for what was looked for is often new
_BREATH = 16  # payloads that are read between two moments in which whoever waits for the interpreter gets it

_served = msgspec.msgpack.Decoder(ServedList).decode
_detail = msgspec.msgpack.Decoder(EventDetail).decode
_exposure = msgspec.msgpack.Decoder(ExposureRecord).decode


class LookBack:
    """Blocks of records, the newest first, from before offset ``before`` (None: from the end). Afterwards ``offset`` says that everything
    above it was looked at, ``since_ms`` when the oldest of that came in (0: nothing was), ``whole`` that the log begins there.
    """

    def __init__(
        self, event_log: EventLog, before: int | None, limit_s: float, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._limit_s, self._timer = event_log, limit_s, timer
        self._first = event_log.first_offset
        last = event_log.last_offset
        self.offset = last if before is None else max(self._first - 1, min(last, before - 1))
        self.since_ms = 0

    @property
    def whole(self) -> bool:
        """Whether there is nothing older."""
        return self.offset < self._first

    def __iter__(self) -> Iterator[RecordBlock]:
        until, size = self._timer() + self._limit_s, _SMALL
        while not self.whole:
            begin = max(self.offset - size, self._first - 1)
            parts: list[RecordBlock] = []
            at = begin
            while at < self.offset:
                try:
                    block = self._log.read(at, self.offset - at)
                except TrimmedError as error:  # retention came by meanwhile
                    self._first = error.first
                    at = begin = error.first - 1
                    continue
                if block is None:
                    break
                parts.append(block)
                at = block.last_offset
            for part in parts[::-1]:
                self.offset, self.since_ms = part.first_offset - 1, int(part.records["received_ms"][0])
                yield part
            self.offset = begin
            if self._timer() >= until:
                return
            size = _LARGE

    def stop_at(self, offset: int, time_ms: int) -> None:
        """What is older than the record at ``offset`` is left for the next page."""
        self.offset, self.since_ms = offset - 1, time_ms


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event, in the API's words."""

    offset: int
    time_ms: int
    type: str
    item: str
    surface: str
    value: float | None
    retracts: bool
    request_id: str | None


@dataclass(frozen=True, slots=True)
class PastList:
    """A list that was served."""

    time_ms: int
    request_id: str
    surface: str
    tier: int
    items: int
    bundle: str
    experiments: dict[str, str]


@dataclass(slots=True)
class UserPast:
    """What the log holds of a user between ``looked.offset`` and where the look began."""

    looked: LookBack
    events: list[PastEvent] = field(default_factory=list)
    lists: list[PastList] = field(default_factory=list)
    variants: dict[tuple[str, str], int] = field(default_factory=dict)  # the time of the latest exposure


def user_past(event_log: EventLog, user: int, before: int | None = None, limit_s: float = LIMIT_S) -> UserPast:
    """The latest :data:`PAGE` events of a dense user, and what else the log says of them meanwhile.

    Raises:
        CorruptLogError: the log does not read as it was written.
    """
    past = UserPast(LookBack(event_log, before, limit_s))
    words = _Words(event_log)
    for block in past.looked:
        for row in np.flatnonzero(block.records["user"] == user)[::-1].tolist():
            record = block.records[row]
            kind, time_ms = int(record["kind"]), int(record["time_ms"])
            if kind == Kind.EVENT:
                past.events.append(words.event(block, row))
            elif kind == Kind.SERVED:
                past.lists.append(_list(time_ms, _served(block.payload(row))))
            elif kind == Kind.EXPOSURE:
                seen = _exposure(block.payload(row))
                past.variants.setdefault((seen.experiment, seen.variant), time_ms)
            if len(past.events) == PAGE or len(past.lists) == PAGE:
                past.looked.stop_at(int(record["offset"]), int(record["received_ms"]))
                return past
    return past


class Sealed(NamedTuple):
    """The latest profile of a user that was found, as it stands in the log; None: none was."""

    looked: LookBack
    profile: bytes | None
    time_ms: int


def user_profile(event_log: EventLog, user: int, before: int | None = None, limit_s: float = LIMIT_S) -> Sealed:
    """The latest profile of a dense user. Errors as with :func:`user_past`."""
    looked = LookBack(event_log, before, limit_s)
    for block in looked:
        rows = np.flatnonzero((block.records["user"] == user) & (block.records["kind"] == Kind.PROFILE))
        if len(rows):
            return Sealed(looked, block.payload(int(rows[-1])), int(block.records["time_ms"][rows[-1]]))
    return Sealed(looked, None, 0)


@dataclass(frozen=True, slots=True)
class ActiveUser:
    """A user whose records stand at the end of the log."""

    surrogate: int
    last_ms: int
    events: int
    lists: int


def active_users(
    event_log: EventLog, most: int = PAGE, limit_s: float = LIMIT_S
) -> tuple[list[ActiveUser], list[int], LookBack]:
    """Users with the latest records, the latest first; their dense numbers; and how far was looked for them."""
    looked = LookBack(event_log, None, limit_s)
    found: dict[int, list[int]] = {}  # user: surrogate, last, events, lists
    for block in looked:
        records = block.records
        for kind, at in ((Kind.EVENT, 2), (Kind.SERVED, 3)):
            rows = np.flatnonzero((records["kind"] == kind) & (records["user"] > 0))
            users, where, counts = np.unique(records["user"][rows[::-1]], return_index=True, return_counts=True)
            latest = records[rows[::-1][where]]
            told = zip(users.tolist(), latest["surrogate"].tolist(), latest["received_ms"].tolist(), strict=True)
            for (user, surrogate, last_ms), count in zip(told, counts.tolist(), strict=True):
                known = found.setdefault(user, [surrogate, last_ms, 0, 0])
                known[1] = max(known[1], last_ms)
                known[at] += count
        if len(found) >= most:
            break
    order = sorted(found, key=lambda user: (-found[user][1], user))[:most]
    return [ActiveUser(*found[user]) for user in order], order, looked


@dataclass(slots=True)
class ItemPast:
    """What the log holds of an item as far as was looked: when it stood in a served list and at which place, and its events by type."""

    looked: LookBack
    until_ms: int
    shown_ms: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    events_ms: dict[str, list[int]] = field(default_factory=dict)

    @property
    def shown(self) -> int:
        """Places of served lists."""
        return len(self.shown_ms)


def item_past(event_log: EventLog, item: int, limit_s: float = LIMIT_S) -> ItemPast:
    """Impressions and events of a dense item. Errors as with :func:`user_past`."""
    past = ItemPast(LookBack(event_log, None, limit_s), event_log.last_received_ms)
    text = event_log.vocabulary().text
    wanted = msgspec.msgpack.encode(item)
    for block in past.looked:
        records = block.records
        events = np.flatnonzero((records["kind"] == Kind.EVENT) & (records["item"] == item))
        for number in np.unique(records["type"][events]).tolist():
            times = records["time_ms"][events[records["type"][events] == number]].tolist()
            past.events_ms.setdefault(text(Namespace.EVENT_TYPE, number) or "", []).extend(times)
        lists = np.flatnonzero(records["kind"] == Kind.SERVED)
        for at, row in enumerate(lists.tolist()):
            if at % _BREATH == 0:
                time.sleep(0)
            payload = block.payload(row)
            if wanted in payload and item in (answer := _served(payload)).items:
                place = answer.items.index(item)
                past.shown_ms.append(int(records["time_ms"][row]))
                past.places.append(place + 1)
                past.sources[answer.sources[place]] += 1
    return past


def counted(times_ms: Sequence[int], edges_ms: npt.NDArray[np.int64]) -> list[int]:
    """How many of ``times_ms`` lie in each interval between two of ``edges_ms`` (ascending); those outside count at the ends."""
    where = np.clip(np.searchsorted(edges_ms, np.asarray(times_ms, np.int64), "right") - 1, 0, len(edges_ms) - 2)
    found: list[int] = np.bincount(where, minlength=len(edges_ms) - 1).tolist()
    return found


class _Words:
    """Numbers of records as texts."""

    def __init__(self, event_log: EventLog) -> None:
        self._text = event_log.vocabulary().text

    def event(self, block: RecordBlock, row: int) -> PastEvent:
        record, payload = block.records[row], block.payload(row)
        value = float(record["value"])
        return PastEvent(
            offset=int(record["offset"]),
            time_ms=int(record["time_ms"]),
            type=self._text(Namespace.EVENT_TYPE, int(record["type"])) or "",
            item=self._text(Namespace.ITEM, int(record["item"])) or "",
            surface=self._text(Namespace.SURFACE, int(record["surface"])) or "",
            value=None if value != value else value,
            retracts=bool(int(record["flags"]) & FLAG_RETRACT),
            request_id=_detail(payload).request_id if payload else None,
        )


def _list(time_ms: int, answer: ServedList) -> PastList:
    return PastList(
        time_ms, answer.request_id, answer.surface, answer.tier, len(answer.items), answer.address.bundle, answer.experiments
    )  # fmt: skip
