"""The event log in memory: for tests, evaluation and the simulator. Nothing survives the process."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from headwater.log.block import count_of, decode_blocks, encode_blocks
from headwater.log.protocol import READ_LIMIT, Commit, TrimmedError, Vocabulary
from headwater.log.record import Namespace, RecordBlock


class MemoryLog:
    """An :class:`~headwater.log.protocol.EventLog` of encoded blocks in a list, read as the LMDB log reads them."""

    def __init__(self, log_id: str = "") -> None:
        self.log_id = log_id
        self._keys: list[int] = []
        self._values: list[bytes] = []
        self._texts: dict[Namespace, list[str]] = {namespace: [] for namespace in Namespace}
        self._imports: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._last_offset = 0
        self._last_received_ms = 0
        self._vocabulary = Vocabulary(self._texts_above)

    @property
    def first_offset(self) -> int:
        return self._keys[0] if self._keys else 1

    @property
    def last_offset(self) -> int:
        return self._last_offset

    @property
    def last_received_ms(self) -> int:
        return self._last_received_ms

    def append(self, commit: Commit) -> None:
        if commit.block.first_offset != self._last_offset + 1:
            raise ValueError(f"Expected a block from offset {self._last_offset + 1}, got {commit.block.first_offset}")
        for first, value in encode_blocks(commit.block):
            self._keys.append(first)
            self._values.append(value)
        for term in commit.terms:
            self._texts[term.namespace].append(term.text)
        for imported in commit.imports:
            ranges = self._imports.setdefault((imported.file_sha256, imported.mapping), [])
            bisect.insort(ranges, (imported.start_row, imported.end_row))
        self._last_received_ms = int(commit.block.records["received_ms"][-1])
        self._last_offset = commit.block.last_offset

    def read(self, after: int, limit: int = READ_LIMIT) -> RecordBlock | None:
        if after >= self._last_offset:
            return None
        if after + 1 < self.first_offset:
            raise TrimmedError(after + 1, self.first_offset, "the log in memory")
        first = stop = bisect.bisect_right(self._keys, after + 1) - 1
        records = self._keys[first] - 1 - after
        while stop < len(self._values) and records < limit:
            records += count_of(self._values[stop], self._keys[stop])
            stop += 1
        return decode_blocks(self._values[first:stop], self._keys[first], after, limit)

    def trim(self, upto: int) -> int:
        first, kept = self.first_offset, max(bisect.bisect_right(self._keys, upto + 1) - 1, 0)
        del self._keys[:kept], self._values[:kept]
        return self.first_offset - first

    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def _texts_above(self, namespace: Namespace, size: int) -> Sequence[str]:
        return self._texts[namespace][size:]

    def imported(self, file_sha256: str, mapping: str) -> list[tuple[int, int]]:
        return list(self._imports.get((file_sha256, mapping), []))

    def close(self) -> None:
        """Nothing is held open."""
