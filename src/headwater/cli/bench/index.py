"""``headwater bench index``: exact and HNSW search of the same vectors, and which of the two is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.bench.report import SeedOption, table
from headwater.cli.options import JsonOption, print_json
from headwater.schema.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLUSTERS = 500
SPREAD = 0.7  # of a vector around its centre, whose own numbers have a standard deviation of 1


def register(app: typer.Typer) -> None:
    """Add ``index``."""
    app.command("index")(index)


def index(
    items: Annotated[str, typer.Option(metavar="N[,N…]", help="Numbers of vectors.")] = "20000,200000",
    dim: Annotated[int, typer.Option("--dim", min=2, max=1_024, help="Size of a vector.")] = 64,
    k: Annotated[int, typer.Option("-k", min=1, max=5_000, help="How many are asked for.")] = 100,
    queries: Annotated[int, typer.Option(min=10, help="Queries that are timed.")] = 300,
    recall: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the best k that must be found.")] = 0.99,
    threads: Annotated[int, typer.Option(min=1, help="Threads that build a graph.")] = 1,
    seed: SeedOption = 7,
    as_json: JsonOption = False,
) -> None:
    """Search generated vectors both ways, measure recall and latency of one query on one thread, and choose.

    The vectors lie in 500 clusters, the queries beside vectors. Building a graph of a million takes a while.

    Example: headwater bench index --items 20000,200000 --dim 64 --json
    """
    from headwater.cli.bench.measure import machine, versions
    from headwater.retrieval.vectors.choice import choose_index

    found: dict[str, Any] = {}
    for count in _numbers(items):
        vectors, asked = clustered(count, dim, queries, seed)
        found[str(count)] = choose_index(vectors, asked, k, recall, seed=seed, threads=threads)[1]
    figures = {
        "dim": dim, "k": k, "queries": queries, "recall_needed": recall, "vectors": f"{CLUSTERS} clusters, spread {SPREAD}",
        "threads": threads, "choices": found, "seed": seed, "machine": machine(), "versions": versions(),
    }  # fmt: skip
    if as_json:
        print_json(figures)
        return
    for number, choice in found.items():
        ways = {"exact": choice.exact} | {f"hnsw, breadth {breadth}": way for breadth, way in choice.hnsw.items()}
        rows = {
            name: f"recall {way.recall:.4f}, p50 {way.p50_ms:.3f} ms, p95 {way.p95_ms:.3f} ms"
            for name, way in ways.items()
        }
        table(f"{int(number):,} items", {**rows, "built in (s)": choice.build_s, "chosen": choice.kind})


def clustered(
    count: int, size: int, queries: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """``float32[count, size]`` vectors in clusters and ``float32[queries, size]`` queries that lie beside some of them."""
    import numpy as np

    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLUSTERS, size), np.float32)
    vectors = rng.standard_normal((count, size), np.float32)
    vectors *= np.float32(SPREAD)
    vectors += centres[rng.integers(CLUSTERS, size=count)]
    asked = vectors[rng.integers(count, size=queries)] + np.float32(0.3) * rng.standard_normal(
        (queries, size), np.float32
    )
    return vectors, asked


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"--items {text}: Expected numbers like 20000,200000")
    return [int(part) for part in parts]
