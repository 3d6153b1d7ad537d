"""Small files for the import tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.log.batch import EventBatch
from headwater.log.lmdb import LmdbLog
from headwater.log.record import RECORD, Kind, Namespace

START_MS = 1_506_816_000_000


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def plain_events(batch: EventBatch) -> list[tuple[Any, ...]]:
    """A batch as plain rows with its texts, whatever their order in the batch's tables."""
    ends = np.cumsum(batch.detail_size, dtype=np.int64)
    return [
        (
            batch.users[batch.user[row]],
            batch.items[batch.item[row]],
            batch.types[batch.type[row]],
            batch.surfaces[batch.surface[row]],
            tuple(batch.segments[position] for position in batch.segment[row]),
            int(batch.time_ms[row]),
            batch.value[row].tobytes(),
            int(batch.event_key[row]),
            int(batch.flags[row]),
            batch.detail[ends[row] - batch.detail_size[row] : ends[row]].tobytes(),
        )
        for row in range(len(batch))
    ]


def records_of(data: Path, kind: Kind) -> npt.NDArray[np.void]:
    """All records of a kind in the log of a data directory."""
    log = LmdbLog(data / "log", readonly=True)
    try:
        found, after = [], 0
        while (block := log.read(after)) is not None:
            found.append(block.records[block.records["kind"] == kind])
            after = block.last_offset
        return np.concatenate(found) if found else np.zeros(0, RECORD)
    finally:
        log.close()


def texts_of(data: Path, namespace: Namespace) -> list[str]:
    """The texts of a namespace in the order in which they were assigned."""
    log = LmdbLog(data / "log", readonly=True)
    try:
        return list(log.vocabulary().texts(namespace)[1:])
    finally:
        log.close()
