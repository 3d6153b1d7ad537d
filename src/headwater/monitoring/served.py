"""What the bundle in service serves: its feature columns, its scores, and what came of these.

Features are held against those of the first bundle of the same lineage: one that was warm-started from another goes on with its reference.
Scores and calibration are each bundle's own, for another bundle may score on another scale. Lists that say nothing about either are left
out: those that were sent down the ladder by lot, drawn evenly from all candidates, drafted by two bundles, or made by another bundle (of an experiment, or before a promotion).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Struct

from headwater.monitoring.by_type import ByType
from headwater.monitoring.calibration import Calibration, CalibrationState
from headwater.monitoring.dead import Alive, DeadState
from headwater.monitoring.drift_state import DriftState
from headwater.monitoring.hours import Hours
from headwater.monitoring.left import LeftReferences
from headwater.monitoring.outcomes import Waiting, group_of
from headwater.monitoring.reference import Compared, Look, State
from headwater.monitoring.reservoir import HOUR_MS, Cells
from headwater.monitoring.samples import Sample, sample
from headwater.registry.errors import BundleError
from headwater.registry.files import read_regular
from headwater.registry.reference import BundleReference, reference_alone
from headwater.registry.registry import Registry
from headwater.schema.drift import Drift
from headwater.schema.requests import ServedList

log = structlog.get_logger()

SCORE = "score"
STATISTICS_FILE = "statistics.json"
_MOST_BYTES = 256 << 20


class _Column(Struct, frozen=True):
    """What a bundle's statistics say of a column of its training rows."""

    name: str
    default: float
    smallest: float | None
    largest: float | None


class _Statistics(Struct, frozen=True):
    features: tuple[_Column, ...]


class ServedColumns:
    """The columns of one plan's bundle in service. ``take`` lists, ``flush`` after each block, ``close`` by the log's time.

    ``folder`` is that of the monitor; None: nothing is kept.
    """

    def __init__(
        self, registry: Registry, settings: Drift, state: DriftState | None, folder: Path | None, types: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self._registry, self._settings = registry, settings
        self._version: str | None = None
        self._lineages: dict[str, str] = {}
        self._lineage = ""
        features, scores = (None, None) if state is None else (state.features, state.scores)
        calibration = None if state is None else state.calibration
        self.features = None if features is None else Compared(features, settings)
        self.scores = None if scores is None else Compared(scores, settings)
        self.calibration = None if calibration is None else Calibration(calibration, settings)
        self._dead = None if state is None else state.dead
        self._alive: Alive | None = None
        self._left = LeftReferences(None if folder is None else folder / "references")
        self.by_type = ByType(types, settings, {} if state is None else state.by_type, self._left)
        self._hours = Hours(None if folder is None else folder / "sketches")
        self._rows: list[npt.NDArray[np.float32]] = []
        self._scored: list[npt.NDArray[np.float32]] = []
        self._groups: tuple[list[int], list[int]] = ([], [])  # of each row, and of each score
        self._time_ms = 0

    @property
    def version(self) -> str | None:
        """The bundle in service."""
        return self._version

    @property
    def lineage(self) -> str:
        """The bundle with which the warm starts began that led to it."""
        return self._lineage

    def refresh(self, plan: str) -> None:
        """Ask the registry which bundle serves ``plan``; another lineage means another reference."""
        if not plan:
            return
        try:
            version = self._registry.current(plan)
            if version is None or version == self._version:
                return
            lineage = self._registry.lineage(version)
        except BundleError as error:
            log.warning("drift_without_bundle", plan=plan, reason=str(error))
            return
        self.flush()
        self._version, self._lineage = version, lineage
        self._lineages[version] = lineage
        left, settings = self._left, self._settings
        if self.features is None or self.features.state.key != lineage:
            if self.features is not None:
                left.put("features", self.features.saved())
            self.features = Compared(left.compared("features", lineage) or self._columns(version, lineage), settings)
        if self.scores is None or self.scores.state.key != version:
            if self.scores is not None:
                left.put("scores", self.scores.saved())
            fresh = State(key=version, names=(SCORE,), defaults=(None,), ranges=(None,))
            self.scores = Compared(left.compared("scores", version) or fresh, settings)
        if self.calibration is None or self.calibration.state.key != version:
            if self.calibration is not None:
                left.put("calibration", self.calibration.saved())
            kept = left.calibration("calibration", version)
            self.calibration = Calibration(kept or CalibrationState(key=version), settings)
        self.by_type.serve(version)
        if self._dead is None or self._dead.key != version:
            self._dead = DeadState(key=version)
        self._alive = Alive(self._dead, self._reference(version), settings)

    def take(self, served: ServedList, user: int, time_ms: int) -> None:
        """Take in a list."""
        uniform = served.explored is not None and served.explored.uniform
        if served.walked or uniform or served.teams or served.tier > 1 or self.features is None:
            return
        if self._lineage_of(served.address.bundle) != self._lineage:
            return
        if time_ms // HOUR_MS != self._time_ms // HOUR_MS:
            self.flush()
            self._hours.begin(time_ms // HOUR_MS)
        self._time_ms, group = time_ms, group_of(user, served.request_id)
        self._hours.saw(user, served.items)
        if served.address.bundle == self._version:
            self._scored.append(np.array(served.scores, np.float32))
            self._groups[1].extend([group] * len(served.scores))
        if served.features:
            rows = np.frombuffer(served.features, np.float32).reshape(len(served.items), -1)
            if rows.shape[1] == len(self.features.state.names):
                if self._alive is not None and served.address.bundle == self._version:
                    unit = user or -zlib.crc32(served.request_id.encode())
                    self._alive.add(rows, np.array(served.scores, np.float32), unit, time_ms)
                self._rows.append(rows)
                self._groups[0].extend([group] * len(rows))

    def flush(self) -> None:
        """Count the rows and scores that were taken in since the last time."""
        if self._rows and self.features is not None:
            rows = np.concatenate(self._rows)
            self.features.add(Cells(rows, np.array(self._groups[0], np.int64), self._time_ms))
            for column, name in enumerate(self.features.state.names):
                self._hours.update(name, rows[:, column])
        if self._scored and self.scores is not None:
            scores = np.concatenate(self._scored)
            self.scores.add(Cells(scores[:, None], np.array(self._groups[1], np.int64), self._time_ms))
            self._hours.update(SCORE, scores)
        self._rows, self._scored, self._groups = [], [], ([], [])

    def outcome(self, waiting: Waiting, clicked: Mapping[str, set[int]]) -> None:
        """Take in a list whose outcomes are in; ``clicked`` are its places by event type."""
        if self.calibration is None or waiting.bundle != self._version:
            return
        values = np.column_stack((np.array(waiting.scores, np.float32), waiting.places().astype(np.float32)))
        groups = np.full(len(values), waiting.group, np.int64)
        self.calibration.add(Cells(values, groups, waiting.time_ms))
        self.by_type.add(waiting, clicked)

    def close(self, now_ms: int, *, whole: bool = True) -> None:
        """Judge the windows that are over at ``now_ms``; without ``whole`` those that have enough rows, however short."""
        for compared in (self.features, self.scores):
            look = compared.close(now_ms, whole=whole) if compared is not None else None
            for column in look.columns if look is not None else ():
                if column.drifted:
                    log.warning("drifted", column=column.name, psi=column.psi, psi_null=column.psi_null)
        for name in () if self._alive is None else self._alive.close(now_ms, whole=whole):
            log.warning("dead", column=name, bundle=self._version)
        if self.calibration is not None:
            self.calibration.close(now_ms, whole=whole)
        self.by_type.close(now_ms, whole=whole)

    def saved(self) -> tuple[State | None, State | None, CalibrationState | None, DeadState | None]:
        """The states as of now."""
        return (
            None if self.features is None else self.features.saved(),
            None if self.scores is None else self.scores.saved(),
            None if self.calibration is None else self.calibration.saved(),
            self._dead,
        )

    def samples(self) -> Iterator[Sample]:
        """How things stand: of the last window that was judged."""
        if self._alive is not None:
            yield sample("headwater_drift_training_lists", self._alive.lists)
        if self._dead is not None and self._dead.looks:
            yield sample("headwater_features_dead", len(self._dead.dead))
            for name in self._dead.dead:
                yield sample("headwater_feature_dead", 1.0, feature=name)
        if self.features is not None:
            yield sample("headwater_drift_reference_filled", self.features.filled, of="features")
            if (look := self.features.state.latest) is not None:
                yield from _feature_samples(look)
        if self.scores is not None:
            yield sample("headwater_drift_reference_filled", self.scores.filled, of="scores")
            if (look := self.scores.state.latest) is not None:
                (score,) = look.columns
                yield sample("headwater_score_psi", score.psi)
                yield sample("headwater_score_psi_null", score.psi_null)
                yield sample("headwater_score_js", score.js)
                yield sample("headwater_score_drifted", float(score.drifted))
        if self.calibration is not None and (found := self.calibration.state.latest) is not None:
            yield sample("headwater_calibration_observed", found.observed)
            yield sample("headwater_calibration_expected", found.expected)
            yield sample("headwater_calibration_off", float(found.off))
        yield from self.by_type.samples()

    def _lineage_of(self, version: str) -> str | None:
        """The lineage of a bundle; None when its manifest is gone."""
        if version not in self._lineages:
            try:
                self._lineages[version] = self._registry.lineage(version)
            except (
                BundleError
            ):  # of no interest any more: neither in service nor of its lineage, as far as anyone can tell
                self._lineages[version] = ""
        return self._lineages[version] or None

    def _reference(self, version: str) -> BundleReference:
        """What a bundle says that its lists look like; nothing, of one of an earlier release or one that cannot be read."""
        try:
            found = reference_alone(self._registry.path / "bundles", self._registry.manifest(version))
        except BundleError as error:
            log.warning("drift_without_reference", bundle=version, reason=str(error))
            found = None
        return found or BundleReference(learnt_from="")

    def _columns(self, version: str, lineage: str) -> State:
        """What its statistics say of the columns of a bundle."""
        path = self._registry.path / "bundles" / version / STATISTICS_FILE
        try:
            columns = msgspec.json.decode(read_regular(path, _MOST_BYTES), type=_Statistics).features
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("drift_without_statistics", bundle=version, reason=str(error))
            columns = ()
        ranges = (None if c.smallest is None or c.largest is None else (c.smallest, c.largest) for c in columns)
        return State(
            key=lineage,
            names=tuple(c.name for c in columns),
            defaults=tuple(c.default for c in columns),
            ranges=tuple(ranges),
        )


def _feature_samples(look: Look) -> Iterator[Sample]:
    yield sample("headwater_drift_window_rows", look.rows)
    yield sample("headwater_drift_windows", look.number)
    yield sample("headwater_features_drifted", sum(column.drifted for column in look.columns))
    for column in look.columns:
        yield sample("headwater_feature_psi", column.psi, feature=column.name)
        yield sample("headwater_feature_psi_null", column.psi_null, feature=column.name)
        yield sample("headwater_feature_js", column.js, feature=column.name)
        yield sample("headwater_feature_missing", column.missing, feature=column.name)
        yield sample("headwater_feature_out_of_range", column.out_of_range, feature=column.name)
        yield sample("headwater_feature_drifted", float(column.drifted), feature=column.name)
