"""EASE: item-to-item weights by one regression in closed form (Steck 2019).

With the users' items ``X`` (binary) and ``P = (XᵀX + l2·1)⁻¹`` the weight of ``j`` given ``i`` is ``-P_ij / P_jj``, 0 on the
diagonal. Only the ``neighbours`` of largest magnitude are kept for each item; negative ones count too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import structlog
from scipy.linalg.lapack import spotrf, spotri

from headwater.jit import allocating_kernel
from headwater.learning.fitting import FitError
from headwater.learning.interactions import binary, most_frequent, spread
from headwater.learning.sequences import Sequences
from headwater.retrieval.latest import Recency
from headwater.retrieval.neighbours import neighbour_files
from headwater.schema.models import EaseModel

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

# a next event depends on the last few: chosen on the validation part of MovieLens-1M (docs/log.md)
RECENCY = Recency(depth=1_024, discount=0.8, gap_s=1_800, across=1.0)

log = structlog.get_logger()


def fit_ease(sequences: Sequences, params: EaseModel, *, recency: Recency = RECENCY) -> dict[str, bytes]:
    """The files of the source ``ease``. Memory: 8 bytes times the square of the items, at most ``most_items``."""
    items = most_frequent(sequences, params.most_items)
    weights = item_weights(sequences, items, params.l2)
    most = min(params.neighbours, len(items))
    columns, values = np.zeros(len(items) * most, np.int32), np.zeros(len(items) * most, np.float32)
    starts = np.zeros(len(items) + 1, np.int64)
    end = _strongest_of_rows(weights, most, starts, columns, values)
    log.info("ease_fitted", items=len(items), neighbours=int(end))
    return neighbour_files("ease", spread(items, starts), items[columns[:end]].astype(np.int32), values[:end], recency)


def item_weights(sequences: Sequences, items: Int64, l2: float) -> Float32:
    """``float32[m, m]``: the weight of item ``j`` given ``i``, of ``items`` int64[m] (ascending).

    Raises:
        FitError: the system cannot be solved in float32: ``l2`` is too small for these counts.
    """
    place = np.minimum(np.searchsorted(items, sequences.items), len(items) - 1)
    kept = items[place] == sequences.items
    users = binary(sequences.owner[kept], place[kept], len(sequences.users), len(items))
    gram = np.asarray((users.T @ users).toarray(), np.float32)
    gram[np.diag_indices(len(items))] += np.float32(l2)
    # a symmetric array read by columns is the array itself: LAPACK works in place and nothing is copied
    factor, failed = spotrf(gram.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
        inverse, failed = spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise FitError(
            f"EASE cannot be solved for {len(items)} items with models.ease.l2 = {l2:g}: choose a larger l2, "
            "or fewer items (models.ease.most_items)"
        )
    _to_weights(inverse.T)
    return np.asarray(inverse.T)


@allocating_kernel
def _to_weights(inverse: Float32) -> None:
    """Turn the upper half of an inverse, in place, into weights of columns given rows."""
    n = len(inverse)
    diagonal = np.empty(n, np.float32)
    for i in range(n):
        diagonal[i] = inverse[i, i]
        inverse[i, i] = np.float32(0.0)
    for i in range(n):
        for j in range(i + 1, n):
            value = inverse[i, j]
            inverse[i, j] = -value / diagonal[j]
            inverse[j, i] = -value / diagonal[i]


@allocating_kernel
def _strongest_of_rows(weights: Float32, most: int, starts: Int64, columns: Int32, values: Float32) -> int:
    """The ``most`` entries of largest magnitude of each row, ties by the lower column, in the order of columns."""
    end = 0
    for i in range(len(weights)):
        starts[i] = end
        sizes = np.abs(weights[i])
        least = np.partition(sizes, len(sizes) - most)[len(sizes) - most]
        room = most
        for j in range(len(sizes)):
            room -= sizes[j] > least
        for j in range(len(sizes)):
            take = sizes[j] > least
            if sizes[j] == least and least > 0.0 and room > 0:
                take = True
                room -= 1
            if take:
                columns[end], values[end] = j, weights[i, j]
                end += 1
    starts[len(weights)] = end
    return end
