"""What a vector index is: live items with vectors, searched by inner product, under a filter that never starves."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from headwater.retrieval.index import Ranked
from headwater.schema.errors import HeadwaterError

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


class VectorError(HeadwaterError):
    """Vectors or a query that an index cannot hold or answer."""


class VectorIndex(Protocol):
    """Vectors of one ``size`` by dense item number. Not thread-safe: it belongs to one worker."""

    size: int

    def __len__(self) -> int: ...

    def set(self, items: Int64, vectors: Float32) -> None:
        """Add ``items`` int64[n] with ``vectors`` float32[n, size]; an item that is there gets its new vector.

        Raises:
            VectorError: another size, a number below 1, an item twice, or a vector that is not finite; nothing has changed.
        """
        ...

    def remove(self, items: Int64) -> None:
        """Take ``items`` int64[n] out; those that are not there change nothing."""
        ...

    def search(self, query: Float32, k: int, allowed: UInt8 | None = None) -> Ranked:
        """The ``k`` items with the largest inner product with ``query`` float32[size], best first, ties by the lower item number.

        ``allowed`` uint8[items] by item number: 0 bars an item, and so does a number beyond its end. As many items come
        back as it leaves, up to ``k``.

        Raises:
            VectorError: a query of another size, or one that is not finite.
        """
        ...

    def scores_of(self, items: Int64, query: Float32) -> Float32:
        """The inner products of ``items`` int64[n], all of which are here: float32[n], as :meth:`search` gives them."""
        ...


def checked_vectors(items: Int64, vectors: Float32, size: int) -> Float32:
    """``vectors`` as contiguous float32[n, size].

    Raises:
        VectorError: as :meth:`VectorIndex.set` says.
    """
    made = np.ascontiguousarray(vectors, np.float32)
    if made.shape != (len(items), size):
        raise VectorError(
            f"{len(items)} items came with vectors of shape {made.shape}; this index holds ({size},) each"
        )
    if len(items) and int(items.min()) < 1:
        raise VectorError(f"there is no item {int(items.min())}: dense numbers start at 1")
    if len(np.unique(items)) != len(items):
        raise VectorError("an item was given twice in one call; give each item one vector")
    if not np.isfinite(made).all():
        bad = items[~np.isfinite(made).all(axis=1)]
        raise VectorError(f"the vector of item {int(bad[0])} is not finite ({len(bad)} in all); look at what made it")
    return made


def checked_query(query: Float32, size: int) -> Float32:
    """``query`` as contiguous float32[size].

    Raises:
        VectorError: another size, or not finite.
    """
    made = np.ascontiguousarray(query, np.float32)
    if made.shape != (size,):
        raise VectorError(f"the query has shape {made.shape}; this index holds vectors of shape ({size},)")
    if not np.isfinite(made).all():
        raise VectorError("the query is not finite; look at what made it")
    return made
