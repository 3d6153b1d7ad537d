"""Small worlds whose right answer is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.learning.deep import RankingRows
from headwater.learning.deep.rows import Histories

SIZE = 8


def crossed(groups: int, size: int, seed: int) -> RankingRows:
    """In each group the row with the largest product of two columns is the positive; alone they say nothing."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((groups * size, 4)).astype(np.float32)
    best = (features[:, 0] * features[:, 1]).reshape(groups, size).argmax(1)
    labels = np.zeros((groups, size), np.float32)
    labels[np.arange(groups), best] = 1.0
    return RankingRows(features, labels.reshape(-1, 1), np.full(groups, size, np.int32))


def attending(groups: int, size: int, seed: int) -> RankingRows:
    """The positive lies in the direction of one recent item of the newest type; features are noise."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((200, SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0.0
    recent = rng.integers(1, 200, (groups, 6))
    recent[: groups // 10, :3] = 0
    types = np.ones((groups, 6), np.int64)
    telling = rng.integers(3, 6, groups)
    types[np.arange(groups), telling] = 2
    items = rng.integers(1, 200, (groups, size))
    near = np.einsum("gse,ge->gs", vectors[items], vectors[recent[np.arange(groups), telling]])
    labels = np.zeros((groups, size), np.float32)
    labels[np.arange(groups), near.argmax(1)] = 1.0
    return RankingRows(
        rng.standard_normal((groups * size, 2)).astype(np.float32), labels.reshape(-1, 1), np.full(groups, size, np.int32),
        histories=Histories(
            vectors, items.ravel(), recent, types, rng.exponential(3_600.0, (groups, 6)).astype(np.float32)
        ),
    )  # fmt: skip


def clicked(groups: int, size: int, seed: int) -> tuple[RankingRows, npt.NDArray[np.float64]]:
    """Clicks that need a look first: who stands at the top is seen, and the old ranker put its own favourites there.

    The label is ``seen(position) · liked(quality)``; the logger orders by a column that likes nothing. Returns the rows and what
    people like (probability of a click when seen).
    """
    rng = np.random.default_rng(seed)
    quality, favourite = rng.standard_normal((2, groups, size))
    order = np.argsort(np.argsort(-(favourite + 0.5 * rng.standard_normal((groups, size))), 1), 1)
    logit = 1.0 * quality - 0.7 * order
    labels = rng.random((groups, size)) < 1.0 / (1.0 + np.exp(-logit))
    features = np.stack([quality, favourite], 2).reshape(-1, 2).astype(np.float32)
    rows = RankingRows(
        features, labels.reshape(-1, 1).astype(np.float32), np.full(groups, size, np.int32),
        position=order.ravel().astype(np.int16),
    )  # fmt: skip
    return rows, quality.ravel()


def top_one(scores: npt.NDArray[np.floating], rows: RankingRows) -> float:
    """Share of the groups of one size whose positive is on top."""
    size = int(rows.groups[0])
    return float(np.mean(scores.reshape(-1, size).argmax(1) == rows.labels.reshape(-1, size).argmax(1)))
