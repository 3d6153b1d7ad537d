"""What each user did, in order: the sequences that the fitted sources are trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.features.fold_kernel import RETRACT
from headwater.features.plan import Plan
from headwater.log.protocol import EventLog
from headwater.log.record import RECORD, Kind, Namespace, of_people
from headwater.log.seek import last_before
from headwater.schema.config import Config

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Events of the types that a recent sequence holds, user by user, each user's by time (``n`` events, ``u`` users).

    ``users`` int64[u] dense, ascending; the events of ``users[k]`` are ``starts[k] … starts[k + 1] - 1``. ``items`` int64[n]
    dense; ``types`` uint8[n] type slots (1 is the first of ``config.events``); ``time_ms`` and ``offset`` int64[n]; ``positive``
    bool[n].
    """

    users: Int64
    starts: Int64
    items: Int64
    types: npt.NDArray[np.uint8]
    time_ms: Int64
    offset: Int64
    positive: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def owner(self) -> Int64:
        """``int64[n]``: position in ``users`` of each event."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.starts))

    def where(self, keep: npt.NDArray[np.bool_]) -> Sequences:
        """The events that ``keep`` (bool[n]) marks; users without any are gone."""
        return by_user(
            self.users[self.owner[keep]], self.items[keep], self.types[keep], self.time_ms[keep], self.offset[keep],
            self.positive[keep],
        )  # fmt: skip


def by_user(
    user: Int64, items: Int64, types: npt.NDArray[np.uint8], time_ms: Int64, offset: Int64,
    positive: npt.NDArray[np.bool_],
) -> Sequences:  # fmt: skip
    """Events (columns of one length) in the order of user, time and offset."""
    order = np.lexsort((offset, time_ms, user))
    users, first = np.unique(user[order], return_index=True)
    starts = np.append(first, len(user)).astype(np.int64)
    return Sequences(
        users.astype(np.int64), starts, items[order], types[order], time_ms[order], offset[order], positive[order]
    )


def read_sequences(log: EventLog, plan: Plan, config: Config, *, until: int, start_ms: int = 0) -> Sequences:
    """The sequences of the log up to the offset ``until``, of events received from ``start_ms`` on.

    A retracted event is left out: the latest one of the same user, item and type before the retraction.
    """
    slot_of = _slots(log, config)
    parts: list[npt.NDArray[np.void]] = []
    after = last_before(log, start_ms)[0] if start_ms else 0
    while after < until and (block := log.read(after)) is not None:
        records = block.records
        slots = slot_of[np.minimum(records["type"], len(slot_of) - 1)]
        chosen = of_people(records, Kind.EVENT) & (records["user"] > 0) & (records["item"] > 0) & (slots > 0)
        chosen &= (records["offset"] <= until) & (records["received_ms"] >= start_ms)
        parts.append(records[chosen])
        after = block.last_offset
    records = np.concatenate(parts) if parts else np.zeros(0, RECORD)
    records = records[_standing(records)]
    types = slot_of[records["type"]]
    positive = plan.types.positive[types].astype(np.bool_)
    return by_user(
        records["user"].astype(np.int64), records["item"].astype(np.int64), types.astype(np.uint8),
        np.minimum(records["time_ms"], records["received_ms"]).astype(np.int64), records["offset"].astype(np.int64), positive,
    )  # fmt: skip


def _slots(log: EventLog, config: Config) -> Int64:
    """Type slot by dense type of the log; 0 for one that a sequence does not hold."""
    vocabulary = log.vocabulary()
    found = [
        (vocabulary.index(Namespace.EVENT_TYPE, kind.name), slot)
        for slot, kind in enumerate(config.events, 1)
        if kind.sequence
    ]
    slots = np.zeros(max((index for index, _ in found), default=0) + 2, np.int64)
    for index, slot in found:
        if index:
            slots[index] = slot
    return slots


def _standing(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Which events stand: neither a retraction nor what one took back."""
    stands = np.ones(len(records), np.bool_)
    retractions = np.flatnonzero(records["flags"] & RETRACT)
    stands[retractions] = False
    for at in retractions.tolist():
        same = np.ones(at, np.bool_)
        for name in ("user", "item", "type"):
            same &= records[name][:at] == records[name][at]
        earlier = np.flatnonzero(same & stands[:at])
        if len(earlier):
            stands[earlier[-1]] = False
    return stands
