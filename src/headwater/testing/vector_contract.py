"""The contract of a vector index: inherit :class:`VectorIndexContract`, say how to make one, run pytest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from headwater.retrieval.vectors.index import Float32, Int64, VectorError, VectorIndex

SIZE = 12


def clustered(count: int, size: int, seed: int, *, clusters: int = 40, spread: float = 0.6) -> Float32:
    """Vectors as catalogues have them, float32[count, size]: groups of like items, not noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, size))
    made = centres[rng.integers(clusters, size=count)] + spread * rng.normal(size=(count, size))
    return made.astype(np.float32)


def numbers(count: int, start: int = 1) -> Int64:
    return np.arange(start, start + count, dtype=np.int64)


class VectorIndexContract:
    """Every implementation of :class:`~headwater.retrieval.vectors.index.VectorIndex` passes these tests."""

    recall = 0.95  # the least share of the best 20 that is found on average

    def make(self, size: int) -> VectorIndex:
        raise NotImplementedError

    def filled(self, count: int, seed: int = 3) -> tuple[VectorIndex, Float32]:
        """An index of items ``1 … count``, and their vectors with a row of zeros for item 0."""
        vectors = clustered(count, SIZE, seed)
        index = self.make(SIZE)
        index.set(numbers(count), vectors)
        return index, np.concatenate([np.zeros((1, SIZE), np.float32), vectors])

    def test_it_finds_the_largest_inner_products(self) -> None:
        index, vectors = self.filled(3_000)
        found = 0
        for query in clustered(40, SIZE, 5):
            ranked = index.search(query, 20)
            scores = vectors.astype(np.float64) @ query.astype(np.float64)
            assert len(ranked) == 20 == len(np.unique(ranked.items))
            assert (np.diff(ranked.scores) <= 0).all()
            np.testing.assert_allclose(ranked.scores, scores[ranked.items], rtol=1e-5, atol=1e-5)
            found += len(set(ranked.items.tolist()) & set((1 + np.argsort(-scores[1:])[:20]).tolist()))
        assert found / (40 * 20) >= self.recall

    def test_scores_do_not_depend_on_the_company(self) -> None:
        index, vectors = self.filled(700)
        alone = self.make(SIZE)
        alone.set(numbers(1, 5), vectors[5:6])
        query = vectors[5]
        ranked = index.search(query, 700)
        assert ranked.scores[ranked.items == 5].tolist() == alone.search(query, 1).scores.tolist()

    def test_ties_are_in_the_order_of_item_numbers(self) -> None:
        index = self.make(SIZE)
        same = np.tile(clustered(1, SIZE, 1), (50, 1))
        index.set(np.array([*range(100, 50, -1)], np.int64), same)
        index.set(numbers(30), -same[:30])
        assert index.search(same[0], 7).items.tolist() == [51, 52, 53, 54, 55, 56, 57]

    def test_live_items(self) -> None:
        index, vectors = self.filled(2_000)
        query = 3.0 * vectors[7]
        first = int(index.search(query, 1).items[0])
        index.remove(np.array([first, 99_999], np.int64))
        assert len(index) == 1_999
        assert first not in index.search(query, 500).items
        index.remove(np.array([first], np.int64))
        assert len(index) == 1_999
        index.set(np.array([5_000], np.int64), 9.0 * vectors[7:8])
        assert int(index.search(query, 1).items[0]) == 5_000
        index.set(np.array([5_000], np.int64), -9.0 * vectors[7:8])  # a new vector takes the place of the old one
        assert 5_000 not in index.search(query, 500).items
        assert int(index.search(-query, 1).items[0]) == 5_000
        index.set(np.array([first], np.int64), 20.0 * vectors[7:8])  # it comes back
        assert int(index.search(query, 1).items[0]) == first
        assert len(index) == 2_001

    def test_it_follows_a_long_script_of_changes(self) -> None:
        rng = np.random.default_rng(11)
        index = self.make(SIZE)
        held: dict[int, npt.NDArray[np.float32]] = {}
        for _ in range(60):
            chosen = np.unique(rng.integers(1, 300, size=20)).astype(np.int64)
            if rng.random() < 0.6:
                vectors = clustered(len(chosen), SIZE, int(rng.integers(1 << 30)))
                index.set(chosen, vectors)
                held.update(zip(chosen.tolist(), vectors, strict=True))
            else:
                index.remove(chosen)
                for item in chosen.tolist():
                    held.pop(item, None)
            assert len(index) == len(held)
            query = clustered(1, SIZE, int(rng.integers(1 << 30)))[0]
            ranked = index.search(query, 400)
            assert sorted(ranked.items.tolist()) == sorted(held)
            for item, score in zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True):
                assert score == pytest.approx(float(held[item].astype(np.float64) @ query), rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize("share", [0.9, 0.3, 0.02, 0.004])
    def test_a_filter_never_starves_the_answer(self, share: float) -> None:
        index, vectors = self.filled(2_500)
        rng = np.random.default_rng(2)
        allowed = (rng.random(2_501) < share).astype(np.uint8)
        left = np.flatnonzero(allowed[1:]) + 1
        for query in clustered(10, SIZE, 8):
            ranked = index.search(query, 30, allowed)
            assert len(ranked) == min(30, len(left))
            assert allowed[ranked.items].all()
            scores = vectors[left] @ query
            best = set(left[np.argsort(-scores)[:30]].tolist())
            assert len(best & set(ranked.items.tolist())) >= 0.8 * len(ranked)

    def test_a_filter_of_the_best_leaves_the_others(self) -> None:
        """The worst case of a graph: the whole neighbourhood of the query is barred."""
        index, vectors = self.filled(2_500)
        query = vectors[9]
        allowed = np.ones(2_501, np.uint8)
        order = 1 + np.argsort(-(vectors[1:] @ query))
        allowed[order[:2_000]] = 0
        ranked = index.search(query, 40, allowed)
        assert len(ranked) == 40
        assert allowed[ranked.items].all()

    def test_a_filter_may_be_shorter_than_the_item_numbers(self) -> None:
        index, _ = self.filled(50)
        ranked = index.search(clustered(1, SIZE, 4)[0], 50, np.ones(11, np.uint8))
        assert sorted(ranked.items.tolist()) == [*range(1, 11)]
        assert len(index.search(clustered(1, SIZE, 4)[0], 5, np.zeros(51, np.uint8))) == 0
        assert len(index.search(clustered(1, SIZE, 4)[0], 5, np.zeros(0, np.uint8))) == 0

    def test_an_empty_index_answers_nothing(self) -> None:
        index = self.make(SIZE)
        assert len(index) == 0
        assert len(index.search(np.ones(SIZE, np.float32), 5)) == 0
        index.set(np.zeros(0, np.int64), np.zeros((0, SIZE), np.float32))
        index.remove(numbers(3))
        index.set(numbers(2), clustered(2, SIZE, 1))
        index.remove(numbers(2))
        assert len(index.search(np.ones(SIZE, np.float32), 5)) == 0
        assert len(self.filled(20)[0].search(np.ones(SIZE, np.float32), 0)) == 0

    def test_vectors_and_queries_of_zeros(self) -> None:
        index = self.make(SIZE)
        index.set(numbers(5), np.zeros((5, SIZE), np.float32))
        assert index.search(np.ones(SIZE, np.float32), 3).items.tolist() == [1, 2, 3]
        assert self.filled(20)[0].search(np.zeros(SIZE, np.float32), 3).items.tolist() == [1, 2, 3]

    def test_what_does_not_fit_is_refused_and_changes_nothing(self) -> None:
        index, vectors = self.filled(30)
        wrong = np.ones((2, SIZE), np.float32)
        for items, given, words in (
            (numbers(2), np.ones((2, SIZE + 1), np.float32), "shape"),
            (numbers(3), wrong, "shape"),
            (np.array([0, 1], np.int64), wrong, "no item 0"),
            (np.array([4, 4], np.int64), wrong, "twice"),
            (numbers(2), np.where(np.arange(SIZE) == 3, np.nan, wrong).astype(np.float32), "item 1 is not finite"),
        ):
            with pytest.raises(VectorError, match=words):
                index.set(items, given)
        with pytest.raises(VectorError, match="shape"):
            index.search(np.ones(SIZE - 1, np.float32), 3)
        with pytest.raises(VectorError, match="not finite"):
            index.search(np.full(SIZE, np.inf, np.float32), 3)
        assert len(index) == 30
        assert index.search(vectors[3], 30).scores.max() == pytest.approx(float((vectors @ vectors[3]).max()), rel=1e-5)
