"""Negatives of positive events: items drawn evenly from those that the log had named by then."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.jit import inline, kernel

Int64 = npt.NDArray[np.int64]


@inline
def _mixed(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def draw_negatives(record: Int64, item: Int64, known: Int64, seed: int, out: Int64) -> None:
    """``out[i, 0] = item[i]``, then distinct other items of ``1 … known[i]``, evenly at random (Floyd's way).

    What is drawn depends on the seed and the record alone, so not on which part of the log is read.
    ``out`` (``int64[n, 1 + negatives]``) stays 0 where there are no items left.
    """
    for i in range(len(item)):
        out[i, 0] = item[i]
        others = known[i] - 1  # numbers from 0, with a step over the item itself
        count = min(others, out.shape[1] - 1)
        for k in range(count):
            top = others - count + k
            state = _mixed(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(record[i]))
            value = np.int64(_mixed(state + np.uint64(k + 1) * np.uint64(0x9E3779B97F4A7C15)) % np.uint64(top + 1))
            drawn = value + 1 if value + 1 < item[i] else value + 2
            for j in range(1, k + 1):
                if out[i, j] == drawn:
                    drawn = top + 1 if top + 1 < item[i] else top + 2
                    break
            out[i, 1 + k] = drawn
