"""Exact search: a scan over 8-bit codes with an error bound for each item, then float32 for what the bound lets through.

Reading memory is what a scan costs, and codes are a quarter of the vectors. A vector ``v`` is kept as ``s·c + e`` with
``c`` int8 and the length of ``e`` known; the query as ``t·r + f`` with ``r`` int16. The inner product then differs from
``s·t·(c·r)`` by at most ``|q|·|e| + |f|·|s·c|`` (Cauchy and Schwarz), so an item whose upper bound lies below the
``k``-th largest lower bound cannot be among the best ``k``: the answer is exact, whatever the vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import kernel, prefetch, prefetch_row
from headwater.retrieval.index import NOTHING, Ranked, in_order
from headwater.retrieval.vectors.index import Float32, Int64, UInt8, checked_query, checked_vectors

Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]

BINS = 4_096  # of the histograms that find the k-th lower bound
SAMPLED = 32  # one of so many lower bounds is looked at first: what lies far below needs no histogram
AHEAD = 6  # rows that are under way while one is worked on
AHEAD_BYTES = 4_096  # of the codes: the processor by itself fetches ahead to the end of a page
ROUNDING = 1e-5  # relative to |q|·|v|: what float32 sums of up to a few thousand terms may lose
_LEVELS = 127


@kernel
def _coded(query: Float32, levels: int, out: Int16) -> tuple[float, float, float]:
    """Codes of the query; what they are multiples of, the length of the query, and the length of what the codes leave."""
    largest, squares, left = 0.0, 0.0, 0.0
    for c in range(len(query)):
        largest = max(largest, abs(np.float64(query[c])))
    scale = largest / levels if largest > 0.0 else 1.0
    for c in range(len(query)):
        value = np.float64(query[c])
        code = np.rint(value / scale)
        out[c] = np.int16(code)
        squares += value * value
        left += (value - scale * code) ** 2
    return scale, np.sqrt(squares), np.sqrt(left)


@kernel
def _dots(codes: Int8, count: int, query: Int16, out: Int32) -> None:
    size = len(query)
    whole = size // 64 * 64
    ahead = AHEAD_BYTES // size + 1
    for i in range(count):
        if i + ahead < count:
            prefetch(codes, i + ahead, 0)
        total = np.int32(0)
        for start in range(0, whole, 64):  # a loop whose length is known becomes a few instructions without a branch
            for c in range(64):
                # cast at each step: numba would go on in 64 bits, at half the speed (`search` keeps the sum within 32)
                total = np.int32(total + np.int32(np.int32(codes[i, start + c]) * np.int32(query[start + c])))
        for c in range(whole, size):
            total = np.int32(total + np.int32(np.int32(codes[i, c]) * np.int32(query[c])))
        out[i] = total


@kernel
def _bounds(
    dots: Int32, scale: Float32, slack: Float32, length: Float32, count: int, query_scale: float, query_length: float,
    query_error: float, lower: Float32, upper: Float32,
) -> None:  # fmt: skip
    """Bounds of the inner products of all items."""
    rest = query_error + ROUNDING * query_length
    for i in range(count):
        value = dots[i] * (scale[i] * query_scale)
        error = query_length * slack[i] + rest * length[i]
        lower[i], upper[i] = np.float32(value - error), np.float32(value + error)


@kernel
def _bar(at: Int64, count: int, allowed: UInt8, lower: Float32, upper: Float32) -> int:
    """Both bounds of what is not allowed become -inf; returns how many are left."""
    left = 0
    for i in range(count):
        if at[i] >= len(allowed) or not allowed[at[i]]:
            lower[i] = upper[i] = -np.inf
        else:
            left += 1
    return left


@kernel
def _reached(lower: Float32, positions: Int64, count: int, step: int, k: int, bins: Int32) -> float:
    """A value that at least ``k`` of every ``step``-th lower bound reach, close to the ``k``-th largest; -inf: there are fewer.

    ``positions`` says which ones count; empty: the first ``count``.
    """
    low, high, there = np.inf, -np.inf, 0
    for n in range(0, count, step):
        value = np.float64(lower[positions[n] if len(positions) else n])
        if value > -np.inf:
            low, high, there = min(low, value), max(high, value), there + 1
    if there < k:
        return -np.inf
    if high <= low:
        return low
    bins[:] = 0
    width = (high - low) / BINS
    per = 1.0 / width
    for n in range(0, count, step):
        value = np.float64(lower[positions[n] if len(positions) else n])
        if value > -np.inf:
            bins[min(int((high - value) * per), BINS - 1)] += 1
    reached = 0
    for b in range(BINS):
        reached += bins[b]
        if reached >= k:
            return high - (b + 1.5) * width  # half a bin for what rounding may have put into the next one
    return low


@kernel
def _at_least(lower: Float32, upper: Float32, count: int, least: float, out: Int64) -> tuple[int, int]:
    """Positions whose upper bound is at least ``least``; how many these are, and of how many the lower bound is."""
    found, sure = 0, 0
    for i in range(count):
        if upper[i] >= least and upper[i] > -np.inf:
            out[found] = i
            found += 1
            if lower[i] >= least:
                sure += 1
    return found, sure


@kernel
def _let_through(lower: Float32, upper: Float32, count: int, k: int, bins: Int32, out: Int64) -> int:
    """Positions that may be among the best ``k``: upper bound at or above a value that at least ``k`` lower bounds reach.

    A sample tells about where that value lies. Where it was too high, all are looked at.
    """
    least = -np.inf
    if count > SAMPLED * k // 4:
        wanted = k // SAMPLED
        least = _reached(lower, out[:0], count, SAMPLED, wanted + wanted // 2 + 8, bins)
    found, sure = _at_least(lower, upper, count, least, out)
    if sure < k and least > -np.inf:
        found, sure = _at_least(lower, upper, count, -np.inf, out)
    least = _reached(lower, out[:found], found, 1, k, bins)
    kept = 0
    for n in range(found):
        if upper[out[n]] >= least:
            out[kept] = out[n]
            kept += 1
    return kept


@kernel
def _inner_products(vectors: Float32, positions: Int64, query: Float32, out: Float32) -> None:
    """In one order of summation for every vector, so that equal vectors have equal scores wherever they lie."""
    whole = len(query) // 4 * 4
    for r in range(len(positions)):
        if r + AHEAD < len(positions):
            prefetch_row(vectors, positions[r + AHEAD])
        row = positions[r]
        a, b, c, d = 0.0, 0.0, 0.0, 0.0  # four sums: one would wait for itself at each step
        for n in range(0, whole, 4):
            a += np.float64(vectors[row, n]) * np.float64(query[n])
            b += np.float64(vectors[row, n + 1]) * np.float64(query[n + 1])
            c += np.float64(vectors[row, n + 2]) * np.float64(query[n + 2])
            d += np.float64(vectors[row, n + 3]) * np.float64(query[n + 3])
        for n in range(whole, len(query)):
            a += np.float64(vectors[row, n]) * np.float64(query[n])
        out[r] = np.float32((a + b) + (c + d))


class ExactIndex:
    """All of the best ``k``, by scanning. Memory: 5 bytes a number and 32 an item."""

    def __init__(self, size: int, capacity: int = 1_024) -> None:
        self.size = size
        # int16 codes of the query as fine as the sum of products stays within 32 bits
        self._levels, self._query = min(32_767, (2**31 - 1) // (_LEVELS * max(size, 1))), np.zeros(size, np.int16)
        self._count = 0
        self._slot_of = np.full(capacity, -1, np.int64)
        self._vectors, self._codes = np.zeros((0, size), np.float32), np.zeros((0, size), np.int8)
        self._at: Int64 = np.zeros(0, np.int64)
        self._scale, self._slack, self._length = np.zeros((3, 0), np.float32)
        self._make_room(max(capacity, 1))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, item: int) -> bool:
        return 0 < item < len(self._slot_of) and bool(self._slot_of[item] >= 0)

    @property
    def items(self) -> Int64:
        """The items that are here, int64[n], in no order."""
        return self._at[: self._count]

    def set(self, items: Int64, vectors: Float32) -> None:
        """See :meth:`VectorIndex.set`."""
        vectors = checked_vectors(items, vectors, self.size)
        if not len(items):
            return
        if int(items.max()) >= len(self._slot_of):
            grown = np.full(max(int(items.max()) + 1, 2 * len(self._slot_of)), -1, np.int64)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
        new = items[self._slot_of[items] < 0]
        if self._count + len(new) > len(self._at):
            self._make_room(max(self._count + len(new), 2 * len(self._at)))
        self._at[self._count : self._count + len(new)] = new
        self._slot_of[new] = np.arange(self._count, self._count + len(new))
        self._count += len(new)
        slots = self._slot_of[items]
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        scale = np.where(largest > 0.0, largest / _LEVELS, 1.0).astype(np.float32)
        codes = np.rint(vectors / scale[:, None]).clip(-_LEVELS, _LEVELS).astype(np.int8)
        error = vectors.astype(np.float64) - scale[:, None].astype(np.float64) * codes
        self._vectors[slots], self._codes[slots], self._scale[slots] = vectors, codes, scale
        # one step up each: bounds must not lie below what they bound
        self._slack[slots] = np.nextafter(np.sqrt((error * error).sum(axis=1)).astype(np.float32), np.float32(np.inf))
        length = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
        self._length[slots] = np.nextafter((length + self._slack[slots]).astype(np.float32), np.float32(np.inf))

    def remove(self, items: Int64) -> None:
        """See :meth:`VectorIndex.remove`."""
        for item in items.tolist():
            if item not in self:
                continue
            slot, last = int(self._slot_of[item]), self._count - 1
            moved = int(self._at[last])
            for part in (self._vectors, self._codes, self._scale, self._slack, self._length, self._at):
                part[slot] = part[last]
            self._slot_of[moved] = slot
            self._slot_of[item] = -1
            self._count = last

    def search(self, query: Float32, k: int, allowed: UInt8 | None = None) -> Ranked:
        """See :meth:`VectorIndex.search`."""
        query = checked_query(query, self.size)
        if k < 1 or not self._count:
            return NOTHING
        scale, length, error = _coded(query, self._levels, self._query)
        _dots(self._codes, self._count, self._query, self._dots)
        _bounds(
            self._dots, self._scale, self._slack, self._length, self._count, scale, length, error, self._lower, self._upper,
        )  # fmt: skip
        left = self._count
        if allowed is not None:
            left = _bar(self._at, self._count, allowed, self._lower, self._upper)
        if not left:
            return NOTHING
        found = _let_through(self._lower, self._upper, self._count, min(k, left), self._bins, self._through)
        return self._ranked(self._through[:found], query, k)

    def among(self, items: Int64, query: Float32, k: int) -> Ranked:
        """The best ``k`` of ``items`` int64[n], all of which are here."""
        return self._ranked(self._slot_of[items], checked_query(query, self.size), k)

    def scores_of(self, items: Int64, query: Float32) -> Float32:
        """See :meth:`VectorIndex.scores_of`."""
        scores = np.empty(len(items), np.float32)
        _inner_products(self._vectors, self._slot_of[items], checked_query(query, self.size), scores)
        return scores

    def _ranked(self, slots: Int64, query: Float32, k: int) -> Ranked:
        scores = np.empty(len(slots), np.float32)
        _inner_products(self._vectors, slots, query, scores)
        return in_order(self._at[slots], scores, k)

    def _make_room(self, capacity: int) -> None:
        old = self._count
        vectors, codes = np.zeros((capacity, self.size), np.float32), np.zeros((capacity, self.size), np.int8)
        bounds, at = np.zeros((3, capacity), np.float32), np.zeros(capacity, np.int64)
        if old:
            vectors[:old], codes[:old], at[:old] = self._vectors[:old], self._codes[:old], self._at[:old]
            for row, part in zip(bounds, (self._scale, self._slack, self._length), strict=True):
                row[:old] = part[:old]
        self._vectors, self._codes, self._at = vectors, codes, at
        self._scale, self._slack, self._length = bounds
        self._lower, self._upper = np.zeros(capacity, np.float32), np.zeros(capacity, np.float32)
        self._dots = np.zeros(capacity, np.int32)
        self._through, self._bins = np.zeros(capacity, np.int64), np.zeros(BINS, np.int32)
