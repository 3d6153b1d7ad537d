"""The event log in LMDB: durable, one writer, any number of reading processes."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import lmdb

from headwater.log.block import count_of, decode_blocks, encode_blocks
from headwater.log.environment import DEFAULT_MAP_GIB, GIB, StoreError, open_environment
from headwater.log.protocol import READ_LIMIT, Commit, CorruptLogError, CorruptTermError, TrimmedError, Vocabulary
from headwater.log.record import Namespace, RecordBlock

FORMAT = 1

_LAST = struct.Struct("<IQq")  # format, last offset, last received_ms
_LAST_KEY = b"last"
_FIRST = struct.Struct("<Q")
_FIRST_KEY = b"first"  # the oldest offset; absent until something was trimmed
_ID_KEY = b"id"
_ID_BYTES = 16
_MAX_READ_BYTES = 256 * 1024 * 1024
_TRIM_BYTES = 32 * 1024 * 1024  # a transaction: more would hold up the writer
_LONGEST_TEXT_KEY = 480  # LMDB keys hold 511 bytes


class LmdbLog:
    """An :class:`~headwater.log.protocol.EventLog` in the LMDB environment in folder ``path``.

    ``blocks`` maps the first offset of a block (u64, big-endian) to its bytes, ``terms`` a namespace and
    a text to a dense index, ``texts`` the way back, ``imports`` a file's hash and row to what was read,
    ``meta`` the end of the log and its random id. A commit is one transaction, on disk when ``append`` returns.
    """

    def __init__(self, path: Path, *, readonly: bool = False, map_size: int = DEFAULT_MAP_GIB * GIB) -> None:
        self._shared = open_environment(path, readonly=readonly, map_size=map_size)
        self._env = self._shared.lmdb
        self._readonly = readonly
        self._vocabulary: Vocabulary | None = None
        try:
            create = not self._shared.readonly
            self._blocks = self._env.open_db(b"blocks", create=create)
            self._terms = self._env.open_db(b"terms", create=create)
            self._texts = self._env.open_db(b"texts", create=create)
            self._imports = self._env.open_db(b"imports", create=create)
            self._meta = self._open_meta(create=create)
            self._last_offset, self._last_received_ms = self._read_last()
        except (lmdb.Error, StoreError) as error:
            self._shared.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path} holds no event log: {error}") from error

    def _open_meta(self, *, create: bool) -> lmdb._Database:
        """The last table to be made, together with the log's id: a log that can be read has one."""
        if not create:
            return self._env.open_db(b"meta", create=False)
        with self._env.begin(write=True) as txn:
            meta = self._env.open_db(b"meta", txn=txn, create=True)
            if txn.get(_ID_KEY, db=meta) is None:  # also a log from before logs had ids
                txn.put(_ID_KEY, os.urandom(_ID_BYTES), db=meta)
        return meta

    def _read_last(self) -> tuple[int, int]:
        with self._env.begin(db=self._meta) as txn:
            stored = txn.get(_LAST_KEY)
        if stored is None:
            return 0, 0
        found, offset, received_ms = _LAST.unpack(stored)
        if found != FORMAT:
            raise StoreError(f"{self._shared.path} is in log format {found}; this release reads format {FORMAT}")
        return offset, received_ms

    @property
    def log_id(self) -> str:
        with self._env.begin(db=self._meta) as txn:
            return (txn.get(_ID_KEY) or b"").hex()

    @property
    def first_offset(self) -> int:
        with self._env.begin(db=self._meta) as txn:
            return self._first(txn)

    def _first(self, txn: lmdb.Transaction) -> int:
        stored = txn.get(_FIRST_KEY, db=self._meta)
        return 1 if stored is None else int(_FIRST.unpack(stored)[0])

    @property
    def last_offset(self) -> int:
        if not self._readonly:
            return self._last_offset
        return self._read_last()[0]

    @property
    def last_received_ms(self) -> int:
        if not self._readonly:
            return self._last_received_ms
        return self._read_last()[1]

    def append(self, commit: Commit) -> None:
        block = commit.block
        if self._readonly:
            raise StoreError(f"{self._shared.path} was opened for reading")
        if block.first_offset != self._last_offset + 1:
            raise ValueError(f"Expected a block from offset {self._last_offset + 1}, got {block.first_offset}")
        last_offset, last_received_ms = block.last_offset, int(block.records["received_ms"][-1])
        with self._env.begin(write=True) as txn:
            for first, value in encode_blocks(block):
                txn.put(first.to_bytes(8, "big"), value, db=self._blocks, append=True)
            for term in commit.terms:
                prefix = bytes((term.namespace,))
                text = term.text.encode()
                txn.put(_text_key(prefix, text), term.index.to_bytes(4, "little"), db=self._terms)
                txn.put(prefix + term.index.to_bytes(4, "big"), text, db=self._texts)
            for imported in commit.imports:
                key = import_key(imported.file_sha256, imported.mapping) + imported.start_row.to_bytes(8, "big")
                txn.put(key, imported.end_row.to_bytes(8, "big") + last_offset.to_bytes(8, "big"), db=self._imports)
            txn.put(_LAST_KEY, _LAST.pack(FORMAT, last_offset, last_received_ms), db=self._meta)
        self._last_offset, self._last_received_ms = last_offset, last_received_ms

    def read(self, after: int, limit: int = READ_LIMIT) -> RecordBlock | None:
        with self._env.begin(db=self._blocks, buffers=True) as txn:
            values: list[bytes | memoryview] = []
            with txn.cursor() as cursor:
                wanted = (after + 1).to_bytes(8, "big")
                if not cursor.set_range(wanted):
                    found = cursor.last()
                else:
                    found = bytes(cursor.key()) == wanted or cursor.prev() or cursor.first()
                if not found:
                    self._check_end(txn, after)
                    return None
                first_key = int.from_bytes(cursor.key(), "big")
                if first_key > after + 1:
                    first = self._first(txn)
                    if after + 1 < first:
                        raise TrimmedError(after + 1, first, str(self._shared.path))
                    raise CorruptLogError(after + 1, "the block that holds it is missing")
                records, size = first_key - 1 - after, 0
                for key, value in cursor.iternext():
                    values.append(value)
                    records += count_of(value, int.from_bytes(key, "big"))
                    size += len(value)
                    if records >= limit or size >= _MAX_READ_BYTES:
                        break
            block = decode_blocks(values, first_key, after, limit)
            if block is None:
                self._check_end(txn, after)
            return block

    def _check_end(self, txn: lmdb.Transaction[memoryview], after: int) -> None:
        stored = txn.get(_LAST_KEY, db=self._meta)
        if stored is not None and _LAST.unpack(stored)[1] > after:
            raise CorruptLogError(after + 1, "the block that holds it is missing")

    def trim(self, upto: int) -> int:
        if self._readonly:
            raise StoreError(f"{self._shared.path} was opened for reading")
        removed = size = 0
        with self._env.begin(write=True) as txn, txn.cursor(self._blocks) as cursor:
            found = cursor.first()
            while found and size < _TRIM_BYTES:
                first, value = int.from_bytes(cursor.key(), "big"), cursor.value()
                last = first + count_of(value, first) - 1
                if last > upto or last >= self._last_offset:
                    break
                removed, size = removed + last - first + 1, size + len(value)
                cursor.delete()
                found = cursor.key() != b""
                txn.put(_FIRST_KEY, _FIRST.pack(last + 1), db=self._meta)
        return removed

    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._texts_above)
        return self._vocabulary

    def _texts_above(self, namespace: Namespace, size: int) -> Sequence[str]:
        """Texts carry no checksum: each is compared with the entry that leads back from it to its number."""
        prefix = bytes((namespace,))
        found: list[str] = []
        with self._env.begin(db=self._texts) as txn, txn.cursor() as cursor:
            if not cursor.set_range(prefix + (size + 1).to_bytes(4, "big")):
                return found
            for key, text in cursor.iternext():
                if key[:1] != prefix:
                    break
                index = size + len(found) + 1
                if key[1:] != index.to_bytes(4, "big") or txn.get(_text_key(prefix, text), db=self._terms) != (
                    index.to_bytes(4, "little")
                ):
                    raise CorruptTermError(namespace.name.lower(), index)
                found.append(text.decode())
        return found

    def imported(self, file_sha256: str, mapping: str) -> list[tuple[int, int]]:
        prefix = import_key(file_sha256, mapping)
        ranges: list[tuple[int, int]] = []
        with self._env.begin(db=self._imports) as txn, txn.cursor() as cursor:
            if not cursor.set_range(prefix):
                return ranges
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    break
                ranges.append((int.from_bytes(key[-8:], "big"), int.from_bytes(value[:8], "big")))
        return ranges

    def close(self) -> None:
        self._shared.close()


def import_key(file_sha256: str, mapping: str) -> bytes:
    """32 bytes that stand for a file's content read with a mapping."""
    return hashlib.blake2b(f"{file_sha256}\n{mapping}".encode(), digest_size=32).digest()


def _text_key(prefix: bytes, text: bytes) -> bytes:
    # 0xFF never occurs in UTF-8, so a hashed key cannot meet a plain one
    if len(text) <= _LONGEST_TEXT_KEY:
        return prefix + text
    return prefix + b"\xff" + hashlib.blake2b(text, digest_size=32).digest()
