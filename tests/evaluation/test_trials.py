"""What is tried out in the playground is neither learnt from nor measured: the same log with trials, without them, and with them as people's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from headwater.evaluation.exploration import measure_exploration
from headwater.evaluation.ladder import measure_ladder
from headwater.evaluation.off_policy.logged import read_lists
from headwater.experiments.credits import read_preference
from headwater.experiments.definitions import parse_experiment
from headwater.experiments.judge import first_visits
from headwater.experiments.metrics import predefined
from headwater.experiments.outcomes import read_outcomes
from headwater.features.plan import compile_plan
from headwater.learning.collecting import build_rows
from headwater.learning.exposures import Asked, Stretch, read_exposures
from headwater.learning.sequences import read_sequences
from headwater.learning.shown import read_shown
from headwater.log.memory import MemoryLog
from headwater.log.protocol import Commit, Term
from headwater.log.record import FLAG_TRIAL, Kind, Namespace, RecordBlock, crcs_of
from headwater.monitoring.drift import DriftWatch
from headwater.monitoring.online_metrics import OnlineMetrics
from headwater.registry.registry import Registry
from headwater.schema.config import Ranker, parse_config
from headwater.schema.drift import Drift
from headwater.schema.experiments import ExposureRecord
from headwater.schema.requests import Explored, ServedList
from headwater.testing.events import Written
from tests.offline.exposed import CONFIG, MINUTE, site

EXPERIMENT = parse_experiment(
    """
name = "teams"
status = "running"
interleave = true
buckets = [[0, 10000]]
[[variants]]
name = "control"
[[variants]]
name = "new"
set = {"ranker.candidates" = 400}
""",
    "test",
)
PLAN = compile_plan(CONFIG)


@cache
def busy() -> Written:
    return site(5, 250)


@cache
def logs(whole_users: bool) -> tuple[MemoryLog, MemoryLog, MemoryLog]:
    """With trials, without them (in their place stands what nobody reads), and with the same as people's.

    ``whole_users``: all that two of six users do is tried out; else every third list or event of anybody.
    """
    log = busy()
    others = [log.user("u4"), log.user("u5")]
    made: list[MemoryLog] = []
    for how in ("trial", "absent", "people"):
        part, lots = MemoryLog("trials"), np.random.default_rng(9)
        told: set[int] = set()
        for block in log.blocks():
            records, payloads = block.records.copy(), [block.payload(i) for i in range(len(block))]
            moves = (records["kind"] == Kind.EVENT) | (records["kind"] == Kind.SERVED)
            tried = moves & (np.isin(records["user"], others) if whole_users else lots.random(len(records)) < 1 / 3)
            for i in np.flatnonzero(moves).tolist():
                if records["kind"][i] == Kind.SERVED:
                    payloads[i] = _drawn(payloads[i])
                elif (
                    int(records["user"][i]) not in told and not tried[i]
                ):  # the user's first event says who is in the experiment
                    told.add(int(records["user"][i]))
                    records["kind"][i], records["item"][i], records["type"][i] = Kind.EXPOSURE, 0, 0
                    payloads[i] = msgspec.msgpack.encode(
                        ExposureRecord(EXPERIMENT.name, EXPERIMENT.exposed_names[0], EXPERIMENT.version, "r")
                    )
            if how == "trial":
                records["flags"][tried] |= FLAG_TRIAL
            elif how == "absent":
                records["kind"][tried] = Kind.IMPORT
            _append(part, log, records, payloads)
        made.append(part)
    return made[0], made[1], made[2]


def _drawn(payload: bytes) -> bytes:
    served = msgspec.msgpack.decode(payload, type=ServedList)
    n = len(served.items)
    explored = Explored([-1.0] * n, served.items, 0.0, 0.5, uniform=True)
    drawn = msgspec.structs.replace(
        served, explored=explored, experiments={EXPERIMENT.name: "control"}, teams=bytes([1, 2] * n)[:n]
    )
    return msgspec.msgpack.encode(drawn)


def _append(part: MemoryLog, log: Written, records: npt.NDArray[np.void], payloads: list[bytes]) -> None:
    texts = log.log.vocabulary().texts
    terms = [] if part.last_offset else [Term(n, i, text) for n in Namespace for i, text in enumerate(texts(n)) if i]
    records["payload_size"] = [len(payload) for payload in payloads]
    records["payload_at"] = np.cumsum(records["payload_size"]) - records["payload_size"]
    block = RecordBlock(records, np.frombuffer(b"".join(payloads), np.uint8))
    records["crc"] = crcs_of(block)[0]
    part.append(Commit(block, terms))


Look = Callable[[MemoryLog, Path], object]


def _questions(log: MemoryLog, _: Path) -> object:
    return _rows(log, "questions")


def _lists(log: MemoryLog, _: Path) -> object:
    return _rows(log, "lists")


def _rows(log: MemoryLog, learn_from: Literal["questions", "lists"]) -> object:
    config = msgspec.structs.replace(CONFIG, ranker=Ranker(learn_from=learn_from))
    with capture_logs():
        rows = build_rows(log, PLAN, config, until=log.last_offset, start_ms=0, seed=1).rows
    return rows.features.tobytes(), rows.labels.tolist(), rows.outcomes.tolist(), rows.position.tolist(), rows.asked


def _shown(log: MemoryLog, _: Path) -> object:
    return str(read_shown(log, CONFIG, since=0, until=log.last_offset))


def _sequences(log: MemoryLog, _: Path) -> object:
    found = read_sequences(log, PLAN, CONFIG, until=log.last_offset)
    return found.users.tolist(), found.items.tolist(), found.offset.tolist()


def _materialized(log: MemoryLog, _: Path) -> object:
    last = log.last_offset
    every = Stretch((1, last), (1, 0), 1, last)
    kinds = ("impressions", "served", "positives")
    found = [
        read_exposures(log, CONFIG, Asked(rows=kind, negatives=3), every, 5 * MINUTE, ("click",)) for kind in kinds
    ]
    return [{name: column.tolist() for name, column in one.columns.items()} for one in found]


def _online(log: MemoryLog, _: Path) -> object:
    settings = '[monitoring.online]\nwindow = "2h"\nattribution = "30m"\ndwell = "view"\n'
    return list(OnlineMetrics(log, parse_config(settings)).look(log.last_received_ms))


def _drift(log: MemoryLog, folder: Path) -> object:
    said = Drift(reference="1h", window="1h", min_rows=1_000, outcome_window="10m")
    watch = DriftWatch(log, Registry(folder / "models"), folder, said, ("click", "like"), live=False, keep=False)
    return list(watch.look(log.last_received_ms))


def _experiment(log: MemoryLog, _: Path) -> object:
    users, first_ms = first_visits(log, 0, log.last_received_ms)
    found = read_outcomes(log, list(predefined(CONFIG, "2h").values()), user=users, first_ms=first_ms, before_ms=0)
    return users.tolist(), first_ms.tolist(), {name: values.tolist() for name, values in found.values.items()}


def _preference(log: MemoryLog, _: Path) -> object:
    return read_preference(log, EXPERIMENT, ("click", "like"), window_ms=20 * MINUTE)


def _off_policy(log: MemoryLog, _: Path) -> object:
    found = read_lists(log, CONFIG, surface="home", reward=None, window_ms=20 * MINUTE)
    return [served.answer.request_id for served in found.served], found.rewards.tolist(), found.skipped


def _exploration(log: MemoryLog, _: Path) -> object:
    return measure_exploration(log, CONFIG, window_ms=20 * MINUTE)


def _ladder(log: MemoryLog, _: Path) -> object:
    return measure_ladder(log, CONFIG, window_ms=20 * MINUTE)


LEARNT: tuple[Look, ...] = (_questions, _lists, _shown, _sequences, _materialized)
MEASURED: tuple[Look, ...] = (_online, _drift, _experiment, _preference, _off_policy, _exploration, _ladder)


@pytest.mark.parametrize(
    ("look", "whole_users"),
    [*((look, True) for look in LEARNT), *((look, False) for look in MEASURED)],
    ids=lambda value: value.__name__.strip("_") if callable(value) else ("users" if value else "moves"),
)
def test_trials_are_as_good_as_absent(look: Look, whole_users: bool, tmp_path: Path) -> None:
    trial, absent, people = (look(log, tmp_path) for log in logs(whole_users))
    assert repr(trial) == repr(absent)
    assert repr(trial) != repr(people), "what people do counts"
