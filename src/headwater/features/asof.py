"""Assembled rows as of chosen offsets of the log: what serving would have computed there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Context, User, assemble, new_scratch, stranger
from headwater.features.fold import Fold
from headwater.features.plan import U_SEGMENT, Plan
from headwater.features.replay import stops
from headwater.log.protocol import EventLog
from headwater.log.record import RecordBlock
from headwater.schema.errors import HeadwaterError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

CHUNK = 16_384  # rows that are yielded together, at most


class Questions(NamedTuple):
    """One row is asked for by each position; ``offset`` never decreases.

    The row is assembled with everything folded up to and with ``offset``. User 0, and one that the state does
    not know, is a stranger. A segment of 0 means: as the user's row says.
    """

    offset: Int64  # (q,)
    user: Int64  # (q,)
    item: Int64  # (q,)
    now_ms: Int64  # (q,)
    segments: npt.NDArray[np.uint16]  # (q, 2)


def answers(
    log: EventLog, plan: Plan, questions: Questions, *, threads: int = 1, slices: int = 1
) -> Iterator[tuple[int, int, Float32]]:
    """Yield ``(start, stop, rows)`` in order: ``rows`` (``float32[stop - start, d]``) answer ``questions[start:stop]``.

    ``threads`` and ``slices`` say how the work may be divided; the rows do not depend on them.

    Raises:
        HeadwaterError: the questions are not sorted, or ask for an offset behind the log's end.
    """
    if threads < 1 or slices < 1:
        raise HeadwaterError(f"expected at least one thread and one slice, got {threads} and {slices}")
    offsets = questions.offset
    if len(offsets) == 0:
        return
    if np.any(offsets[1:] < offsets[:-1]):
        raise HeadwaterError("questions are asked in the order of their offsets; sort them first")
    last = int(offsets[-1])
    if last > log.last_offset:
        raise HeadwaterError(f"a row is asked for at offset {last}, the log ends at {log.last_offset}")
    fold = Fold(plan)
    reader = _Reader(plan, fold, questions)
    begins = np.flatnonzero(np.diff(offsets, prepend=-1))  # the first question of every offset
    ends = np.append(begins[1:], len(offsets))
    groups = zip(begins.tolist(), ends.tolist(), strict=True)
    asked = offsets[begins]

    def wanted(block: RecordBlock) -> npt.NDArray[np.bool_]:
        # replay stops in front of a record, so at the one behind the offset that is asked about
        return np.isin(block.records["offset"].astype(np.int64) - 1, asked)

    for _ in stops(log, fold, wanted, until=last):
        yield from reader.rows(*next(groups))
    yield from reader.rows(*next(groups))  # the fold stands at the last offset


class _Reader:
    """Answers questions from a fold that stands where they ask."""

    def __init__(self, plan: Plan, fold: Fold, questions: Questions) -> None:
        self.plan, self.fold, self.questions = plan, fold, questions
        self.stranger = stranger(plan)
        self.scratch = new_scratch(len(fold.items.dirty), 1, plan)

    def rows(self, begin: int, end: int) -> Iterator[tuple[int, int, Float32]]:
        self.fold.items.reserve(int(self.questions.item[begin:end].max()) + 1)
        if len(self.scratch.where) < len(self.fold.items.dirty):
            self.scratch = new_scratch(len(self.fold.items.dirty), 1, self.plan)
        for start in range(begin, end, CHUNK):
            stop = min(start + CHUNK, end)
            out = np.zeros((stop - start, len(self.plan.columns)), np.float32)
            for i in range(start, stop):
                self._assemble(i, out[i - start : i - start + 1])
            yield start, stop, out

    def _assemble(self, i: int, out: Float32) -> None:
        asked = self.questions
        user = self._user(int(asked.user[i]))
        own = [int(s) or int(user.u4[U_SEGMENT + k]) for k, s in enumerate(asked.segments[i])]
        context = Context((own[0], own[1]))
        item = asked.item[i : i + 1]
        assemble(self.plan, user, self.fold.items.rows, item, context, int(asked.now_ms[i]), self.scratch, out)

    def _user(self, user: int) -> User:
        users = self.fold.users
        return users.row(user) if 0 < user < len(users.dirty) else self.stranger
