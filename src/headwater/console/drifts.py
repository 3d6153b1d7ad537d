"""What the monitor found of features: how far served values are from the bundle's first stretch, and served rows from their replay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from headwater.monitoring.history import HISTORY_FILE, History, HistoryError, Series

PSI, PSI_NULL = "headwater_feature_psi", "headwater_feature_psi_null"
DRIFTED, MISSING = "headwater_feature_drifted", "headwater_feature_missing"
SKEW, SKEW_CHECKED = "headwater_feature_skew_bytes", "headwater_skew_checked_requests"
_LABEL = "feature"
_NO_HISTORY = "The monitor has written no history yet, so there is nothing to compare with"
_NOT_COMPARED = "The monitor has compared no features yet: it takes lists that were logged with their features"


@dataclass(slots=True)
class Drift:
    """The latest figures of a feature. ``null``: the PSI that chance alone exceeds seldom; ``skew``: bytes that the replay did not give."""

    psi: float | None = None
    null: float | None = None
    drifted: bool = False
    missing: float | None = None
    skew: float | None = None


class Drifts(NamedTuple):
    """By feature, and when they were taken (0: never). ``why_none`` says why there are none."""

    of: dict[str, Drift]
    taken_ms: int
    why_none: str

    def get(self, feature: str) -> Drift:
        """Those of ``feature``; without figures when it was not compared."""
        return self.of.get(feature, Drift())


def read_drifts(data: Path) -> Drifts:
    """The latest figures in the history of ``data``."""
    history = _opened(data)
    if isinstance(history, str):
        return Drifts({}, 0, history)
    found: dict[str, Drift] = {}
    taken_ms = 0
    checked = any(value > 0 for _, _, value in history.latest(SKEW_CHECKED))
    for name in (PSI, PSI_NULL, DRIFTED, MISSING, SKEW):
        for labels, time_ms, value in history.latest(name):
            drift = found.setdefault(labels.get(_LABEL, ""), Drift())
            taken_ms = max(taken_ms, time_ms)
            if name == PSI:
                drift.psi = value
            elif name == PSI_NULL:
                drift.null = value
            elif name == DRIFTED:
                drift.drifted = value > 0
            elif name == MISSING:
                drift.missing = value
            else:
                drift.skew = value
    history.close()
    for drift in found.values():
        if checked and drift.skew is None:  # only features that did not fit are told of
            drift.skew = 0.0
    return Drifts(found, taken_ms, "" if taken_ms else _NOT_COMPARED)


class PsiSeries(NamedTuple):
    """PSI of one feature over time, and what chance alone exceeds seldom; None where there is nothing."""

    psi: Series | None
    null: Series | None


def read_psi(data: Path, feature: str, since_ms: int, until_ms: int) -> PsiSeries:
    """The history of one feature."""
    history = _opened(data)
    if isinstance(history, str):
        return PsiSeries(None, None)
    psi, null = (
        next(iter(history.series(name, since_ms=since_ms, until_ms=until_ms, labels={_LABEL: feature})), None)
        for name in (PSI, PSI_NULL)
    )  # fmt: skip
    history.close()
    return PsiSeries(psi, null)


def _opened(data: Path) -> History | str:
    """The history, or why there is none."""
    path = data / HISTORY_FILE
    if not path.exists():
        return _NO_HISTORY
    try:
        return History(path, readonly=True)
    except HistoryError as error:
        return str(error)
