"""Proof that serving and training see the same numbers: served feature rows against rows replayed at their address.

A served list whose feature rows were kept says at which user offset, item offset and moment they were assembled. The log is
folded to these (:mod:`headwater.evaluation.addresses`) and the lists are assembled again. Equal means equal to the byte.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Struct

import headwater
from headwater.evaluation.addresses import READ, Addresses
from headwater.features.assemble import Context, anchor_user, assemble, forget_idle, new_scratch, stranger
from headwater.features.attributes import surface_code
from headwater.features.fold import Unseal
from headwater.features.layout import MAX_ITEMS, U_RECENT_LENGTH
from headwater.features.plan import Plan
from headwater.features.rows import User, unpack_user
from headwater.log.protocol import EventLog
from headwater.log.record import Kind, RecordBlock
from headwater.schema.errors import HeadwaterError
from headwater.schema.requests import ServedList
from headwater.serving.served import served_at

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_BYTES = 4  # of a float32
_PAGE = 64
_TOLD = 20  # requests that are named in the log; the report counts all


class Verification(Struct, frozen=True):
    """What was compared. ``by_feature`` names every column; ``skipped`` says what could not be compared and why.

    ``first_offset`` to ``last_offset`` are the records of the lists that were compared (0, 0: none), in the log
    ``log_id``; ``checked_ms`` is when its newest record was received. ``build`` and ``machine`` replayed them.
    """

    requests: int
    rows: int
    mismatched_bytes: int
    by_feature: dict[str, int]
    skipped: dict[str, int]
    plan: str
    mismatched_requests: int = 0
    log_id: str = ""
    first_offset: int = 0
    last_offset: int = 0
    checked_ms: int = 0
    build: str = ""
    machine: str = ""

    @property
    def failed(self) -> tuple[str, ...]:
        """The features whose bytes differ."""
        return tuple(name for name, count in self.by_feature.items() if count)


class _Lists(NamedTuple):
    """The served lists that can be compared, in log order: one position each."""

    offset: Int64
    user: Int64
    user_offset: Int64
    item_offset: Int64


def verify(
    event_log: EventLog, plan: Plan, *, since: int = 0, limit: int | None = None, unseal: Unseal | None = None,
    progress: Progress | None = None,
) -> Verification:  # fmt: skip
    """Compare the feature rows of the newest ``limit`` served lists (None: of all that kept theirs) with replayed ones.

    Only lists that were logged at offset ``since`` or later count. ``unseal`` opens profiles (see :class:`Fold`).
    ``progress`` is called as ``progress(compared, lists)``.

    Raises:
        HeadwaterError: the log does not read as it was written, or ends before an offset that a list names.
    """
    lists, skipped = _kept(event_log, plan, since, limit)
    comparison = _Comparison(event_log, plan, lists, unseal)
    comparison.run(progress)
    found = len(lists.offset)
    return Verification(
        requests=found,
        rows=comparison.rows,
        mismatched_bytes=int(comparison.wrong.sum()),
        by_feature=dict(zip(plan.columns, comparison.wrong.tolist(), strict=True)),
        skipped=skipped,
        plan=plan.hash,
        mismatched_requests=comparison.requests,
        log_id=event_log.log_id,
        first_offset=int(lists.offset[0]) if found else 0,
        last_offset=int(lists.offset[-1]) if found else 0,
        checked_ms=event_log.last_received_ms,
        build=headwater.__version__,
        machine=_machine(),
    )


def _kept(event_log: EventLog, plan: Plan, since: int, limit: int | None) -> tuple[_Lists, dict[str, int]]:
    """Where the served lists with feature rows are; and how many were passed over."""
    parts: list[tuple[int, int, int, int]] = []
    skipped = {"not sampled": 0, "empty list": 0, "another plan": 0, "user erased": 0}
    erased: dict[int, int] = {}
    offset = max(since, event_log.first_offset, 1) - 1
    while (block := event_log.read(offset, READ)) is not None:
        kinds = block.records["kind"]
        if plan.user_attributes:  # a profile that nobody can open any more
            gone = block.records[kinds == Kind.ERASURE]
            erased.update(zip(gone["user"].tolist(), gone["offset"].tolist(), strict=True))
        for i in np.flatnonzero(kinds == Kind.SERVED).tolist():
            served = served_at(block, i).answer
            address = served.address
            if not served.items:
                skipped["empty list"] += 1
            elif not served.features:
                skipped["not sampled"] += 1
            elif address.plan != plan.hash:
                skipped["another plan"] += 1
            else:
                record = block.records[i]
                parts.append((int(record["offset"]), int(record["user"]), address.user_offset, address.item_offset))
        offset = block.last_offset
    found = np.array(parts, np.int64).reshape(-1, 4)
    if erased:
        gone_at = np.array([erased.get(user, 0) for user in found[:, 1].tolist()], np.int64)
        skipped["user erased"] = int((gone_at > found[:, 0]).sum())
        found = found[gone_at <= found[:, 0]]
    return _Lists(*np.ascontiguousarray(found[-limit if limit is not None else None :].T)), skipped


class _Comparison:
    """Counts the bytes by column (``wrong``), the lists (``requests``) that differ, and the ``rows`` looked at."""

    def __init__(self, event_log: EventLog, plan: Plan, lists: _Lists, unseal: Unseal | None) -> None:
        self.wrong = np.zeros(len(plan.columns), np.int64)
        self.requests = self.rows = 0
        self._log, self._plan, self._lists = event_log, plan, lists
        self._addresses = Addresses(
            event_log, plan, lists.user, lists.user_offset, lists.item_offset, unseal
        )  # fmt: skip
        self._row = stranger(plan)
        self._page: RecordBlock | None = None
        self._scratch = new_scratch(1024, 1, plan)
        self._out = np.zeros((0, len(plan.columns)), np.float32)

    def run(self, progress: Progress | None) -> None:
        total = len(self._lists.offset)
        for done, (n, row) in enumerate(self._addresses):
            self._compare(n, row)
            if progress is not None and done % 1000 == 999:
                progress(done + 1, total)

    def _compare(self, n: int, row: bytes) -> None:
        """Assemble list ``n`` again from its user's row and the items as they stand."""
        served = self._read(n)
        items = np.array(served.items, np.int64)
        self.rows += len(items)
        replayed = self._assemble(served, items, row).tobytes()
        if replayed == served.features:
            return
        self.requests += 1
        if len(replayed) != len(served.features):  # rows of another width: no byte is where it belongs
            differs = np.full(len(self.wrong), len(items) * _BYTES, np.int64)
        else:
            shape = (len(items), len(self.wrong), _BYTES)
            pair = (np.frombuffer(rows, np.uint8).reshape(shape) for rows in (served.features, replayed))
            differs = np.not_equal(*pair).sum(axis=(0, 2))
        self.wrong += differs
        if self.requests <= _TOLD:
            names = [self._plan.columns[column] for column in np.flatnonzero(differs).tolist()]
            log.warning("features_differ", request_id=served.request_id, columns=names)

    def _read(self, n: int) -> ServedList:
        offset, page = int(self._lists.offset[n]), self._page
        if page is None or not page.first_offset <= offset <= page.last_offset:
            # lists are compared nearly in the order in which they were logged
            self._page = page = self._log.read(offset - 1, _PAGE)
            if page is None:
                raise HeadwaterError(f"the log ends before offset {offset}, where a served list was found")
        return served_at(page, offset - page.first_offset).answer

    def _assemble(self, served: ServedList, items: Int64, packed: bytes) -> npt.NDArray[np.float32]:
        row, plan, address = self._row, self._plan, served.address
        unpack_user(packed, row, plan.layout)
        forget_idle(row, address.now_ms, plan)
        context = [*served.context, 0, 0]  # lists of older releases say less
        first, second, anchor, offset_ms = context[:4]
        if anchor:
            anchor_user(row, anchor, plan.layout, served.context[4:])
        table = self._addresses.items.items
        table.reserve(_highest(row, items, plan) + 1)
        if len(self._scratch.where) < len(table.dirty) or len(self._out) < len(items):
            longest = max(len(items), len(self._out))
            self._scratch = new_scratch(len(table.dirty), longest, plan)
            self._out = np.zeros((longest, len(plan.columns)), np.float32)
        asked = Context((first, second), offset_ms, surface_code(served.surface))
        return assemble(plan, row, table.rows, items, asked, address.now_ms, self._scratch, self._out)


def _highest(row: User, items: Int64, plan: Plan) -> int:
    """The largest dense item that an assembly of ``items`` for ``row`` looks at."""
    start = plan.layout.recent_keys
    recent = row.u4[start : start + int(row.u4[U_RECENT_LENGTH])] & np.uint32(MAX_ITEMS)
    return max(int(items.max()), int(recent.max(initial=0)))


def _machine() -> str:
    """The processor that replayed: floats may differ between families, so a report says which one it was."""
    named = dict.fromkeys(("model name", "cpu family", "model"), "")
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in named:
                named[key.strip()] = value.strip()
            if not key.strip():  # the first processor of several
                break
    except OSError:
        log.debug("no_cpuinfo", system=platform.system())
    family = f", family {named['cpu family']} model {named['model']}" if named["cpu family"] else ""
    return f"{platform.machine()} {named['model name'] or platform.processor()}{family}".strip()
