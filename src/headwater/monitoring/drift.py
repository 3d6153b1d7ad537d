"""The watch over data: follows the log's tail and says what of it is not as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import msgspec
import numpy as np

from headwater.log.protocol import EventLog, decoded
from headwater.log.record import Kind, Namespace, RecordBlock, of_people
from headwater.log.seek import last_before
from headwater.monitoring.behind import behind_sample, is_behind
from headwater.monitoring.changes import Changes
from headwater.monitoring.drift_state import DriftState, load_state, save_state
from headwater.monitoring.loop import LoopState, LoopWatch
from headwater.monitoring.outcomes import Outcomes
from headwater.monitoring.samples import Sample, sample
from headwater.monitoring.served import ServedColumns
from headwater.monitoring.skew import skew_samples
from headwater.monitoring.slices import Slices
from headwater.monitoring.volume import Volumes
from headwater.registry.registry import Registry
from headwater.schema.drift import Drift
from headwater.schema.durations import parse_duration
from headwater.schema.requests import ServedList

MOST_RECORDS = 131_072  # of a look: what is left waits for the next one
READ_RECORDS = 4_096  # at a time: a piece is over at the end of one
HISTORY_MS = 8 * 24 * 3_600_000  # of events, read once when nothing is known yet
CATCH_UP = 4_000_000  # records, at most, of that
SAVE_MS = 60_000
STEPS = 12  # of a window: how often it is looked at whether it is over, while reading what is old

_decode = msgspec.msgpack.Decoder(ServedList).decode


class DriftWatch:
    """What drifted, as samples: columns and scores of what the bundle in service serves, calibration, label delay, volume, skew, and
    the random slice.

    Args:
        event_log: read from where the last run was, else from the last eight days on, in steps of ``MOST_RECORDS`` a look.
        positive: names of the event types that are outcomes; ``conversion`` is the one of them that counts as a conversion (else: the last).
        surfaces: those whose lists are watched each by itself.
        live: ``now_ms`` is the time of day, which the log follows; false on the log's own clock.
        piece_s: how long a look reads, at most.
        keep: whether what is learnt is written to ``data / "monitoring"`` and read from there.
    """

    name = "drift"

    def __init__(
        self, event_log: EventLog, registry: Registry, data: Path, settings: Drift, positive: Sequence[str], *, live: bool = True,
        keep: bool = True, after: int | None = None, surfaces: Sequence[str] = ("home",), conversion: str = "",
        piece_s: float = inf,
    ) -> None:  # fmt: skip
        self._log, self._checks, self._positive = event_log, data / "verify", tuple(positive)
        self._live, self._path = live, data / "monitoring" / "drift.msgpack" if keep else None
        state = load_state(self._path, event_log.log_id) if self._path is not None else None
        self._offset = self._first_offset() if after is None else after
        self._offset = max(self._offset, event_log.first_offset - 1) if state is None else state.offset
        self._reached_ms = self._saved_ms = 0
        self.served = ServedColumns(registry, settings, state, data / "monitoring" if keep else None, self._positive)
        self._volumes = Volumes(None if state is None else state.seasons)
        self._outcomes = Outcomes(parse_duration(settings.outcome_window))
        self._slices = Slices()
        kept = None if state is None else state.loop
        self._loop = LoopWatch(kept or LoopState(), settings.alpha)
        self._changes = Changes(surfaces, None if state is None else state.rates)
        self._conversion = conversion or self._positive[-1]
        self._labels: dict[int, int] = {}
        self._places, self._piece_s = 0, piece_s
        self._step_ms = max(parse_duration(settings.window) // STEPS, 1)
        self._plan = ""

    @property
    def behind(self) -> int:
        """Records of the log that were not looked at yet."""
        return max(self._log.last_offset - self._offset, 0)

    def look(self, now_ms: int) -> Iterator[Sample]:
        """Follow the log, judge what can be judged, and say how things stand."""
        self._follow(now_ms)
        if self._path is not None and now_ms - self._saved_ms >= SAVE_MS and not self.behind:
            self._saved_ms = now_ms
            self.save()
        yield from self._samples(now_ms)

    def save(self) -> None:
        """Write down what was learnt, so that another process goes on from here."""
        if self._path is not None:
            features, scores, calibration, dead = self.served.saved()
            save_state(self._path, DriftState(
                log_id=self._log.log_id, offset=self._offset, features=features, scores=scores, calibration=calibration,
                seasons=self._volumes.saved(), dead=dead, loop=self._loop.state,
                by_type=self.served.by_type.saved(), rates=self._changes.saved(),
            ))  # fmt: skip

    # -- following -------------------------------------------------------------------------------------

    def _first_offset(self) -> int:
        """Where to begin when nothing is known: eight days back, but not too far."""
        at, _ = last_before(self._log, self._log.last_received_ms - HISTORY_MS)
        return max(at, self._log.last_offset - CATCH_UP, 0)

    def _follow(self, now_ms: int) -> None:
        vocabulary = self._log.vocabulary()
        numbers = [vocabulary.index(Namespace.EVENT_TYPE, name) for name in self._positive]
        positive = np.array([number for number in numbers if number], np.int64)
        until = min(self._log.last_offset, self._offset + MOST_RECORDS)
        self.served.refresh(self._plan)
        stop_s = time.monotonic() + self._piece_s
        while (
            self._offset < until
            and (block := self._log.read(self._offset, min(until - self._offset, READ_RECORDS))) is not None
        ):
            # history without lists, of days perhaps, has nothing that is judged by the step
            lists = len(self._outcomes) > 0 or bool((block.records["kind"] == Kind.SERVED).any())
            for piece in pieces(block, self._step_ms) if lists else (block,):
                self._reached_ms = int(piece.records["received_ms"][-1])
                self._serve(piece)
                self._outcomes.events(piece, positive)
                self._volumes.take(piece)
                self._judge(self._reached_ms)
            self._offset = block.last_offset
            if time.monotonic() >= stop_s:
                break
        if self._live and not self.behind:
            self._reached_ms = max(self._reached_ms, now_ms)
            self._judge(self._reached_ms)

    def _serve(self, block: RecordBlock) -> None:
        for row in np.flatnonzero(of_people(block.records, Kind.SERVED)).tolist():
            record = block.records[row]
            served = decoded(_decode, block.payload(row), int(record["offset"]), "a served list")
            if not served.items:
                continue
            if served.address.plan != self._plan:
                self._plan = served.address.plan
                self.served.refresh(self._plan)
            user, time_ms = int(record["user"]), int(record["received_ms"])
            self._outcomes.serve(served, user, time_ms)
            self.served.take(served, user, time_ms)
        self.served.flush()

    def _judge(self, now_ms: int) -> None:
        conversion = self._log.vocabulary().index(Namespace.EVENT_TYPE, self._conversion)
        for waiting in self._outcomes.matured(now_ms):
            self._places += len(waiting.items)
            for type_, places in waiting.clicked.items():
                self._labels[type_] = self._labels.get(type_, 0) + len(places)
            full = not waiting.walked and waiting.tier <= 1
            self._changes.add(waiting, conversion, steered=full and not waiting.uniform)
            if not full:
                continue
            self._slices.add(waiting)
            self._loop.add(waiting)
            if not waiting.uniform:
                self.served.outcome(waiting, {self._type(type_): places for type_, places in waiting.clicked.items()})
        self._loop.close(now_ms)
        self.served.close(now_ms)

    # -- saying ----------------------------------------------------------------------------------------

    def _samples(self, now_ms: int) -> Iterator[Sample]:
        left = behind_sample(self.name, self._log, self._offset, self._reached_ms or self._log.last_received_ms)
        yield left
        yield sample("headwater_drift_lag_records", self.behind)
        if is_behind(left):
            return
        yield from self.served.samples()
        yield from self._label_samples()
        yield from self._volume_samples(now_ms)
        yield from skew_samples(self._checks, self._plan)
        yield from self._loop_samples()
        for uniform, name in ((True, "random"), (False, "policy")):
            if (part := self._slices.read(uniform=uniform)) is not None:
                yield sample("headwater_slice_lists", part.lists, slice=name)
                yield sample("headwater_slice_click_rate", part.click_rate, slice=name)
                yield sample("headwater_slice_top_share", part.top_share, slice=name)

    def _loop_samples(self) -> Iterator[Sample]:
        if (loop := self._loop.state.latest) is None:
            return
        yield sample("headwater_slice_lead", loop.lead)
        yield sample("headwater_slice_lead_chance", loop.lead_chance)
        yield sample("headwater_slice_off", float(loop.lead_off), of="lead")
        if loop.crowding is not None and loop.crowding_chance is not None:
            yield sample("headwater_slice_crowding", loop.crowding)
            yield sample("headwater_slice_crowding_chance", loop.crowding_chance)
            yield sample("headwater_slice_off", float(loop.crowding_off), of="crowding")

    def _label_samples(self) -> Iterator[Sample]:
        delay = self._outcomes.delay()
        yield sample("headwater_label_delay_seconds", delay.median / 1e3, quantile="0.5")
        yield sample("headwater_label_delay_seconds", delay.p95 / 1e3, quantile="0.95")
        yield sample("headwater_label_maturity_seconds", delay.matured / 1e3)
        if self._places:
            for type_, count in sorted(self._labels.items()):
                yield sample("headwater_label_rate", count / self._places, type=self._type(type_))
        for change in self._changes.read(self._reached_ms):
            if not change.surface:
                yield sample("headwater_list_click_rate", change.mean)
                yield sample("headwater_list_click_rate_changed", float(change.changed))
                continue
            yield sample("headwater_surface_mean", change.mean, surface=change.surface, of=change.of)
            yield sample("headwater_surface_changed", float(change.changed), surface=change.surface, of=change.of)

    def _volume_samples(self, now_ms: int) -> Iterator[Sample]:
        at = now_ms if self._live else self._reached_ms
        for volume in self._volumes.look(at, live=self._live and not self.behind):
            name = self._type(volume.type)
            yield sample("headwater_event_volume", volume.events, type=name)
            if volume.expected is not None:
                yield sample("headwater_event_volume_expected", volume.expected, type=name)
            yield sample("headwater_event_volume_off", float(volume.off), type=name)
            yield sample("headwater_event_silence_seconds", volume.silence_s, type=name)
            yield sample("headwater_event_silent", float(volume.silent), type=name)

    def _type(self, number: int) -> str:
        return self._log.vocabulary().text(Namespace.EVENT_TYPE, number) or f"type {number}"


def pieces(block: RecordBlock, step_ms: int) -> Iterator[RecordBlock]:
    """The block, cut where ``received_ms`` goes over a multiple of ``step_ms``."""
    steps = block.records["received_ms"] // step_ms
    ends = [*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), len(block)]
    start = 0
    for end in ends:
        yield block.head(end).tail(start)
        start = end
