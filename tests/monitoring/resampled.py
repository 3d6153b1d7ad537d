"""Drift on real feature rows: lists that a server logged, drawn anew by user for hour after hour, so that nothing changes; then one column after the
other goes constant. ``python -m tests.monitoring.resampled DATA`` prints one JSON object.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from headwater.features.statistics import STATISTICS_FILE, FeatureStatistics, Statistics
from headwater.log.archived import open_log
from headwater.log.record import Kind
from headwater.monitoring.bins import Bins
from headwater.monitoring.divergence import psi, smoothed
from headwater.monitoring.outcomes import group_of
from headwater.monitoring.reference import Compared, State
from headwater.monitoring.reservoir import HOUR_MS, Cells
from headwater.registry.registry import Registry
from headwater.schema.drift import Drift
from headwater.schema.requests import ServedList
from tests.monitoring.logs import Rows

MOST_LISTS, HOURS, CALM = 3_000, 25, 100


class Given(NamedTuple):
    """A list: its user, request, rows and bundle."""

    user: int
    request: str
    rows: Rows
    bundle: str


def lists_of(data: Path) -> list[Given]:
    """The first lists of the full path in the log that kept their rows."""
    found: list[Given] = []
    with closing(open_log(data)) as log:
        after = max(log.last_offset - 200_000, 0)
        while len(found) < MOST_LISTS and (block := log.read(after)) is not None:
            for row in np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist():
                served = msgspec.msgpack.decode(block.payload(row), type=ServedList)
                if served.features and served.tier <= 1:
                    rows = np.frombuffer(served.features, np.float32).reshape(len(served.items), -1)
                    user = int(block.records["user"][row])
                    found.append(Given(user, served.request_id, rows, served.address.bundle))
            after = block.last_offset
    return found


def of_training(served: Rows, column: FeatureStatistics) -> float:
    """PSI between the training rows of a bundle (their sketch) and what it served."""
    bins = Bins.of(column.name, None, np.ascontiguousarray(served))
    counts = np.bincount(bins.place(served), minlength=bins.count)[2:].astype(np.float64)
    at = [float(np.nextafter(np.float32(bins.low), np.float32(-np.inf))), *bins.edges]
    before = np.diff(np.concatenate([[0.0], column.sketch().get_cdf(at)])) * column.finite
    return psi(smoothed(before), smoothed(counts))


def main() -> int:
    """Run from the command line."""
    data, rng = Path(sys.argv[1]), np.random.default_rng(3)
    lists = lists_of(data)
    bundle = Registry(data / "models").load(lists[-1].bundle, plan_hash=None)
    columns = Statistics.decode(bundle.files[STATISTICS_FILE]).read()
    by_user: dict[int, list[Given]] = {}
    for each in lists:
        by_user.setdefault(each.user, []).append(each)
    users = list(by_user.values())
    names = tuple(column.name for column in columns)
    state = State(key="", names=names, defaults=tuple(c.default for c in columns), ranges=(None,) * len(names))
    judge = Compared(state, Drift(min_rows=2_000))
    served = np.concatenate([each.rows for each in lists])
    middle = np.median(served, axis=0).astype(np.float32)
    time_ms = 1

    def hour(count: int, broken: int | None = None) -> None:
        nonlocal time_ms
        drawn = [users[at][rng.integers(len(users[at]))] for at in rng.integers(0, len(users), count)]
        rows = np.concatenate([each.rows for each in drawn])
        if broken is not None:
            rows[:, broken] = middle[broken]
        groups = np.repeat([group_of(each.user, each.request) for each in drawn], [len(each.rows) for each in drawn])
        judge.add(Cells(rows, groups, time_ms))
        time_ms += HOUR_MS

    for _ in range(HOURS):
        hour(100)
    calm: list[bool] = []
    while len(calm) < CALM:
        hour(300)
        if (look := judge.close(time_ms)) is not None:
            calm.append(any(column.drifted for column in look.columns))
    varied = np.flatnonzero(served.std(axis=0) > 0).tolist()
    found = others = 0
    for column in varied:
        hour(300, column)
        look = judge.close(time_ms)
        assert look is not None
        found += look.columns[column].drifted
        others += sum(one.drifted for one in look.columns) - look.columns[column].drifted
    apart = [of_training(served[:, c], column) for c, column in enumerate(columns) if column.finite]
    outcome = {
        "lists": len(lists), "users": len(users), "columns": len(names), "windows": len(calm), "false_alarms": sum(calm),
        "gone_constant": len(varied), "found": found, "others": others,
        "training_psi_above_0.2": sum(one > 0.2 for one in apart),
    }  # fmt: skip
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
