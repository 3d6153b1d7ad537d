"""Online metrics from the log: what people do with the lists that they get, by surface, variant, bundle and segment, and what is shown.

The watch follows the log's end. It reads each record once, holds lists until their attribution is over and sums of the window, and
nothing else: memory does not grow with the log. With more lists than it may hold it looks at fewer users, chosen by a hash of
their number: shares and means stay what they are, and say less sharply.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Raw, Struct

from headwater.experiments.metrics import click_type, conversion_type
from headwater.log.protocol import READ_LIMIT, EventLog, decoded
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock, of_people
from headwater.log.seek import last_before
from headwater.monitoring.attribution import COLUMNS, Group, OpenList, OpenLists, Types, types_of
from headwater.monitoring.behind import behind_sample, is_behind
from headwater.monitoring.exposure import coverage, first_new_item, gini, new_share, popularity_lift
from headwater.monitoring.samples import Sample, sample
from headwater.monitoring.sessions import Begun, Sessions
from headwater.monitoring.windows import SlidingCounts, SlidingSums, Steps
from headwater.prometheus import Described
from headwater.schema.config import Config
from headwater.schema.durations import parse_duration
from headwater.schema.events import EventDetail
from headwater.schema.requests import Address

MOST_RECORDS = 500_000  # read in one look; what is left is read in the next one
MOST_GROUPS = 50  # variants, bundles or segments of a surface that have a name of their own; the rest are "other"
SETTLE_MS = 2_000  # a list is recorded up to a moment after it was given: events wait so long for theirs
OTHER = "other"

_GROUPED = ("surface", "by", "group")
METRICS = (
    Described("headwater_online_lists", "gauge", _GROUPED, "Lists of the window whose attribution is over"),
    Described("headwater_online_ctr", "gauge", _GROUPED, "Items that were clicked over items that were listed"),
    Described("headwater_online_conversion", "gauge", _GROUPED, "Share of lists with a conversion"),
    Described("headwater_online_value", "gauge", _GROUPED, "Value of the conversions, per list"),
    Described("headwater_online_dwell", "gauge", _GROUPED, "Mean value of the dwell events"),
    Described("headwater_online_satisfaction", "gauge", _GROUPED, "Weights of what was done with a list, added up, per list"),
    Described("headwater_online_sessions", "gauge", ("by", "group"), "Sessions that began in the window"),
    Described("headwater_online_returning_sessions", "gauge", ("by", "group"), "Share of them whose user was here before"),
    Described("headwater_online_coverage", "gauge", ("surface",), "Share of the catalogue that was shown"),
    Described("headwater_online_gini", "gauge", ("surface",), "Gini coefficient of impressions over the catalogue"),
    Described("headwater_online_popularity_lift", "gauge", ("surface",), "How much more popular what is shown is than what is consumed"),
    Described("headwater_online_new_item_share", "gauge", ("surface",), "Share of impressions that new items had"),
    Described("headwater_online_users_share", "gauge", (), "Share of the users that is looked at"),
    Described("headwater_online_lag_records", "gauge", (), "Records that online metrics are behind the log"),
)  # fmt: skip


class _Served(Struct, frozen=True, array_like=True):
    """The front of a served list (:class:`headwater.schema.requests.ServedList`); what is not needed is not taken apart."""

    request_id: str
    surface: str
    items: list[int]
    scores: Raw
    sources: Raw
    tier: int
    reasons: Raw
    address: Address
    context: list[int]
    features: Raw
    modelled: Raw = Raw()
    walked: int = 0
    query: Raw = Raw()
    log_propensity: float = 0.0
    explored: Raw = Raw()
    experiments: dict[str, str] = {}


_decode = msgspec.msgpack.Decoder(_Served).decode
_decode_detail = msgspec.msgpack.Decoder(EventDetail).decode


class OnlineMetrics:
    """A watch (:class:`headwater.monitoring.samples.Watch`) over ``event_log``, of which a look reads for ``piece_s`` at most.

    What is done with a list of a stranger is known by the request that the event names. So such lists count as long as events of the window
    name lists of their surface; else it would look as if strangers never clicked.
    """

    name = "online"

    def __init__(self, event_log: EventLog, config: Config, *, piece_s: float = inf) -> None:
        said = config.monitoring.online
        self._log, self._config, self._said = event_log, config, said
        self._piece_s = piece_s
        self._window_ms = parse_duration(said.window)
        self._steps = Steps(self._window_ms)
        self._open = OpenLists(parse_duration(said.attribution))
        self._sums: SlidingSums[Group] = SlidingSums(len(COLUMNS), self._window_ms)
        self._shown: SlidingCounts[str] = SlidingCounts(self._window_ms)
        self._consumed: SlidingCounts[str] = SlidingCounts(self._window_ms)
        self._sessions = Sessions(self._window_ms)
        self._positive = [kind.name for kind in config.events if kind.positive]
        self._names: dict[tuple[str, str], set[str]] = {}
        self._held: list[tuple[npt.NDArray[np.void], list[str]]] = []  # events, and the requests that they name
        self._begun: list[Begun] = []
        self._naming: dict[str, int] = {}  # surface → when an event named one of its lists last
        self._halvings = 0  # of the share of users that is looked at
        self._at: int | None = None
        self._new: tuple[int, int | None] = (-1, None)  # the step it was looked up in, the first new item

    # -- the watch -------------------------------------------------------------------------------------

    def look(self, now_ms: int) -> Iterator[Sample]:
        """Read what came since the last look, and give the figures as of ``now_ms`` (Unix ms, of the log's clock).

        Raises:
            CorruptLogError: the log does not read as it was written.
        """
        clock_ms = self._read(now_ms)
        self._settle(clock_ms)
        for one in self._open.close(clock_ms - SETTLE_MS):
            if (
                not one.user
                and self._naming.get(one.groups[0].surface, -self._window_ms) <= one.at_ms - self._window_ms
            ):
                continue
            figures = one.figures()
            for group in one.groups:
                self._sums.add(group, one.at_ms + self._open.attribution_ms, figures)
        self._choose_users()
        at = self._at or 0
        left = behind_sample(self.name, self._log, at, clock_ms)
        yield left
        yield sample("headwater_online_lag_records", float(self._log.last_offset - at))
        if is_behind(left):
            return
        yield from self._grouped(clock_ms)
        yield from self._exposure(clock_ms)
        for (by, name), (begun, returning) in self._sessions.returning(clock_ms).items():
            yield sample("headwater_online_sessions", begun, by=by, group=name)
            yield sample("headwater_online_returning_sessions", returning, by=by, group=name)
        yield sample("headwater_online_users_share", 0.5**self._halvings)

    def _grouped(self, clock_ms: int) -> Iterator[Sample]:
        sums = self._sums.read(clock_ms)
        self._names = {}
        for key, total in sums.items():
            self._names.setdefault((key.surface, key.by), set()).add(key.group)
            labels = key._asdict()
            lists, places, clicked, converted, value, weight, dwell, dwelt = total.tolist()
            yield sample("headwater_online_lists", lists, **labels)
            yield sample("headwater_online_ctr", clicked / max(places, 1.0), **labels)
            yield sample("headwater_online_conversion", converted / lists, **labels)
            yield sample("headwater_online_value", value / lists, **labels)
            yield sample("headwater_online_satisfaction", weight / lists, **labels)
            if dwelt > 0:
                yield sample("headwater_online_dwell", dwell / dwelt, **labels)

    def _exposure(self, clock_ms: int) -> Iterator[Sample]:
        consumed = self._consumed.read(clock_ms).get("")
        catalogue = self._log.vocabulary().size(Namespace.ITEM)
        for surface, shown in self._shown.read(clock_ms).items():
            yield sample("headwater_online_coverage", coverage(shown, catalogue), surface=surface)
            yield sample("headwater_online_gini", gini(shown, catalogue), surface=surface)
            lift = None if consumed is None else popularity_lift(shown, consumed)
            if lift is not None:
                yield sample("headwater_online_popularity_lift", lift, surface=surface)
            first = self._first_new(clock_ms)
            if first is not None:
                yield sample("headwater_online_new_item_share", new_share(shown, first), surface=surface)

    def _first_new(self, clock_ms: int) -> int | None:
        step = self._steps.of(clock_ms)
        if self._new[0] != step:
            self._new = step, first_new_item(self._log, clock_ms - parse_duration(self._said.new_for))
        return self._new[1]

    # -- reading ---------------------------------------------------------------------------------------

    def _read(self, now_ms: int) -> int:
        """Read on, at most ``MOST_RECORDS`` and no longer than a piece; returns the moment up to which all is read: now, or where the log was left."""
        log = self._log
        if self._at is None:
            began_ms = now_ms - self._window_ms - self._open.attribution_ms - SETTLE_MS
            self._at = last_before(log, began_ms)[0]
        self._at = max(self._at, log.first_offset - 1)  # retention may have been faster than this watch
        until = self._at + MOST_RECORDS
        types, positive = self._types(), self._numbers(self._positive)
        clock_ms, stop_s = now_ms, time.monotonic() + self._piece_s
        while self._at < until and (block := log.read(self._at, READ_LIMIT)) is not None:
            self._at = block.last_offset
            clock_ms = int(block.records["received_ms"][-1])
            self._take(block, types, positive)
            if time.monotonic() >= stop_s:
                break
        return max(now_ms, clock_ms) if self._at >= log.last_offset else clock_ms

    def _take(self, block: RecordBlock, types: Types, positive: npt.NDArray[np.int64]) -> None:
        records = block.records
        served = of_people(records, Kind.SERVED)
        # strangers share the number 0: of their lists a part is looked at
        looked_at = self._wanted(
            np.where(served & (records["user"] == 0), records["offset"], records["user"]).astype(np.int64)
        )
        events = records[looked_at & of_people(records, Kind.EVENT)]
        # a clock that is ahead must not fill the window with moments that do not go by
        self._begun += self._sessions.see(
            events["user"].astype(np.int64), np.minimum(events["time_ms"], events["received_ms"])
        )
        self._hold(block, looked_at, types)
        liked = events[np.isin(events["type"], positive) & ((events["flags"] & FLAG_RETRACT) == 0)]
        steps = self._steps
        for step in np.unique(liked["received_ms"] // steps.step_ms).tolist():
            inside = liked["received_ms"] // steps.step_ms == step
            self._consumed.add("", step * steps.step_ms, liked["item"][inside].astype(np.int64))
        shown: dict[tuple[int, str], list[int]] = {}
        for row in np.flatnonzero(looked_at & served).tolist():
            given = decoded(_decode, block.payload(row), int(records["offset"][row]), "a served list")
            at_ms, user = given.address.now_ms, int(records["user"][row])
            shown.setdefault((steps.of(at_ms), given.surface), []).extend(given.items)
            drawn = user or int(records["offset"][row])
            self._open.open(OpenList(given.request_id, user, at_ms, given.items, self._groups(given), drawn))
        for (step, surface), items in shown.items():
            self._shown.add(surface, step * steps.step_ms, np.array(items, np.int64))

    def _hold(self, block: RecordBlock, looked_at: npt.NDArray[np.bool_], types: Types) -> None:
        """Keep the events that say anything until their lists are there: those of users who are looked at, and those that name a request."""
        records = block.records
        counted = of_people(records, Kind.EVENT) & types.counted[np.minimum(records["type"], 255)]
        rows = np.flatnonzero(counted & (looked_at | (records["payload_size"] > 0)))
        named = [self._named(block, row) for row in rows.tolist()]
        self._held.append((records[rows], named))

    @staticmethod
    def _named(block: RecordBlock, row: int) -> str:
        if not block.records["payload_size"][row]:
            return ""
        detail = decoded(_decode_detail, block.payload(row), int(block.records["offset"][row]), "an event")
        return detail.request_id or ""

    def _settle(self, clock_ms: int) -> None:
        """Put down events whose lists are there by now; younger ones are held until the next look. So with sessions that began."""
        until_ms, types = clock_ms - SETTLE_MS, self._types()
        held, self._held = self._held, []
        for events, named in held:
            ready = events["received_ms"] <= until_ms
            self._held.append((events[~ready], [named[at] for at in np.flatnonzero(~ready).tolist()]))
            theirs = np.isin(events["user"], self._open.users())
            for at in np.flatnonzero(ready).tolist():
                told = self._open.named(named[at]) if named[at] else None
                if told is not None:
                    self._naming[told.groups[0].surface] = int(events["received_ms"][at])
                if told is not None or theirs[at]:
                    self._open.credit(events[at], types, told)
        self._held = [(events, named) for events, named in self._held if named]
        waiting, self._begun = self._begun, []
        for one in waiting:
            if one.at_ms > until_ms:
                self._begun.append(one)
            elif (given := self._open.newest(one.user, one.at_ms)) is not None:
                for group in given.groups:
                    if group.by != "all":
                        self._sessions.count(one, (group.by, group.group))

    def _groups(self, given: _Served) -> tuple[Group, ...]:
        vocabulary = self._log.vocabulary()
        named = [("all", ""), ("bundle", given.address.bundle)]
        named += [("variant", f"{experiment}/{variant}") for experiment, variant in sorted(given.experiments.items())]
        for number in given.context[:2]:
            if number and (text := vocabulary.text(Namespace.SEGMENT, number)):
                named.append(("segment", text))
        return tuple(Group(given.surface, by, self._name(given.surface, by, name)) for by, name in named)

    def _name(self, surface: str, by: str, name: str) -> str:
        """``name``, or "other" when there are too many."""
        known = self._names.setdefault((surface, by), set())
        if name not in known and len(known) >= MOST_GROUPS:
            return OTHER
        known.add(name)
        return name

    # -- what is looked at -----------------------------------------------------------------------------

    def _wanted(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Who is looked at, bool[n]: a hash of the number (Knuth's multiplicative one) falls into the share."""
        hashed = (users * 2_654_435_761) & 0xFFFFFFFF
        return hashed < (1 << 32 - self._halvings)

    def _choose_users(self) -> None:
        while len(self._open) > self._said.open_lists:
            self._halvings += 1
            self._open.keep(lambda user: bool(self._wanted(np.array([user], np.int64))[0]))
        if self._halvings and len(self._open) < self._said.open_lists // 4:
            self._halvings -= 1

    def _types(self) -> Types:
        vocabulary = self._log.vocabulary()
        return types_of(
            self._config, click_type(self._config), conversion_type(self._config), self._said.dwell,
            lambda name: vocabulary.index(Namespace.EVENT_TYPE, name),
        )  # fmt: skip

    def _numbers(self, names: list[str]) -> npt.NDArray[np.int64]:
        vocabulary = self._log.vocabulary()
        found = [vocabulary.index(Namespace.EVENT_TYPE, name) for name in names]
        return np.array([number for number in found if number], np.int64)
