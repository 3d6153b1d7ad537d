"""The choice between the indexes is made by what was measured."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from headwater.retrieval.vectors.choice import choice_file, choose_index, empty_index, read_choice, write_choice
from headwater.retrieval.vectors.exact import ExactIndex
from headwater.retrieval.vectors.hnsw import HnswIndex
from headwater.retrieval.vectors.index import VectorError
from headwater.testing.vector_contract import clustered

VECTORS, QUERIES = clustered(3_000, 16, 1), clustered(30, 16, 2)


def ticking(seconds: list[float]) -> Callable[[], float]:
    """A timer that finds each measurement to have taken the next of ``seconds``, the last one for all others."""
    now, calls = 0.0, 0

    def timer() -> float:
        nonlocal now, calls
        if calls % 2:
            now += seconds[min(calls // 2, len(seconds) - 1)]
        calls += 1
        return now

    return timer


def test_the_quicker_one_wins() -> None:
    slow_scan = [1.0] * len(QUERIES) + [5.0] + [0.1]
    kind, report = choose_index(VECTORS, QUERIES, 10, 0.9, least_items=1_000, timer=ticking(slow_scan))
    assert (kind, report.kind, report.build_s) == ("hnsw", "hnsw", 5.0)
    assert (report.exact.recall, report.exact.p50_ms, report.exact.p95_ms) == pytest.approx((1.0, 1e3, 1e3))
    assert report.hnsw[str(report.breadth)].p50_ms == pytest.approx(100.0)
    assert report.hnsw[str(report.breadth)].recall >= 0.9
    quick_scan = [0.1] * len(QUERIES) + [5.0] + [1.0]
    kind, report = choose_index(VECTORS, QUERIES, 10, 0.9, least_items=1_000, timer=ticking(quick_scan))
    assert (kind, report.breadth) == ("exact", 0)
    assert report.hnsw


def test_who_finds_too_little_loses_however_quick() -> None:
    kind, report = choose_index(VECTORS, QUERIES, 10, 1.1, least_items=1, timer=ticking([1.0] * len(QUERIES) + [0.1]))
    assert kind == "exact"
    assert len(report.hnsw) == 4, "every breadth was tried"
    msgspec.json.encode(report)


def test_few_items_are_scanned() -> None:
    kind, report = choose_index(VECTORS, QUERIES, 10)
    assert (kind, report.hnsw, report.items, report.size, report.queries) == ("exact", {}, 3_000, 16, 30)
    assert 0.0 < report.exact.p50_ms <= report.exact.p95_ms


def test_the_chosen_one_is_made() -> None:
    slow_scan = [1.0] * len(QUERIES) + [5.0] + [0.1]
    chosen = choose_index(VECTORS, QUERIES, 10, 0.9, least_items=1_000, timer=ticking(slow_scan))[1]
    assert str(chosen).startswith(f"hnsw at {chosen.breadth} (3,000 vectors of 16, best 10: exact: recall 1.0000")
    files = write_choice(chosen, "sequence")
    made = empty_index(read_choice(files, "sequence"), 16, 1)
    assert isinstance(made, HnswIndex)
    assert made.breadth == chosen.breadth
    assert isinstance(empty_index(read_choice(files, "als"), 16, 1), ExactIndex)
    with pytest.raises(VectorError, match="Publish the bundle again"):
        read_choice({choice_file("als"): b"{}"}, "als")


def test_without_vectors_there_is_nothing_to_choose() -> None:
    with pytest.raises(VectorError, match="nothing to choose by"):
        choose_index(np.zeros((0, 4), np.float32), QUERIES, 10)
