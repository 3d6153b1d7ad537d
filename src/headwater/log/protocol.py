"""What an event log is: append committed blocks, read them back in order, know the terms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from msgspec import DecodeError, Struct

from headwater.log.record import Namespace, RecordBlock
from headwater.schema.errors import HeadwaterError

READ_LIMIT = 16_384

T = TypeVar("T")

INDEX_LIMITS: dict[Namespace, int] = {
    Namespace.ITEM: 2**24 - 1,  # state packs an item and its event type into 32 bits
    Namespace.EVENT_TYPE: 255,
    Namespace.SURFACE: 65_535,
    Namespace.CATEGORY: 65_535,
    Namespace.REGION: 65_535,
    Namespace.SEGMENT: 65_535,
}


class CorruptLogError(HeadwaterError):
    """Stored bytes are not what was written; restore the log from a backup or the lake."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"The log is corrupt at offset {offset}: {what}. Restore it from a backup.")
        self.offset = offset


def decoded(decode: Callable[[bytes], T], payload: bytes, offset: int, what: str) -> T:
    """What ``decode`` makes of the ``payload`` of the record at ``offset``; ``what`` is its name in messages ("a served list").

    Raises:
        CorruptLogError: it cannot be read.
    """
    try:
        return decode(payload)
    except DecodeError as error:
        raise CorruptLogError(offset, f"{what} cannot be read ({error})") from error


class CorruptTermError(HeadwaterError):
    """The text of a dense number is not what was written."""

    def __init__(self, namespace: str, index: int) -> None:
        super().__init__(f"The log is corrupt at the text of {namespace} {index}. Restore it from a backup.")


class TrimmedError(HeadwaterError):
    """Records that are asked for were removed by retention; ``first`` is the oldest one that is left."""

    def __init__(self, offset: int, first: int, where: str) -> None:
        super().__init__(
            f"Record {offset} is not in {where} any more: retention removed what came before offset {first}. "
            "Older records are in the lake, if `headwater archive` put them there and `headwater retain` kept them"
        )
        self.offset = offset
        self.first = first


class RefusedError(HeadwaterError):
    """The writer did not accept a command; nothing of it was recorded and a repeat will fail the same way."""


class ImportRange(Struct, frozen=True, array_like=True):
    """Rows ``start_row`` (inclusive) to ``end_row`` (exclusive) of a file, read with one ``mapping``.

    ``file_sha256`` is the hash of the file's bytes in hexadecimal; ``mapping`` is any text that is equal
    when the same columns are read in the same way.
    """

    file_sha256: str
    start_row: int
    end_row: int
    mapping: str


@dataclass(frozen=True, slots=True)
class Term:
    """Dense number ``index`` of ``namespace`` stands for ``text``."""

    namespace: Namespace
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What becomes durable together: records, the terms they introduce, the imports they complete."""

    block: RecordBlock
    terms: Sequence[Term] = ()
    imports: Sequence[ImportRange] = ()


@runtime_checkable
class EventLog(Protocol):
    """One ordered sequence of records with contiguous offsets from 1; retention may have removed the oldest ones."""

    @property
    def log_id(self) -> str:
        """What tells this log from all others; "" when it has nothing of the kind."""
        ...

    @property
    def first_offset(self) -> int:
        """Offset of the oldest record that can be read: 1 until retention removed some (also when the log is empty)."""
        ...

    @property
    def last_offset(self) -> int:
        """Offset of the newest durable record; 0 when the log is empty."""
        ...

    @property
    def last_received_ms(self) -> int:
        """``received_ms`` of the newest durable record; 0 when the log is empty."""
        ...

    def append(self, commit: Commit) -> None:
        """Make ``commit`` durable as a whole. The writer core is the only caller.

        Raises ``ValueError`` when the block does not start right after ``last_offset``. After any other
        exception the log must not be written again by this process.
        """
        ...

    def read(self, after: int, limit: int = READ_LIMIT) -> RecordBlock | None:
        """The records with offset > ``after``, at most ``limit``; None when there are none.

        Every CRC is verified. Raises :class:`CorruptLogError` with the offset at fault, :class:`TrimmedError`
        when ``after + 1`` is older than ``first_offset``.
        """
        ...

    def trim(self, upto: int) -> int:
        """Remove the oldest records up to and with ``upto``, as far as whole blocks go; returns how many.

        One call removes a part that does not hold up the log for long: call again until it returns 0. The newest
        block always stays. Only the writer may call it.
        """
        ...

    def vocabulary(self) -> Vocabulary:
        """Terms and their dense numbers, as far as they are durable."""
        ...

    def imported(self, file_sha256: str, mapping: str) -> list[tuple[int, int]]:
        """Row ranges ``[start, end)`` of that file and mapping which are recorded, in order."""
        ...

    def close(self) -> None:
        """Release what the log holds open."""
        ...


@dataclass(slots=True)
class _Terms:
    texts: list[str] = field(default_factory=lambda: [""])  # position = dense index; 0 means none
    indexes: dict[str, int] = field(default_factory=dict)


class Vocabulary:
    """Dense numbers and the texts they stand for, mirrored in memory.

    ``fetch(namespace, size)`` returns the texts of the indexes above ``size``; it is asked only when a
    text or an index is not known yet, so new terms of the writer are picked up when they are needed.
    """

    def __init__(self, fetch: Callable[[Namespace, int], Sequence[str]]) -> None:
        self._fetch = fetch
        self._terms = {namespace: _Terms() for namespace in Namespace}
        self._lock = threading.Lock()

    def index(self, namespace: Namespace, text: str) -> int:
        """The dense index of ``text``, 0 when it has none."""
        found = self._terms[namespace].indexes.get(text)
        if found is None:
            self.refresh(namespace)
            found = self._terms[namespace].indexes.get(text, 0)
        return found

    def text(self, namespace: Namespace, index: int) -> str | None:
        """The text behind a dense index, None when it is not assigned (0 never is)."""
        terms = self._terms[namespace]
        if index >= len(terms.texts):
            self.refresh(namespace)
        return terms.texts[index] if 0 < index < len(terms.texts) else None

    def size(self, namespace: Namespace) -> int:
        """How many indexes are assigned: they are 1 … size."""
        return len(self.texts(namespace)) - 1

    def texts(self, namespace: Namespace) -> list[str]:
        """All texts, position = dense index (position 0 is empty). Read it, never change it."""
        self.refresh(namespace)
        return self._terms[namespace].texts

    def known(self, namespace: Namespace) -> dict[str, int]:
        """Text → index as mirrored now, without asking for new terms. Read it, never change it."""
        return self._terms[namespace].indexes

    def refresh(self, namespace: Namespace) -> None:
        """Fetch the terms that were assigned since the last look."""
        with self._lock:
            terms = self._terms[namespace]
            for text in self._fetch(namespace, len(terms.texts) - 1):
                terms.indexes[text] = len(terms.texts)
                terms.texts.append(text)

    def add(self, term: Term) -> None:
        """Take in a term that the caller has just assigned (the writer's own mirror)."""
        with self._lock:
            terms = self._terms[term.namespace]
            if term.index != len(terms.texts):
                raise ValueError(f"Expected index {len(terms.texts)} of {term.namespace.name}, got {term.index}")
            terms.indexes[term.text] = term.index
            terms.texts.append(term.text)
