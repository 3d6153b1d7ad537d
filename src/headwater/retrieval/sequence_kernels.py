"""What the sequence source does for each event and each candidate."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headwater.features.layout import ITEM_BITS, MAX_ITEMS
from headwater.jit import inline, kernel, prefetch_row

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_AHEAD = 8  # rows that are under way while one is worked on
SUMS = 16  # that a product is made of: one would wait for itself at each step


@kernel
def usable_events(
    keys: UInt32, times: UInt32, known: Bool, count: int, anchor_type: int, now_s: int,
    items: Int64, types: Int64, times_s: Int64, ages_s: Int64,
) -> int:  # fmt: skip
    """The latest events with an item that is ``known`` (bool[``count`` or more]), oldest first, as many as there is room for; returns how many.

    ``keys`` and ``times`` uint32[n] are those of a user row. An anchor is an item without an event (type 0, time 0): as if the user had just
    turned to it, by ``anchor_type``.
    """
    first, found = len(keys), 0
    while first > 0 and found < len(items):
        first -= 1
        item = np.int64(keys[first]) & MAX_ITEMS
        if item < count and known[item]:
            found += 1
    at = 0
    for k in range(first, len(keys)):
        item = np.int64(keys[k]) & MAX_ITEMS
        if item < count and known[item]:
            kind, time_s = np.int64(keys[k]) >> ITEM_BITS, np.int64(times[k])
            items[at] = item
            types[at] = kind if kind != 0 else anchor_type
            times_s[at] = time_s if time_s != 0 else now_s
            ages_s[at] = max(now_s - times_s[at], 0)
            at += 1
    return at


@inline
def _positive(product: float) -> np.float32:
    return np.float32(max(product, 0.0) + math.log1p(math.exp(-abs(product))))


@kernel
def positive(products: Float32, out: Float32) -> None:
    """``log(1 + exp(product))`` of each into ``out`` float32[n]."""
    for r in range(len(products)):
        out[r] = _positive(np.float64(products[r]))


@kernel
def positive_products(
    vectors: Float32, known: Bool, count: int, items: Int64, query: Float32, added: Float32, sums: Float32, out: Float32
) -> None:
    """``log(1 + exp(vector · query + added))`` of each of ``items`` into ``out`` float32[n]; 0 for one that is not ``known``.

    ``added`` float32[n], or empty for nothing. ``sums`` float32[SUMS] is scratch: the order of summation is the same for every item and any
    number of them.
    """
    size = len(query)
    whole = size // SUMS * SUMS
    for r in range(len(items)):
        if r + _AHEAD < len(items) and items[r + _AHEAD] < count:
            prefetch_row(vectors, items[r + _AHEAD])
        row = items[r]
        if row >= count or not known[row]:
            out[r] = np.float32(0.0)
            continue
        for lane in range(SUMS):
            sums[lane] = np.float32(0.0)
        for at in range(0, whole, SUMS):
            for lane in range(SUMS):
                sums[lane] = np.float32(sums[lane] + np.float32(vectors[row, at + lane] * query[at + lane]))
        product = 0.0
        for lane in range(SUMS):
            product += np.float64(sums[lane])
        for at in range(whole, size):
            product += np.float64(vectors[row, at]) * np.float64(query[at])
        if len(added):
            product += np.float64(added[r])
        out[r] = _positive(product)


@kernel
def gathered(vectors: Float32, known: Bool, count: int, items: Int64, out: Float32) -> None:
    """The vectors of ``items`` into ``out`` float32[n, d]; zeros for one that is not ``known``."""
    size = out.shape[1]
    for r in range(len(items)):
        if r + _AHEAD < len(items) and items[r + _AHEAD] < count:
            prefetch_row(vectors, items[r + _AHEAD])
        row = items[r]
        if row < count and known[row]:
            for c in range(size):
                out[r, c] = vectors[row, c]
        else:
            for c in range(size):
                out[r, c] = np.float32(0.0)
