"""Wiping what deleting leaves behind: LMDB frees pages and shifts entries, but the old bytes stay in the file.

A scrub writes zeros over every free page, over the unused gap in the middle of each page that is in use, and behind
the last page. It does so in place, in the file, under LMDB's write lock, and touches nothing that a reader or a
recovery could look at: pages are free only from the older of the two meta pages on, and readers with an older
snapshot are waited for. The file's B-trees are followed page by page first; unless the pages in use and the free
ones make up the whole file exactly, nothing is written.

Keys of a table stay where they were copied into the branches of its tree, as signposts, without their values.

This wipes the file. What a file system with snapshots, or a disk that writes elsewhere, keeps below it is theirs.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np
import numpy.typing as npt

from headwater.jit import kernel
from headwater.schema.errors import HeadwaterError

Bytes = npt.NDArray[np.uint8]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = 16
_META = struct.Struct("<IIQQ")  # magic, version, address, map size; two trees follow, then last page and transaction
_TREE = struct.Struct("<IHHQQQQQ")  # pad (of the free list: page size), flags, depth, pages of 3 kinds, entries, root
_END = struct.Struct("<QQ")
_NODE = struct.Struct("<HHHH")  # size (low, high) or page, flags, key size
_BRANCH, _LEAF, _OVERFLOW, _LEAF2 = 0x01, 0x02, 0x04, 0x20
_BIG, _SUBTREE, _DUPLICATES = 0x01, 0x02, 0x04
_NO_PAGE = 2**64 - 1
_STACK = 64 * 1024
_OK, _BAD_PAGE, _TWICE, _UNKNOWN = range(4)
_FAULTS = {_BAD_PAGE: "a page is no page of a tree", _TWICE: "a page is in use twice", _UNKNOWN: "an unknown entry"}


class ScrubError(HeadwaterError):
    """The file is not laid out as expected; nothing was wiped."""


class Scrubbed(NamedTuple):
    """What a scrub wiped (bytes that were not zero before), or which process kept it from it (0: none)."""

    free_pages: int
    gaps: int
    reader: int = 0


class _Meta(NamedTuple):
    page_size: int
    free_root: int
    main_root: int
    last_page: int
    transaction: int


def scrub(env: lmdb.Environment, path: Path, since: int) -> Scrubbed:
    """Wipe what was freed by transactions up to and with ``since`` from the environment in folder ``path``.

    At least one transaction must have been committed after ``since``, by an environment opened since: LMDB fills the
    pages that it writes over its own memory of older ones. Nothing is wiped while a reader stands before it.

    Raises:
        ScrubError: the file is not what this code knows (LMDB 0.9, 64 bits, no duplicate keys).
    """
    env.reader_check()
    with (path / "data.mdb").open("r+b", buffering=0) as file, env.begin(write=True) as writing:
        try:
            data = np.asarray(np.memmap(file, np.uint8, mode="r"))
            first = _meta(data, 0, path)
            older, newest = sorted((first, _meta(data, first.page_size, path)), key=lambda meta: meta.transaction)
            if newest.transaction != writing.id() - 1 or older.transaction < since:
                raise ScrubError(f"{path}: transaction {since} is not behind both meta pages")
            if behind := [pid for pid, snapshot in standing_readers(env) if snapshot < older.transaction]:
                return Scrubbed(0, 0, behind[0])
            done = _wipe(file.fileno(), data, newest, older.transaction, path)
            os.fsync(file.fileno())
        finally:
            writing.abort()
    return done


def last_transaction(env: lmdb.Environment) -> int:
    """The number of the newest committed transaction."""
    return int(env.info()["last_txnid"])


def _wipe(descriptor: int, data: Bytes, meta: _Meta, safe: int, path: Path) -> Scrubbed:
    size, pages = meta.page_size, meta.last_page + 1
    stored = min(len(data) // size, pages)  # pages at the end that were free from the start are not in the file
    used = np.zeros(pages, np.uint8)  # see `_walk`
    used[:2] = 1
    _follow(data, size, meta.main_root, used, path)
    for name_root in _subtrees(data, size, meta.main_root):
        _follow(data, size, name_root, used, path)
    _follow(data, size, meta.free_root, used, path)
    free = [(freed_by, _free_list(data, node, size)) for freed_by, node in _leaf_nodes(data, size, meta.free_root)]
    listed = np.concatenate([numbers for _, numbers in free]) if free else np.zeros(0, np.int64)
    if len(listed) and (listed.min() < 2 or listed.max() >= pages or used[listed].any()):
        raise ScrubError(f"{path}: a page is in use and free at once")
    if len(np.unique(listed)) != len(listed) or int((used > 0).sum()) + len(listed) != pages:
        raise ScrubError(f"{path}: pages in use and free pages do not make up the file")
    by_page = data[: stored * size].reshape(stored, size)
    wiped = gaps = 0
    ready = [numbers for freed_by, numbers in free if freed_by <= safe]
    for number in np.sort(np.concatenate(ready)).tolist() if ready else ():
        if number < stored and by_page[number].any():
            os.pwrite(descriptor, bytes(size), number * size)
            wiped += 1
    waiting = [number for freed_by, numbers in free if freed_by > safe for number in numbers.tolist()]
    with_gap = [
        *np.flatnonzero(used == 3).tolist(),
        *(n for n in waiting if n < stored and _flags(data, n, size) in (_BRANCH, _LEAF)),
    ]
    for number in with_gap:
        lower, upper = (int(part) for part in by_page[number, 12:16].view("<u2"))
        if _HEADER <= lower <= upper <= size and by_page[number, lower:upper].any():
            os.pwrite(descriptor, bytes(upper - lower), number * size + lower)
            gaps += 1
    if data[pages * size :].any():
        os.pwrite(descriptor, bytes(len(data) - pages * size), pages * size)
        wiped += 1
    return Scrubbed(wiped, gaps)


def _meta(data: Bytes, at: int, path: Path) -> _Meta:
    magic, version, _, _ = _META.unpack_from(data.data, at + _HEADER)
    if magic != _MAGIC or version != _VERSION:
        raise ScrubError(f"{path} has LMDB data version {version}; wiping knows version {_VERSION}")
    trees = at + _HEADER + _META.size
    free, main = _TREE.unpack_from(data.data, trees), _TREE.unpack_from(data.data, trees + _TREE.size)
    last_page, transaction = _END.unpack_from(data.data, trees + 2 * _TREE.size)
    return _Meta(free[0], free[-1], main[-1], last_page, transaction)


def standing_readers(env: lmdb.Environment) -> list[tuple[int, int]]:
    """(process, snapshot) of every reader that stands at one."""
    rows = [line.split() for line in env.readers().splitlines()[1:]]
    return [(int(row[0]), int(row[2])) for row in rows if len(row) == 3 and row[2] != "-"]


def _flags(data: Bytes, page: int, size: int) -> int:
    return int(data[page * size + 10]) | int(data[page * size + 11]) << 8


def _follow(data: Bytes, size: int, root: int, used: Bytes, path: Path) -> None:
    if root == _NO_PAGE:
        return
    fault = int(_walk(data, size, root, used, np.zeros(_STACK, np.int64)))
    if fault != _OK:
        raise ScrubError(f"{path}: {_FAULTS[fault]}")


@kernel
def _walk(data: Bytes, size: int, root: int, used: Bytes, stack: npt.NDArray[np.int64]) -> int:
    """Mark every page of the tree at ``root``: 2 for branches and leaves (3: bytes in the gap), 1 for long values."""
    stack[0] = root
    depth = 1
    while depth > 0:
        depth -= 1
        page = stack[depth]
        if page < 2 or page >= len(used) or (page + 1) * size > len(data):
            return _BAD_PAGE
        if used[page]:
            return _TWICE
        used[page] = 2
        at = page * size
        flags = np.int64(data[at + 10]) | np.int64(data[at + 11]) << 8
        lower = np.int64(data[at + 12]) | np.int64(data[at + 13]) << 8
        upper = np.int64(data[at + 14]) | np.int64(data[at + 15]) << 8
        if (flags != _BRANCH and flags != _LEAF) or lower < _HEADER or upper < lower or upper > size:
            return _BAD_PAGE
        for k in range(at + lower, at + upper):
            if data[k]:
                used[page] = 3
                break
        for k in range((lower - _HEADER) // 2):
            node = at + (np.int64(data[at + _HEADER + 2 * k]) | np.int64(data[at + _HEADER + 2 * k + 1]) << 8)
            if node + 8 > at + size:
                return _BAD_PAGE
            number = np.int64(0)
            for b in range(4):
                number |= np.int64(data[node + b]) << (8 * b)
            kind = np.int64(data[node + 4]) | np.int64(data[node + 5]) << 8
            if flags == _BRANCH:
                if depth >= len(stack):
                    return _BAD_PAGE
                stack[depth] = number | kind << 32
                depth += 1
            elif kind & ~(_BIG | _SUBTREE):
                return _UNKNOWN
            elif kind & _BIG:
                key_size = np.int64(data[node + 6]) | np.int64(data[node + 7]) << 8
                first = np.int64(0)
                for b in range(8):
                    first |= np.int64(data[node + 8 + key_size + b]) << (8 * b)
                if first < 2 or first >= len(used) or (first + 1) * size > len(data):
                    return _BAD_PAGE
                count = np.int64(0)
                for b in range(4):
                    count |= np.int64(data[first * size + 12 + b]) << (8 * b)
                if count < 1 or first + count > len(used) or (first + count) * size > len(data):
                    return _BAD_PAGE
                for page_of_value in range(first, first + count):
                    if used[page_of_value]:
                        return _TWICE
                    used[page_of_value] = 1
    return _OK


def _leaf_nodes(data: Bytes, size: int, root: int) -> Iterator[tuple[int, int]]:
    """(key as a number, position in the file) of the entries of a tree."""
    if root == _NO_PAGE:
        return
    pages = [root]
    while pages:
        at = pages.pop() * size
        lower = int(data[at + 12 : at + 14].view("<u2")[0])
        for k in range((lower - _HEADER) // 2):
            node = at + int(data[at + _HEADER + 2 * k : at + _HEADER + 2 * k + 2].view("<u2")[0])
            low, high, flags, key_size = _NODE.unpack_from(data.data, node)
            if _flags(data, at // size, size) == _BRANCH:
                pages.append(low | high << 16 | flags << 32)
            else:
                yield int.from_bytes(data[node + 8 : node + 8 + min(key_size, 8)].tobytes(), "little"), node


def _subtrees(data: Bytes, size: int, root: int) -> Iterator[int]:
    """The roots of the named tables."""
    for _, node in _leaf_nodes(data, size, root):
        _, _, flags, key_size = _NODE.unpack_from(data.data, node)
        if flags & _SUBTREE:
            yield int(_TREE.unpack_from(data.data, node + 8 + key_size)[-1])


def _free_list(data: Bytes, node: int, size: int) -> npt.NDArray[np.int64]:
    """The page numbers in an entry of the free list."""
    _, _, flags, key_size = _NODE.unpack_from(data.data, node)
    at = node + 8 + key_size
    if flags & _BIG:
        at = int.from_bytes(data[at : at + 8].tobytes(), "little") * size + _HEADER
    count = int.from_bytes(data[at : at + 8].tobytes(), "little")
    return np.frombuffer(data[at + 8 : at + 8 + 8 * count].tobytes(), "<i8").astype(np.int64)
