"""Which index serves a set of vectors: both are measured on the vectors themselves, and the quicker one that finds enough wins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from headwater.retrieval.vectors.exact import ExactIndex
from headwater.retrieval.vectors.hnsw import HnswIndex
from headwater.retrieval.vectors.index import Float32, VectorError, VectorIndex

Kind = Literal["exact", "hnsw"]

BREADTHS = (100, 200, 400, 800)
COLD = 1.5  # a graph has to be so many times as quick: between two requests its nodes leave the cache, the codes of a scan stream in
LEAST_ITEMS = 20_000  # fewer are scanned in a tenth of a millisecond: no graph is worth its building


class Measured(Struct, frozen=True, kw_only=True):
    """One way to search: ``recall`` is the mean share of the true best k that it finds, times are of one query on one thread."""

    recall: float
    p50_ms: float
    p95_ms: float


class IndexChoice(Struct, frozen=True, kw_only=True):
    """What was measured, and what follows. ``hnsw`` by breadth; empty when there are too few items to build a graph for."""

    kind: Kind
    breadth: int  # of the chosen graph; 0: exact
    items: int
    size: int
    k: int
    queries: int
    recall_needed: float
    exact: Measured
    hnsw: dict[str, Measured]
    build_s: float

    def __str__(self) -> str:
        ways = {"exact": self.exact} | {f"hnsw at {breadth}": way for breadth, way in self.hnsw.items()}
        shown = "; ".join(f"{name}: recall {way.recall:.4f}, p50 {way.p50_ms:.3f} ms" for name, way in ways.items())
        chosen = f"{self.kind} at {self.breadth}" if self.breadth else self.kind
        return f"{chosen} ({self.items:,} vectors of {self.size}, best {self.k}: {shown})"


class ChosenIndex(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle says of the vectors of a source: no measurements, so that one training gives one bundle."""

    kind: Kind
    breadth: Annotated[int, Meta(ge=0, le=100_000)]


EXACT = ChosenIndex(kind="exact", breadth=0)


def choose_index(
    vectors: Float32, queries: Float32, k: int, recall: float = 0.99, *, seed: int = 1, threads: int = 1,
    least_items: int = LEAST_ITEMS, timer: Callable[[], float] = time.perf_counter,
) -> tuple[Kind, IndexChoice]:  # fmt: skip
    """Measure exact and HNSW search of ``vectors`` float32[n, d] with ``queries`` float32[m, d]; the quicker by its median wins.
    HNSW has to be quicker by ``COLD``.

    HNSW counts at the least breadth that finds ``recall`` of the best ``k``. Equal inner products count as found.

    Raises:
        VectorError: no vectors, no queries, or sizes that do not fit.
    """
    if not len(vectors) or not len(queries):
        raise VectorError(f"there is nothing to choose by: {len(vectors)} vectors, {len(queries)} queries")
    items = np.arange(1, len(vectors) + 1, dtype=np.int64)
    exact = ExactIndex(vectors.shape[1], len(vectors) + 1)
    exact.set(items, vectors)
    lowest, exact_times = _lowest(exact, queries, k, timer)
    measured = Measured(recall=1.0, **exact_times)
    tried: dict[str, Measured] = {}
    kind: Kind = "exact"
    breadth, build_s = 0, 0.0
    if len(vectors) >= least_items:
        graph = HnswIndex(vectors.shape[1], seed=seed, threads=threads, capacity=len(vectors) + 1)
        began = timer()
        graph.set(items, vectors)
        build_s = timer() - began
        for graph.breadth in BREADTHS:
            found, times = _recall(graph, queries, k, lowest, timer)
            tried[str(graph.breadth)] = Measured(recall=found, **times)
            if found >= recall:
                if COLD * times["p50_ms"] < measured.p50_ms:
                    kind, breadth = "hnsw", graph.breadth
                break
    return kind, IndexChoice(
        kind=kind, breadth=breadth, items=len(vectors), size=vectors.shape[1], k=k, queries=len(queries),
        recall_needed=recall, exact=measured, hnsw=tried, build_s=build_s,
    )  # fmt: skip


def choice_file(source: str) -> str:
    """The file of a bundle that says how the vectors of ``source`` are searched."""
    return f"{source}_index.json"


def write_choice(choice: IndexChoice, source: str) -> dict[str, bytes]:
    """The file for what was chosen."""
    return {choice_file(source): msgspec.json.encode(ChosenIndex(kind=choice.kind, breadth=choice.breadth))}


def read_choice(files: Mapping[str, bytes], source: str) -> ChosenIndex:
    """What was chosen for ``source`` when the bundle was made; exact search where nothing was.

    Raises:
        VectorError: the file cannot be read.
    """
    name = choice_file(source)
    if name not in files:
        return EXACT
    try:
        return msgspec.json.decode(files[name], type=ChosenIndex)
    except msgspec.MsgspecError as error:
        raise VectorError(f"{name} cannot be read: {error}. Publish the bundle again.") from error


def empty_index(chosen: ChosenIndex, size: int, capacity: int) -> VectorIndex:
    """An index of the chosen kind without items, with room for ``capacity`` numbers."""
    if chosen.kind == "hnsw":
        return HnswIndex(size, breadth=chosen.breadth, capacity=capacity)
    return ExactIndex(size, capacity)


def _lowest(
    index: VectorIndex, queries: Float32, k: int, timer: Callable[[], float]
) -> tuple[Float32, dict[str, float]]:
    """The score that an answer of each query must reach to be among the best k."""
    index.search(queries[0], k)  # compiled and warm
    lowest, times = np.empty(len(queries), np.float32), []
    for number, query in enumerate(queries):
        began = timer()
        ranked = index.search(query, k)
        times.append(timer() - began)
        lowest[number] = ranked.scores[-1]
    return lowest, _percentiles(times)


def _recall(
    index: VectorIndex, queries: Float32, k: int, lowest: Float32, timer: Callable[[], float]
) -> tuple[float, dict[str, float]]:
    index.search(queries[0], k)
    shares, times = [], []
    for query, least in zip(queries, lowest, strict=True):
        began = timer()
        ranked = index.search(query, k)
        times.append(timer() - began)
        shares.append(float((ranked.scores >= least).sum()) / min(k, len(index)))
    return float(np.mean(shares)), _percentiles(times)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, (50, 95))
    return {"p50_ms": float(p50), "p95_ms": float(p95)}
