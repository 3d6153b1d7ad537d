"""Labels and calibration by event type, which is what a head of a ranker is about: each positive type against the first stretch of the bundle.

The **label rate** of a type is the share of places that led to an event of it; its **calibration** is that rate for the scores of the window, as
:mod:`headwater.monitoring.calibration` judges it for any positive event. A rate is the same with one score for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from headwater.monitoring.calibration import Calibrated, Calibration, CalibrationState
from headwater.monitoring.left import LeftReferences
from headwater.monitoring.outcomes import Waiting
from headwater.monitoring.reservoir import Cells
from headwater.monitoring.samples import Sample, sample
from headwater.schema.drift import Drift

LABEL, HEAD = "label", "head"


class ByType:
    """Of one bundle at a time: ``serve`` says which. Of a single type the calibration is that of any positive event, so only its rate is judged."""

    def __init__(
        self, types: Sequence[str], settings: Drift, states: Mapping[str, CalibrationState], left: LeftReferences
    ) -> None:
        kinds = (LABEL, HEAD) if len(types) > 1 else (LABEL,)
        self._names = tuple(f"{kind}-{type_}" for kind in kinds for type_ in types)
        self._settings, self._left = settings, left
        self._judges = {name: self._judge(state) for name, state in states.items() if name in self._names}

    def serve(self, version: str) -> None:
        """Go over to a bundle; of one that comes back, to what was kept of it."""
        for name in self._names:
            judge = self._judges.get(name)
            if judge is not None and judge.state.key == version:
                continue
            if judge is not None:
                self._left.put(name, judge.saved())
            kept = self._left.calibration(name, version)
            self._judges[name] = self._judge(kept or CalibrationState(key=version))

    def add(self, waiting: Waiting, clicked: Mapping[str, set[int]]) -> None:
        """Take in a list whose outcomes are in; ``clicked`` are its places by type."""
        groups = np.full(len(waiting.items), waiting.group, np.int64)
        for name, judge in self._judges.items():
            kind, _, type_ = name.partition("-")
            values = np.zeros((len(waiting.items), 2), np.float32)
            if kind == HEAD:
                values[:, 0] = waiting.scores
            values[list(clicked.get(type_, ())), 1] = 1.0
            judge.add(Cells(values, groups, waiting.time_ms))

    def close(self, now_ms: int, *, whole: bool = True) -> dict[str, Calibrated]:
        """Judge the windows that are over, each by its name."""
        closed = ((name, judge.close(now_ms, whole=whole)) for name, judge in self._judges.items())
        return {name: found for name, found in closed if found is not None}

    def saved(self) -> dict[str, CalibrationState]:
        """The states as of now."""
        return {name: judge.saved() for name, judge in self._judges.items()}

    def samples(self) -> Iterator[Sample]:
        """How things stand: of the last windows that were judged."""
        for name, judge in self._judges.items():
            kind, _, type_ = name.partition("-")
            if (found := judge.state.latest) is not None:
                yield sample(f"headwater_{kind}_observed", found.observed, type=type_)
                yield sample(f"headwater_{kind}_expected", found.expected, type=type_)
                yield sample(f"headwater_{kind}_off", float(found.off), type=type_)

    def _judge(self, state: CalibrationState) -> Calibration:
        return Calibration(state, self._settings, tests=len(self._names))
