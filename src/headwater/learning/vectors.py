"""Item vectors from who saw what: a truncated singular value decomposition, for target attention without a sequence model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg

from headwater.learning.sequences import Sequences

Float32 = npt.NDArray[np.float32]


def item_vectors(sequences: Sequences, items: int, size: int, *, seed: int) -> Float32:
    """Vectors ``float32[items + 1, size]`` by dense item; the row of an item that nobody saw, and row 0, is 0.

    The matrix has 1 for each user and item, over the square roots of the user's and the item's number of ones (so that
    neither busy people nor popular items fill the space); ``V √S`` of it, scaled to unit length.
    """
    vectors = np.zeros((items + 1, size), np.float32)
    if not len(sequences):
        return vectors
    pairs = np.unique(np.stack([sequences.owner, sequences.items]), axis=1)
    users, seen = pairs[0], pairs[1]
    by_user, by_item = np.bincount(users), np.bincount(seen, minlength=items + 1)
    values = 1.0 / np.sqrt(by_user[users].astype(np.float64) * by_item[seen])
    matrix = scipy.sparse.csr_matrix((values, (users, seen)), (len(by_user), items + 1))
    rank = min(size, min(matrix.shape) - 1)
    if rank < 1:
        return vectors
    start = np.random.default_rng(seed).standard_normal(min(matrix.shape))
    _, sizes, found = scipy.sparse.linalg.svds(matrix, k=rank, v0=start)
    order = np.argsort(-sizes)
    found = (found[order] * np.sqrt(sizes[order])[:, None]).T
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    vectors[:, :rank] = np.where(lengths > 1e-9, found / np.maximum(lengths, 1e-9), 0.0)
    return vectors
