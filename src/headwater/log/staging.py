"""One group commit in the making: commands become pieces of records, pieces become one block.

A command is checked in full before anything of it is taken in, so a refused one leaves no trace and
the others of its group go on. Users of event pieces stand as positions in a table of the group and
are resolved all at once at the end: one identity transaction for the whole group.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import structlog

from headwater.log.batch import EventBatch
from headwater.log.dedup import DedupWindow
from headwater.log.identity import IdentityStore
from headwater.log.protocol import INDEX_LIMITS, Commit, ImportRange, RefusedError, Term, Vocabulary
from headwater.log.record import RECORD, VERSION, Kind, Namespace, RecordBlock, crcs_of

MAX_GROUP_HEAP = 1024**3  # positions in a heap are 32 bits wide

Records = npt.NDArray[np.void]
Indexes = npt.NDArray[np.uint32]


log = structlog.get_logger()

# What describes an event but does not name it: with no number left it counts as unknown, the event is kept.
_MAY_OVERFLOW = (Namespace.SEGMENT, Namespace.SURFACE)
_OVERFLOW_HINT = "further values count as unknown; take what has this many values out of [segments]"


@functools.cache  # once a process: each further value would say it again
def _say_full(namespace: Namespace) -> None:
    log.error("too_many_terms", namespace=namespace.name.lower(), limit=INDEX_LIMITS[namespace], hint=_OVERFLOW_HINT)


class NewTerms:
    """Dense numbers that one command wants to assign; they count only once it is accepted."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._new: dict[Namespace, dict[str, int]] = {}
        self.terms: list[Term] = []

    def index(self, namespace: Namespace, text: str) -> int:
        """The index of ``text``, assigned now if it has none. Raises :class:`RefusedError` when there is no room."""
        known = self._vocabulary.known(namespace)
        found = known.get(text)
        if found is not None:
            return found
        new = self._new.setdefault(namespace, {})
        found = new.get(text)
        if found is not None:
            return found
        found = len(known) + len(new) + 1
        limit = INDEX_LIMITS[namespace]
        if found > limit and namespace in _MAY_OVERFLOW:
            _say_full(namespace)
            return 0
        if found > limit:
            raise RefusedError(f"No room for another {namespace.name.lower()}: the log holds at most {limit}")
        check_text(text)
        new[text] = found
        self.terms.append(Term(namespace, found, text))
        return found

    def dense(self, namespace: Namespace, texts: Sequence[str], used: npt.NDArray[np.integer]) -> Indexes:
        """Dense index per position of ``texts`` (0 for "" and for texts that no row of ``used`` refers to)."""
        known = self._vocabulary.known(namespace)
        out = np.array([known.get(text, 0) for text in texts], np.uint32)
        if out.all():
            return out
        is_used = np.zeros(len(texts), np.bool_)
        is_used[used] = True
        for position in np.flatnonzero((out == 0) & is_used).tolist():
            text = texts[position]
            if text:
                out[position] = self.index(namespace, text)
        return out


def check_text(text: str) -> None:
    """Raise :class:`RefusedError` for an empty text or one that has no UTF-8 form (a lone surrogate)."""
    if not text:
        raise RefusedError("An id must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(f"An id is no valid text: {error.reason}") from error


class Stage:
    """Collects a group. ``last_offset`` and ``last_received_ms`` are where the log will stand after it."""

    def __init__(
        self, vocabulary: Vocabulary, dedup: DedupWindow, last_offset: int, last_received_ms: int, now_ms: int
    ) -> None:
        self._vocabulary = vocabulary
        self._dedup = dedup
        self.last_offset = last_offset
        self.last_received_ms = last_received_ms
        self._now_ms = now_ms
        self._pieces: list[Records] = []
        self._heaps: list[bytes | memoryview] = []
        self._heap_size = 0
        self._terms: list[Term] = []
        self._imports: list[ImportRange] = []
        self._users: dict[str, int] = {}
        self._unresolved: list[tuple[Records, Indexes]] = []

    @property
    def imports(self) -> Sequence[ImportRange]:
        """Ranges that this group records."""
        return self._imports

    def received(self, at_ms: int | None) -> int:
        """When a piece counts as received: now, or at ``at_ms``, but never before the record in front of it."""
        return max(self.last_received_ms, self._now_ms if at_ms is None else at_ms)

    def events(self, batch: EventBatch, source: tuple[ImportRange, bytes] | None) -> tuple[int, int]:
        """Take in a batch; returns (accepted, duplicates)."""
        batch.check()
        mask = self._dedup.fresh(batch.event_key)
        chosen: slice | npt.NDArray[np.intp] = slice(None) if mask is None else np.flatnonzero(mask)
        user, item, type_ = batch.user[chosen], batch.item[chosen], batch.type[chosen]
        surface, segment = batch.surface[chosen], batch.segment[chosen]
        n = len(user)
        new = NewTerms(self._vocabulary)
        items = new.dense(Namespace.ITEM, batch.items, item)
        types = new.dense(Namespace.EVENT_TYPE, batch.types, type_)
        surfaces = new.dense(Namespace.SURFACE, batch.surfaces, surface)
        segments = new.dense(Namespace.SEGMENT, batch.segments, segment)
        if n and not (items[item].all() and types[type_].all()):
            raise RefusedError("An event needs an item and a type")

        records = np.zeros(n, RECORD)
        records["kind"] = Kind.EVENT
        if n:
            time_ms = batch.time_ms[chosen]
            if batch.received_from_time:
                received = np.maximum.accumulate(np.maximum(time_ms, self.last_received_ms))
            else:
                received = np.full(n, self.received(None), np.int64)
            records["received_ms"] = received
            records["time_ms"] = np.where(time_ms < 0, received, time_ms)
            records["item"] = items[item]
            records["type"] = types[type_]
            records["surface"] = surfaces[surface]
            records["segments"] = segments[segment]
            records["value"] = batch.value[chosen]
            records["event_key"] = batch.event_key[chosen]
            records["flags"] = batch.flags[chosen]
            records["payload_size"] = batch.detail_size[chosen]
        heap = _rows_of(batch, mask)
        positions = self._user_positions(batch.users, user)
        self._take(new, records, heap, source)
        self._dedup.add(records["event_key"].copy())
        if n:
            self._unresolved.append((records, positions))
        return n, len(batch) - n

    def _user_positions(self, texts: Sequence[str], user: Indexes) -> Indexes:
        is_used = np.zeros(len(texts), np.bool_)
        is_used[user] = True
        used = np.flatnonzero(is_used).tolist()
        for position in used:
            if texts[position] not in self._users:
                check_text(texts[position])
        table = np.zeros(len(texts), np.uint32)
        table[used] = [self._users.setdefault(texts[position], len(self._users)) for position in used]
        return table[user]

    def others(
        self,
        new: NewTerms | None,
        records: Records,
        payloads: Sequence[bytes],
        *,
        at_ms: int | None = None,
        time_ms: npt.NDArray[np.int64] | None = None,
        source: tuple[ImportRange, bytes] | None = None,
    ) -> None:
        """Take in records that are no events; ``records`` need ``kind`` and what they refer to, times are set here.

        ``time_ms`` None: when they are received.
        """
        received = self.received(at_ms)
        records["received_ms"] = received
        records["time_ms"] = received if time_ms is None else time_ms
        records["value"] = np.nan
        if payloads:
            records["payload_size"] = [len(payload) for payload in payloads]
        self._take(new, records, b"".join(payloads), source)

    def _take(
        self, new: NewTerms | None, records: Records, heap: bytes | memoryview, source: tuple[ImportRange, bytes] | None
    ) -> None:
        terms = new.terms if new is not None else []
        texts = [term.text.encode() for term in terms]
        added = len(heap) + sum(map(len, texts))
        if self._heap_size + added > MAX_GROUP_HEAP:
            raise RefusedError("The payloads of one commit are too large; send smaller batches")
        self._heap_size += added
        first_ms = int(records["received_ms"][0]) if len(records) else self.received(None)
        if terms:
            assigned = np.zeros(len(terms), RECORD)
            assigned["kind"] = Kind.TERM
            assigned["item"] = [term.index for term in terms]
            assigned["type"] = [term.namespace for term in terms]
            assigned["payload_size"] = [len(text) for text in texts]
            assigned["received_ms"] = assigned["time_ms"] = first_ms
            assigned["value"] = np.nan
            self._put(assigned, b"".join(texts))
            for term in terms:
                self._vocabulary.add(term)
            self._terms.extend(terms)
        if len(records):
            self._put(records, heap)
        if source is not None:
            done = np.zeros(1, RECORD)
            done["kind"] = Kind.IMPORT
            done["received_ms"] = done["time_ms"] = self.last_received_ms  # history: never the clock's now
            done["value"] = np.nan
            done["payload_size"] = len(source[1])
            self._put(done, source[1])
            self._imports.append(source[0])

    def _put(self, records: Records, heap: bytes | memoryview) -> None:
        self._pieces.append(records)
        self._heaps.append(heap)
        self.last_offset += len(records)
        self.last_received_ms = int(records["received_ms"][-1])

    def finish(self, identity: IdentityStore) -> Commit | None:
        """The whole group as one commit, users assigned and checksums set; None when nothing was taken in."""
        if not self._pieces:
            return None
        assigned = identity.assign(list(self._users))
        for piece, positions in self._unresolved:
            piece["user"] = assigned.user[positions]
            piece["surrogate"] = assigned.surrogate[positions]
        records = np.concatenate(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        heap = np.frombuffer(bytearray(b"".join(self._heaps)), np.uint8)
        n = len(records)
        records["offset"] = np.arange(self.last_offset - n + 1, self.last_offset + 1, dtype=np.uint64)
        sizes = records["payload_size"].astype(np.int64)
        records["payload_at"] = np.cumsum(sizes) - sizes
        records["version"] = VERSION
        block = RecordBlock(records, heap)
        records["crc"], outside = crcs_of(block)
        if outside:
            raise ValueError(f"{outside} payloads lie outside the heap")
        return Commit(block, self._terms, self._imports)


def _rows_of(batch: EventBatch, mask: npt.NDArray[np.bool_] | None) -> bytes | memoryview:
    """The details of the chosen rows, back to back."""
    if mask is None:
        return batch.detail.tobytes()
    return batch.detail[np.repeat(mask, batch.detail_size)].tobytes()
