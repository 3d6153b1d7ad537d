"""Folding both ways, and comparing to the bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings

from headwater.features.assemble import Context, assemble, forget_idle, new_scratch
from headwater.features.definitions import Column
from headwater.features.fold import Fold
from headwater.features.plan import Plan, compile_plan
from headwater.features.rows import User
from headwater.testing.events import Written, configurations
from headwater.testing.oracle import SlowFold
from headwater.testing.oracle_rows import item_row, user_row

STABLE = settings(
    max_examples=int(os.environ.get("HEADWATER_EXAMPLES", "40")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow, HealthCheck.data_too_large],
)

CONFIGS = configurations()
PLANS = {name: compile_plan(config) for name, config in CONFIGS.items()}


def folded(
    plan: Plan, log: Written, sizes: Sequence[int] = (), *, until: int | None = None, cache_users: int = 32_768
) -> Fold:
    """The production fold of a log cut into blocks of these sizes."""
    fold = Fold(plan, cache_users=cache_users, unseal=log.identity.decrypt)
    for block in log.blocks(sizes, until=until):
        fold.apply(block)
    return fold


def folded_slowly(log: Written, columns: tuple[Column, ...] | None = None, *, until: int | None = None) -> SlowFold:
    slow = SlowFold(log.config, columns, unseal=log.identity.decrypt)
    for block in log.blocks(until=until):
        slow.apply(block)
    return slow


def assembled(
    plan: Plan,
    fold: Fold,
    user: User,
    items: list[int],
    segments: tuple[int, int],
    now_ms: int,
    offset_ms: int = 0,
    surface: int = 0,
) -> npt.NDArray[np.float32]:
    """One request by the kernels; an idle user is a stranger, as for every caller."""
    forget_idle(user, now_ms, plan)
    scratch = new_scratch(len(fold.items.dirty), max(len(items), 1), plan)
    out = np.full((max(len(items), 1), len(plan.columns)), np.nan, np.float32)
    context, rows = Context(segments, offset_ms, surface), np.array(items, np.int64)
    made = assemble(plan, user, fold.items.rows, rows, context, now_ms, scratch, out)
    assert (scratch.where == -1).all(), "the scratch is not clean for the next request"
    return made.copy()


def assert_same_row(what: str, fast: User, slow: User) -> None:
    """All three parts of a row, to the bit."""
    parts: list[tuple[str, npt.NDArray[np.generic], npt.NDArray[np.generic]]] = [
        ("i8", fast.i8, slow.i8), ("f4", fast.f4, slow.f4), ("u4", fast.u4, slow.u4),
    ]  # fmt: skip
    for name, a, b in parts:
        if a.tobytes() != b.tobytes():
            where = np.flatnonzero(a.view(np.uint8).reshape(len(a), -1) != b.view(np.uint8).reshape(len(b), -1))
            cells = np.unique(where // a.itemsize)
            raise AssertionError(f"{what}: {name}{cells.tolist()} is {a[cells].tolist()}, expected {b[cells].tolist()}")


def assert_same_state(plan: Plan, fold: Fold, slow: SlowFold) -> None:
    """Every row of every user and item, to the bit."""
    assert fold.offset == slow.offset
    rows = fold.items.rows
    assert max(slow.items, default=0) < max(fold.items.count, 1)
    for item in range(fold.items.count):
        row = User(rows.i8[item], rows.f4[item], rows.u4[item])
        assert_same_row(f"item {item}", row, item_row(plan, slow, item))
    for user in sorted({*fold.users.known(), *slow.users}):
        assert_same_row(f"user {user}", fold.users.user(user), user_row(plan, slow, user))


def all_bytes(fold: Fold) -> dict[str, list[bytes]]:
    """All rows that hold anything, by user and by item."""
    found = {}
    for user in fold.users.known():
        row = fold.users.user(user)
        if any(part.any() for part in row):
            found[f"user {user}"] = [part.tobytes() for part in row]
    for item in range(fold.items.count):
        found[f"item {item}"] = [part[item].tobytes() for part in fold.items.rows]
    return found


def flipped(stored: bytes | None, change: bytes | int) -> bytes:
    """``change`` itself, or ``stored`` with a bit flipped of the byte at that position."""
    assert stored is not None
    if isinstance(change, bytes):
        return change
    value = bytearray(stored)
    value[change % len(value)] ^= 0x10
    return bytes(value)


def overwrite(path: Path, table: bytes, key: bytes, change: bytes | int) -> None:
    """Put ``change`` under ``key``, or flip a bit of the byte at that position."""
    with lmdb.open(str(path), max_dbs=8) as env:
        db = env.open_db(table)
        with env.begin(write=True, db=db) as txn:
            txn.put(key, flipped(txn.get(key), change))
