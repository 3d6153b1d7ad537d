"""What users did after their exposure, and before it: read from the log in one pass for all metrics.

Memory is one number a user and measure, twice (within the window and before); the log may be as long as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from headwater.experiments.effects import winsorised
from headwater.experiments.metrics import SESSION_GAP_MS, Measure, Metric
from headwater.experiments.moments import COLUMNS
from headwater.log.protocol import READ_LIMIT, EventLog, decoded
from headwater.log.record import FLAG_RETRACT, Kind, Namespace, RecordBlock, of_people
from headwater.log.seek import last_before
from headwater.schema.durations import parse_delay
from headwater.schema.errors import ConfigurationError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_LATE_MS = 3_600_000  # events may be received before their time by this much (clocks that are wrong)
_REMEMBERED = 1 << 18  # request ids; a list that is recorded twice is so within a moment


class _Head(Struct, array_like=True):
    request_id: str


_decode_head = msgspec.msgpack.Decoder(_Head).decode


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Columns of the metrics for n users, in the order that was asked in.

    ``values`` by metric: float64[n, 4], numerator and denominator within the window and before exposure; ``complete`` by metric:
    bool[n], the window was over at ``until_ms``. ``segments`` int64[n, 2]: the dense segments that a user was last seen with before or at
    exposure (0: none).
    """

    values: dict[str, Float64]
    complete: dict[str, npt.NDArray[np.bool_]]
    segments: Int64
    until_ms: int


@dataclass(slots=True)
class _Sum:
    """One measure over one span of time relative to exposure, ``[start, end)`` ms."""

    measure: Measure
    types: npt.NDArray[np.uint16]  # empty: every type
    start: int
    end: int
    total: Float64
    last: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # sessions: when the user was seen last

    def add(self, position: Int64, age: Int64, records: npt.NDArray[np.void]) -> None:
        chosen = (age >= self.start) & (age < self.end)
        if len(self.types):
            chosen &= np.isin(records["type"], self.types)
        if not chosen.any():
            return
        rows, sign = position[chosen], np.where(records["flags"][chosen] & FLAG_RETRACT, -1.0, 1.0)
        match self.measure.of:
            case "value":
                np.add.at(self.total, rows, sign * np.nan_to_num(records["value"][chosen].astype(np.float64)))
            case "sessions":
                self._add_sessions(rows[sign > 0.0], age[chosen][sign > 0.0])
            case _:
                np.add.at(self.total, rows, sign)

    def _add_sessions(self, rows: Int64, age: Int64) -> None:
        order = np.lexsort((age, rows))
        rows, age = rows[order], age[order]
        before = np.empty_like(age)
        before[1:] = age[:-1]
        first = np.ones(len(rows), np.bool_)
        first[1:] = rows[1:] != rows[:-1]
        before[first] = self.last[rows[first]]
        np.add.at(self.total, rows, age - before > SESSION_GAP_MS)
        np.maximum.at(self.last, rows, age)

    def read(self) -> Float64:
        return (self.total > 0.0).astype(np.float64) if self.measure.of == "users" else self.total


class _Reader:
    """Sums of all measures, each once whatever the number of metrics that use it."""

    def __init__(self, event_log: EventLog, count: int, before_ms: int) -> None:
        self._vocabulary = event_log.vocabulary()
        self._count, self._before_ms = count, before_ms
        self.sums: dict[tuple[Measure, int, int], _Sum] = {}

    def want(self, measure: Measure, metric: Metric, before: bool) -> _Sum:
        start, end = (
            (-self._before_ms, 0) if before else (parse_delay(measure.after), metric.window_ms)
        )  # what is counted only later has a past all the same
        key = (measure, start, end)
        if key not in self.sums:
            types = [self._vocabulary.index(Namespace.EVENT_TYPE, name) for name in measure.types]
            made = _Sum(measure, np.array(types, np.uint16), start, end, np.zeros(self._count))
            if measure.of == "sessions":
                made.last = np.full(self._count, np.iinfo(np.int64).min // 2)
            self.sums[key] = made
        return self.sums[key]


def read_outcomes(
    event_log: EventLog, metrics: Sequence[Metric], *, user: npt.NDArray[np.integer], first_ms: Int64,
    before_ms: int, until_ms: int | None = None,
) -> Outcomes:  # fmt: skip
    """Add up what ``user`` did from ``before_ms`` before their first exposure to the end of each metric's window.

    Args:
        event_log: log, or log and lake together.
        metrics: definitions with different names.
        user: ``int[n]`` dense users, each once.
        first_ms: ``int64[n]`` Unix ms of first exposure.
        before_ms: length of the past that is CUPED's covariate; 0: none.
        until_ms: what was received later does not count (None: the whole log).

    Raises:
        ConfigurationError: two metrics have one name.
        CorruptLogError: the log does not read as it was written.
    """
    end_ms = event_log.last_received_ms if until_ms is None else min(until_ms, event_log.last_received_ms)
    reader = _Reader(event_log, len(user), before_ms)
    _check_measures(metrics)
    for metric in metrics:
        for measure in (metric.numerator, metric.denominator):
            if measure is not None:
                reader.want(measure, metric, before=False)
                reader.want(measure, metric, before=True)
    segments = np.zeros((len(user), 2), np.int64)
    if len(user):
        longest = max((metric.window_ms for metric in metrics), default=0)
        _read(event_log, reader, segments, user.astype(np.int64), first_ms, before_ms, longest, end_ms)
    values, complete = {}, {}
    for metric in metrics:
        columns = np.ones((len(user), COLUMNS))
        for half, before in ((0, False), (2, True)):
            columns[:, half] = reader.want(metric.numerator, metric, before).read()
            if metric.denominator is not None:
                columns[:, half + 1] = reader.want(metric.denominator, metric, before).read()
        done = first_ms + metric.window_ms <= end_ms
        for numerator in (0, 2):
            columns[done, numerator] = winsorised(columns[done, numerator], metric.winsorise)
        values[metric.name], complete[metric.name] = columns, done
    return Outcomes(values, complete, segments, end_ms)


def _check_measures(metrics: Sequence[Metric]) -> None:
    if len({metric.name for metric in metrics}) < len(metrics):
        raise ConfigurationError("two metrics have one name; rename one of them")


def _read(
    event_log: EventLog, reader: _Reader, segments: Int64, user: Int64, first_ms: Int64, before_ms: int, longest: int, end_ms: int
) -> None:  # fmt: skip
    position_of = np.full(int(user.max()) + 1, -1, np.int64)
    position_of[user] = np.arange(len(user))
    events = [one for one in reader.sums.values() if one.measure.of != "lists"]
    lists = [one for one in reader.sums.values() if one.measure.of == "lists"]
    seen = _Requests()
    at = max(last_before(event_log, int(first_ms.min()) - before_ms - _LATE_MS)[0], event_log.first_offset - 1)
    while at < event_log.last_offset and (block := event_log.read(at, READ_LIMIT)) is not None:
        at = block.last_offset
        records = block.records[block.records["received_ms"] <= end_ms]
        if not len(records):
            break
        known = records["user"] < len(position_of)
        position = np.where(known, position_of[np.where(known, records["user"], 0)], -1)
        mine = position >= 0
        is_event = mine & of_people(records, Kind.EVENT)
        age = records["time_ms"] - first_ms[np.maximum(position, 0)]
        for one in events:
            one.add(position[is_event], age[is_event], records[is_event])
        _note_segments(segments, records, position, age, mine)
        if lists:
            shown = np.flatnonzero(mine & of_people(records, Kind.SERVED) & (age >= -before_ms) & (age < longest))
            shown = shown[[seen.is_new(block, i) for i in shown.tolist()]] if len(shown) else shown
            for one in lists:
                one.add(position[shown], age[shown], records[shown])


def _note_segments(
    segments: Int64, records: npt.NDArray[np.void], position: Int64, age: Int64, mine: npt.NDArray[np.bool_]
) -> None:
    """Only what was known at exposure: what comes later may be the treatment's doing."""
    for k in range(segments.shape[1]):
        value = records["segments"][:, k]
        rows = np.flatnonzero(mine & (age <= 0) & (value > 0))
        segments[position[rows], k] = value[rows]  # in log order: the last one stays


class _Requests:
    """The request ids of the newest lists: at most twice ``_REMEMBERED``."""

    def __init__(self) -> None:
        self._young: set[str] = set()
        self._old: set[str] = set()

    def is_new(self, block: RecordBlock, i: int) -> bool:
        request = decoded(_decode_head, block.payload(i), int(block.records["offset"][i]), "a served list").request_id
        if request in self._young or request in self._old:
            return False
        self._young.add(request)
        if len(self._young) >= _REMEMBERED:
            self._old, self._young = self._young, set()
        return True
