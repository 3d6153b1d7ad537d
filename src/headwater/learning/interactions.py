"""Who had which item: sequences as a sparse matrix, and rows of neighbours cut to their strongest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from headwater.jit import allocating_kernel
from headwater.learning.sequences import Sequences

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def binary(owner: Int64, items: Int64, owners: int, columns: int) -> csr_array:
    """``float32[owners, columns]`` with a 1 where an owner had an item, however often."""
    pairs = np.unique(owner * columns + items)
    rows, cols = np.divmod(pairs, columns)
    starts = np.searchsorted(rows, np.arange(owners + 1)).astype(np.int64)
    return csr_array((np.ones(len(pairs), np.float32), cols.astype(np.int64), starts), shape=(owners, columns))


def most_frequent(sequences: Sequences, most: int) -> Int64:
    """The ``most`` items that the most users had, in the order of their numbers; ties in favour of the lower number."""
    items, users = np.unique(np.unique(np.stack([sequences.items, sequences.owner]), axis=1)[0], return_counts=True)
    chosen = items[np.lexsort((items, -users))[:most]]
    return np.sort(chosen)


@allocating_kernel
def strongest(
    starts: Int64, columns: Int64, values: Float32, most: int, out_starts: Int64, out_columns: Int32, out_values: Float32
) -> int:  # fmt: skip
    """Keep of every compressed row the ``most`` entries of largest magnitude, ties by the lower column; zeros never.

    The columns of a row ascend. Returns how many entries were written.
    """
    end = 0
    for i in range(len(starts) - 1):
        out_starts[i] = end
        first, last = starts[i], starts[i + 1]
        sizes = np.abs(values[first:last])
        least = np.float32(0.0)
        above = 0
        if len(sizes) > most:
            least = np.partition(sizes, len(sizes) - most)[len(sizes) - most]
            for j in range(len(sizes)):
                above += sizes[j] > least
        room = most - above  # of those that are just as strong as the last one
        for j in range(len(sizes)):
            if sizes[j] > least:
                out_columns[end], out_values[end] = columns[first + j], values[first + j]
                end += 1
            elif sizes[j] == least and least > 0.0 and room > 0:
                out_columns[end], out_values[end] = columns[first + j], values[first + j]
                end += 1
                room -= 1
    out_starts[len(starts) - 1] = end
    return end


def cut(rows: csr_array, most: int) -> tuple[Int64, Int32, Float32]:
    """``rows`` with at most ``most`` entries each (:func:`strongest`): starts, columns and values."""
    rows.sort_indices()
    counts = np.minimum(np.diff(rows.indptr), most)
    room = int(counts.sum())
    starts, columns, values = (
        np.zeros(rows.shape[0] + 1, np.int64),
        np.zeros(room, np.int32),
        np.zeros(room, np.float32),
    )
    end = strongest(
        rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data.astype(np.float32), most, starts, columns,
        values,
    )  # fmt: skip
    return starts, columns[:end], values[:end]


def spread(items: Int64, starts: Int64) -> Int64:
    """Row starts by dense item from row starts by position in ``items`` (ascending): other items have empty rows."""
    counts = np.zeros(int(items[-1]) + 2, np.int64)
    counts[items + 1] = np.diff(starts)
    made: Int64 = np.cumsum(counts)
    return made
