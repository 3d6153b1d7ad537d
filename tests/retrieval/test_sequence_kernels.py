"""What the sequence source does for each event and candidate, against the plain way to say it."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.features.layout import ITEM_BITS
from headwater.retrieval.sequence_kernels import SUMS, gathered, positive_products, usable_events

NOW_S = 1_000
NO_MORE = np.zeros(0, np.float32)


@pytest.mark.parametrize("seed", range(30))
def test_the_latest_usable_events_oldest_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held, room, count = int(rng.integers(1, 12)), int(rng.integers(1, 9)), 6
    known = rng.random(8) < 0.6
    items, kinds = rng.integers(0, 8, held), rng.integers(0, 4, held)
    times = np.sort(rng.integers(0, NOW_S + 50, held))
    times[kinds == 0] = 0
    usable = [
        (item, kind or 3, time or NOW_S, max(NOW_S - (time or NOW_S), 0))
        for item, kind, time in zip(items.tolist(), kinds.tolist(), times.tolist(), strict=True)
        if item < count and known[item]
    ][-room:]
    out = np.full((4, room), -1, np.int64)
    keys = (items | kinds << ITEM_BITS).astype(np.uint32)
    found = usable_events(keys, times.astype(np.uint32), known, count, 3, NOW_S, *out)
    assert [tuple(column) for column in out[:, :found].T.tolist()] == usable


@pytest.mark.parametrize("size", [1, 15, 16, 40, 64])
def test_products_do_not_depend_on_what_else_is_asked(size: int) -> None:
    rng = np.random.default_rng(size)
    vectors, query = rng.standard_normal((50, size)).astype(np.float32), rng.standard_normal(size).astype(np.float32)
    known = rng.random(60) < 0.8
    items = rng.permutation(np.arange(60))
    sums, out = np.full(SUMS, 7.0, np.float32), np.full(60, 9.0, np.float32)
    positive_products(vectors, known, 45, items, query, NO_MORE, sums, out)
    usable = (items < 45) & known[items]
    wanted = np.logaddexp(0.0, vectors[items[usable]].astype(np.float64) @ query)
    np.testing.assert_allclose(out[usable], wanted, rtol=1e-5, atol=1e-6)
    assert (out[~usable] == 0.0).all()
    alone = np.empty(1, np.float32)
    for place in range(0, 60, 7):
        positive_products(vectors, known, 45, items[place : place + 1], query, NO_MORE, sums, alone)
        assert alone[0] == out[place]


def test_something_may_be_added_to_a_product() -> None:
    out = np.empty(3, np.float32)
    vectors, added = np.eye(3, dtype=np.float32), np.array([0.5, -200.0, 200.0], np.float32)
    positive_products(
        vectors, np.ones(3, np.bool_), 3, np.arange(3), vectors[0], added, np.empty(SUMS, np.float32), out
    )
    np.testing.assert_allclose(out, [np.log1p(np.exp(1.5)), 0.0, 200.0], rtol=1e-6)


def test_vectors_of_items_that_are_not_known_are_zeros() -> None:
    vectors = np.random.default_rng(1).standard_normal((30, 20)).astype(np.float32)
    known = np.arange(40) % 3 != 0
    items = np.arange(39, -1, -1)
    out = np.full((40, 20), np.nan, np.float32)
    gathered(vectors, known, 30, items, out)
    for row, item in zip(out, items.tolist(), strict=True):
        assert (row == (vectors[item] if item < 30 and known[item] else 0.0)).all()
