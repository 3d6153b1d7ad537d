"""Both vector indexes keep the contract; the exact one is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.retrieval.vectors.exact import ExactIndex
from headwater.retrieval.vectors.hnsw import HnswIndex
from headwater.retrieval.vectors.index import VectorIndex
from headwater.testing.vector_contract import VectorIndexContract, clustered, numbers


class TestExact(VectorIndexContract):
    recall = 1.0

    def make(self, size: int) -> VectorIndex:
        return ExactIndex(size, 8)


class TestHnsw(VectorIndexContract):
    def make(self, size: int) -> VectorIndex:
        return HnswIndex(size, breadth=200, capacity=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 1 << 30), st.integers(1, 400), st.integers(1, 90), st.integers(1, 60),
    st.sampled_from([1e-20, 1.0, 1e15]), st.booleans(),
)  # fmt: skip
def test_codes_never_cost_an_answer(seed: int, count: int, size: int, k: int, scale: float, wild: bool) -> None:
    """Whatever the vectors: the items are those that sorting all inner products gives."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, size))
    if wild:  # a few numbers of each vector, and a few vectors, drown the others: codes are coarse then
        vectors = np.exp(3.0 * vectors) * np.exp(2.0 * rng.normal(size=(count, 1))) * rng.choice([-1, 1], (count, size))
    made = (scale * vectors).astype(np.float32)
    query = rng.normal(size=size).astype(np.float32)
    index = ExactIndex(size)
    index.set(numbers(count), made)
    exact = (made.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    ranked = index.search(query, k)
    order = np.lexsort((np.arange(count), -exact))[:k]
    reach = np.abs(made.astype(np.float64)) @ np.abs(query.astype(np.float64))
    # one order of summation against another: equal but for the last bits
    np.testing.assert_allclose(ranked.scores, exact[order], atol=1e-6 * reach.max(), rtol=1e-5)
    kth = exact[order[-1]]
    clear = np.flatnonzero(exact > kth + 1e-5 * reach)
    assert np.isin(clear + 1, ranked.items).all()


def test_one_seed_gives_one_graph() -> None:
    vectors, queries = clustered(4_000, 16, 1), clustered(20, 16, 2)
    one, other = HnswIndex(16, breadth=20), HnswIndex(16, breadth=20)
    one.set(numbers(4_000), vectors)
    other.set(numbers(4_000), vectors)
    for query in queries:
        first, second = one.search(query, 10), other.search(query, 10)
        assert first.items.tolist() == second.items.tolist()
        assert first.scores.tolist() == second.scores.tolist()


def test_the_graph_is_used_where_it_pays() -> None:
    index = HnswIndex(16, breadth=50)
    index.set(numbers(4_000), clustered(4_000, 16, 1))

    def refuse(*_: object) -> None:
        raise AssertionError("looked at everything")

    index._exact.search = refuse  # type: ignore[method-assign, assignment]
    assert len(index.search(clustered(1, 16, 2)[0], 10)) == 10
    half = (np.arange(4_001) % 2).astype(np.uint8)
    assert len(index.search(clustered(1, 16, 2)[0], 10, half)) == 10
    with pytest.raises(AssertionError):
        index.search(clustered(1, 16, 2)[0], 10, (np.arange(4_001) % 400 == 0).astype(np.uint8))
