"""Exposures in the log, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.log.protocol import READ_LIMIT, EventLog, decoded
from headwater.log.record import Kind
from headwater.log.seek import last_before
from headwater.schema.experiments import ExposureRecord

_decode = msgspec.msgpack.Decoder(ExposureRecord).decode


class Exposures(NamedTuple):
    """Exposures of one experiment in log order. ``user`` uint32[n] is dense, ``variant`` int64[n] the position among the variants
    (0: the control), ``time_ms`` int64[n] when the list was recorded, at most a moment after it was given.

    ``unknown`` counts records that were left out: of a variant that the experiment does not have.
    """

    user: npt.NDArray[np.uint32]
    variant: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.user)


def read_exposures(
    event_log: EventLog, experiment: str, variants: Sequence[str], *, version: str | None = None,
    since_ms: int = 0, until_ms: int | None = None,
) -> Exposures:  # fmt: skip
    """The exposures of ``experiment``, whose variants are ``variants`` in their order (the first is the control).

    Args:
        event_log: log, or log and lake together.
        experiment: its name.
        variants: the names of its variants, in the order that their numbers follow.
        version: only those to the variants as they were in this version; None: any.
        since_ms, until_ms: only those from ``since_ms`` on and before ``until_ms`` (None: no end), by the log's clock.

    Raises:
        CorruptLogError: the log does not read as it was written.
    """
    wanted = msgspec.msgpack.encode(experiment)
    numbers = {name: number for number, name in enumerate(variants)}
    users: list[int] = []
    chosen: list[int] = []
    times: list[int] = []
    unknown = 0
    at = last_before(event_log, since_ms)[0] if since_ms else event_log.first_offset - 1
    while at < event_log.last_offset and (block := event_log.read(at, READ_LIMIT)) is not None:
        records = block.records
        if until_ms is not None and int(records["received_ms"][0]) >= until_ms:
            break
        rows = np.flatnonzero(records["kind"] == Kind.EXPOSURE)
        if until_ms is not None:
            rows = rows[records["received_ms"][rows] < until_ms]
        for row in rows.tolist():
            payload = block.payload(row)
            if not payload.startswith(wanted, 1):  # one byte says that an array of four follows
                continue
            record = decoded(_decode, payload, int(records["offset"][row]), "an exposure")
            if version is not None and record.version != version:
                continue
            number = numbers.get(record.variant)
            if number is None:
                unknown += 1
                continue
            users.append(int(records["user"][row]))
            chosen.append(number)
            times.append(int(records["time_ms"][row]))
        at = block.last_offset
    return Exposures(np.array(users, np.uint32), np.array(chosen, np.int64), np.array(times, np.int64), unknown)


class Arms(NamedTuple):
    """The users of an experiment, each once: ``user`` uint32[n] ascending, ``variant`` int64[n], ``first_ms`` int64[n] when they were
    first exposed.

    ``mixed`` counts users who were exposed to more than one variant (their ids joined, or the weights were changed); they are left out,
    because nothing that they do can be put down to one of them.
    """

    user: npt.NDArray[np.uint32]
    variant: npt.NDArray[np.int64]
    first_ms: npt.NDArray[np.int64]
    mixed: int


def first_exposures(exposures: Exposures) -> Arms:
    """Each user of ``exposures`` once, with their variant and when they first saw it."""
    order = np.lexsort((exposures.time_ms, exposures.user))
    user, variant = exposures.user[order], exposures.variant[order]
    first = np.ones(len(user), np.bool_)
    first[1:] = user[1:] != user[:-1]
    starts = np.flatnonzero(first)
    if not len(starts):
        return Arms(user, variant, exposures.time_ms[order], 0)
    pure = np.minimum.reduceat(variant, starts) == np.maximum.reduceat(variant, starts)
    kept = starts[pure]
    return Arms(user[kept], variant[kept], exposures.time_ms[order][kept], int(np.count_nonzero(~pure)))
