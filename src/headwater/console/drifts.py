"""What the monitor found of features lately: how far they are from the training reference, and from their replay."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from headwater.monitoring.history import HISTORY_FILE, History, HistoryError

PSI, SKEW = "headwater_feature_psi", "headwater_feature_skew"
_LABEL = "feature"


class Drifts(NamedTuple):
    """The latest figures by feature, and when they were taken (0: never). ``why_none`` says why there are none."""

    psi: dict[str, float]
    skew: dict[str, float]
    taken_ms: int
    why_none: str


def read_drifts(data: Path) -> Drifts:
    """The latest figures in the history of ``data``; the largest of a feature where it has several."""
    path = data / HISTORY_FILE
    if not path.exists():
        return Drifts({}, {}, 0, "The monitor has written no history yet, so there is nothing to compare with")
    try:
        history = History(path, readonly=True)
    except HistoryError as error:
        return Drifts({}, {}, 0, str(error))
    found: dict[str, dict[str, float]] = {PSI: {}, SKEW: {}}
    taken_ms = 0
    for name, by_feature in found.items():
        for labels, time_ms, value in history.latest(name):
            if (feature := labels.get(_LABEL)) is not None:
                by_feature[feature] = max(value, by_feature.get(feature, value))
                taken_ms = max(taken_ms, time_ms)
    history.close()
    none = (
        ""
        if taken_ms
        else "The monitor has compared no features yet: it takes a bundle with a reference, and lists with features"
    )
    return Drifts(found[PSI], found[SKEW], taken_ms, none)
