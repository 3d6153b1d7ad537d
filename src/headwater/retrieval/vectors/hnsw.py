"""Approximate search: a graph of near neighbours (HNSW, Malkov and Yashunin 2016), by the library ``voyager``.

The graph only says where to look: what it finds is scored again from the vectors themselves, and where a filter
leaves it too little, it looks wider and in the end at everything. So filters never starve the answer.
"""

from __future__ import annotations

import math

import numpy as np
import voyager

from headwater.retrieval.index import NOTHING, Ranked
from headwater.retrieval.vectors.exact import ExactIndex
from headwater.retrieval.vectors.index import Float32, Int64, UInt8, checked_query, checked_vectors

LINKS, BREADTH_OF_BUILDING = 16, 200
WIDER = 4  # how much wider each further look is
WIDEST = 8  # a look at more than an eighth of the items costs more than looking at all of them
MARGIN = 1.25
SPARE = 8  # looked at beyond k: an item that ties with the k-th is seen to do so


class HnswIndex:
    """Nearly all of the best ``k``, in time that hardly grows with the items. Memory: the graph beside an exact index.

    ``breadth`` is how many items a search keeps in sight (ef): more finds more and takes longer. One ``seed``, one order
    of adding and one thread give one graph; with more ``threads`` building is quicker and the graph differs from run to run.
    """

    def __init__(
        self, size: int, *, breadth: int = 200, seed: int = 1, threads: int = 1, capacity: int = 1_024
    ) -> None:
        self.size, self.breadth, self.threads = size, breadth, threads
        self._exact = ExactIndex(size, capacity)
        self._graph = voyager.Index(
            voyager.Space.InnerProduct, size, M=LINKS, ef_construction=BREADTH_OF_BUILDING, random_seed=seed,
            max_elements=max(capacity, 1),
        )  # fmt: skip
        self._known = np.zeros(capacity, np.bool_)  # items that the graph has ever held

    def __len__(self) -> int:
        return len(self._exact)

    def set(self, items: Int64, vectors: Float32) -> None:
        """See :meth:`VectorIndex.set`."""
        vectors = checked_vectors(items, vectors, self.size)
        if not len(items):
            return
        self._know(int(items.max()) + 1)
        back = [item for item in items[self._known[items]].tolist() if item not in self._exact]
        for item in back:
            self._graph.unmark_deleted(item)
        self._graph.add_items(vectors, items.tolist(), num_threads=self.threads)
        self._known[items] = True
        self._exact.set(items, vectors)

    def remove(self, items: Int64) -> None:
        """See :meth:`VectorIndex.remove`."""
        for item in np.unique(items).tolist():
            if item in self._exact:
                self._graph.mark_deleted(item)
        self._exact.remove(items)

    def search(self, query: Float32, k: int, allowed: UInt8 | None = None) -> Ranked:
        """See :meth:`VectorIndex.search`."""
        query = checked_query(query, self.size)
        count = len(self._exact)
        if k < 1 or not count:
            return NOTHING
        passing = count
        if allowed is not None:
            here = self._exact.items
            passing = int(np.count_nonzero(allowed[here[here < len(allowed)]]))
        wanted = min(k, passing)
        look = k + SPARE if passing == count else math.ceil(MARGIN * (k + SPARE) * count / max(passing, 1))
        while look * WIDEST <= count:
            try:
                found = self._graph.query(query, look, query_ef=max(self.breadth, look))[0].astype(np.int64)
            except voyager.RecallError:  # the graph is too torn for so many: look at more, in the end at all
                found = np.zeros(0, np.int64)
            if allowed is not None:
                found = found[found < len(allowed)]
                found = found[allowed[found] > 0]
            if len(found) > wanted:
                ranked = self._exact.among(found, query, len(found))
                if ranked.scores[-1] < ranked.scores[wanted - 1]:  # else more may tie, with lower numbers
                    return Ranked(ranked.items[:k], ranked.scores[:k])
            look *= WIDER
        return self._exact.search(query, k, allowed)

    def scores_of(self, items: Int64, query: Float32) -> Float32:
        """See :meth:`VectorIndex.scores_of`."""
        return self._exact.scores_of(items, query)

    def _know(self, count: int) -> None:
        if count > len(self._known):
            grown = np.zeros(max(count, 2 * len(self._known)), np.bool_)
            grown[: len(self._known)] = self._known
            self._known = grown
