"""Assembled rows as of chosen offsets of the log: what serving would have computed there.

One kernel folds and answers: it walks through the events of a run, and in front of the event behind a question's
offset it assembles the question's row. With several threads one fold runs ahead in sequence, and where a slice of the
questions begins it leaves a copy of the state; slices start from these copies, each in a thread of its own. A slice's
rows are those of the straight run because its state is.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.features.assemble import Scratch, assemble_row, new_scratch, stranger
from headwater.features.fold import Fold, Unseal, foldable
from headwater.features.fold_kernel import Events, Programs, Workspace, fold_event, idle
from headwater.features.layout import U_CLOCK, U_SEGMENT, U_ZONE, ReadProgram
from headwater.features.plan import Plan
from headwater.features.rows import User
from headwater.features.rowset import Rows
from headwater.features.zones import Zones, ZoneTable, zone_offset_ms
from headwater.jit import inline, kernel
from headwater.log.protocol import READ_LIMIT, EventLog
from headwater.log.record import RECORD, RecordBlock
from headwater.schema.errors import HeadwaterError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt16 = npt.NDArray[np.uint16]

CHUNK = 16_384  # rows that are yielded together, at most
GROUP = 512  # candidates that share a user and a moment are assembled together, at most so many
SLICE_ROWS = 250_000  # a slice is not larger, so that the rows of all threads fit into memory


class Questions(NamedTuple):
    """One row is asked for by each position; ``offset`` never decreases.

    The row is assembled with everything folded up to and with ``offset``. User 0, and one that the state does
    not know, is a stranger. A segment of 0 means: as the user's row says.
    """

    offset: Int64  # (q,)
    user: Int64  # (q,)
    item: Int64  # (q,)
    now_ms: Int64  # (q,)
    segments: UInt16  # (q, 2)
    surface: Int64 | None = None  # (q,) codes (``attributes.surface_code``); None: not known


class _Asked(NamedTuple):
    """Questions for the kernel: in front of which event of the run, and the slot of the user's row (-1: a stranger)."""

    position: Int64
    slot: Int64
    item: Int64
    now_ms: Int64
    segments: UInt16
    surface: Int64


@inline
def _group(asked: _Asked, first: int, end: int, scratch: Scratch) -> int:
    """Where the questions end that share a user and a moment with question ``first``, all about different items."""
    last = first
    where = scratch.where
    while last < end and last - first < GROUP:
        same = (
            asked.position[last] == asked.position[first]
            and asked.slot[last] == asked.slot[first]
            and asked.now_ms[last] == asked.now_ms[first]
            and asked.segments[last, 0] == asked.segments[first, 0]
            and asked.segments[last, 1] == asked.segments[first, 1]
            and asked.surface[last] == asked.surface[first]
        )
        if not same or where[asked.item[last]] >= 0:
            break
        where[asked.item[last]] = 0
        last += 1
    for k in range(first, last):
        where[asked.item[k]] = -1
    return last


@kernel
def _fold_and_answer(
    events: Events, begin: int, end: int, users: Rows, items: Rows, programs: Programs, workspace: Workspace,
    dirty_users: UInt8, dirty_items: UInt8, asked: _Asked, first: int, last: int, nobody: User, zones: ZoneTable,
    reads: ReadProgram, scratch: Scratch, out: Float32,
) -> int:  # fmt: skip
    """Fold events ``begin … end - 1``; answer questions ``first … last - 1``, each in front of its event, into ``out``.

    The last question may stand behind the last event. Returns how many events were skipped.
    """
    layout, lives, types, affinities = programs.layout, programs.lives, programs.types, programs.affinities
    user_program, item_program, everybody = programs.users, programs.items, programs.everybody
    factors = programs.factors
    skipped, q = 0, first
    for e in range(begin, end + 1):
        while q < last and asked.position[q] == e:
            stop = _group(asked, q, last, scratch)
            slot, now_ms = asked.slot[q], asked.now_ms[q]
            i8, f4, u4 = nobody.i8, nobody.f4, nobody.u4
            if slot >= 0 and not idle(users.i8[slot, U_CLOCK], now_ms, layout):
                i8, f4, u4 = users.i8[slot], users.f4[slot], users.u4[slot]
            segment_0, segment_1 = int(asked.segments[q, 0]), int(asked.segments[q, 1])
            if segment_0 == 0:
                segment_0 = int(u4[U_SEGMENT])
            if segment_1 == 0:
                segment_1 = int(u4[U_SEGMENT + 1])
            offset_ms = zone_offset_ms(zones, int(u4[U_ZONE]), now_ms)
            assemble_row(i8, f4, u4, items, asked.item[q:stop], segment_0, segment_1, asked.surface[q], offset_ms, now_ms, layout, lives,
                         affinities, factors, reads, scratch, out[q - first : stop - first])  # fmt: skip
            q = stop
        if e < end:
            if events.type[e] == 0:
                skipped += 1
            else:
                fold_event(events, e, users, items, layout, lives, types, user_program, item_program, everybody, affinities,
                           factors, workspace, dirty_users, dirty_items)  # fmt: skip
    return skipped


class _AskingFold(Fold):
    """A fold that answers questions on its way. ``ready`` holds the answers since the caller last took them."""

    def __init__(self, plan: Plan, questions: Questions, first: int, end: int, zones: ZoneTable, unseal: Unseal | None):
        super().__init__(plan, unseal=unseal)
        self.ready: list[tuple[int, int, Float32]] = []
        self._questions, self._next, self._end = questions, first, end
        self._zones = zones
        self._nobody = stranger(plan)
        self._scratch = new_scratch(len(self.items.dirty), GROUP, plan)
        self._most_items = int(questions.item[first:end].max(initial=0)) + 1

    def take(self) -> list[tuple[int, int, Float32]]:
        """The answers since the last call."""
        ready, self.ready = self.ready, []
        return ready

    def answer_here(self) -> None:
        """Answer what is asked about the offset at which the fold stands."""
        self._answer(np.zeros(0, RECORD), self.offset)

    def _fold_run(self, block: RecordBlock, start: int, stop: int) -> None:
        self._answer(foldable(block.records[start:stop]), block.first_offset + stop - 1)

    def _answer(self, chosen: npt.NDArray[np.void], offset: int) -> None:
        """Fold the events ``chosen`` and answer all that is asked up to ``offset``, the last one before the next record."""
        asked, first = self._questions, self._next
        last = first + int(np.searchsorted(asked.offset[first : self._end], offset, side="right"))
        if last == first and len(chosen) == 0:
            return
        self._next = last
        self.items.reserve(self._most_items if last > first else 1)
        if len(self._scratch.where) < len(self.items.dirty):
            self._scratch = new_scratch(len(self.items.dirty), GROUP, self.plan)
        own = chosen["user"].astype(np.uint32)
        people = asked.user[first:last]
        slots = self.users.slots_of(np.concatenate([own, people.astype(np.uint32)]))
        events = self.events_of(chosen, slots[: len(own)])
        questions = _Asked(
            np.searchsorted(chosen["offset"].astype(np.int64), asked.offset[first:last], side="right"),
            np.where(people > 0, slots[len(own) :], -1),
            asked.item[first:last],
            asked.now_ms[first:last],
            asked.segments[first:last],
            np.zeros(last - first, np.int64) if asked.surface is None else asked.surface[first:last],
        )
        skipped, at = 0, 0
        for begin in range(0, last - first, CHUNK):
            stop = min(begin + CHUNK, last - first)
            out = np.empty((stop - begin, len(self.plan.columns)), np.float32)
            until = int(questions.position[stop - 1])
            skipped += self._run(events, at, until, questions, begin, stop, out)
            self.ready.append((first + begin, first + stop, out))
            at = until
        if at < len(own):
            skipped += self._run(events, at, len(own), questions, 0, 0, np.empty((0, 0), np.float32))
        self.note_events(chosen, events, skipped)

    def _run(
        self, events: Events, at: int, until: int, questions: _Asked, begin: int, stop: int, out: Float32
    ) -> int:  # fmt: skip
        return _fold_and_answer(
            events, at, until, self.users.rows, self.items.rows, self.programs, self.workspace, self.users.dirty,
            self.items.dirty, questions, begin, stop, self._nobody, self._zones, self.plan.reads, self._scratch, out,
        )  # fmt: skip


def answers(
    log: EventLog, plan: Plan, questions: Questions, *, threads: int = 1, slices: int = 1,
    unseal: Unseal | None = None, progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, int, Float32]]:  # fmt: skip
    """Yield ``(start, stop, rows)`` in order: ``rows`` (``float32[stop - start, d]``) answer ``questions[start:stop]``.

    ``threads`` and ``slices`` say how the work may be divided; the rows do not depend on them. ``progress(done, all)``
    counts log offsets.

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
    zones = Zones(log.vocabulary()).table()
    count = len(offsets)
    if threads == 1 or slices == 1:
        fold = _AskingFold(plan, questions, 0, count, zones, unseal)
        for done in _walk(log, fold, last):
            if progress is not None:
                progress(done, last)
            yield from fold.take()
        return
    bounds = np.linspace(0, count, max(slices, -(-count // SLICE_ROWS)) + 1).astype(int).tolist()
    parts = [(begin, end) for begin, end in itertools.pairwise(bounds) if end > begin]
    yield from _in_slices(log, plan, questions, parts, threads, zones, unseal, progress)


def _in_slices(
    log: EventLog, plan: Plan, questions: Questions, parts: list[tuple[int, int]], threads: int, zones: ZoneTable,
    unseal: Unseal | None, progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, int, Float32]]:  # fmt: skip
    room = threading.BoundedSemaphore(threads + 1)  # slices whose state or rows are in memory
    given_up = threading.Event()

    def answer(fold: _AskingFold, until: int) -> list[tuple[int, int, Float32]]:
        for _ in _walk(log, fold, until):
            if given_up.is_set():
                return []
        return fold.take()

    def run_ahead(pool: ThreadPoolExecutor, slots: list[Future[Future[list[tuple[int, int, Float32]]]]]) -> None:
        """The sequential fold: hands each slice a copy of the state at which it begins."""
        ahead = Fold(plan, unseal=unseal)
        for number, (begin, end) in enumerate(parts):
            room.acquire()
            if given_up.is_set():
                return
            for _ in _walk(log, ahead, int(questions.offset[begin])):
                if given_up.is_set():
                    return
            fold = _AskingFold(plan, questions, begin, end, zones, unseal)
            fold.start_from(ahead)
            slots[number].set_result(pool.submit(answer, fold, int(questions.offset[end - 1])))

    def guarded(pool: ThreadPoolExecutor, slots: list[Future[Future[list[tuple[int, int, Float32]]]]]) -> None:
        try:
            run_ahead(pool, slots)
        except BaseException as error:  # noqa: BLE001  (whoever waits for a slice gets it)
            for slot in slots:
                if not slot.done():
                    slot.set_exception(error)

    slots: list[Future[Future[list[tuple[int, int, Float32]]]]] = [Future() for _ in parts]
    with ThreadPoolExecutor(threads) as pool:
        leader = threading.Thread(target=guarded, args=(pool, slots), daemon=True)
        leader.start()
        try:
            for number, (_, end) in enumerate(parts):
                rows = slots[number].result().result()
                room.release()
                if progress is not None:
                    progress(int(questions.offset[end - 1]), int(questions.offset[-1]))
                yield from rows
        finally:
            given_up.set()
            for _ in parts:
                try:
                    room.release()
                except ValueError:  # nobody waits for room any more
                    break
            leader.join()


def _walk(log: EventLog, fold: Fold, last: int) -> Iterator[int]:
    """Fold up to and with offset ``last``, yielding the offset after each block."""
    if isinstance(fold, _AskingFold):
        fold.answer_here()
    while fold.offset < last:
        block = log.read(fold.offset, min(READ_LIMIT, last - fold.offset))
        if block is None:
            return
        fold.apply(block)
        yield fold.offset
    yield fold.offset
