"""Served lists in a log, with feature rows worked out by a fold of their own each: slow, and beyond doubt."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, anchor_user, assemble, forget_idle, new_scratch
from headwater.features.fold import Fold
from headwater.features.plan import Plan
from headwater.features.replay import fold_to
from headwater.log.commands import ServedEntry
from headwater.log.protocol import EventLog
from headwater.schema.requests import Address, ServedList


def rows_of(
    log: EventLog, plan: Plan, user: int, items: list[int], address: Address, context: list[int]
) -> npt.NDArray[np.float32]:
    """The rows that a server would have kept: ``float32[n, d]``."""
    users, table = Fold(plan), Fold(plan)
    fold_to(log, users, address.user_offset)
    fold_to(log, table, address.item_offset)
    row = users.users.user(user)
    forget_idle(row, address.now_ms, plan)
    first, second, anchor, offset_ms = context
    if anchor:
        anchor_user(row, anchor, plan.layout)
    table.items.reserve(256)
    out = np.zeros((len(items), len(plan.columns)), np.float32)
    scratch = new_scratch(len(table.items.dirty), len(items), plan)
    asked = Context((first, second), offset_ms)
    return assemble(plan, row, table.items.rows, np.array(items), asked, address.now_ms, scratch, out)


def entry(
    user: int, items: list[int], address: Address, context: list[int], features: bytes, *, request: str = "r"
) -> ServedEntry:
    """The record of a list."""
    sources = ["popular"] * len(items)
    served = ServedList(request, "home", items, [0.0] * len(items), sources, 0, [], address, context, features)
    return ServedEntry(user, user, msgspec.msgpack.encode(served))
