"""Sequences whose right answer is known: everybody walks the same circle of items."""

from __future__ import annotations

import numpy as np

from headwater.learning.sequences import Sequences, by_user
from headwater.schema.models import SequenceModel

TYPES = ("click", "view")
SMALL = SequenceModel(
    size=16,
    heads=2,
    blocks=2,
    length=8,
    epochs=8,
    batch_tokens=256,
    learning_rate=0.01,
    dropout=0.0,
    most_minutes=5.0,
    precision="float32",
)


def circle(users: int, items: int, seed: int, *, views: float = 0.0) -> Sequences:
    """``users`` walk on from anywhere in a shuffled circle of ``items``; a share of the events are views, which are no targets."""
    random = np.random.default_rng(seed)
    order = random.permutation(items) + 1
    user, item, time_ms = [], [], []
    for u in range(1, users + 1):
        start, length = int(random.integers(items)), int(random.integers(3, 20))
        user += [u] * length
        item += [int(order[(start + k) % items]) for k in range(length)]
        time_ms += (1_000_000 + np.cumsum(random.integers(0, 5_000_000, length))).tolist()
    n = len(user)
    viewed = random.random(n) < views
    return by_user(
        np.array(user),
        np.array(item),
        np.where(viewed, 2, 1).astype(np.uint8),
        np.array(time_ms),
        np.arange(n),
        ~viewed,
    )


def bare(
    items: int, content: int = 8
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Content and prices of a catalogue of which nothing is known."""
    return np.zeros((items + 1, content), np.float32), np.zeros(items + 1, np.float32)
