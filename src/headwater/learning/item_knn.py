"""Session item-kNN: which items stand in the same sessions, lately.

Sequences are cut into sessions where more than half an hour passes, and after ``LONGEST`` events, so that a history
without times is no single session and a long one costs no square of its length. With ``w_s = 2^(-(now - last event of s)
/ half_life)``, ``n_i = Σ w_s [i in s]`` and ``n_ij = Σ w_s [i and j in s]`` the weight of partner ``j`` of item ``i`` is
``n_ij / (sqrt(n_i n_j) + shrink)``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import structlog
from scipy.sparse import csr_array, diags_array, vstack

from headwater.learning.interactions import binary, cut, spread
from headwater.learning.sequences import Sequences
from headwater.retrieval.latest import Recency
from headwater.retrieval.neighbours import neighbour_files
from headwater.schema.durations import parse_duration
from headwater.schema.models import ItemKnnModel

Int64 = npt.NDArray[np.int64]

GAP_MS = 1_800_000
LONGEST = 50
# a next event depends on the last few: chosen on the validation part of MovieLens-1M (docs/log.md)
RECENCY = Recency(depth=50, discount=0.6, gap_s=GAP_MS // 1_000, across=0.1)
BLOCK = 1_024  # items whose partners are counted together

log = structlog.get_logger()


def fit_item_knn(
    sequences: Sequences, params: ItemKnnModel, *, now_ms: int, longest: int = LONGEST, recency: Recency = RECENCY
) -> dict[str, bytes]:
    """The files of the source ``item_knn``."""
    session = sessions_of(sequences, longest)
    ends = np.flatnonzero(np.append(np.diff(session) > 0, True))
    age = np.maximum(now_ms - sequences.time_ms[ends], 0)
    weight = np.exp2(-age / parse_duration(params.half_life))
    items, column = np.unique(sequences.items, return_inverse=True)
    here = binary(session, column.astype(np.int64), len(ends), len(items))
    weighed = csr_array(diags_array(np.sqrt(weight)) @ here.astype(np.float64))
    norm = np.sqrt(np.asarray((weighed * weighed).sum(axis=0)).ravel())
    by_item = csr_array(weighed.T)
    parts = []
    for first in range(0, len(items), BLOCK):
        together = csr_array(by_item[first : first + BLOCK] @ weighed)
        row = np.repeat(np.arange(together.shape[0]) + first, np.diff(together.indptr))
        together.data = together.data / (norm[row] * norm[together.indices] + params.shrink)
        together.data[row == together.indices] = 0.0
        starts, columns, values = cut(together, params.neighbours)
        parts.append(csr_array((values, columns.astype(np.int64), starts), shape=together.shape))
    rows = csr_array(vstack(parts, format="csr"))
    log.info("item_knn_fitted", sessions=len(ends), items=len(items), neighbours=len(rows.data))
    return neighbour_files(
        "item_knn", spread(items, rows.indptr.astype(np.int64)), items[rows.indices].astype(np.int32),
        rows.data.astype(np.float32), recency,
    )  # fmt: skip


def sessions_of(sequences: Sequences, longest: int = LONGEST, gap_ms: int = GAP_MS) -> Int64:
    """``int64[n]``: the session of each event, numbered in the order of the sequences."""
    n = len(sequences)
    starts = np.zeros(n, np.bool_)
    starts[sequences.starts[:-1]] = True
    starts[1:] |= np.diff(sequences.time_ms) > gap_ms
    visit = np.cumsum(starts) - 1
    place = np.arange(n) - np.flatnonzero(starts)[visit]
    starts |= (place > 0) & (place % longest == 0)
    return np.cumsum(starts) - 1
