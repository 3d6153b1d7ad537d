"""The sequence model on MovieLens-1M in several precisions: leave-one-out on everybody's last films, and what training takes.

    python examples/movielens_1m_precision.py movielens-1m 12 float32:7 bf16:7 > precision.json

The folder is that of MovieLens-1M (`sequences.parquet`, `movies.dat`), then come the epochs, then precisions with seeds. One thread; differences are
to the first one, on the same questions. Intervals are 95% of a bootstrap.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from headwater.evaluation.metrics import gains, hits
from headwater.features.content import content_vector
from headwater.learning.sequence.fit import fit_sequence
from headwater.learning.sequence.model import TwoTower
from headwater.learning.sequence.packing import batch_of, tokens_of
from headwater.learning.sequence.warm import read_earlier, take_over
from headwater.learning.sequences import Sequences, by_user
from headwater.retrieval.sequence_inputs import META_FILE, price_input, read_meta
from headwater.schema.items import Item
from headwater.schema.models import SequenceModel

LAST, CONTENT = 60, 64  # films of everybody, numbers of content
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def read(folder: Path) -> tuple[Sequences, Float32]:
    """The last films of everybody, numbered from 1, and what titles and genres say of each."""
    watched = pl.read_parquet(folder / "sequences.parquet").sort("userId", "order")
    watched = watched.group_by("userId", maintain_order=True).tail(LAST)
    films = np.unique(watched["movieId"].to_numpy())
    content = np.zeros((len(films) + 1, CONTENT), np.float32)
    for line in (folder / "movies.dat").read_text(encoding="latin-1").splitlines():
        number, title, genres = line.split("::")
        at = int(np.searchsorted(films, int(number)))
        if at < len(films) and films[at] == int(number):
            content[at + 1] = content_vector(Item(id=number, title=title[:-7], categories=genres.split("|")), CONTENT)
    n = len(watched)
    return by_user(
        watched["userId"].to_numpy().astype(np.int64), np.searchsorted(films, watched["movieId"].to_numpy()) + 1,
        np.ones(n, np.uint8), 1_000 * (1 + watched["order"].to_numpy().astype(np.int64)), np.arange(n), np.ones(n, np.bool_),
    ), content  # fmt: skip


def ranks(files: dict[str, bytes], whole: Sequences, content: Float32) -> Int64:
    """Where the last film of everybody stands, from 1, without those watched before; what ties with it is ahead. 0: training never met it."""
    meta = read_meta(files[META_FILE])
    earlier = read_earlier(files, meta.shape, meta.event_types)
    if earlier is None:
        raise ValueError("the files are of another format than this version writes")
    model = TwoTower(meta.shape, meta.items, 0.0).eval()
    take_over(model, earlier)
    row_of = np.full(len(content), -1, np.int64)
    row_of[earlier.items] = np.arange(meta.items)
    tokens = tokens_of(whole, row_of, 1)
    paid = price_input(np.zeros(meta.items, np.float32))
    made = np.zeros(len(whole.users), np.int64)
    with torch.inference_mode():
        vectors = model.items(torch.from_numpy(content[earlier.items]), torch.from_numpy(paid))
        for users in np.array_split(np.arange(len(whole.users)), 25):
            last = tokens.starts[users + 1] - 1
            start = np.maximum(tokens.starts[users], last - meta.shape.length)
            rows, types, gaps, idle, *_ = (torch.from_numpy(part) for part in batch_of(tokens, start, last - start))
            hidden = model.encoder(vectors[rows], types, gaps, idle)
            asking = hidden[torch.arange(len(users)), torch.from_numpy(last - start - 1)]
            scores = (asking @ vectors.T).numpy()
            for k, user in enumerate(users.tolist()):
                wanted = int(tokens.rows[last[k]])
                if wanted >= 0:
                    own = scores[k, wanted]
                    scores[k, tokens.rows[tokens.starts[user] : last[k]]] = -np.inf
                    made[user] = 1 + int((scores[k] >= own).sum()) - int(scores[k, wanted] >= own)
    return made


def interval(values: Float64) -> list[float]:
    """Mean, and 95% of a thousand draws."""
    random = np.random.default_rng(7)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(1_000)]
    return [round(float(each), 5) for each in (values.mean(), *np.quantile(means, [0.025, 0.975]))]


def main(folder: Path, epochs: int, variants: list[str]) -> dict[str, Any]:
    """Train and ask each of ``variants``."""
    whole, content = read(folder)
    last = np.zeros(len(whole), np.bool_)
    last[whole.starts[1:] - 1] = True
    price = np.zeros(len(content), np.float32)
    report: dict[str, Any] = {
        "users": len(whole.users),
        "events": len(whole),
        "items": len(content) - 1,
        "epochs": epochs,
        "runs": {},
    }
    first: Float64 | None = None
    for variant in variants:
        precision, seed = variant.split(":")
        params = SequenceModel(length=LAST, dropout=0.25, epochs=epochs, patience=epochs, batch_tokens=4_096)
        params = msgspec.convert({**msgspec.to_builtins(params), "precision": precision}, SequenceModel)
        began = time.process_time()
        files, fitted = fit_sequence(
            whole.where(~last), content, price, params, event_types=("watch",), seed=int(seed), threads=1
        )  # fmt: skip
        seconds = time.process_time() - began
        found = ranks(files, whole, content)
        ndcg = gains(found)
        first = ndcg if first is None else first
        report["runs"][variant] = {
            "ndcg@10": interval(ndcg), "hr@10": interval(hits(found)), "ndcg@10_over_first": interval(ndcg - first),
            "cpu_s": round(seconds, 1), "fit": msgspec.to_builtins(fitted),
        }  # fmt: skip
    return report


if __name__ == "__main__":
    made = main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(made)))
