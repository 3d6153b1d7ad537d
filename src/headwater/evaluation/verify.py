"""Proof that serving and training see the same numbers: served feature rows against rows replayed at their address.

A served list whose feature rows were kept says at which user offset, item offset and moment they were assembled.
The log is folded twice from an empty state: up to each user offset, keeping the user's row; then up to
each item offset, assembling the list again with the item rows of that point. Equal means equal to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Struct

from headwater.features.assemble import Context, User, anchor_user, assemble, new_scratch, stranger
from headwater.features.fold import Fold
from headwater.features.plan import MAX_ITEMS, U_RECENT_LENGTH, Plan
from headwater.log.protocol import EventLog
from headwater.log.record import Kind
from headwater.schema.requests import ServedList

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]

_decode_served = msgspec.msgpack.Decoder(ServedList).decode
_BYTES = 4  # of a float32


class Verification(Struct, frozen=True):
    """What was compared. ``by_feature`` names every column; ``skipped`` says what could not be compared and why."""

    requests: int
    rows: int
    mismatched_bytes: int
    by_feature: dict[str, int]
    skipped: dict[str, int]
    plan: str


@dataclass(slots=True)
class _Served:
    user: int
    served: ServedList
    row: User | None = None


def verify(event_log: EventLog, plan: Plan, *, limit: int | None = None) -> Verification:
    """Compare the feature rows of the newest ``limit`` served lists (None: all that kept theirs) with replayed ones.

    Raises:
        CorruptLogError: the log does not read as it was written.
    """
    found, skipped = _kept(event_log, plan)
    if limit is not None and len(found) > limit:
        found = found[-limit:]
    wrong = np.zeros(len(plan.columns), np.int64)
    _capture_users(event_log, plan, found)
    rows = _compare(event_log, plan, found, wrong)
    return Verification(
        requests=len(found),
        rows=rows,
        mismatched_bytes=int(wrong.sum()),
        by_feature=dict(zip(plan.columns, wrong.tolist(), strict=True)),
        skipped=skipped,
        plan=plan.hash,
    )


def _kept(event_log: EventLog, plan: Plan) -> tuple[list[_Served], dict[str, int]]:
    """Served lists with feature rows, in log order; and how many were passed over."""
    found: list[_Served] = []
    skipped = {"not sampled": 0, "empty list": 0, "another plan": 0}
    offset = 0
    while (block := event_log.read(offset)) is not None:
        for i in np.flatnonzero(block.records["kind"] == Kind.SERVED).tolist():
            served = _decode_served(block.payload(i))
            if not served.items:
                skipped["empty list"] += 1
            elif not served.features:
                skipped["not sampled"] += 1
            elif served.address.plan != plan.hash:
                skipped["another plan"] += 1
            else:
                found.append(_Served(int(block.records["user"][i]), served))
        offset = block.last_offset
    return found, skipped


def _capture_users(event_log: EventLog, plan: Plan, found: Sequence[_Served]) -> None:
    """Give each served list its user's row as it stood at the list's user offset."""
    for fold, asked in _standing_at(event_log, plan, found, lambda one: one.served.address.user_offset):
        for one in asked:
            row = stranger(plan)
            if 0 < one.user < len(fold.users.dirty):
                stored = fold.users.row(one.user)
                row.i8[:], row.f4[:], row.u4[:] = stored.i8, stored.f4, stored.u4
            if len(one.served.context) > 2 and one.served.context[2]:
                anchor_user(row, one.served.context[2], plan.layout)
            one.row = row


def _compare(event_log: EventLog, plan: Plan, found: Sequence[_Served], wrong: Int64) -> int:
    """Assemble every list again at its item offset; adds mismatched bytes per column to ``wrong``; returns rows."""
    longest = max((len(one.served.items) for one in found), default=1)
    out = np.zeros((longest, len(plan.columns)), np.float32)
    scratch = new_scratch(1024, longest, plan)
    rows = 0
    for fold, asked in _standing_at(event_log, plan, found, lambda one: one.served.address.item_offset):
        for one in asked:
            if one.row is None:
                raise ValueError("The user's row is captured before lists are compared")
            items = np.array(one.served.items, np.int64)
            fold.items.reserve(_highest(one.row, items, plan) + 1)
            if len(scratch.where) < len(fold.items.dirty):
                scratch = new_scratch(len(fold.items.dirty), longest, plan)
            context = Context((one.served.context[0], one.served.context[1]))
            now_ms = one.served.address.now_ms
            again = assemble(plan, one.row, fold.items.rows, items, context, now_ms, scratch, out)
            served = np.frombuffer(one.served.features, np.uint8).reshape(len(items), len(plan.columns), _BYTES)
            replayed = again.view(np.uint8).reshape(served.shape)
            differs = (served != replayed).sum(axis=(0, 2))
            if differs.any():
                names = [plan.columns[column] for column in np.flatnonzero(differs).tolist()]
                log.warning("features_differ", request_id=one.served.request_id, columns=names)
            wrong += differs
            rows += len(items)
    return rows


def _highest(row: User, items: Int64, plan: Plan) -> int:
    """The largest dense item that an assembly of ``items`` for ``row`` looks at."""
    start = plan.layout.recent_keys
    recent = row.u4[start : start + int(row.u4[U_RECENT_LENGTH])] & np.uint32(MAX_ITEMS)
    return max(int(items.max()), int(recent.max(initial=0)))


def _standing_at(
    event_log: EventLog, plan: Plan, found: Sequence[_Served], offset_of: Callable[[_Served], int]
) -> Iterator[tuple[Fold, list[_Served]]]:
    """Fold the log in memory and stop at each offset that is asked for, with those who asked."""
    wanted: dict[int, list[_Served]] = {}
    for one in found:
        wanted.setdefault(offset_of(one), []).append(one)
    fold = Fold(plan)
    block, start = None, 0
    for offset in sorted(wanted):
        while fold.offset < offset:
            if block is None or start == len(block):
                block, start = event_log.read(fold.offset), 0
                if block is None:
                    raise ValueError(f"A served list names offset {offset}, the log ends at {fold.offset}")
            stop = min(len(block), offset - block.first_offset + 1)
            fold.apply(block.head(stop).tail(start))
            start = stop
        yield fold, wanted[offset]
