"""Where the rows of a state lie in Redis: hash tags, partitions, buckets.

A user lies in the partition ``number % partitions``, the rest in the partition ``m``. Rows lie in buckets, hashes of at
most ``WIDTH`` rows, so that nothing grows without bound and all rows can be read in order, a piece at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

WIDTH = 256

_U4 = struct.Struct(">I")
_T = TypeVar("_T")


class Description(msgspec.Struct, array_like=True):
    """What the head of the meta partition says beside the position."""

    meta: bytes
    made: str  # tells a state from one that took its place
    partitions: int
    users_end: int = 1  # one more than the largest number of a user
    items_end: int = 1


decode_description = msgspec.msgpack.Decoder(Description).decode


def user_field(user: int) -> bytes:
    """The name of a user's row in a stage; in a bucket without the letter."""
    return b"u" + _U4.pack(user)


class Keys(NamedTuple):
    """The names of everything. ``place`` is the plan's hash, or what stands for it.

    A row is named by its table's letter (``u``, ``i``, ``c``) and its number, big-endian, 4 bytes; in a bucket by
    the number alone.
    """

    place: str
    partitions: int

    def key(self, p: int | str, name: str) -> str:
        """``name`` in partition ``p``: its head, its stage, a bucket."""
        return f"{{hw:{self.place}:{p}}}:{name}"

    def epoch(self, number: int) -> str:
        return self.key("m", f"e{number}")

    def width(self, p: int | str) -> int:
        """The numbers that a bucket spans."""
        return WIDTH if p == "m" else WIDTH * self.partitions

    def label(self, field: bytes, p: int | str) -> str:
        """The bucket of a row: its table's letter and a number."""
        return f"{chr(field[0])}{_U4.unpack(field[1:])[0] // self.width(p)}"

    def users(self, end: int) -> list[list[str]]:
        """The buckets of the users below ``end``: lists of those that span the same numbers."""
        count = -(-end // self.width(0))
        return [[self.key(p, f"u{number}") for p in range(self.partitions)] for number in range(count)]

    def items(self, letter: str, end: int) -> list[str]:
        """The buckets of the items below ``end``."""
        return [self.key("m", f"{letter}{number}") for number in range(-(-end // WIDTH))]


def batches(some: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of at most ``size``."""
    rest = iter(some)
    while part := list(islice(rest, size)):
        yield part
