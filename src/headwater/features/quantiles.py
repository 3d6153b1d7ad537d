"""Quantiles of a stream in a few hundred numbers: a KLL sketch whose coin is a function of what it has seen.

Z. Karnin, K. Lang, E. Liberty, "Optimal Quantile Approximation in Streams", FOCS 2016. A sketch keeps levels of values; a
value of level ``h`` stands for ``2**h`` of the stream. A level that is full is sorted, and every other value of it moves
up. Which half is a coin; the coin of the `datasketches` package is seeded by the operating system, so the same
rows would give other bytes each time. Here the coin is a hash of count and level, so the same batches in the same order
give the same bytes. Bytes are those of a `kll_floats_sketch`, which answers the questions.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headwater.schema.errors import HeadwaterError

if TYPE_CHECKING:
    from datasketches import kll_floats_sketch

Float32 = npt.NDArray[np.float32]

K = 200  # 1.33 % single-sided rank error at 99 % confidence (get_normalized_rank_error)
_M = 8  # the smallest capacity of a level
_MOST_LEVELS = 60
_BATCH = 4 * K  # a sorted batch is halved down to fewer values than this before it is taken in

_HEAD = struct.Struct("<BBBBHBx")  # preamble ints, version, family, flags, k, m
_COUNTS = struct.Struct("<QHBx")  # n, smallest k of what was merged, levels
_FAMILY = 15
_EMPTY, _SINGLE = 1, 4
_FULL_INTS, _SHORT_INTS = 5, 2


class Quantiles:
    """The distribution of ``n`` finite ``float32`` values. ``levels[h]`` are values of weight ``2**h``."""

    def __init__(self) -> None:
        self.n = 0
        self.smallest, self.largest = np.float32(np.inf), np.float32(-np.inf)
        self.levels: list[Float32] = [np.zeros(0, np.float32)]

    def update(self, ordered: Float32) -> None:
        """Take in a batch, ``float32[n]`` of finite values in ascending order."""
        if len(ordered) == 0:
            return
        self.n += len(ordered)
        self.smallest, self.largest = min(self.smallest, ordered[0]), max(self.largest, ordered[-1])
        level = 0
        while len(ordered) >= _BATCH:
            if len(ordered) % 2:  # one value has no partner: it stays
                self._add(level, ordered[:1])
                ordered = ordered[1:]
            ordered = ordered[_coin(self.n, level) :: 2]
            level += 1
        self._add(level, ordered)
        self._compress()

    def merge(self, other: Quantiles) -> None:
        """Take in everything that ``other`` has seen."""
        if other.n == 0:
            return
        self.n += other.n
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        for level, values in enumerate(other.levels):
            self._add(level, values)
        self._compress()

    def read(self) -> kll_floats_sketch:
        """The sketch to ask: quantiles, ranks, histograms. Changing it changes nothing here."""
        from datasketches import kll_floats_sketch

        return kll_floats_sketch.deserialize(self.encode())

    def encode(self) -> bytes:
        """The bytes of a `kll_floats_sketch` (the same in its Java and C++ implementations)."""
        if self.n == 0:
            return _HEAD.pack(_SHORT_INTS, 1, _FAMILY, _EMPTY, K, _M)
        if self.n == 1:
            single = np.array([self.smallest], "<f4").tobytes()
            return _HEAD.pack(_SHORT_INTS, 2, _FAMILY, _SINGLE, K, _M) + single
        ends = _capacity(len(self.levels)) - np.cumsum([len(v) for v in self.levels[::-1]])
        return b"".join(
            (
                _HEAD.pack(_FULL_INTS, 1, _FAMILY, 0, K, _M),
                _COUNTS.pack(self.n, K, len(self.levels)),
                ends[::-1].astype("<u4").tobytes(),
                np.array([self.smallest, self.largest], "<f4").tobytes(),
                np.concatenate(self.levels).astype("<f4").tobytes(),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Quantiles:
        """What :meth:`encode` wrote, here or in another implementation with the same ``k``.

        Raises:
            HeadwaterError: the bytes are something else, or damaged.
        """
        try:
            return cls._decode(data)
        except (struct.error, ValueError, IndexError) as error:
            raise HeadwaterError(f"{len(data)} bytes are no KLL sketch: {error}. Train again to write them.") from error

    @classmethod
    def _decode(cls, data: bytes) -> Quantiles:
        made = cls()
        ints, version, family, flags, k, m = _HEAD.unpack_from(data)
        if (family, k, m) != (_FAMILY, K, _M):
            raise ValueError(f"family {family}, k {k}, m {m}; expected {_FAMILY}, {K}, {_M}")
        if flags & _EMPTY:
            return made
        if ints == _SHORT_INTS and version == 2:  # a single value
            values = np.frombuffer(data, "<f4", 1, _HEAD.size).astype(np.float32)
            made.n, made.smallest, made.largest, made.levels = 1, values[0], values[0], [values]
            return made
        made.n, _, count = _COUNTS.unpack_from(data, _HEAD.size)
        at = _HEAD.size + _COUNTS.size
        starts = np.frombuffer(data, "<u4", count, at).astype(np.int64)
        sizes = np.diff(np.append(starts, _capacity(min(count, _MOST_LEVELS))))
        if not 0 < count <= _MOST_LEVELS or (sizes < 0).any() or int((sizes << np.arange(count)).sum()) != made.n:
            raise ValueError("the levels do not add up to the count")
        at += 4 * count
        bounds = np.frombuffer(data, "<f4", 2, at).astype(np.float32)
        values = np.frombuffer(data, "<f4", -1, at + 8).astype(np.float32)
        if len(values) != sizes.sum():
            raise ValueError(f"{len(values)} values, expected {sizes.sum()}")
        made.smallest, made.largest = bounds[0], bounds[1]
        made.levels = np.split(values, np.cumsum(sizes)[:-1])
        return made

    def _add(self, level: int, values: Float32) -> None:
        while len(self.levels) <= level:
            self.levels.append(np.zeros(0, np.float32))
        if len(values):
            # level 0 may be in any order, the levels above are sorted
            self.levels[level] = np.sort(np.concatenate([self.levels[level], values]))

    def _compress(self) -> None:
        """Move halves up until everything fits the capacity of as many levels as there are."""
        while sum(len(values) for values in self.levels) > _capacity(len(self.levels)):
            top = len(self.levels) - 1
            level = next(h for h, values in enumerate(self.levels) if len(values) >= _level_capacity(top - h))
            values = self.levels[level]
            odd = len(values) % 2
            self.levels[level] = values[:odd]
            self._add(level + 1, values[odd + _coin(self.n, level) :: 2])


def _level_capacity(depth: int) -> int:
    """How many values a level holds that lies ``depth`` below the top: ``k (2/3)**depth`` rounded, at least ``m``."""
    return max(_M, int((2 * K * 2**depth // 3**depth + 1) >> 1))


def _capacity(levels: int) -> int:
    return sum(_level_capacity(depth) for depth in range(levels))


def _coin(n: int, level: int) -> int:
    """0 or 1 by the SplitMix64 hash of count and level: fair over sketches, fixed for one."""
    x = (n * 0x9E3779B97F4A7C15 + level * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & 1
